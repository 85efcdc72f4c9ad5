"""The exact limit of finite swarms: by hand, against enumeration, and in closed loop."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.core import InputError
from envs.swarm.epidemic import SIS
from envs.swarm.finite import FiniteSwarm
from envs.swarm.finite_limit import FiniteLimit
from envs.testing import check_env
from envs.world import TensorEnv
from tests.envs.swarm.swarm_checks import assert_rows_alone_equal_rows_in_a_batch


class Crowd(FiniteSwarm):
    """Three rooms, of which agents see only whether they are in the last; they stay or go on, and dislike crowds."""

    def __init__(self, agents: int = 10, horizon: int = 4):
        start, sees = [0.7, 0.2, 0.1], [[1.0, 0.0], [1.0, 0.0], [0.2, 0.8]]
        super().__init__(agents, horizon, start=start, sees=sees, actions=2)

    def kernel(self, mu: Tensor) -> Tensor:
        stay = torch.eye(3, dtype=mu.dtype).expand(*mu.shape[:-1], 3, 3)
        # The fuller the next room, the harder it is to enter.
        enter = (1 - mu.roll(-1, -1)).unsqueeze(-1)
        go = enter * stay.roll(1, -1) + (1 - enter) * stay
        return torch.stack([stay, go], -2)

    def payoff(self, mu: Tensor) -> Tensor:
        return torch.stack([-mu, -mu - 0.05], -1)


def test_one_step_of_the_limit_by_hand() -> None:
    limit = FiniteLimit(SIS(infection=0.8, recovery=0.3, error=0.1))
    rule = torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64)
    after, reward = limit.step(torch.tensor([0.6, 0.4], dtype=torch.float64), rule)
    home_well, home_ill = 0.9 * 0.75, 0.1 * 0.75
    infected = 0.6 * (1 - home_well) * 0.8 * 0.4 + 0.4 * 0.7
    assert after.tolist() == pytest.approx([1 - infected, infected], rel=1e-12)
    assert reward.item() == pytest.approx(-0.4 - 0.5 * (0.6 * home_well + 0.4 * home_ill), rel=1e-12)


@pytest.mark.parametrize("world", [SIS(horizon=4, error=0.15), Crowd()])
def test_brute_force_finds_the_best_of_all_deterministic_sequences(world: FiniteSwarm) -> None:
    limit = FiniteLimit(world, discount=0.9)
    rules = limit.deterministic_rules()
    assert len({tuple(rule.flatten().tolist()) for rule in rules}) == 4
    every = torch.stack([torch.stack(sequence) for sequence in itertools.product(rules, repeat=4)])
    values = limit.value(every)
    best = limit.brute_force()
    assert best.value == pytest.approx(values.max().item(), rel=1e-12)
    assert limit.value(best.rules).item() == pytest.approx(best.value, rel=1e-12)
    torch.testing.assert_close(best.mu, limit.flow(best.rules))
    assert values.max() > values[[0, 85, 170, 255]].max() + 1e-3, "no single rule is best throughout"


@pytest.mark.parametrize("world", [SIS(horizon=6), SIS(horizon=5, error=0.15, cost_isolated=0.2)])
def test_value_iteration_on_a_grid_agrees_with_brute_force(world: SIS) -> None:
    limit = FiniteLimit(world)
    best, policy = limit.brute_force(), limit.on_grid()
    assert policy.value == pytest.approx(best.value, abs=1e-4)
    assert limit.follow(policy).value == pytest.approx(best.value, abs=1e-4)
    assert limit.follow(policy).value <= best.value + 1e-12


def test_the_best_is_found_by_brute_force_or_on_a_grid_where_one_of_them_can() -> None:
    short, long = FiniteLimit(SIS(horizon=6)), FiniteLimit(SIS(horizon=30))
    best = short.best()
    assert best is not None
    assert torch.equal(best.rules, short.brute_force().rules)
    best = long.best()
    assert best is not None
    assert best.value == pytest.approx(long.on_grid(16_001).value, abs=1e-3)
    assert best.value == long.value(best.rules).item(), "a value that is reached"
    assert FiniteLimit(Crowd(horizon=30)).best() is None


def test_from_starts_drawn_by_chance_an_open_loop_loses_value() -> None:
    """A closed loop answers to what it sees; one sequence of rules for all starts cannot."""
    world = SIS(horizon=5, infected=[0.02, 0.5, 0.98])
    limits = [FiniteLimit(world, start=start) for start in range(3)]
    closed = sum(limit.follow(limit.on_grid()).value for limit in limits) / 3
    best_open = float(torch.stack([limit.all_values() for limit in limits]).mean(0).max())
    assert closed > best_open + 0.02
    alone = [float(FiniteLimit(SIS(horizon=5, infected=share)).all_values().max()) for share in (0.02, 0.5, 0.98)]
    assert closed == pytest.approx(sum(alone) / 3, abs=1e-4)


def test_a_swarm_s_agents_share_one_of_several_starts() -> None:
    world, starts = SIS(2000, infected=[0.1, 0.6, 0.9]), torch.tensor([0.1, 0.6, 0.9])
    state = world.initial(world.initial_noise(600, torch.Generator().manual_seed(0)))
    share = world.mean_field(state)[:, 1:]
    nearest = (share - starts).abs().min(-1)
    assert nearest.values.max() < 0.05
    assert nearest.indices.bincount(minlength=3).tolist() == pytest.approx([200] * 3, abs=45)


def test_a_closed_loop_and_its_rules_written_down_have_exactly_the_same_value() -> None:
    limit = FiniteLimit(SIS(horizon=30, error=0.1), discount=0.97)

    def smooth(t: int, mu: Tensor) -> Tensor:
        home = torch.sigmoid(8 * (mu[1] - 0.3) - 0.1 * t)
        return torch.stack([torch.stack([1 - home, home]), torch.stack([0.5 * (1 + home), 0.5 * (1 - home)])])

    for policy in (smooth, limit.on_grid(201)):
        closed = limit.follow(policy)
        assert limit.value(closed.rules).item() == closed.value
        assert torch.equal(limit.flow(closed.rules), closed.mu)
    other = FiniteLimit(SIS(horizon=30, error=0.1, infected=0.9), discount=0.97)
    assert other.value(closed.rules).item() != other.follow(smooth).value, "from another start they differ"


def test_sequences_in_a_batch_have_the_values_they_have_alone_and_gradients() -> None:
    limit = FiniteLimit(Crowd())
    rules = torch.rand(3, 4, 2, 2, dtype=torch.float64).softmax(-1).requires_grad_()
    values = limit.value(rules)
    assert values.tolist() == pytest.approx([limit.value(sequence).item() for sequence in rules], rel=1e-12)
    assert limit.flow(rules).shape == (3, 5, 3)
    torch.testing.assert_close(limit.flow(rules).sum(-1), torch.ones(3, 5, dtype=torch.float64))
    assert torch.autograd.gradcheck(limit.value, rules)


def test_a_swarm_of_partly_observed_states_follows_its_limit() -> None:
    world, rule = Crowd(50_000, horizon=6), torch.tensor([[0.3, 0.7], [0.8, 0.2]])
    generator = torch.Generator().manual_seed(0)
    state = world.initial(world.initial_noise(2, generator))
    flow = FiniteLimit(world).flow(rule.double().expand(6, 2, 2))
    for t in range(6):
        assert (world.mean_field(state) - flow[t]).abs().max() < 0.01
        go = torch.rand(state.seen.shape, generator=generator) < rule[state.seen, 1]
        step = world.transition(state, go.long().unsqueeze(-1), world.noise(2, generator))
        joint = flow[t].unsqueeze(-1) * (world.sees @ rule.double())
        expected = (joint * world.payoff(flow[t])).sum().item()
        assert step.reward[:, 0, 0].tolist() == pytest.approx([expected] * 2, abs=0.01)
        state = step.state


def test_the_contracts_hold_and_rows_alone_equal_rows_in_a_batch() -> None:
    check_env(lambda rows: TensorEnv(Crowd(5), rows), steps=20)
    assert_rows_alone_equal_rows_in_a_batch(Crowd(50))


class Table(Crowd):
    """A crowd with tables of one's own."""

    def __init__(self, start: Any, sees: Any, actions: int = 2):
        FiniteSwarm.__init__(self, 5, 4, start=start, sees=sees, actions=actions)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FiniteLimit(SIS(), discount=1.5), "between 0 and 1; got 1.5"),
        (lambda: FiniteLimit(SIS(horizon=11)).brute_force(), r"here are 4\^11"),
        (lambda: FiniteLimit(Crowd()).on_grid(), "got 3 states"),
        (lambda: FiniteLimit(SIS(infected=[0.1, 0.9])), "one of the world's 2 starts, 0 to 1; got None"),
        (lambda: FiniteLimit(SIS(infected=[0.1, 0.9]), start=2), "got 2"),
        (lambda: FiniteLimit(SIS()).on_grid(1), "1 points"),
        (lambda: FiniteLimit(SIS()).value(torch.ones(3, 2, 2)), "each of 30 steps; got 3"),
        (lambda: Table([0.5, 0.4], [[1.0], [1.0]]), "start must hold probabilities"),
        (lambda: Table([1.5, -0.5], [[1.0], [1.0]]), "start must hold probabilities"),
        (lambda: Table([0.5, 0.5], [[1.0]]), r"start must be \[X\] or \[S,X\], and sees \[X,Y\]"),
        (lambda: Table([0.5, 0.5], [[1.0], [0.5, 0.5]]), "full table"),
        (lambda: Table([0.5, 0.5], [[1.0], [1.0]], 0), "at least one action"),
    ],
)
def test_what_cannot_be_computed_is_an_input_error(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
