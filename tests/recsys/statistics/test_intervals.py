import math

import numpy as np
import pytest
from scipy import stats

from envs.core import InputError
from recsys.statistics.bootstrap import bootstrap
from recsys.statistics.empirical_likelihood import empirical_likelihood, log_ratio
from recsys.statistics.intervals import (
    ClusterSums,
    cluster_sums,
    empirical_bernstein,
    hoeffding,
    influence,
    rows_to_tell,
    standard_error,
    student_t,
)

RANDOM = np.random.default_rng(0)


def column(*values):
    return np.array(values, dtype=np.float64)[:, None]


def log(rows=300, users=60, signals=2, seed=0):
    random = np.random.default_rng(seed)
    weight = random.lognormal(-0.3, 0.8, rows)
    return weight, random.gamma(2.0, 1.0, (rows, signals)), random.integers(users, size=rows)


def every_interval(sums):
    yield student_t(sums)
    yield bootstrap(sums, seed=3)
    yield bootstrap(sums, kind="bca", seed=3)
    yield empirical_likelihood(sums)
    yield hoeffding(sums, (-1e4, 1e4), (0, 1e4))
    yield empirical_bernstein(sums, (-1e4, 1e4), (0, 1e4))


def test_a_mean_over_rows_has_students_interval():
    x = column(1, 2, 4, 9)
    found = student_t(cluster_sums(x))
    half = stats.t.ppf(0.975, 3) * x.std(ddof=1) / 2
    np.testing.assert_allclose([found.low[0], found.value[0], found.high[0]], [4 - half, 4, 4 + half])


def test_rows_of_one_user_count_as_one():
    sums = cluster_sums(column(1, 3, 2, 2, 5), cluster=np.array([7, 7, -1, -1, 4]))
    np.testing.assert_array_equal(sums.numerator[:, 0, 0], [4, 5, 4])
    np.testing.assert_array_equal(sums.denominator[:, 0], [2, 1, 2])
    # by hand: mean 13/5, pulls (4 - 2 · 2.6, 5 - 2.6, 4 - 5.2) / (5/3)
    np.testing.assert_allclose(influence(sums)[:, 0], np.array([-1.2, 2.4, -1.2]) * 3 / 5)
    np.testing.assert_allclose(standard_error(sums), math.sqrt((1.2**2 * 2 + 2.4**2) * 9 / 25 / 6))


def test_the_error_of_a_ratio_is_that_of_its_linearization():
    weight, reward, _ = log(rows=4_000)
    errors = [
        standard_error(cluster_sums((weight[:, None] * reward)[rows], weight[rows]))
        for rows in (slice(None), slice(500))
    ]
    values = [cluster_sums((w[:, None] * r), w).value for w, r, _ in (log(rows=500, seed=seed) for seed in range(400))]
    np.testing.assert_allclose(np.std(values, axis=0), errors[0] * math.sqrt(8), rtol=0.12)
    assert (errors[1] > errors[0]).all()


def test_hoeffding_by_hand():
    sums = cluster_sums(column(0, 1, 1, 0, 1))
    found = hoeffding(sums, (0, 1))
    half = math.sqrt(math.log(40) / 10)
    np.testing.assert_allclose([found.low[0], found.high[0]], [0.6 - half, 0.6 + half])
    one = hoeffding(sums, (0, 1), side="low")
    assert one.low[0] == pytest.approx(0.6 - math.sqrt(math.log(20) / 10))
    assert one.high[0] == math.inf


def test_bernstein_by_hand():
    found = empirical_bernstein(cluster_sums(column(0, 2, 2, 0, 1)), (0, 2), level=0.9)
    half = math.sqrt(2 * 1.0 * math.log(40) / 5) + 7 * 2 * math.log(40) / (3 * 4)
    np.testing.assert_allclose([found.low[0], found.high[0]], [1 - half, 1 + half])


def test_a_bound_of_a_ratio_holds_every_value_that_the_bound_of_its_moment_cannot_reject():
    weight, reward, _ = log(rows=500, signals=1)
    weight, click = np.minimum(weight, 4.0), (reward > 2).astype(np.float64)
    sums = cluster_sums(weight[:, None] * click, weight)
    found = hoeffding(sums, (0, 4), (0, 4))
    epsilon = math.sqrt(math.log(40) / 1_000)
    for v, off in ((found.low[0], 1), (found.high[0], -1)):
        moment = (weight[:, None] * (click - v)).mean()
        assert moment * off == pytest.approx(epsilon * (4 + abs(v) * 4))


