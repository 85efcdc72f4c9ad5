"""Sequential estimators: by hand, against loops, and where their assumptions hold and break."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.core import InputError
from recsys.sequential import estimators
from recsys.sequential.estimators import (
    Trajectories,
    cwpdis,
    magic,
    ncis,
    pad,
    pdis,
    seq_dr,
    state_density_is,
    tis,
    wdr,
    wis,
)
from recsys.sequential.tabular import density_ratio, discounted_occupancy, looked_up
from tests.recsys.small_sequences import ORACLE, Estimate, random_log, right, weighted, wrong, z_of

GAMMA = ORACLE.discount
EXACT_Q = ORACLE.q(ORACLE.target)
NOISY_Q = EXACT_Q + np.random.default_rng(0).normal(0.3, 0.3, EXACT_Q.shape)
CLOCK = np.arange(ORACLE.horizon)
RATIO = density_ratio(ORACLE.visits(ORACLE.target), ORACLE.visits(ORACLE.logging))
BANDIT = replace(ORACLE, horizon=1)


def plain(estimator: Callable[..., np.ndarray], weigh: Any = right, **options: float) -> Estimate:
    return lambda problem, log: estimator(weigh(problem, log), GAMMA, **options)


def with_model(estimator: Callable[..., np.ndarray], q: np.ndarray, weigh: Any = right) -> Estimate:
    return lambda problem, log: estimator(weigh(problem, log), *looked_up(q, problem.target, log), GAMMA)


HOLDS = {
    "tis": plain(tis),
    "wis": plain(wis),
    "pdis": plain(pdis),
    "cwpdis": plain(cwpdis),
    "seq_dr, any q": with_model(seq_dr, NOISY_Q),
    "seq_dr, any weights": with_model(seq_dr, EXACT_Q, wrong),
    "wdr, any q": with_model(wdr, NOISY_Q),
    "wdr, any weights": with_model(wdr, EXACT_Q, wrong),
    "magic": with_model(magic, EXACT_Q),
    "state_density_is": lambda problem, log: state_density_is(right(problem, log), RATIO[CLOCK, log.state], GAMMA),
}
BREAKS = {
    "tis, wrong weights": plain(tis, wrong),
    "wis, wrong weights": plain(wis, wrong),
    "pdis, wrong weights": plain(pdis, wrong),
    "cwpdis, wrong weights": plain(cwpdis, wrong),
    "seq_dr, both wrong": with_model(seq_dr, NOISY_Q, wrong),
    "wdr, both wrong": with_model(wdr, NOISY_Q, wrong),
    "magic, wrong model": with_model(magic, NOISY_Q, wrong),
    "state_density_is, visits taken for equal": lambda problem, log: state_density_is(
        right(problem, log), np.ones(log.state.shape), GAMMA
    ),
    "ncis, visits taken for equal": plain(ncis, cap=10.0),
}


@pytest.mark.parametrize("name", HOLDS)
def test_where_the_assumption_holds_the_bias_is_within_4_standard_errors(name: str) -> None:
    assert abs(z_of(HOLDS[name])) < 4


@pytest.mark.parametrize("name", BREAKS)
def test_where_the_assumption_breaks_the_bias_is_seen(name: str) -> None:
    assert abs(z_of(BREAKS[name])) > 4


def test_ncis_is_right_for_single_steps_and_a_cap_that_never_binds() -> None:
    assert abs(z_of(plain(ncis, cap=np.inf), BANDIT)) < 4
    assert abs(z_of(plain(ncis, cap=1.0), BANDIT)) > 4


def test_by_hand() -> None:
    """Two trajectories, one of a single step; γ = 1/2."""
    weight = np.array([[2.0, 0.5], [0.5, 99.0]])
    reward = np.array([[[1.0], [4.0]], [[2.0], [99.0]]])
    log = Trajectories.of(weight, reward, np.array([[True, True], [True, False]]))
    expected = {
        tis: [3.0, 1.0],  # ρ = (1, 1/2), G = (3, 2)
        pdis: [2 * 1 + 0.5 * 1 * 4, 0.5 * 2],
    }
    for estimator, contributions in expected.items():
        np.testing.assert_allclose(estimator(log, 0.5)[:, 0], contributions, rtol=1e-14)
    assert wis(log, 0.5).mean() == pytest.approx((1 * 3 + 0.5 * 2) / 1.5)
    assert cwpdis(log, 0.5).mean() == pytest.approx((2 * 1 + 0.5 * 2) / 2.5 + 0.5 * (1 * 4) / 1.5)
    assert ncis(log, 0.5, cap=1.0).mean() == pytest.approx((1 * 1 + 0.5 * 2) / 1.5 + 0.5 * (0.5 * 4) / 1.5)
    q, value = np.full((2, 2, 1), 0.5), np.full((2, 2, 1), 0.25)
    first = 0.25 + 2 * (1 - 0.5) + 0.5 * (2 * 0.25 + 1 * (4 - 0.5))
    np.testing.assert_allclose(seq_dr(log, q, value, 0.5)[:, 0], [first, 0.25 + 0.5 * (2 - 0.5)], rtol=1e-14)


def test_doubly_robust_is_the_backward_recursion_on_unequal_lengths() -> None:
    table = random_log(1)
    log, rng = weighted(table), np.random.default_rng(2)
    q, value = rng.normal(size=(2, *log.reward.shape))
    gamma = np.array([0.9, 0.5])
    found = seq_dr(log, q, value, gamma)
    for i, length in enumerate(log.mask.sum(1)):
        rest = np.zeros(2)
        for t in reversed(range(length)):
            rest = value[i, t] + log.weight[i, t] * (log.reward[i, t] + gamma * rest - q[i, t])
        np.testing.assert_allclose(found[i], rest, rtol=1e-10, atol=1e-12)


def every_estimate(log: Trajectories, q: np.ndarray, value: np.ndarray, gamma: Any) -> dict[str, np.ndarray]:
    found = {f.__name__: f(log, gamma).mean(0) for f in (tis, wis, pdis, cwpdis, ncis)}
    found |= {f.__name__: f(log, q, value, gamma).mean(0) for f in (seq_dr, wdr, magic)}
    return found | {"state_density_is": state_density_is(log, log.weight, gamma).mean(0)}


def test_what_stands_in_the_padding_changes_nothing_nor_does_the_order_or_more_padding() -> None:
    table, rng = random_log(3), np.random.default_rng(4)
    log = weighted(table)
    q, value = rng.normal(size=(2, *log.reward.shape))
    first = every_estimate(log, q, value, 0.9)
    dirt = np.where(log.mask, 0.0, np.nan)
    order = rng.permutation(len(dirt))
    arrays = [log.weight + dirt, log.mask, *(x + dirt[..., None] for x in (log.reward, q, value))]
    weight, mask, reward, q, value = (
        np.pad(x[order], [(0, 0), (0, 2)] + [(0, 0)] * (x.ndim - 2), constant_values=0) for x in arrays
    )
    again = every_estimate(Trajectories.of(weight, reward, mask), q, value, 0.9)
    for name, estimate in first.items():
        np.testing.assert_allclose(again[name], estimate, rtol=1e-9, err_msg=name)


def test_each_signal_is_estimated_as_if_alone_and_scales() -> None:
    table, rng = random_log(5), np.random.default_rng(6)
    log = weighted(table)
    q, value = rng.normal(size=(2, *log.reward.shape))
    both = every_estimate(log, q, value, np.array([0.9, 0.4]))
    for k, gamma in enumerate((0.9, 0.4)):
        one = Trajectories.of(log.weight, 8 * log.reward[..., k : k + 1], log.mask)
        alone = every_estimate(one, 8 * q[..., k : k + 1], 8 * value[..., k : k + 1], gamma)
        for name, estimate in alone.items():
            np.testing.assert_allclose(estimate[0], 8 * both[name][k], rtol=1e-8, err_msg=name)


def test_a_policy_that_is_the_logging_policy_earns_the_mean_return() -> None:
    table = random_log(7)
    log = Trajectories.of(np.ones(table.state.shape), table.reward, table.mask)
    mean = estimators.discounted(table.reward, 0.9).mean(0)
    for estimator in (tis, wis, pdis, cwpdis, ncis):
        np.testing.assert_allclose(estimator(log, 0.9).mean(0), mean, rtol=1e-12)


def test_exact_q_gives_lower_variance_than_per_decision_weights() -> None:
    spread = {}
    for name, estimate in (("pdis", HOLDS["pdis"]), ("dr", with_model(seq_dr, EXACT_Q))):
        logs = (ORACLE.draw(500, np.random.default_rng([1, r])) for r in range(100))
        spread[name] = np.var([estimate(ORACLE, log).mean() for log in logs])
    assert spread["dr"] < spread["pdis"]


@pytest.mark.parametrize("estimator", [seq_dr, wdr, magic])
def test_exact_q_of_a_deterministic_problem_gives_the_truth_without_variance(estimator: Any) -> None:
    rng = np.random.default_rng(8)
    transition = np.eye(5)[rng.integers(0, 5, (5, 3))]
    reward = rng.integers(0, 2, (5, 3)).astype(float)
    problem = replace(ORACLE, transition=transition, reward_mean=reward, start=np.eye(5)[2])
    q = problem.q(problem.target)
    for replication in range(5):
        log = problem.draw(50, np.random.default_rng(replication))
        found = estimator(right(problem, log), *looked_up(q, problem.target, log), GAMMA)
        np.testing.assert_allclose(found, problem.value(problem.target), rtol=1e-12)


def test_the_exact_density_ratio_is_unbiased_without_a_horizon() -> None:
    """(1-γ) Σ γ^t ω w r is the discounted mean reward; ω from linear solves; steps until γ^t is nothing."""
    gamma, steps = 0.6, 60
    problem = replace(ORACLE, horizon=steps, discount=gamma)
    visits = [
        discounted_occupancy(problem.transition, problem.start, policy, gamma)
        for policy in (problem.target, problem.logging)
    ]
    ratio = density_ratio(*visits)
    truth = float(np.einsum("s,sa,sa->", visits[0], problem.target, problem.reward_mean)) / (1 - gamma)
    assert truth == pytest.approx(problem.value(problem.target), abs=1e-10)

    def estimate(known: Any, log: Any) -> np.ndarray:
        return state_density_is(right(known, log), ratio[log.state], gamma)

    assert abs(z_of(estimate, problem, n=200)) < 4


@pytest.mark.parametrize("name", ["wis", "cwpdis", "wdr, any q"])
def test_the_spread_of_the_contributions_is_the_standard_error(name: str) -> None:
    logs = [ORACLE.draw(2000, np.random.default_rng([2, r])) for r in range(100)]
    contributions = [HOLDS[name](ORACLE, log) for log in logs]
    replicated = np.std([c.mean() for c in contributions])
    told = np.mean([c.std() / np.sqrt(len(c)) for c in contributions])
    assert 0.7 < told / replicated < 1.3


def test_no_mixture_on_the_simplex_beats_magics() -> None:
    rng = np.random.default_rng(9)
    for _ in range(10):
        returns = rng.normal(size=(30, 5)) @ rng.normal(size=(5, 5)) + rng.normal(size=5)
        mean, error = returns.mean(0), returns[:, -1].std(ddof=1) / np.sqrt(30)
        outside = mean - np.clip(mean, mean[-1] - 0.67448975 * error, mean[-1] + 0.67448975 * error)
        cost = np.cov(returns.T) / 30 + np.outer(outside, outside)
        x = estimators._mixture(returns)
        others = np.concatenate([rng.dirichlet(np.full(5, 0.3), 5000), np.eye(5)])
        assert x.sum() == pytest.approx(1)
        assert x.min() >= 0
        assert x @ cost @ x <= np.einsum("ij,jk,ik->i", others, cost, others).min() * (1 + 1e-9)


def test_where_all_weights_vanish_wdr_goes_on_by_the_model() -> None:
    log = Trajectories.of(np.array([[1.0, 0.0], [1.0, 0.0]]), np.ones((2, 2, 1)))
    assert cwpdis(log, 1.0).mean() == 1
    assert wis(log, 1.0).mean() == 0
    assert wdr(log, np.full((2, 2, 1), 0.5), np.full((2, 2, 1), 0.25), 1.0).mean() == pytest.approx(0.25 + 0.5 + 0.25)


def test_steps_of_a_table_are_padded() -> None:
    padded, mask = pad(np.arange(6), np.array([1, 3, 2]))
    np.testing.assert_array_equal(padded, [[0, 0, 0], [1, 2, 3], [4, 5, 0]])
    np.testing.assert_array_equal(mask.sum(1), [1, 3, 2])


ONES, MASK = np.ones((2, 3)), np.ones((2, 3), bool)
NAN = np.where(np.eye(2, 3) > 0, np.nan, 1.0)
GAP = np.array([[True, False, True], [True, True, True]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Trajectories.of(ONES, ONES), "need weight [n,T], reward [n,T,K]"),
        (lambda: Trajectories.of(ONES, np.ones((2, 4, 1))), "of the same n > 0"),
        (lambda: Trajectories.of(ONES[:0], np.ones((0, 3, 1))), "of the same n > 0"),
        (lambda: Trajectories.of(NAN, ONES[..., None]), "2 steps are not, the first being step 0 of trajectory 0"),
        (lambda: Trajectories.of(-ONES, ONES[..., None]), "6 steps are not"),
        (lambda: Trajectories.of(ONES, NAN[..., None]), "rewards finite"),
        (lambda: Trajectories.of(ONES, ONES[..., None], GAP), "1 masks have a gap or no step, the first in row 0"),
        (lambda: weighted(random_log(0)).at_steps("q_logged", ONES), "q_logged must have the rewards' shape"),
        (lambda: Trajectories.of(ONES, ONES[..., None]).at_steps("value", NAN[..., None]), "value must be finite"),
        (lambda: pdis(weighted(random_log(0)), 1.5), "discount is one number in [0, 1]"),
        (lambda: estimators.powers(np.array([0.9, 0.9, 0.9]), 4, 2), "one for each of the 2 signals"),
        (lambda: ncis(weighted(random_log(0)), 0.9, cap=0.0), "a positive weight"),
        (lambda: state_density_is(weighted(random_log(0)), ONES, 0.9), "The density ratio is one a step"),
        (lambda: pad(np.arange(3), np.array([1, 3])), "add up to the 3 steps"),
        (lambda: pad(np.arange(3), np.array([3, 0])), "the least being 0"),
        (lambda: density_ratio(np.array([0.5, 0.5]), np.array([1.0, 0.0])), "never does"),
        (lambda: discounted_occupancy(ORACLE.transition, ORACLE.start, ORACLE.target, 1.0), "discount in [0, 1)"),
        (lambda: pad(np.arange(2), np.array([], int)), "these 0 add up to 0"),
    ],
)
def test_bad_input_is_told_in_words(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
