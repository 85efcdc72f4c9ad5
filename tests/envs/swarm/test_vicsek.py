"""Vicsek's world: one step by hand, the bound on its order, and the contract of a world."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from envs.core import InputError
from envs.swarm import grid
from envs.swarm.heading_world import HeadingState
from envs.swarm.headings import unit, wrapped
from envs.swarm.vicsek import Vicsek
from envs.testing import check_env
from envs.world import TensorEnv
from tests.envs.swarm.swarm_checks import assert_rows_alone_equal_rows_in_a_batch


def started(world: Vicsek, rows: int, seed: int = 0) -> HeadingState:
    return world.initial(world.initial_noise(rows, torch.Generator().manual_seed(seed)))


def no_turn(world: Vicsek, rows: int = 1) -> Tensor:
    return torch.zeros(rows, world.agents, 1)


def test_one_step_by_hand() -> None:
    """dt = 0.5: both move on along their old headings, then turn; the second crosses the top edge of a Klein bottle."""
    world = Vicsek(2, "klein", v0=0.2, omega0=0.1, sigma=0.4, u_max=1.0, dt=0.5, action_cost=0.3)
    state = world.at(torch.tensor([[[0.5, 0.5], [0.3, 0.95]]]), torch.tensor([[0.0, math.pi / 2]]))
    action, noise = torch.tensor([[[0.5], [-7.0]]]), torch.tensor([[1.0, -2.0]])
    after, reward, terminated = world.transition(state, action, noise)
    assert terminated is None
    torch.testing.assert_close(after.position, torch.tensor([[[0.6, 0.5], [0.7, 0.05]]]))
    shock = math.sqrt(0.5) * 0.4
    turned = math.pi / 2 + (0.1 - 1) * 0.5 - 2 * shock
    torch.testing.assert_close(after.angle, torch.tensor([[0.6 * 0.5 + shock, math.pi - turned]]))
    assert reward.shape == (1, 2, 1)
    torch.testing.assert_close(reward, torch.full((1, 2, 1), -0.3 * 0.75))  # nobody is near anybody


@pytest.mark.parametrize("count_self", [False, True])
def test_an_agent_sees_the_mean_heading_nearby_relative_to_its_own(count_self: bool) -> None:
    world = Vicsek(3, radius=0.2, count_self=count_self)
    position = torch.tensor([[[0.05, 0.5], [0.95, 0.5], [0.5, 0.5]]])
    obs = world.observe(world.at(position, torch.tensor([[0.0, math.pi / 2, 1.0]])))
    pair = [[0.5, 0.5], [0.5, -0.5], [1, 0]] if count_self else [[0, 1], [0, -1], [0, 0]]
    torch.testing.assert_close(obs.agent, torch.tensor([pair], dtype=torch.float32), atol=1e-6, rtol=0)
    third = 1 / 3
    cos, sin = (1 + math.cos(1)) * third, (1 + math.sin(1)) * third
    moments = [cos, sin, math.cos(2) * third, math.sin(2) * third]
    torch.testing.assert_close(obs.state, torch.tensor([[*moments, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("count_self", [False, True])
def test_an_agent_may_see_the_relative_angle_alone(count_self: bool) -> None:
    world = Vicsek(4, radius=0.2, count_self=count_self, sees="angle")
    position = torch.tensor([[[0.05, 0.5], [0.95, 0.5], [0.5, 0.5], [0.5, 0.0]]])
    state = world.at(position, torch.tensor([[3.0, 3.0 + math.pi / 2, 1.0, -2.0]]))
    seen = 0.25 if count_self else 0.5
    expected = torch.tensor([[[seen], [-seen], [0.0], [0.0]]])
    torch.testing.assert_close(world.observe(state).agent, expected, atol=1e-6, rtol=0)
    assert world.spec.observation_sizes == (1,) * 4


def test_the_angle_seen_is_that_of_the_vector_between_minus_and_plus_one() -> None:
    vector, angle = Vicsek(60, "klein"), Vicsek(60, "klein", sees="angle")
    state = started(vector, 5)
    x, y = vector.observe(state).agent.unbind(-1)
    seen = angle.observe(state).agent
    alone = (x == 0) & (y == 0)
    assert alone.any(), "atan2 of zeros with signs may be anything"
    torch.testing.assert_close(seen[..., 0] * math.pi, torch.atan2(y, x).where(~alone, 0))
    assert seen.min() < -0.9
    assert seen.max() > 0.9
    assert seen.abs().max() <= 1


@pytest.mark.parametrize("name", ["moebius", "klein", "projective"])
def test_over_a_flipped_edge_parallel_means_parallel_there(name: str) -> None:
    """Two agents who face each other over the flip: what one sees in its square is the other's heading mirrored."""
    world = Vicsek(2, name, radius=0.1)
    over_right = name != "klein"
    place = [[0.99, 0.3], [0.01, 0.7]] if over_right else [[0.3, 0.99], [0.7, 0.01]]
    own = torch.tensor(0.7)
    other = -own if over_right else math.pi - own
    state = world.at(torch.tensor([place]), torch.stack([own, other]).unsqueeze(0))
    torch.testing.assert_close(world.order(state), torch.tensor([1.0]))
    torch.testing.assert_close(world.observe(state).agent, torch.tensor([[[1.0, 0.0]] * 2]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["box", "torus", "moebius", "klein", "projective"])
def test_nothing_changes_where_agents_are_described_by_other_copies_of_themselves(name: str) -> None:
    world, generator = Vicsek(100, name), torch.Generator().manual_seed(1)
    state = started(world, 2)
    # Crossing two edges of the same kind there, a walk around the surface, is the same point again.
    away = 2 * torch.randint(-1, 2, state.position.shape, generator=generator)
    again = world.at(state.position + away, state.angle + 2 * math.pi)
    for one, other in ((again.near.mean(), state.near.mean()), (world.order(again), world.order(state))):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "axis"), [("torus", 0), ("torus", 1), ("moebius", 0), ("klein", 1)])