def test_bounds_need_ranges_that_hold():
    sums = cluster_sums(column(0, 3))
    with pytest.raises(InputError, match=r"said to lie in \[0, 2\]"):
        hoeffding(sums, (0, 2))
    with pytest.raises(InputError, match="give denominator_range"):
        empirical_bernstein(cluster_sums(column(0, 1, 0), cluster=np.array([0, 0, 1])), (0, 1))
    double = sums + cluster_sums(column(0, 3), np.array([1.0, 2.0]))
    for interval in (lambda s: hoeffding(s, (0, 3)), empirical_likelihood):
        with pytest.raises(InputError, match="this estimate has 2"):
            interval(double)


def test_empirical_likelihood_solves_its_definition():
    """Two values 0 and 1, k of n ones: -2 log R(v) is the binomial likelihood ratio."""
    x = column(*([1.0] * 3 + [0.0] * 9))
    v = 0.4
    expected = 2 * (3 * math.log(0.25 / v) + 9 * math.log(0.75 / (1 - v)))
    assert log_ratio(x - v) == pytest.approx(expected, rel=1e-9)
    found = empirical_likelihood(cluster_sums(x))
    edge = stats.f.ppf(0.95, 1, 11)
    assert found.value[0] == 0.25
    for end in (found.low[0], found.high[0]):
        assert 2 * (3 * math.log(0.25 / end) + 9 * math.log(0.75 / (1 - end))) == pytest.approx(edge, rel=1e-7)


def test_empirical_likelihood_of_a_ratio_stays_within_the_rewards():
    weight = np.array([1.0, 30.0, 2.0, 1.0, 4.0, 0.5, 1.0, 2.0])
    reward = column(1, 0, 1, 0, 1, 1, 0, 1)
    found = empirical_likelihood(cluster_sums(weight[:, None] * reward, weight), level=0.99)
    assert 0 < found.low[0] < found.value[0] < found.high[0] < 1


def test_knowing_that_the_mean_weight_is_1_narrows_the_interval():
    """Rewards of 1 throughout: only the weights vary, and those are known to have mean 1."""
    weight, reward, _ = log(rows=400, signals=1)
    sums = cluster_sums(weight[:, None] * (1 + 0.1 * reward))
    plain, knowing = (empirical_likelihood(sums, given=given) for given in (None, (weight - 1)[:, None]))
    assert knowing.high[0] - knowing.low[0] < 0.2 * (plain.high[0] - plain.low[0])
    assert plain.value[0] == pytest.approx(sums.value[0])
    assert knowing.value[0] == pytest.approx(1.2, abs=0.02)


def test_known_moments_are_the_baseline_that_values_are_held_against():
    """A mean weight of 1.3 is itself improbable; that must not narrow the interval of the value."""
    weight, reward, _ = log(rows=200, signals=1)
    weight *= 1.3 / weight.mean()
    above, known = weight[:, None] * reward, (weight - 1)[:, None]
    found = empirical_likelihood(cluster_sums(above), given=known)
    edge = stats.f.ppf(0.95, 1, 199)
    assert log_ratio(known) > 10
    for end in (found.low[0], found.high[0]):
        moments = np.concatenate([above - end, known], axis=1)
        assert log_ratio(moments) - log_ratio(known) == pytest.approx(edge, rel=1e-5)
    assert log_ratio(np.concatenate([above - found.value, known], axis=1)) == pytest.approx(log_ratio(known), rel=1e-9)


def test_moments_that_no_reweighting_has_are_improbable_not_an_error():
    assert 100 < log_ratio(np.linspace(1, 2, 30)[:, None]) < math.inf


def test_signals_do_not_touch_each_other():
    weight, reward, user = log(signals=3)
    together = every_interval(cluster_sums(weight[:, None] * reward, weight, user))
    alone = every_interval(cluster_sums(weight[:, None] * reward[:, 1:2], weight, user))
    for a, b in zip(together, alone):
        np.testing.assert_allclose([a.low[1], a.value[1], a.high[1]], [b.low[0], b.value[0], b.high[0]], rtol=1e-9)


def test_scaling_rewards_scales_intervals():
    weight, reward, user = log()
    for kind in (student_t, bootstrap, empirical_likelihood):
        a = kind(cluster_sums(weight[:, None] * reward, weight, user))
        b = kind(cluster_sums(weight[:, None] * reward * 1e-3, weight * 5, user))
        np.testing.assert_allclose(
            np.array([b.low, b.value, b.high]), np.array([a.low, a.value, a.high]) / 5e3, rtol=1e-6
        )


def test_the_order_of_rows_and_the_names_of_users_do_not_matter():
    weight, reward, user = log()
    order = RANDOM.permutation(len(weight))
    a = every_interval(cluster_sums(weight[:, None] * reward, weight, user))
    b = every_interval(cluster_sums((weight[:, None] * reward)[order], weight[order], user[order] * 3 - 50))
    for x, y in zip(a, b):
        np.testing.assert_allclose([x.low, x.value, x.high], [y.low, y.value, y.high], rtol=1e-9)


