"""How often 95 % intervals hold the truth, over 1,000 simulated logs with a healthy effective sample size.

The world: users of one to three rows with a taste that their rows share, two kinds of context, four actions, a logger
that knows the propensities, clicks. The truth is a sum over all of it. Rows of one user are dependent.
"""

import numpy as np
import pytest

from recsys.statistics.bootstrap import quantile_interval, resampled_totals
from recsys.statistics.empirical_likelihood import empirical_likelihood
from recsys.statistics.intervals import ClusterSums, empirical_bernstein, hoeffding, skewness_corrected, student_t

LOGS, USERS, LEVEL = 1_000, 300, 0.95
LOGGING = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
TARGET = np.array([[0.2, 0.2, 0.3, 0.3], [0.25, 0.25, 0.1, 0.4]])
CLICK = np.array([[0.2, 0.1, 0.3, 0.5], [0.6, 0.1, 0.2, 0.3]])
TRUTH = float((TARGET * CLICK).sum(axis=1).mean())
WEIGHT = TARGET / LOGGING
COVERED = pytest.approx(0.95, abs=0.03)


def worlds(seed=0):
    """Sums of [LOGS, USERS]: weighted clicks, weights, rows."""
    random = np.random.default_rng(seed)
    shape = (LOGS, USERS, 3)
    context = random.integers(2, size=shape)
    action = (random.random(shape)[..., None] > LOGGING.cumsum(axis=1)[context]).sum(axis=-1).clip(max=3)
    taste = random.choice([0.4, 1.6], size=(LOGS, USERS, 1))
    click = random.random(shape) < taste * CLICK[context, action]
    there = np.arange(3) < random.integers(1, 4, size=(LOGS, USERS, 1))
    weight = WEIGHT[context, action] * there
    return (weight * click).sum(axis=-1), weight.sum(axis=-1), there.sum(axis=-1).astype(np.float64)


ABOVE, WEIGHTS, ROWS = worlds()
KINDS = {
    "ips": [ClusterSums(a[:, None, None], n[:, None]) for a, n in zip(ABOVE, ROWS)],
    "snips": [ClusterSums(a[:, None, None], w[:, None]) for a, w in zip(ABOVE, WEIGHTS)],
}


def covered(intervals):
    return float(np.mean([interval.low[0] <= TRUTH <= interval.high[0] for interval in intervals]))


def test_the_effective_sample_size_is_healthy():
    ess = WEIGHTS.sum(axis=1) ** 2 / (WEIGHTS**2).sum(axis=1)
    assert ess.min() > 0.4 * USERS


@pytest.mark.parametrize("kind", KINDS)
def test_t_covers(kind):
    assert covered(student_t(sums, LEVEL) for sums in KINDS[kind]) == COVERED


@pytest.mark.parametrize("method", ["percentile", pytest.param("bca", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bootstrap_covers(kind, method):
    """One set of resamples serves all logs, which are independent all the same."""
    below = {"ips": ROWS, "snips": WEIGHTS}[kind]
    totals = resampled_totals(np.concatenate([ABOVE, below]).T.copy(), 1_000, seed=1)
    drawn = totals[:, :LOGS] / totals[:, LOGS:]
    found = (quantile_interval(sums, drawn[:, i : i + 1], LEVEL, "both", method) for i, sums in enumerate(KINDS[kind]))
    assert covered(found) == COVERED


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_empirical_likelihood_covers(kind):
    assert covered(empirical_likelihood(sums, LEVEL) for sums in KINDS[kind]) == COVERED


@pytest.mark.slow
def test_empirical_likelihood_that_knows_the_mean_weight_covers():
    found = (
        empirical_likelihood(sums, LEVEL, given=(w - n)[:, None]) for sums, w, n in zip(KINDS["ips"], WEIGHTS, ROWS)
    )
    assert covered(found) == COVERED


@pytest.mark.parametrize("bound", [hoeffding, empirical_bernstein])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_cover_more_than_they_promise(kind, bound):
    most = 3 * float(WEIGHT.max())
    below = {"ips": (1, 3), "snips": (0, most)}[kind]
    assert covered(bound(sums, (0, most), below, LEVEL) for sums in KINDS[kind]) >= 0.95


def test_a_log_taken_by_rows_covers_less_than_by_users():
    """Why clusters: a taste shared by all rows of a user makes rows' intervals too narrow."""
    random = np.random.default_rng(3)
    taste = random.normal(size=(LOGS, 60, 1)) + 0.3 * random.normal(size=(LOGS, 60, 5))
    by_row = (student_t(ClusterSums(x.reshape(-1, 1, 1), np.ones((300, 1)))) for x in taste + TRUTH)
    by_user = (student_t(ClusterSums(x.sum(axis=1)[:, None, None], np.full((60, 1), 5.0))) for x in taste + TRUTH)
    assert covered(by_row) < 0.75
    assert covered(by_user) == COVERED


def test_intervals_of_many_uneven_segments_hold_all_at_once():
    """Twenty segments of 100 to 2,000 rows at 10 % clicks, weighted; Student's miss somewhere three times as often."""
    random, logs, family = np.random.default_rng(3), 200, 20
    sizes = np.linspace(100, 2000, family).astype(int)
    level = 1 - 0.05 / family
    missed = {skewness_corrected: 0, student_t: 0}
    for _ in range(logs):
        earned = [random.choice([0.5, 2.0], n, p=[2 / 3, 1 / 3]) * (random.random(n) < 0.1) for n in sizes]
        segments = [ClusterSums(x[:, None, None], np.ones((len(x), 1))) for x in earned]
        for kind in missed:
            found = [kind(segment, level) for segment in segments]
            missed[kind] += any(not one.low[0] <= 0.1 <= one.high[0] for one in found)
    assert missed[skewness_corrected] <= 0.07 * logs
    assert missed[student_t] >= 0.12 * logs