def test_rewards_and_views_do_not_change_where_the_whole_swarm_is_shifted(name: str, axis: int) -> None:
    world = Vicsek(100, name)
    state = started(world, 3)
    shifted = world.at(state.position + 0.37 * torch.eye(2)[axis], state.angle)
    torch.testing.assert_close(world.order(shifted), world.order(state), atol=1e-5, rtol=0)
    before, after = world.observe(state).agent, world.observe(shifted).agent
    torch.testing.assert_close(after[..., 0], before[..., 0], atol=1e-5, rtol=0)
    # Who was carried over a flipped edge has changed hands: its left is its right.
    torch.testing.assert_close(after[..., 1].abs(), before[..., 1].abs(), atol=1e-5, rtol=0)
    changed = (after[..., 1] - before[..., 1]).abs() > 1e-4
    assert bool(changed.any()) == (name in ("moebius", "klein"))


@pytest.mark.parametrize(("agents", "sigma", "dt"), [(20, 0.3, 1.0), (5, 1.0, 0.5)])
def test_the_order_of_a_swarm_that_heads_for_one_direction_is_the_bound(agents: int, sigma: float, dt: float) -> None:
    world = Vicsek(agents, sigma=sigma, dt=dt, omega0=0.4)
    state, rows = started(world, 10_000), 10_000
    alignment = (wrapped(-state.angle - world.omega0 * dt) / dt).unsqueeze(-1)
    _, reward, _ = world.transition(state, alignment, world.noise(rows, torch.Generator().manual_seed(5)))
    squared = reward[:, 0, 0].square()
    error = squared.std().item() / math.sqrt(rows)
    m = math.exp(-(sigma**2) * dt / 2)
    assert squared.mean().item() == pytest.approx(m**2 + (1 - m**2) / agents, abs=3 * error)
    assert world.bound**2 == pytest.approx(m**2 + (1 - m**2) / agents)


