"""The linear-quadratic swarm against its exact costs, and those against enumeration and simulation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from envs.core import InputError
from envs.swarm.features import KernelEmbedding
from envs.swarm.linear_quadratic import LinearQuadratic
from envs.swarm.riccati import LinearProblem, LinearRule
from envs.testing import check_env
from envs.world import TensorEnv, World
from tests.envs.swarm.swarm_checks import assert_rows_alone_equal_rows_in_a_batch

KNOWN = LinearProblem(20)
PARTLY_SEEN = LinearProblem(20, sigma_y=0.3)
STEERED = LinearProblem(
    12, a=0.9, abar=0.2, b=0.7, sigma_y=0.4, qm=0.8, goal=0.5, initial_mean=-1.0, initial_variance=0.6
)


def world_of(problem: LinearProblem, agents: int) -> LinearQuadratic:
    names = ["a", "abar", "b", "sigma", "sigma_y", "q", "qm", "r", "goal", "initial_mean", "initial_variance"]
    return LinearQuadratic(agents, problem.horizon, **{name: getattr(problem, name) for name in names})


def mean_cost(world: World[Any], rule: LinearRule, rows: int) -> tuple[float, float]:
    """The cost of a rule over episodes of `rows` swarms, and its standard error."""
    env = TensorEnv(world, rows)
    obs, total = env.reset(0), torch.zeros(rows)
    for gain, offset in zip(rule.gains, rule.offsets):
        step = env.step(offset - gain * obs.agent)
        obs, total = step.obs, total - step.reward[:, 0, 0]
    assert step.ended.all()
    return total.mean().item(), total.std().item() / math.sqrt(rows)


def test_the_published_constants_cost_what_the_specification_says() -> None:
    assert KNOWN.optimal_cost() == pytest.approx(3.7888, abs=5e-5)
    assert KNOWN.optimal_cost(4000) == pytest.approx(KNOWN.optimal_cost() * 3999 / 4000, rel=1e-12)
    assert PARTLY_SEEN.cost(PARTLY_SEEN.zero_rule()) == pytest.approx(39.90, abs=1e-9)
    constant = PARTLY_SEEN.best_constant_rule()
    assert constant.gains[0] == pytest.approx(0.5173, abs=5e-5)
    assert PARTLY_SEEN.cost(constant) == pytest.approx(5.0208, abs=5e-5)
    assert PARTLY_SEEN.cost(PARTLY_SEEN.best_rule()) == pytest.approx(4.9379, abs=5e-5)


@pytest.mark.parametrize("problem", [KNOWN, LinearProblem(9, abar=0.3, qm=2.0, goal=1.0, initial_mean=-1.0, final=0.0)])
def test_the_optimal_rule_costs_the_optimum_and_is_the_best_linear_rule_of_those_who_see_x(
    problem: LinearProblem,
) -> None:
    assert problem.cost(problem.optimal_rule()) == pytest.approx(problem.optimal_cost(), rel=1e-12)
    assert problem.cost(problem.best_rule()) == pytest.approx(problem.optimal_cost(), rel=1e-12)


@pytest.mark.parametrize("problem", [PARTLY_SEEN, STEERED])
def test_no_linear_rule_that_an_optimizer_finds_is_better_than_the_best(problem: LinearProblem) -> None:
    steps = problem.horizon

    def cost(numbers: Any) -> float:
        return problem.cost(LinearRule(numbers[:steps], numbers[steps:]))

    best = problem.cost(problem.best_rule())
    for start in (0.0, 0.5, 1.0):
        found = minimize(cost, [start] * steps + [0.0] * steps, method="L-BFGS-B").fun
        assert best <= found + 1e-9
        assert best == pytest.approx(found, rel=1e-5)
    constant = problem.cost(problem.best_constant_rule())
    offsets = problem.best_rule().offsets
    assert best < constant < problem.cost(LinearRule([0.3] * steps, offsets))


@pytest.mark.parametrize(("problem", "agents"), [(PARTLY_SEEN, 5), (STEERED, 5), (STEERED, 50)])
def test_a_simulated_swarm_costs_what_is_computed_for_its_size(problem: LinearProblem, agents: int) -> None:
    for rule in (problem.best_rule(), problem.best_constant_rule(), problem.optimal_rule()):
        cost, error = mean_cost(world_of(problem, agents), rule, rows=4000)
        assert cost == pytest.approx(problem.cost(rule, agents), abs=4 * error)
        assert error < 0.03 * cost


@pytest.mark.parametrize("problem", [KNOWN, LinearProblem(20, abar=0.1, qm=1.0, goal=1.0)])
def test_feeding_the_swarm_s_own_mean_back_costs_the_optimum_of_n_agents(problem: LinearProblem) -> None:
    """The law (N-1)/N of deviations, and what the wandering mean adds, with the mean measured at every step."""
    agents, rows = 4, 20_000
    env = TensorEnv(world_of(problem, agents), rows)
    obs, total = env.reset(0), torch.zeros(rows)
    for t, gain in enumerate(problem.optimal_rule().gains):
        mean = obs.agent.mean(1, keepdim=True)
        at_zero, slope = steering(problem, t)
        step = env.step(-gain * (obs.agent - mean) + at_zero + slope * mean)
        obs, total = step.obs, total - step.reward[:, 0, 0]
    error = total.std().item() / math.sqrt(rows)
    assert total.mean().item() == pytest.approx(problem.optimal_cost(agents), abs=4 * error)
    assert error < 0.005 * problem.optimal_cost()


def steering(problem: LinearProblem, t: int) -> tuple[float, float]:
    """The best control of the mean at step t, at a mean of 0 and by how much it grows: from the rules of two starts."""
    later = [
        LinearProblem(
            problem.horizon - t, abar=problem.abar, qm=problem.qm, goal=problem.goal, initial_mean=start
        ).optimal_rule()
        for start in (0.0, 1.0)
    ]
    at_zero, at_one = later[0].offsets[0], later[1].offsets[0] - later[1].gains[0]
    return at_zero, at_one - at_zero


def test_the_gap_to_the_limit_is_the_variance_over_n() -> None:
    rule, limit = PARTLY_SEEN.best_rule(), PARTLY_SEEN.cost(PARTLY_SEEN.best_rule())
    gaps = [limit - PARTLY_SEEN.cost(rule, n) for n in (2, 20, 200)]
    assert gaps[0] == pytest.approx(10 * gaps[1], rel=1e-9)
    assert gaps[1] == pytest.approx(10 * gaps[2], rel=1e-9)


def test_the_last_step_pays_for_where_it_leads_too() -> None:
    world = LinearQuadratic(2, horizon=2, sigma=0.0, sigma_y=0.0, qm=1.0, goal=1.0)
    state = world.initial(torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]))
    action = torch.tensor([[[-1.0], [1.0]]])
    state, first, _ = world.transition(state, action, torch.zeros(1, 2, 2))
    state, last, _ = world.transition(state, 0 * action, torch.zeros(1, 2, 2))
    assert first.flatten().tolist() == pytest.approx([-(1 + 1 + 0.5)] * 2)  # Var, (0 - 1)², r u²
    assert last.flatten().tolist() == pytest.approx([-2.0] * 2)  # the mean is off the goal, twice


def test_agents_see_their_noisy_place_without_the_clock_and_the_critic_features_of_the_true_one() -> None:
    world = LinearQuadratic(500, sigma_y=2.0)
    env = TensorEnv(world, 3)
    obs = env.reset(0)
    assert env.spec.observation_sizes[0] == 1
    assert obs.state.shape == (3, 1 + 2), "the clock, mean and variance, at every N"
    assert obs.agent.var().item() == pytest.approx(5, rel=0.2)
    assert obs.state[:, 2].tolist() == pytest.approx([1] * 3, rel=0.3)
    exact = TensorEnv(LinearQuadratic(5, sigma_y=0.0), 3).reset(0)
    assert exact.state[:, 1].tolist() == pytest.approx(exact.agent.mean(1).squeeze(-1).tolist(), abs=1e-6)
    assert TensorEnv(LinearQuadratic(5, features="kernel"), 1).spec.state_size == 1 + 7
    assert TensorEnv(LinearQuadratic(5, features=KernelEmbedding([0.0], 1.0)), 1).spec.state_size == 1 + 1


def test_the_return_is_differentiable_in_the_rule() -> None:
    """The gradient through the physics, at many agents, is that of the exact cost."""
    world, rows = LinearQuadratic(2000), 4
    generator = torch.Generator().manual_seed(0)
    gain = torch.tensor(0.4, requires_grad=True)
    state, total = world.initial(world.initial_noise(rows, generator)), torch.zeros(())
    for _ in range(20):
        state, reward, _ = world.transition(state, -gain * world.observe(state).agent, world.noise(rows, generator))
        total = total - reward[:, 0, 0].mean()
    (slope,) = torch.autograd.grad(total, gain)
    costs = [PARTLY_SEEN.cost(LinearRule([0.4 + h] * 20, [0.0] * 20)) for h in (-1e-4, 1e-4)]
    assert slope.item() == pytest.approx((costs[1] - costs[0]) / 2e-4, rel=0.05)


def test_the_contracts_hold_and_rows_alone_equal_rows_in_a_batch() -> None:
    check_env(lambda rows: TensorEnv(LinearQuadratic(4, horizon=7, abar=0.1, qm=1.0), rows), steps=30)
    assert_rows_alone_equal_rows_in_a_batch(LinearQuadratic(30, horizon=2, abar=0.1, qm=1.0, features="kernel"))


def test_the_picture_shows_where_the_agents_are() -> None:
    world = LinearQuadratic(20)
    pictures = [world.frame(world.initial(torch.full((1, 20, 2), z))) for z in (0.0, 1.0)]
    assert pictures[0].shape == (400, 400, 3)
    assert (pictures[0] != pictures[1]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"agents": 1}, "at least two agents; got agents=1"),
        ({"horizon": 0}, "at least 1 step; got horizon=0"),
        ({"r": 0.0}, "r must be above 0"),
        ({"b": 0.0}, "b must not be 0"),
        ({"sigma": -1.0}, "sigma must not be negative"),
        ({"q": math.nan}, "q must be a finite number"),
        ({"features": "rbf"}, "'kernel'"),
    ],
)
def test_bad_arguments_are_input_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LinearQuadratic(**arguments)


def test_a_rule_of_another_length_is_an_input_error() -> None:
    with pytest.raises(InputError, match="each of 20 steps; got 3 gains"):
        KNOWN.cost(LinearRule([0.0] * 3, [0.0] * 20))


def test_numbers_stay_single_precision() -> None:
    step = TensorEnv(LinearQuadratic(3), 2)
    obs = step.reset(0)
    assert {obs.agent.dtype, obs.state.dtype, step.step(torch.zeros(2, 3, 1)).reward.dtype} == {torch.float32}
    assert isinstance(obs.state, Tensor)
