"""Aggregation by hand, its pair distance against a plain sum, and its quadratic variant against exact costs."""

from __future__ import annotations

import itertools
import math
import resource
from typing import Any

import pytest
import torch

from envs.core import InputError
from envs.swarm.aggregation import ALL_PAIRS, Aggregation, Places, QuadraticAggregation, mean_pair_distance
from envs.testing import check_env
from envs.world import TensorEnv
from tests.envs.swarm.swarm_checks import assert_rows_alone_equal_rows_in_a_batch

QUIET = torch.zeros(1, 2, 4)


def at(*points: tuple[float, float]) -> Places:
    position = torch.tensor([points])
    return Places(position, position)


@pytest.mark.parametrize("agents", [2, 3, 7, 8])
def test_the_distance_is_the_mean_over_pairs_of_different_agents(agents: int) -> None:
    points = torch.randn(2, agents, 2, dtype=torch.float64)
    for row in range(2):
        pairs = [math.dist(one, other) for one, other in itertools.permutations(points[row].tolist(), 2)]
        assert mean_pair_distance(points)[row].item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)
    assert mean_pair_distance(torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])).tolist() == [5]


@pytest.mark.parametrize("agents", [7, 8])
def test_the_distance_s_gradient_is_that_of_all_pairs(agents: int) -> None:
    points = torch.randn(2, agents, 3, dtype=torch.float64, requires_grad=True)
    pairs = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").sum((1, 2))
    (wanted,) = torch.autograd.grad(pairs.sum() / (agents * (agents - 1)), points)
    (found,) = torch.autograd.grad(mean_pair_distance(points).sum(), points)
    torch.testing.assert_close(found, wanted)


def test_in_large_swarms_a_few_partners_stand_for_all_without_bias() -> None:
    n, rows = ALL_PAIRS + 88, 400
    points = torch.rand(rows, n, 2, generator=torch.Generator().manual_seed(0))
    exact = torch.cdist(points, points).sum((1, 2)) / (n * (n - 1))
    off = mean_pair_distance(points) - exact
    # A pair's distance has a deviation of 0.248 on the unit square.
    assert 0 < off.std() < 0.248 / math.sqrt(16 * n) < (exact - 0.5214).std()
    assert abs(off.mean()) < 4 * off.std() / math.sqrt(rows)
    assert mean_pair_distance(points[:, :ALL_PAIRS]).shape == (rows,)


def test_the_memory_of_the_distance_is_linear_in_the_agents() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The mean distance of two points of the unit square is 0.5214.
    assert mean_pair_distance(torch.rand(1, 300_000, 2)).item() == pytest.approx(0.5214, abs=0.003)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kilobytes; all pairs take 3.6e8"


