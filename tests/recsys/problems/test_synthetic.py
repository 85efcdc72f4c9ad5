"""The synthetic bandit: its truth, its propensities, and what estimators make of its logs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from envs.core import InputError
from recsys.logs.log import Chunk, Log
from recsys.policies.base import ContextPolicy, uniform
from recsys.problems.bandit import SyntheticBandit, synthetic_bandit

TWO = {"click": 0.3, "like": 0.1}


def rows_of(log: Log) -> Chunk:
    (rows,) = log.chunks()
    return rows


def fixed(actions: int) -> ContextPolicy:
    """A policy that has nothing to do with the problem."""

    def choose(rows: Chunk) -> np.ndarray:
        first = rows.context["x0"] > 0
        return np.where(first[:, None], np.eye(actions)[0], np.full(actions, 1 / actions))

    return ContextPolicy("fixed", actions, choose)


@pytest.mark.parametrize("rewards", ["bernoulli", "gaussian"])
def test_the_truth_of_one_feature_is_the_integral_over_it(rewards: Any) -> None:
    _, problem = synthetic_bandit(rows=10, actions=4, features=1, signals=TWO, seed=3, rewards=rewards)
    x = np.linspace(-8, 8, 40_001)[:, None]
    weights = np.exp(-(x[:, 0] ** 2) / 2)
    chance = {
        "logging": problem.logging_probability(x),
        "best": np.eye(4)[problem.expected_reward(x).sum(-1).argmax(1)],
    }
    for policy in (problem.logging, problem.best()):
        exact = weights @ np.einsum("na,nak->nk", chance[policy.name], problem.expected_reward(x)) / weights.sum()
        found = problem.value(policy)
        assert (np.abs(found.value - exact) < 4 * found.standard_error).all()
        assert (found.standard_error < 0.005).all()


def test_rewards_have_the_expected_rewards_mean_and_the_log_earns_what_its_policy_is_worth() -> None:
    for rewards in ("bernoulli", "gaussian"):
        log, problem = synthetic_bandit(60_000, signals=TWO, users=60_000, seed=1, rewards=rewards)  # type: ignore[arg-type]
        rows = rows_of(log)
        x = np.stack([rows.context[name] for name in problem.observation], 1)
        expected = problem.expected_reward(x)[np.arange(len(x)), rows.action]
        gap = rows.reward - expected
        deviation = np.sqrt(expected * (1 - expected)) if rewards == "bernoulli" else np.ones_like(expected)
        np.testing.assert_allclose((gap / deviation).std(0), 1, atol=0.02)
        for low in (0.0, 0.5):  # in both halves of what is expected
            half = expected >= np.quantile(expected, low, axis=0)
            z = (gap * half).sum(0) / np.sqrt((deviation**2 * half).sum(0))
            assert (np.abs(z) < 4).all()
        truth = problem.value(problem.logging)
        error = np.hypot(truth.standard_error, rows.reward.std(0) / np.sqrt(len(rows)))
        assert (np.abs(rows.reward.mean(0) - truth.value) < 4 * error).all()


def test_propensities_are_those_that_actions_were_drawn_with() -> None:
    log, problem = synthetic_bandit(50_000, actions=6, users=50_000, seed=2, beta=0.7)
    rows = rows_of(log)
    x = np.stack([rows.context[name] for name in problem.observation], 1)
    chance = problem.logging_probability(x)
    np.testing.assert_allclose(rows.propensity, chance[np.arange(len(x)), rows.action], rtol=1e-12)
    np.testing.assert_allclose(rows.propensity, problem.logging.probability(rows), rtol=1e-12)
    for group in (x[:, 0] > 0, x[:, 1] > 1):  # also where it matters what is seen
        shown = np.bincount(rows.action[group], minlength=6)
        z = (shown - chance[group].sum(0)) / np.sqrt((chance * (1 - chance))[group].sum(0))
        assert np.abs(z).max() < 4


def test_ips_of_a_policy_that_did_not_write_the_log_is_unbiased() -> None:
    _, problem = synthetic_bandit(2_000, signals=TWO, users=300, seed=4, beta=0.5)
    policy = fixed(10)
    found = []
    for seed in range(80):
        rows = rows_of(problem.log(seed))
        found.append(((policy.probability(rows) / rows.propensity)[:, None] * rows.reward).mean(0))
    truth = problem.value(policy)
    error = np.hypot(np.std(found, axis=0, ddof=1) / np.sqrt(len(found)), truth.standard_error)
    assert (np.abs(np.mean(found, axis=0) - truth.value) < 4 * error).all()


def test_rows_of_one_user_are_alike_and_every_row_is_as_a_fresh_one() -> None:
    log, _ = synthetic_bandit(40_000, users=20_000, seed=5)
    rows = rows_of(log)
    x = rows.context["x2"]
    pairs = np.flatnonzero(rows.cluster[1:] == rows.cluster[:-1])
    assert np.corrcoef(x[pairs], x[pairs + 1])[0, 1] == pytest.approx(0.5, abs=0.03)
    assert (x.mean(), x.std()) == (pytest.approx(0, abs=0.03), pytest.approx(1, abs=0.03))
    assert len(np.unique(rows.cluster)) == 20_000


def test_no_policy_earns_more_than_the_best_and_seeds_fix_everything() -> None:
    log, problem = synthetic_bandit(500, signals=TWO, seed=6)
    earned = {w: problem.value(problem.best(w)).value for w in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0))}
    for weights, value in earned.items():
        others = [*earned.values(), problem.value(problem.logging).value, problem.value(uniform(log)).value]
        assert all(value @ np.array(weights) >= other @ np.array(weights) - 1e-12 for other in others)
    assert log.frame.collect().equals(synthetic_bandit(500, signals=TWO, seed=6)[0].frame.collect())
    other = SyntheticBandit(problem.settings).log(7).frame.collect()
    assert not log.frame.collect().equals(other)
    different = synthetic_bandit(500, signals=TWO, seed=7)[1]
    assert not np.allclose(different.expected_reward(np.ones((1, 5))), problem.expected_reward(np.ones((1, 5))))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"actions": 1}, "actions: Input should be greater than or equal to 2"),
        ({"signals": {"click": 1.5}}, r"in \(0, 1\); click=1.5"),
        ({"signals": {"x0": 0.5}}, "x0 is the name of another column"),
    ],
)
def test_problems_that_there_are_not_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        synthetic_bandit(**settings)


def test_what_does_not_fit_the_problem_is_refused() -> None:
    log, problem = synthetic_bandit(10)
    with pytest.raises(InputError, match="3 actions; the problem has 10"):
        problem.value(fixed(3))
    with pytest.raises(InputError, match="a weight for each of click"):
        problem.best([1.0, 2.0])
    assert log.actions == 10
