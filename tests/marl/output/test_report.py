"""Intervals of metrics: what they cover, and what they say where samples tell nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from marl.output.report import Metric


def coverage(samples: np.ndarray, truth: float) -> float:
    found = [Metric.mean(row) for row in samples]
    return float(np.mean([metric.low <= truth <= metric.high for metric in found]))


def test_equal_samples_are_not_exact() -> None:
    """The mean of .1 and .1 … differs from .1 by rounding, which is no spread."""
    same = Metric.mean([0.1] * 256)
    assert same == Metric(0.1, 0.1, 0.1, 256)
    assert not same.is_exact
    assert str(same) == "0.1, no spread in 256"
    assert Metric.exact(7).is_exact
    assert str(Metric.exact(7)) == "7"


def test_means_of_rare_successes_are_covered() -> None:
    """Where none was seen no interval is claimed; Student's alone covers .48 of these."""
    draws = np.random.default_rng(0).random((1000, 64)) < 0.01
    seen = 5 + 3.0 * draws[draws.any(1)]
    assert coverage(seen, 5.03) > 0.95


@pytest.mark.parametrize("n", [3, 64])
def test_means_of_gaussian_samples_are_covered_in_19_of_20_cases(n: int) -> None:
    assert 0.93 < coverage(np.random.default_rng(1).normal(size=(1000, n)), 0.0) < 0.97


def test_two_values_are_covered_as_far_as_either_interval_reaches() -> None:
    found, share = Metric.mean([5.0] * 63 + [8.0]), Metric.proportion(1, 64)
    half = 1.9983 * 3 / 64  # Student's, with the standard error 3 · sqrt(1/64 · 63/64 / 63)
    assert found.high == pytest.approx(5 + 3 * share.high)
    assert found.low == pytest.approx(found.value - half, abs=1e-4)


def test_a_difference_takes_each_end_from_the_ends_that_pull_there() -> None:
    gap = Metric.difference(Metric(5.0, 4.0, 8.0, 10), Metric(1.0, -3.0, 5.0, 9))
    assert (gap.value, gap.low, gap.high, gap.n) == (4, 4 - math.hypot(1, 4), 4 + math.hypot(3, 4), 9)


def test_a_difference_of_what_rises_together_is_more_certain() -> None:
    pair = Metric(5.0, 4.0, 8.0, 10), Metric(1.0, -3.0, 5.0, 9)
    together, against = Metric.difference(*pair, 1.0), Metric.difference(*pair, -1.0)
    assert (together.low, together.high) == (4 - 3, 4 + 1)
    assert (against.low, against.high) == (4 - 5, 4 + 7)
    half = Metric.difference(*pair, -0.5)
    assert against.low < half.low < Metric.difference(*pair).low