def test_turning_to_the_mean_nearby_orders_the_swarm_and_stays_below_the_bound() -> None:
    world = Vicsek(200, horizon=60)
    env = TensorEnv(world, 8)
    obs, orders = env.reset(0), []
    for _ in range(59):
        step = env.step(torch.atan2(obs.agent[..., 1:], obs.agent[..., :1]))
        obs = step.obs
        orders.append(step.reward[:, 0, 0])
    assert orders[0].mean() < 0.3
    late = torch.stack(orders[40:])
    assert late.mean() > 0.9
    per_row = late.square().mean(0)
    assert per_row.mean() <= world.bound**2 + 3 * per_row.std() / math.sqrt(8)


def test_misaligned_is_paid_for_disorder() -> None:
    aligned, misaligned = Vicsek(50), Vicsek(50, reward="misaligned")
    state, noise = started(aligned, 3), torch.zeros(3, 50)
    one, other = (world.transition(state, no_turn(world, 3), noise).reward for world in (aligned, misaligned))
    assert torch.equal(one, -other)
    assert (one > 0).all()


@pytest.mark.parametrize("name", ["torus", "projective"])
def test_a_row_alone_is_the_row_in_the_batch(name: str) -> None:
    assert_rows_alone_equal_rows_in_a_batch(Vicsek(100, name), rows=6)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"manifold": "klein", "u_max": 1.0, "sees": "angle"},
        {"neighbors": "tree"},
        {"neighbors": "grid", "radius": 0.2},
    ],
)
def test_the_contract_of_an_environment(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "FEWEST_CELLS", 48)
    world = Vicsek(12, horizon=7, **arguments)
    check_env(lambda rows: TensorEnv(world, rows), steps=20)


def test_the_critic_sees_the_clock_and_given_features_and_the_agents_see_no_clock() -> None:
    class Spread:
        size = 2

        def __call__(self, points: Tensor) -> Tensor:
            assert points.shape[-1] == 4
            return points[..., :2].std(1)

    env = TensorEnv(Vicsek(30, size=3.0, horizon=10, features=Spread()), 4)
    env.reset(0)
    obs = env.step(torch.zeros(4, 30, 1)).obs
    assert obs.agent.shape == (4, 30, 2)
    assert obs.state.shape == (4, 1 + 2 + 1) == (4, env.spec.state_size)
    assert (obs.state[:, 1:3] < 0.5).all(), "places are in sides of the square"
    torch.testing.assert_close(obs.state[:, 0], torch.full((4,), 0.1))


