import numpy as np
import pytest
from scipy import stats

from envs.core import InputError
from recsys.statistics.intervals import cluster_sums, skewness_corrected
from recsys.statistics.multiple_testing import benjamini_hochberg, holm, p_values


def test_p_values_are_those_of_the_t_test_where_nothing_is_skewed():
    x = np.random.default_rng(0).normal(0.3, 1, (30, 3))
    x = np.concatenate([x, 2 * x.mean(0) - x])  # as far below the mean as above
    for null in (0.0, 0.3):
        np.testing.assert_allclose(p_values(cluster_sums(x), null), stats.ttest_1samp(x, null).pvalue)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("shape", [0.3, 3.0])
def test_a_null_is_rejected_where_the_interval_corrected_for_skewness_leaves_it_out(shape: float, sign: int):
    sums = cluster_sums(sign * np.random.default_rng(1).gamma(shape, 1.0, (40, 1)))
    for level in (0.5, 0.9, 0.99):
        interval = skewness_corrected(sums, level)
        for end, outward in ((interval.low[0], -1), (interval.high[0], 1)):
            assert p_values(sums, end + outward * 1e-6)[0] < 1 - level < p_values(sums, end - outward * 1e-6)[0]


def test_a_null_of_rare_events_is_rejected_no_more_often_than_is_said():
    rng, wrong, student = np.random.default_rng(2), 0, 0
    for _ in range(4000):
        x = (rng.random((1000, 1)) < 0.015) * 1.0
        wrong += p_values(cluster_sums(x), 0.015)[0] <= 0.002
        student += stats.ttest_1samp(x, 0.015).pvalue[0] <= 0.002
    assert wrong / 4000 < 0.003
    assert student / 4000 > 0.006


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
