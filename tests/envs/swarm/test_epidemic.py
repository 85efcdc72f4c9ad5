"""The epidemic by hand, and how fast N agents approach infinitely many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.core import InputError
from envs.swarm.epidemic import SIS
from envs.swarm.finite import FiniteState
from envs.swarm.finite_limit import FiniteLimit
from envs.testing import check_env
from envs.world import TensorEnv
from tests.envs.swarm.swarm_checks import assert_rows_alone_equal_rows_in_a_batch

HOME_4 = torch.tensor([[0.6, 0.4], [0.6, 0.4]])  # whatever they see, agents stay at home with probability 0.4


def infected_shares(world: SIS, rule: Tensor, rows: int, steps: int, seed: int = 0) -> Tensor:
    """The share of infected at t = 0 … steps, [steps + 1, rows], when all agents follow the rule [Y,U]."""
    generator = torch.Generator().manual_seed(seed)
    state = world.initial(world.initial_noise(rows, generator))
    shares = [world.mean_field(state)[:, 1]]
    for _ in range(steps):
        home = torch.rand(state.seen.shape, generator=generator) < rule[state.seen, 1]
        state = world.transition(state, home.long().unsqueeze(-1), world.noise(rows, generator)).state
        shares.append(world.mean_field(state)[:, 1])
    return torch.stack(shares)


def test_a_step_by_hand() -> None:
    world = SIS(4, cost_infected=1.0, cost_isolated=0.5)
    state = FiniteState(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 1]]))
    action = torch.tensor([[[0], [1], [0], [1]]])

    def infected(levels: list[float]) -> list[int]:
        noise = torch.tensor([[[level, 0.5] for level in levels]])
        after, reward, terminated = world.transition(state, action, noise)
        assert terminated is None
        assert reward.flatten().tolist() == [-(2 * 1.0 + 2 * 0.5) / 4] * 4
        assert torch.equal(after.seen, after.state)
        return after.state[0].tolist()

    # With half infected a susceptible one outside stays well up to 1 - 0.8 / 2; the infected recover up to 0.3.
    assert infected([0.59, 0.99, 0.29, 0.29]) == [0, 0, 0, 0]
    assert infected([0.61, 0.99, 0.31, 0.31]) == [1, 0, 1, 1]


def test_agents_see_their_state_wrongly_at_the_given_rate_and_the_critic_the_shares() -> None:
    env = TensorEnv(SIS(1000, error=0.2), 20)
    obs = env.reset(0)
    assert env.spec.observation_sizes[0] == 2, "no clock"
    assert obs.state.shape == (20, 1 + 2)
    assert obs.state[:, 2].mean().item() == pytest.approx(0.4, abs=0.02)
    assert (obs.agent.sum(-1) == 1).all()
    assert obs.agent[..., 1].mean().item() == pytest.approx(0.4 * 0.8 + 0.6 * 0.2, abs=0.02)


@pytest.mark.parametrize("steps", [0, 3])
def test_without_contact_the_law_of_large_numbers_is_exact(steps: int) -> None:
    """E|mu^N - mu|² = (1 - |mu|²)/N for independent agents."""
    agents, rows = 50, 40_000
    world = SIS(agents, infection=0.0)
    ill = 0.4 * 0.7**steps
    share = infected_shares(world, HOME_4, rows, steps)[-1]
    square = 2 * (share - ill).square()  # both states are off by the same
    expected = (1 - ill**2 - (1 - ill) ** 2) / agents
    assert square.mean().item() == pytest.approx(expected, rel=0.03)
    assert square.std().item() / rows**0.5 < 0.01 * expected


def test_chaos_propagates_at_the_known_rates() -> None:
    """From 30 to 1000 agents |mu^N - mu| falls like N^(-1/2), the covariance of two agents like 1/N."""
    sizes, rows, steps = (30, 100, 300, 1000), 1000, 30
    limit = FiniteLimit(SIS(horizon=steps)).flow(HOME_4.double().expand(steps, 2, 2))[:, 1]
    distance, covariance = [], []
    for n in sizes:
        share = infected_shares(SIS(n), HOME_4, rows, steps)[-1].double()
        distance.append((share - limit[-1]).abs().mean().item())
        p = share.mean()
        # Var mu^N = p (1 - p) / N + (1 - 1/N) Cov, for agents that are interchangeable.
        covariance.append(((share.var() - p * (1 - p) / n) * n / (n - 1)).item())
    slopes = [np.polyfit(np.log(sizes), np.log(values), 1)[0] for values in (distance, covariance)]
    assert -0.65 <= slopes[0] <= -0.40
    assert -1.4 <= slopes[1] <= -0.8


def test_agents_stay_with_copies_of_themselves_in_a_swarm_of_infinitely_many() -> None:
    """With the same noise, the share of agents who differ from a copy that meets mu instead falls like N^(-1/2)."""
    sizes, rows, steps = (30, 100, 300, 1000), 200, 20
    limit = FiniteLimit(SIS(horizon=steps)).flow(HOME_4.double().expand(steps, 2, 2))[:, 1].tolist()
    apart = []
    for n in sizes:
        world, generator = SIS(n), torch.Generator().manual_seed(0)
        state = world.initial(world.initial_noise(rows, generator))
        copy = state.state
        for t in range(steps):
            home = torch.rand(rows, n, generator=generator) < 0.4
            noise = world.noise(rows, generator)
            infected = torch.where(copy == 1, 1 - world.recovery, world.infection * limit[t] * ~home)
            copy = (noise[..., 0] >= 1 - infected).long()
            state = world.transition(state, home.long().unsqueeze(-1), noise).state
        apart.append((state.state != copy).double().mean().item())
    assert -0.65 <= np.polyfit(np.log(sizes), np.log(apart), 1)[0] <= -0.40


def test_a_large_swarm_follows_the_limit_and_earns_its_value() -> None:
    world = SIS(200_000, horizon=10, error=0.1)
    limit, rule = FiniteLimit(world), torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    rules = rule.double().expand(10, 2, 2)
    shares = infected_shares(world, rule, 2, 10)
    assert (shares - limit.flow(rules)[:, 1:]).abs().max() < 0.01
    env = TensorEnv(world, 2)
    obs, total, generator = env.reset(0), torch.zeros(2), torch.Generator().manual_seed(0)
    for _ in range(10):
        home = torch.rand(obs.agent.shape[:2], generator=generator) < rule[obs.agent[..., 1].long(), 1]
        step = env.step(home.long().unsqueeze(-1))
        obs, total = step.obs, total + step.reward[:, 0, 0]
    assert total.mean().item() == pytest.approx(limit.value(rules).item(), abs=0.03)


def test_the_values_in_the_description_are_exact() -> None:
    limit = FiniteLimit(SIS(horizon=6))
    best = limit.brute_force()
    assert best.value == pytest.approx(-2.5229, abs=5e-5)
    assert best.rules[:, 0].argmax(-1).tolist() == [1, 1, 1, 0, 0, 0], "the susceptible stay at home at first"
    assert best.rules[:, 1].argmax(-1).tolist() == [0] * 6, "the infected never do"
    careless, careful = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]]).double()
    assert limit.value(careless.expand(6, 2, 2)).item() == pytest.approx(-3.1764, abs=5e-5)
    assert limit.value(careful.expand(6, 2, 2)).item() == pytest.approx(-3.5882, abs=5e-5)


def test_the_contracts_hold_and_rows_alone_equal_rows_in_a_batch() -> None:
    check_env(lambda rows: TensorEnv(SIS(5, 7, error=0.1), rows), steps=30)
    assert_rows_alone_equal_rows_in_a_batch(SIS(50, error=0.1))


def test_the_picture_shows_who_is_infected() -> None:
    world = SIS(10)
    pictures = [world.frame(FiniteState(*[torch.full((1, 10), ill)] * 2)) for ill in (0, 1)]
    assert pictures[0].shape == (400, 400, 3)
    assert (pictures[0] != pictures[1]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"agents": 1}, "at least two agents; got agents=1"),
        ({"horizon": 0}, "at least 1 step"),
        ({"infection": 1.2}, "infection is a probability"),
        ({"infected": [0.5, 1.5]}, "infected is a probability between 0 and 1; got 1.5"),
        ({"infected": []}, "start must hold probabilities"),
        ({"error": -0.1}, "error is a probability"),
        ({"cost_isolated": -1.0}, "cost_isolated must not be negative"),
    ],
)
def test_bad_arguments_are_input_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SIS(**arguments)