@pytest.mark.parametrize("agents", [3, 4])
def test_agents_that_sit_together_leave_a_finite_gradient(agents: int) -> None:
    points = torch.zeros(1, agents, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(mean_pair_distance(points).sum(), points)
    assert slope.isfinite().all()


def test_a_step_pays_for_where_the_swarm_is_and_what_it_does_then_moves_it() -> None:
    world = Aggregation(2, c_d=2.0, c_u=0.5)
    action = torch.tensor([[[0.6, 0.0], [-3.0, 4.0]]])  # the second is cut to length 1
    after, reward, terminated = world.transition(at((0.0, 0.0), (1.0, 0.0)), action, QUIET)
    assert terminated is None
    assert reward.flatten().tolist() == pytest.approx([-(2 * 1 + 0.5 * (0.6 + 1) / 2)] * 2)
    assert after.position.flatten().tolist() == pytest.approx([0.12, 0, 1 - 0.12, 0.16])


def test_walls_stop_and_noise_moves() -> None:
    world = Aggregation(2, sigma=0.1, sigma_y=0.5)
    noise = torch.tensor([[[3.0, -1.0, 1.0, 0.0], [0.0, 0.0, 0.0, -2.0]]])
    after = world.transition(at((1.9, 0.0), (-2.0, 0.0)), torch.tensor([[[0.0, 0.0], [-1.0, 0.0]]]), noise).state
    assert after.position.flatten().tolist() == pytest.approx([2.0, -0.1, -2.0, 0.0])
    assert (after.seen - after.position).flatten().tolist() == pytest.approx([0.5, 0, 0, -1], abs=1e-6)


def test_walking_to_the_middle_gathers_and_standing_still_does_not() -> None:
    def rollout(strength: float) -> tuple[float, float]:
        env = TensorEnv(Aggregation(100), 8)
        obs, total = env.reset(0), torch.zeros(8)
        for _ in range(100):
            step = env.step(-strength * obs.agent)
            obs, total = step.obs, total + step.reward[:, 0, 0]
        return total.mean().item(), mean_pair_distance(step.final_obs.agent).mean().item()

    (still, apart), (gathering, together) = rollout(0.0), rollout(2.0)
    # Two points of a square of side 4 are 2.0856 apart; 100 steps of noise hardly change that.
    assert still == pytest.approx(-2.0856 * 100, rel=0.04)
    assert gathering > still + 150
    assert together < 0.4 < 1.8 < apart


def test_agents_see_their_noisy_place_and_the_critic_the_same_features_at_every_size() -> None:
    sizes = {TensorEnv(Aggregation(n), 1).spec.state_size for n in (2, 50)}
    assert sizes == {1 + 49}
    assert TensorEnv(Aggregation(5, features="moments"), 1).spec.state_size == 1 + 4
    obs = TensorEnv(Aggregation(5, sigma_y=0.0, features="moments"), 3).reset(0)
    assert obs.agent.shape == (3, 5, 2)
    torch.testing.assert_close(obs.state[:, 1:3], obs.agent.mean(1))
    assert obs.agent.abs().max() <= 2
    assert Aggregation().initial_noise(1000, torch.Generator().manual_seed(0)).uniform.var().item() == pytest.approx(
        1 / 3, rel=0.01
    )


@pytest.mark.parametrize(("agents", "sigma_y"), [(4, 0.0), (30, 0.3)])
def test_the_quadratic_variant_costs_what_is_computed(agents: int, sigma_y: float) -> None:
    rows = 2000
    world = QuadraticAggregation(agents, 20, sigma_y=sigma_y, r=0.02)
    rule = world.problem.best_rule()
    env = TensorEnv(world, rows)
    obs, total = env.reset(0), torch.zeros(rows)
    for gain in rule.gains:
        step = env.step(-gain * obs.agent)
        obs, total = step.obs, total - step.reward[:, 0, 0]
    error = total.std().item() / math.sqrt(rows)
    cost = world.problem.cost(rule, agents)
    assert total.mean().item() == pytest.approx(cost, abs=4 * error)
    assert error < 0.01 * cost
    assert world.problem.optimal_cost(agents) < cost < world.problem.cost(world.problem.zero_rule(), agents) / 2


def test_the_quadratic_optimum_by_hand_in_two_steps() -> None:
    """Only the first action matters: it lowers the variance that the second step pays for."""
    world = QuadraticAggregation(10, 2, v_max=0.5, sigma=0.3, sigma_y=0.0, q=1.0, r=0.5)
    left = 0.5 / (0.5 + 0.5**2)
    assert world.problem.optimal_cost() == pytest.approx(2 * (4 / 3 * (1 + left) + 0.3**2), rel=1e-12)
    assert world.problem.optimal_cost(10) == pytest.approx(0.9 * world.problem.optimal_cost(), rel=1e-12)


@pytest.mark.parametrize("world", [Aggregation, QuadraticAggregation])
def test_the_contracts_hold_and_rows_alone_equal_rows_in_a_batch(world: Any) -> None:
    check_env(lambda rows: TensorEnv(world(4, 7), rows), steps=30)
    assert_rows_alone_equal_rows_in_a_batch(world(30))


def test_rows_alone_equal_rows_in_a_batch_in_a_large_swarm() -> None:
    assert_rows_alone_equal_rows_in_a_batch(Aggregation(ALL_PAIRS + 10))


def test_the_picture_shows_where_the_agents_are() -> None:
    world = Aggregation(20)
    pictures = [world.frame(at(*[(place, place)] * 20)) for place in (0.0, 1.0)]
    assert pictures[0].shape == (400, 400, 3)
    assert (pictures[0] != pictures[1]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"agents": 1}, "at least two agents; got agents=1"),
        ({"horizon": 0}, "at least 1 step"),
        ({"v_max": 0.0}, "v_max must be above 0"),
        ({"sigma_y": -0.1}, "sigma_y must not be negative"),
        ({"c_d": math.inf}, "c_d must be a finite number"),
        ({"features": "none"}, "'kernel'"),
    ],
)
def test_bad_arguments_are_input_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Aggregation(**arguments)


def test_a_control_that_costs_nothing_is_an_input_error() -> None:
    with pytest.raises(InputError, match="r must be above 0"):
        QuadraticAggregation(r=0.0)