@pytest.mark.parametrize("neighbors", ["dense", "grid"])
@pytest.mark.parametrize("name", ["torus", "projective"])
def test_a_step_never_waits_for_the_device(name: str, neighbors: str) -> None:
    """Tensors without data: whatever needs a value on the host raises."""
    env = TensorEnv(Vicsek(20, name, neighbors=neighbors, horizon=3), 2, select_rows=True)
    env.reset(0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        env.reset(0)
        for _ in range(4):
            step = env.step(torch.zeros(2, 20, 1))
    assert isinstance(step.reward, FakeTensor)


@pytest.mark.parametrize("sees", ["vector", "angle"])
def test_gradients_pass_through_a_step(sees: str) -> None:
    world = Vicsek(20, sees=sees)
    action = torch.zeros(2, 20, 1, requires_grad=True)
    after, reward, _ = world.transition(started(world, 2), action, torch.zeros(2, 20))
    assert (after.near.number == 1).any(), "there is somebody who sees nobody"
    (reward[:, 0].sum() + world.observe(after).agent.square().sum()).backward()
    assert action.grad is not None
    assert action.grad.isfinite().all()
    assert action.grad.abs().min() > 0


def test_the_picture_shows_headings_and_order() -> None:
    world = Vicsek(1500, "klein")
    few = Vicsek(30)
    anyhow = started(few, 1)
    one_way = few.at(anyhow.position, torch.zeros(1, 30))
    pictures = [few.frame(anyhow), few.frame(one_way), world.frame(started(world, 1))]
    assert all(picture.shape == (400, 400, 3) for picture in pictures)
    assert (pictures[0] != pictures[1]).any()
    dark = [int((picture[350:380, 60:340].sum(-1) < 30).sum()) for picture in pictures[:2]]
    assert dark[1] > 2 * dark[0], "the bar is filled up to R"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"agents": 1}, "at least two agents; got agents=1"),
        ({"horizon": 0}, "at least 1 step; got horizon=0"),
        ({"manifold": "kline"}, "Did you mean klein"),
        ({"sees": "angel"}, "sees must be one of vector, angle; got 'angel'. Did you mean angle"),
        ({"reward": "algned"}, "Did you mean aligned"),
        ({"neighbors": "pairs"}, "neighbors must be one of auto, dense, tree, grid"),
        ({"radius": 0.0}, "radius"),
        ({"radius": -0.1}, "radius"),
        ({"sigma": -0.1}, "sigma"),
        ({"sigma": math.nan}, "sigma"),
        ({"dt": 0.0}, "dt"),
        ({"size": 0.0}, "size"),
        ({"v0": -1.0}, "v0"),
        ({"u_max": 0.0}, "u_max"),
        ({"action_cost": -1.0}, "action_cost"),
        ({"omega0": math.inf}, "omega0"),
        ({"sigma": 1e10}, "sigma turns or moves an agent by 1e.10 radians"),
        ({"omega0": -1e8}, "omega0 turns"),
        ({"v0": 1e10}, "v0 turns or moves"),
        ({"u_max": 1e9}, "u_max turns"),
    ],
)
def test_bad_arguments_are_input_errors(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Vicsek(**arguments)


def test_what_is_no_number_stays_visible_in_the_reward() -> None:
    world = Vicsek(20)
    broken = world.transition(started(world, 1), torch.full((1, 20, 1), math.nan), torch.zeros(1, 20))
    assert broken.reward.isnan().all()


@pytest.mark.parametrize(("features", "size"), [("kernel", 72), ("histogram", 144), ("moments", 8)])
def test_named_features_are_few_enough_to_learn_from(features: str, size: int) -> None:
    world = Vicsek(30, features=features)
    seen = world.observe(started(world, 2)).state
    assert seen.shape == (2, size + 1)
    assert world.spec.state_size == size + 1
    assert seen[0].ne(seen[1]).any()
    if features != "moments":
        assert bool((seen[:, :-1].sum(1) > 0.999).all()), "every agent is in a bin, or near a point"


@pytest.mark.parametrize("name", ["moebius", "klein", "projective"])
def test_the_critic_sees_nothing_that_depends_on_how_the_surface_is_drawn(name: str) -> None:
    """A shift along the surface, which changes no distance and no angle between neighbors, changes no feature."""
    world = Vicsek(60, manifold=name)
    start = started(world, 1)
    axis = 0 if name == "moebius" else 1
    shift = torch.zeros(2).index_fill(0, torch.tensor(axis), 1.0)
    shifted = world.at(start.position + shift, start.angle)
    torch.testing.assert_close(world.observe(shifted).state, world.observe(start).state, atol=1e-5, rtol=0)


def test_headings_stay_between_minus_and_plus_pi() -> None:
    world = Vicsek(50)
    state = world.transition(started(world, 1), 40 * torch.ones(1, 50, 1), torch.zeros(1, 50)).state
    assert state.angle.abs().max() <= math.pi + 1e-6
    assert torch.equal(state.near.number, world.at(state.position, state.angle).near.number)
    torch.testing.assert_close(unit(state.angle).norm(dim=-1), torch.ones(1, 50))