def test_one_sided_bounds_are_the_ends_of_a_wider_interval():
    weight, reward, user = log()
    sums = cluster_sums(weight[:, None] * reward, weight, user)
    for kind in (student_t, empirical_likelihood, bootstrap):
        both, low, high = kind(sums, level=0.9), kind(sums, level=0.95, side="low"), kind(sums, level=0.95, side="high")
        np.testing.assert_allclose(low.low, both.low, rtol=1e-6)
        np.testing.assert_allclose(high.high, both.high, rtol=1e-6)
        assert np.isposinf(low.high).all()
        assert np.isneginf(high.low).all()


def test_a_difference_is_paired():
    weight, reward, user = log()
    a = cluster_sums(weight[:, None] * reward, cluster=user)
    b = cluster_sums(weight[:, None] * (reward + 0.001), cluster=user)
    difference = a - b
    assert difference.denominator.shape[1] == 1  # equal denominators are one ratio, so that bounds apply
    np.testing.assert_allclose(difference.value, a.value - b.value)
    assert (standard_error(difference) < 0.01 * standard_error(a)).all()
    for found in every_interval(a - a):
        np.testing.assert_array_equal(found.value, 0)
    ratio = cluster_sums(weight[:, None] * reward, weight, user)
    mixed = a - ratio
    np.testing.assert_allclose(mixed.value, a.value - ratio.value)
    np.testing.assert_allclose(influence(mixed), influence(a) - influence(ratio), atol=1e-12)
    with pytest.raises(InputError, match="same clusters"):
        a - cluster_sums(reward)


def test_a_doubly_robust_ratio_is_a_mean_plus_a_ratio():
    weight, reward, user = log()
    value, residual = reward * 0.5, reward - 1.0
    sums = cluster_sums(value, cluster=user) + cluster_sums(weight[:, None] * residual, weight, user)
    expected = value.mean(axis=0) + (weight[:, None] * residual).sum(axis=0) / weight.sum()
    for found in (student_t(sums), bootstrap(sums), bootstrap(sums, kind="bca")):
        np.testing.assert_allclose(found.value, expected)
        assert (found.low < expected).all()
        assert (expected < found.high).all()


def test_what_cannot_be_known_is_endless():
    one = cluster_sums(column(1, 2, 3), cluster=np.array([5, 5, 5]))
    for found in (student_t(one), empirical_likelihood(one), empirical_bernstein(one, (0, 9), (1, 9))):
        assert found.value[0] == 2
        assert np.isneginf(found.low[0])
        assert np.isposinf(found.high[0])
    assert student_t(one).metrics()[0].n == 1


def test_a_signal_that_never_varies_has_no_width():
    sums = cluster_sums(np.ones((20, 1)))
    for found in (student_t(sums), bootstrap(sums), bootstrap(sums, kind="bca"), empirical_likelihood(sums)):
        assert found.low[0] == found.value[0] == found.high[0] == 1


@pytest.mark.parametrize(
    ("numerator", "denominator", "says"),
    [
        ([1.0, math.nan], [1.0, 1.0], "finite"),
        ([1.0, 1.0], [0.0, 0.0], "chose none of the logged actions"),
        ([], [], "at least one cluster"),
    ],
)
def test_sums_that_make_no_estimate_are_refused(numerator, denominator, says):
    with pytest.raises(InputError, match=says):
        ClusterSums(np.array(numerator).reshape(-1, 1, 1), np.array(denominator).reshape(-1, 1))


def test_a_level_is_a_probability():
    with pytest.raises(InputError, match="got 95"):
        student_t(cluster_sums(column(1, 2)), level=95.0)


def test_rows_to_tell_are_those_by_which_four_in_five_logs_tell_a_value_of_that_size() -> None:
    """Of clusters of one to three rows: drawn anew with so many, intervals leave out 0 in 80 % of logs."""
    rng = np.random.default_rng(0)

    def drawn(clusters: int) -> ClusterSums:
        rows = rng.integers(1, 4, size=clusters)
        return ClusterSums((rows * rng.normal(0.3, 1.0, clusters))[:, None, None], rows[:, None].astype(float))

    long = drawn(200_000)
    (needed,) = rows_to_tell(long, float(long.denominator.sum()), 0.95)
    clusters = round(needed / 2)
    told = [float(student_t(drawn(clusters)).low[0]) > 0 for _ in range(1000)]
    assert np.mean(told) == pytest.approx(0.8, abs=0.04)


def test_rows_to_tell_nothing_from_nothing_are_endless() -> None:
    same = ClusterSums(np.zeros((5, 1, 2)), np.ones((5, 1)))
    assert rows_to_tell(same, 5, 0.95).tolist() == [math.inf, math.inf]
