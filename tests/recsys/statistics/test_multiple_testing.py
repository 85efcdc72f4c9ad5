import numpy as np
import pytest
from scipy import stats

from envs.core import InputError
from recsys.statistics.intervals import cluster_sums
from recsys.statistics.multiple_testing import benjamini_hochberg, holm, p_values


def test_p_values_are_those_of_the_t_test():
    x = np.random.default_rng(0).normal(0.3, 1, (30, 3))
    np.testing.assert_allclose(p_values(cluster_sums(x)), stats.ttest_1samp(x, 0.0).pvalue)
    np.testing.assert_allclose(p_values(cluster_sums(x), 0.3), stats.ttest_1samp(x, 0.3).pvalue)


def test_a_difference_that_is_always_the_same_is_certain_and_none_is_none():
    p = p_values(cluster_sums(np.tile([[0.0, 1.0]], (10, 1))))
    np.testing.assert_array_equal(p, [1, 0])


def test_holm_by_hand():
    p = np.array([0.04, 0.01, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.06, 0.03, 0.06, 0.02])


def test_benjamini_hochberg_agrees_with_scipy():
    p = np.array([0.04, 0.01, 0.03, 0.005, 0.9])
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p))


def test_among_true_nulls_holm_rejects_any_in_one_log_of_twenty():
    p = np.random.default_rng(0).random((4_000, 20))
    assert np.mean([holm(row).min() <= 0.05 for row in p]) == pytest.approx(0.05, abs=0.012)


def test_p_values_are_probabilities():
    with pytest.raises(InputError, match="between 0 and 1"):
        holm(np.array([0.5, 1.5]))
