import itertools
import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from envs.core import InputError
from recsys.statistics.bootstrap import (
    bootstrap,
    quantile_interval,
    replicates,
    resampled_totals,
    simultaneous,
    without_each,
)
from recsys.statistics.intervals import ClusterSums, cluster_sums, student_t


def gamma_sums(clusters=300, signals=2, seed=0):
    random = np.random.default_rng(seed)
    return ClusterSums(random.gamma(1.0, 1.0, (clusters, 1, signals)), random.gamma(2.0, 1.0, (clusters, 1)))


def test_three_clusters_give_all_27_resamples_their_share():
    x = np.array([[0.0], [1.0], [10.0]])
    drawn = replicates([cluster_sums(x)], replications=20_000)[0][:, 0]
    exact = [np.mean(picked) for picked in itertools.product(x[:, 0], repeat=3)]
    values, counts = np.unique(np.round(exact, 9), return_counts=True)
    shares = [np.mean(np.isclose(drawn, value)) for value in values]
    np.testing.assert_allclose(shares, counts / 27, atol=0.012)
    assert np.sum(shares) == pytest.approx(1)


def test_a_seed_fixes_the_bits_whatever_the_workers():
    sums = gamma_sums()
    first = replicates([sums], 203, seed=4)[0]
    for workers in (2, 5):
        np.testing.assert_array_equal(first, replicates([sums], 203, seed=4, workers=workers)[0])
    np.testing.assert_array_equal(first[:100], replicates([sums], 100, seed=4)[0])
    assert (first != replicates([sums], 203, seed=5)[0]).all()


def test_threads_of_the_linear_algebra_do_not_change_the_bits():
    code = (
        "import hashlib, numpy as np; from recsys.statistics.bootstrap import resampled_totals; "
        "x = np.random.default_rng(0).normal(size=(20_000, 9)); "
        "print(hashlib.sha256(resampled_totals(x, 16).tobytes()).hexdigest())"
    )
    seen = set()
    for threads in ("1", "2"):
        env = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        seen.add(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout)
    assert len(seen) == 1


def test_estimates_drawn_together_are_those_drawn_alone():
    a, b = gamma_sums(seed=1), gamma_sums(seed=2, signals=3) + gamma_sums(seed=3, signals=3)
    together = replicates([a, b], 50)
    for alone, both in zip((a, b), together):
        np.testing.assert_allclose(replicates([alone], 50)[0], both, rtol=1e-12)
    difference = replicates([gamma_sums(seed=4) - a], 50)[0]
    np.testing.assert_allclose(difference, replicates([gamma_sums(seed=4)], 50)[0] - together[0], rtol=1e-9)


def test_percentiles_are_order_statistics_of_the_replicates():
    sums = gamma_sums()
    drawn = np.sort(replicates([sums], 1_000)[0], axis=0)
    found = bootstrap(sums, level=0.9)
    np.testing.assert_array_equal(found.low, drawn[49])
    np.testing.assert_array_equal(found.high, drawn[950])


def test_bca_leans_to_the_side_of_the_skew():
    random = np.random.default_rng(0)
    x = random.lognormal(0, 1.2, (80, 1))
    plain, corrected = (bootstrap(cluster_sums(x), kind=kind, replications=4_000) for kind in ("percentile", "bca"))
    assert corrected.low[0] > plain.low[0]
    assert corrected.high[0] > plain.high[0]


def test_bca_agrees_with_scipy():
    from scipy import stats

    x = np.random.default_rng(1).lognormal(0, 1, (60, 1))
    ours = bootstrap(cluster_sums(x), kind="bca", replications=20_000)
    peer = stats.bootstrap((x[:, 0],), np.mean, n_resamples=20_000, method="BCa", rng=0).confidence_interval
    spread = ours.high[0] - ours.low[0]
    np.testing.assert_allclose([ours.low[0], ours.high[0]], [peer.low, peer.high], atol=0.03 * spread)


def test_the_jackknife_leaves_each_cluster_out():
    sums = gamma_sums(clusters=7)
    keep = [np.delete(np.arange(7), c) for c in range(7)]
    expected = [ClusterSums(sums.numerator[rows], sums.denominator[rows]).value for rows in keep]
    np.testing.assert_allclose(without_each(sums), expected)


def test_a_resample_without_weight_is_endless_rather_than_forgotten():
    sums = cluster_sums(np.array([[1.0], [0.0], [0.0]]), np.array([1.0, 0.0, 0.0]))
    drawn = replicates([sums], 500)[0]
    assert np.isnan(drawn).mean() == pytest.approx((2 / 3) ** 3, abs=0.07)
    for kind in ("percentile", "bca"):
        found = quantile_interval(sums, drawn, kind=kind)
        assert found.low[0] == -math.inf
        assert found.high[0] == math.inf


def test_simultaneous_intervals_are_wider_than_single_ones_and_narrower_than_bonferronis():
    random = np.random.default_rng(0)
    common = random.normal(size=(400, 1))
    segments = [cluster_sums(common + 0.3 * random.normal(size=(400, 1))) for _ in range(10)]
    joint = simultaneous(segments)
    for one, segment in zip(joint, segments):
        np.testing.assert_allclose(one.value, segment.value)
        half = one.high[0] - one.value[0]
        single, bonferroni = (student_t(segment, level).high[0] - segment.value[0] for level in (0.95, 1 - 0.05 / 10))
        assert single < half < 0.95 * bonferroni
    low = simultaneous(segments, side="low")
    assert all(single.low[0] < side.low[0] < side.value[0] for single, side in zip(joint, low))
    assert all(np.isposinf(side.high[0]) for side in low)


def test_joint_resampling_needs_the_same_clusters():
    with pytest.raises(InputError, match=r"got \[5, 6\] clusters"):
        replicates([gamma_sums(5), gamma_sums(6)])
    with pytest.raises(InputError, match="got 0 and 1"):
        resampled_totals(np.ones((3, 1)), 0)


def test_a_thousand_replications_take_little_time_and_memory():
    import tracemalloc

    sums = gamma_sums(clusters=2_000, signals=7)
    started = time.process_time()
    bootstrap(sums, kind="bca")
    assert time.process_time() - started < 1.0
    many = gamma_sums(clusters=100_000, signals=2)
    tracemalloc.start()
    replicates([many], 40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6
