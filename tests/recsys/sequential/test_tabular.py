"""Tabular estimators: fitted Q against dynamic programming, learned weights against their moments and against it."""

from dataclasses import replace

import numpy as np
import pytest

from envs.core import InputError
from recsys.sequential.tabular import (
    TabularLog,
    clocked,
    empirical_model,
    exact_q,
    fqe,
    looked_up,
    mwl,
    mwl_ratio,
    occupancy,
    state_value,
)
from tests.recsys.small_sequences import ORACLE, random_log, random_policy, z_of

GAMMA = ORACLE.discount


def blind(log: TabularLog) -> TabularLog:
    """All states look alike."""
    return TabularLog.of(np.zeros_like(log.state), log.action, log.reward, log.mask, 1, log.actions)


def by_clock(log: TabularLog, policy: np.ndarray) -> np.ndarray:
    return np.tile(policy, (log.state.shape[1], 1))


def fqe_estimate(log: TabularLog, policy: np.ndarray) -> np.ndarray:
    return looked_up(fqe(log, policy, GAMMA), policy, log)[1][:, 0]


# Logging depends on the state, the target does not: whoever cannot see the state takes its effect for the action's.
SAME_EVERYWHERE = replace(ORACLE, target=np.tile([0.7, 0.2, 0.1], (5, 1)))


@pytest.mark.parametrize("learned", ["fqe", "mwl"])
def test_states_that_tell_all_make_no_bias_and_hidden_ones_do(learned: str) -> None:
    if learned == "fqe":
        seen = z_of(lambda p, log: fqe_estimate(log, p.target), SAME_EVERYWHERE)
        hidden = z_of(lambda p, log: fqe_estimate(blind(log), p.target[:1]), SAME_EVERYWHERE)
    else:
        seen = z_of(lambda p, log: mwl(clocked(log), by_clock(log, p.target), GAMMA), SAME_EVERYWHERE)
        hidden = z_of(lambda p, log: mwl(clocked(blind(log)), by_clock(log, p.target[:1]), GAMMA), SAME_EVERYWHERE)
    assert abs(seen) < 4
    assert abs(hidden) > 4


@pytest.mark.parametrize("seed", range(5))
def test_fitted_q_is_dynamic_programming_on_the_empirical_model(seed: int) -> None:
    """Trajectories of unequal length, a discount a signal, and pairs that were never seen."""
    log, policy, gamma = random_log(seed), random_policy(seed), np.array([0.9, 0.5])
    by_model = exact_q(*empirical_model(log), policy, gamma)
    np.testing.assert_allclose(fqe(log, policy, gamma), by_model, atol=1e-8)


def test_the_empirical_model_of_two_trajectories_by_hand() -> None:
    log = TabularLog.of(
        np.array([[0, 1], [0, 0]]),
        np.zeros((2, 2), int),
        np.array([[[1.0], [2.0]], [[3.0], [9.0]]]),
        np.array([[True, True], [True, False]]),
        2,
        1,
    )
    transition, reward = empirical_model(log)
    np.testing.assert_array_equal(transition[0, 0, 0], [0.0, 0.5])  # the other half ended there
    np.testing.assert_array_equal(reward[:, :, 0, 0], [[2.0, 0.0], [0.0, 2.0]])
    policy = np.ones((2, 1))
    assert fqe(log, policy, 0.5)[0, 0, 0, 0] == 2 + 0.5 * 0.5 * 2


@pytest.mark.parametrize("seed", range(3))
def test_learned_weights_meet_the_moment_of_every_function(seed: int) -> None:
    log, gamma = random_log(seed, n=200), np.array([0.9, 0.5])
    policy = random_policy(seed)
    ratio = mwl_ratio(log, policy, gamma)
    f = np.random.default_rng(seed).normal(size=(3, 2))
    expected = (policy * f).sum(1)
    after = np.where(log.goes_on, expected[np.roll(log.state, -1, axis=1)], 0.0)
    for k in range(2):
        zeta = ratio[..., k][log.state, log.action] * log.mask
        moment = (zeta * (f[log.state, log.action] - gamma[k] * after)).sum()
        assert moment == pytest.approx(expected[log.state[:, 0]].sum(), rel=1e-9)


def test_learned_weights_and_fitted_q_agree_where_every_pair_was_seen() -> None:
    log = ORACLE.draw(2000, np.random.default_rng(0))
    by_weights = mwl(clocked(log), by_clock(log, ORACLE.target), GAMMA).mean()
    assert by_weights == pytest.approx(fqe_estimate(log, ORACLE.target).mean(), rel=1e-10)


def test_visits_times_rewards_are_the_value() -> None:
    visits = ORACLE.visits(ORACLE.target)
    np.testing.assert_allclose(visits.sum(1), 1)
    discounted = GAMMA ** np.arange(ORACLE.horizon) @ visits
    value = np.einsum("s,sa,sa->", discounted, ORACLE.target, ORACLE.reward_mean)
    assert value == pytest.approx(ORACLE.value(ORACLE.target), rel=1e-12)
    assert occupancy(ORACLE.transition, ORACLE.start, ORACLE.target, 1).tolist() == [ORACLE.start.tolist()]


def test_values_are_those_of_the_file() -> None:
    assert ORACLE.value(ORACLE.target) == pytest.approx(2.426734914315522, rel=1e-14)
    assert ORACLE.value(ORACLE.logging) == pytest.approx(2.1325443317294224, rel=1e-14)
    q = ORACLE.q(ORACLE.target)
    assert q[-1, ..., 0] == pytest.approx(ORACLE.reward_mean)
    assert state_value(q, ORACLE.target)[0, :, 0] @ ORACLE.start == pytest.approx(2.426734914315522, rel=1e-14)


def test_bad_input_is_told_in_words() -> None:
    log = random_log(0)
    steps = (log.reward, log.mask, 3, 2)
    with pytest.raises(InputError, match=r"Every action is a number from 0 to 1; \d+ are not, the first being 5 at"):
        TabularLog.of(log.state, log.action + 5, *steps)
    with pytest.raises(InputError, match="needs state, action and mask"):
        TabularLog.of(log.state[:, :3], log.action, *steps)
    with pytest.raises(InputError, match="The policy must be"):
        mwl_ratio(log, random_policy(0, states=4), 0.9)
