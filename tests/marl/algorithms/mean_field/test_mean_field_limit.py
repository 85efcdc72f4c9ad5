"""Trained swarms against exact limits and known returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from envs.core import Streams
from envs.swarm import SIS, FiniteLimit, LinearQuadratic, Vicsek
from envs.world import TensorEnv
from marl.algorithms.mean_field import recipe
from marl.algorithms.mean_field.limit import in_the_limit, limit_metrics
from marl.algorithms.mean_field.policy import MeanRule, SwarmPolicy, SwarmPolicyConfig
from marl.config.load import resolve
from marl.evaluation.episodes import play
from marl.evaluation.known_returns import known_metrics, regret
from marl.output.report import Metric
from marl.training.run import Run

TABLE = {"kind": "table", "points": 2, "low": 0.0, "high": 1.0}


def untrained(world: SIS, seed: int = 0, **settings: Any) -> SwarmPolicy:
    """A policy that is far from equal chances and answers to what it sees."""
    config = {"network": {"hidden": (8,)}, "rule": TABLE, "rule_std": 1.0, **settings}
    policy = SwarmPolicy(TensorEnv(world, 1).spec, SwarmPolicyConfig.model_validate(config), Streams([seed]))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("sees", ["swarm", "time", "nothing"])
@pytest.mark.parametrize("explore", ["rule", "agent"])
def test_a_large_swarm_earns_what_the_policy_earns_in_the_limit(sees: str, explore: str) -> None:
    world = SIS(20_000, horizon=8, error=0.1)
    policy = untrained(world, sees=sees, explore=explore)
    course = in_the_limit(MeanRule(policy), FiniteLimit(world))
    earned = play(TensorEnv(world, 4), MeanRule(policy), 4, 0).per_agent.mean()
    assert earned == pytest.approx(course.value, abs=0.02)
    assert course.rules.std(0).max() > 0.02 or sees == "nothing"
    torch.testing.assert_close(course.rules.sum(-1), torch.ones(8, 2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_policy_sees_the_clock_and_the_shares_as_in_the_world() -> None:
    """Both kinds of swarm, of infinitely and of finitely many agents, put the same numbers before the policy."""
    world = SIS(50_000, horizon=3)
    policy, shown = untrained(world), []
    policy.network.register_forward_hook(lambda module, given, found: shown.append(given[0].flatten()))
    in_the_limit(MeanRule(policy), FiniteLimit(world))
    limit, shown[:] = torch.stack(shown), []
    play(TensorEnv(world, 1), MeanRule(policy), 1, 0)
    torch.testing.assert_close(torch.stack(shown[:3]), limit, atol=0.02, rtol=0)
    assert limit[:, 0].tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    assert limit[0, 1:].tolist() == pytest.approx([0.6, 0.4])


def test_rules_unrolled_have_the_value_of_the_closed_loop_and_regret_is_about_the_best() -> None:
    world = SIS(horizon=6)
    found = {
        name: metric.value for name, metric in limit_metrics(MeanRule(untrained(world)), TensorEnv(world, 2)).items()
    }
    assert found["limit/unrolled"] == pytest.approx(found["limit/return_per_agent"], abs=1e-12)
    assert found["limit/best"] == pytest.approx(-2.5229, abs=5e-5)
    assert found["limit/regret"] == pytest.approx(found["limit/return_per_agent"] / found["limit/best"] - 1)
    assert found["limit/regret"] > 0.05
    assert "limit/best_open" not in found


def test_with_several_starts_values_are_means_over_them_and_the_best_open_loop_is_told() -> None:
    world, shares = SIS(horizon=4, infected=[0.02, 0.98]), (0.02, 0.98)
    policy = untrained(world)
    found = {name: metric.value for name, metric in limit_metrics(MeanRule(policy), TensorEnv(world, 2)).items()}
    alone = [in_the_limit(MeanRule(policy), FiniteLimit(SIS(horizon=4, infected=share))).value for share in shares]
    assert found["limit/return_per_agent"] == pytest.approx(sum(alone) / 2)
    best = [FiniteLimit(SIS(horizon=4, infected=share)).brute_force().value for share in shares]
    assert found["limit/best"] == pytest.approx(sum(best) / 2)
    assert found["limit/best_open"] < found["limit/best"] - 0.01
    assert found["limit/above_best_open"] == found["limit/return_per_agent"] - found["limit/best_open"]


def test_known_returns_are_told_with_the_regret_and_its_interval() -> None:
    world = LinearQuadratic(50)
    found = known_metrics(TensorEnv(world, 2), {"return_per_agent": Metric(-5.0, -5.1, -4.9, 64)})
    optimal, linear = world.problem.optimal_cost(50), world.problem.cost(world.problem.best_rule(), 50)
    assert found["known/optimal"].value == pytest.approx(-optimal)
    assert found["known/linear"].value == pytest.approx(-linear)
    below = found["regret/linear"]
    assert [below.value, below.low, below.high] == pytest.approx([cost / linear - 1 for cost in (5.0, 4.9, 5.1)])
    assert below.n == 64
    assert "linear" not in LinearQuadratic(50, sigma_y=0.0).known()
    vicsek = Vicsek(50, horizon=7)
    assert vicsek.known() == {"bound": pytest.approx(7 * vicsek.bound)}
    assert not Vicsek(50, "klein").known()
    assert not Vicsek(50, reward="misaligned").known()


def test_nothing_is_compared_where_a_time_limit_ends_episodes_early() -> None:
    for limit, count in ((5, 0), (20, 4), (None, 4)):
        env = TensorEnv(LinearQuadratic(20), 2, time_limit=limit)
        assert len(known_metrics(env, {"return_per_agent": Metric.exact(-5.0)})) == count
    world = SIS(horizon=6)
    assert limit_metrics(MeanRule(untrained(world)), TensorEnv(world, 2, time_limit=5)) == {}


@pytest.mark.parametrize(("value", "best", "expected"), [(-3.0, -2.0, 0.5), (1.5, 2.0, 0.25), (-0.3, 0.0, 0.3)])
def test_regret_is_relative_to_the_size_of_the_best(value: float, best: float, expected: float) -> None:
    assert regret(value, best) == pytest.approx(expected)


def test_the_report_has_the_limit(tmp_path: Path) -> None:
    config = resolve(
        {
            "recipe": "marl.algorithms.mean_field",
            "env": {"world": "envs.swarm:SIS", "args": {"agents": 5, "horizon": 4}, "num_envs": 8},
            "policy": {"network": {"hidden": [8]}, "rule": TABLE},
            "learner": {"steps": 4},
            "train": {"env_steps": 64},
            "evaluation": {"episodes": 16, "num_envs": 16, "film_episodes": 0},
        },
        {"device": "cpu"},
    )
    run = Run.create(tmp_path / "run", config)
    metrics = recipe.run(config, run).metrics
    assert metrics["limit/unrolled"].value == pytest.approx(metrics["limit/return_per_agent"].value, abs=1e-12)
    assert metrics["limit/best"].value == FiniteLimit(SIS(horizon=4)).brute_force().value
    assert metrics["limit/regret"].value > 0
