"""Kuramoto's oscillators against what is known of them in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.optimize import brentq
from scipy.special import i0e, i1e
from torch import Tensor

from envs.core import InputError
from envs.swarm.heading_world import HeadingState
from envs.swarm.kuramoto import Kuramoto
from envs.testing import check_env
from envs.world import TensorEnv
from tests.envs.swarm.swarm_checks import assert_rows_alone_equal_rows_in_a_batch


def started(world: Kuramoto, rows: int, seed: int = 0) -> HeadingState:
    return world.initial(world.initial_noise(rows, torch.Generator().manual_seed(seed)))


def uncontrolled(world: Kuramoto, state: HeadingState, decisions: int, seed: int = 1) -> list[HeadingState]:
    generator, states = torch.Generator().manual_seed(seed), []
    rows = len(state.angle)
    for _ in range(decisions):
        state = world.transition(state, torch.zeros(rows, world.agents, 1), world.noise(rows, generator)).state
        states.append(state)
    return states


def orders(world: Kuramoto, states: list[HeadingState]) -> Tensor:
    return torch.stack([world.order(state) for state in states])


@pytest.mark.parametrize(("K", "known"), [(2.0, 0.8315), (1.5, 0.7242)])
def test_the_stationary_order_solves_the_bessel_equation(K: float, known: float) -> None:
    """From full order, 10 units of time to settle and 20 to average, at dt = 0.01 within 1.5 %."""
    R = brentq(lambda r: i1e(2 * K * r) / i0e(2 * K * r) - r, 0.1, 1.0)
    assert pytest.approx(known, abs=1e-4) == R
    world = Kuramoto(4000, "all", K=K, sigma=1.0, hold=100, neighbors="grid")
    place = torch.rand(1, 4000, 2, generator=torch.Generator().manual_seed(0))
    start = world.at(place, torch.zeros(1, 4000))
    found = orders(world, uncontrolled(world, start, 30))[10:]
    assert found.mean().item() == pytest.approx(R, rel=0.015)


def test_without_coupling_the_swarm_is_as_ordered_as_chance_has_it() -> None:
    world = Kuramoto(50, K=0.0, hold=20)
    R = world.order(uncontrolled(world, started(world, 4000), 1)[-1])
    assert R.mean().item() == pytest.approx(
        math.sqrt(math.pi / (4 * 50)), abs=3 * R.std().item() / math.sqrt(4000) + 1e-3
    )


def test_without_coupling_a_phase_is_a_brownian_motion() -> None:
    world = Kuramoto(100, K=0.0, sigma=1.0, hold=100)
    start = started(world, 400)
    end = uncontrolled(world, start, 1)[-1]
    correlation = (end.angle - start.angle).cos()
    error = correlation.std().item() / math.sqrt(40_000)
    assert correlation.mean().item() == pytest.approx(math.exp(-0.5), abs=3 * error)


def test_one_decision_is_its_steps_of_physics_by_hand() -> None:
    """Two within the radius over the edge of the torus, the third alone."""
    world = Kuramoto(3, K=0.8, sigma=0.5, dt=0.1, hold=2, radius=0.2, action_cost=0.2)
    state = world.at(torch.tensor([[[0.05, 0.5], [0.95, 0.5], [0.5, 0.5]]]), torch.tensor([[0.0, 1.0, 2.0]]))
    noise = torch.tensor([[[0.1, -0.2, 0.3], [0.4, 0.5, -0.6]]])
    action = torch.tensor([[[0.5], [-3.0], [0.0]]])
    a, b, c = 0.0, 1.0, 2.0
    for shock in noise[0].tolist():
        pull = 0.8 * math.sin(b - a) / 2
        step = [x * math.sqrt(0.1) * 0.5 for x in shock]
        a, b, c = a + (pull + 0.5) * 0.1 + step[0], b + (-pull - 1.0) * 0.1 + step[1], c + step[2]
    after, reward, terminated = world.transition(state, action, noise)
    assert terminated is None
    torch.testing.assert_close(after.angle, torch.tensor([[a, b, c]]))
    assert torch.equal(after.position, state.position)
    R = math.hypot(*(sum(f(x) for x in (a, b, c)) / 3 for f in (math.cos, math.sin)))
    torch.testing.assert_close(reward, torch.full((1, 3, 1), R - 0.2 * 0.5))
    seen = world.observe(after).agent[0]
    expected = [[math.cos(b - a), math.sin(b - a)], [math.cos(b - a), -math.sin(b - a)], [0.0, 0.0]]
    torch.testing.assert_close(seen, torch.tensor(expected), atol=1e-6, rtol=0)
    angle = Kuramoto(3, radius=0.2, sees="angle")
    turn = (b - a) / math.pi
    torch.testing.assert_close(angle.observe(after).agent[0, :, 0], torch.tensor([turn, -turn, 0.0]), atol=1e-6, rtol=0)
    assert angle.spec.observation_sizes == (1, 1, 1)


def test_all_to_all_is_a_radius_that_spans_the_torus() -> None:
    everywhere, all_to_all = Kuramoto(20, K=3.0, radius=0.8), Kuramoto(20, "all", K=3.0, radius=0.8)
    state, noise = started(everywhere, 2), torch.zeros(2, 10, 20)
    one, other = (w.transition(state, torch.zeros(2, 20, 1), noise).state.angle for w in (everywhere, all_to_all))
    torch.testing.assert_close(one, other)


def test_holding_a_decision_is_taking_it_again() -> None:
    once, again = Kuramoto(15, hold=6), Kuramoto(15, hold=2)
    generator = torch.Generator().manual_seed(0)
    state, noise, action = started(once, 2), once.noise(2, generator), torch.randn(2, 15, 1, generator=generator)
    held = once.transition(state, action, noise).state
    for part in noise.split(2, 1):
        state = again.transition(state, action, part).state
    torch.testing.assert_close(held.angle, state.angle)


def test_turning_to_the_mean_nearby_orders_what_stays_disordered_uncontrolled() -> None:
    world = Kuramoto(200, hold=20, horizon=50)
    env, late = TensorEnv(world, 4), []
    obs = env.reset(0)
    for t in range(49):
        step = env.step(3 * torch.atan2(obs.agent[..., 1:], obs.agent[..., :1]))
        obs = step.obs
        if t >= 35:
            late.append(step.reward[:, 0, 0])
    assert torch.stack(late).mean() > 0.55
    assert orders(world, uncontrolled(world, started(world, 4), 20))[10:].mean() < 0.25


@pytest.mark.parametrize("coupling", ["all", "radius"])
def test_a_row_alone_is_the_row_in_the_batch(coupling: str) -> None:
    assert_rows_alone_equal_rows_in_a_batch(Kuramoto(60, coupling), rows=5)


@pytest.mark.parametrize("coupling", ["all", "radius"])
def test_the_contract_of_an_environment(coupling: str) -> None:
    world = Kuramoto(12, coupling, hold=3, horizon=6)
    check_env(lambda rows: TensorEnv(world, rows), steps=20)


def test_the_picture_shows_the_phases() -> None:
    world = Kuramoto(30)
    state = started(world, 1)
    one, other = world.frame(state), world.frame(world.at(state.position, torch.zeros(1, 30)))
    assert one.shape == (400, 400, 3)
    assert (one != other).any()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"agents": 1}, "at least two agents; got agents=1"),
        ({"horizon": 0}, "at least 1 step; got horizon=0"),
        ({"hold": 0}, "hold=0"),
        ({"sees": "phase"}, "sees must be one of vector, angle"),
        ({"coupling": "al"}, "Did you mean all"),
        ({"reward": "order"}, "reward must be one of aligned, misaligned"),
        ({"radius": 0.0}, "radius"),
        ({"K": math.nan}, "K must be"),
        ({"sigma": -1.0}, "sigma"),
        ({"dt": 0.0}, "dt"),
        ({"u_max": -1.0}, "u_max"),
        ({"K": 1e10}, "K turns or moves an agent"),
    ],
)
def test_bad_arguments_are_input_errors(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Kuramoto(**arguments)
