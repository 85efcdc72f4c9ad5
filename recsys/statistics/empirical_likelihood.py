"""Empirical-likelihood intervals: which values could a reweighting of the clusters explain?

Axes as in `intervals`; M moments that are known to be zero.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from envs.core import InputError
from recsys.statistics.intervals import ClusterSums, Interval, Side, tails, unit_of

STEPS = 60  # of Newton; ten suffice away from the edge of the data's hull
WIDEST = 60  # doublings of the search for an end before it is called endless


def empirical_likelihood(
    sums: ClusterSums,
    level: float = 0.95,
    side: Side = "both",
    given: Float[np.ndarray, "C M"] | None = None,
) -> Interval:
    """Empirical likelihood interval: the v with -2 log R(v) ≤ F_{1,C-1}'s quantile.

    R is the profile likelihood ratio of multinomials on the clusters:

    R(v) = max {Π_c C q_c : Σ q_c = 1, Σ q_c (numerator_c - v denominator_c) = 0}.

    Assumes many independent clusters with finite variance, no bounds; the interval follows the data's skewness and
    never leaves their range, which suits heavy weights on sparse rewards better than a symmetric one. The denominator
    makes it an interval of a ratio such as SNIPS. `given` are moments known to be zero, such as Σ (w - 1) of each
    cluster: then R is relative to the best q that has them, and `value` is the maximum empirical likelihood estimate,
    with E w = 1 built in. (Owen, Biometrika 1988, and Empirical Likelihood, 2001, chapters 2 and 3; estimating
    equations: Qin and Lawless, Annals of Statistics 1994; E w = 1: Karampatziakis, Langford and Mineiro, AISTATS
    2020, here without their bound on unseen weights; the quantile of F instead of χ² is Owen's correction for small
    samples.)

    Raises InputError for a sum of several ratios.
    """
    from scipy import stats

    if sums.denominator.shape[1] != 1:
        raise InputError(
            f"Empirical likelihood takes one ratio of sums; this estimate has {sums.denominator.shape[1]}. Use a t or "
            "bootstrap interval."
        )
    tail = tails(level, side)
    reach = math.inf if sums.clusters < 2 else math.sqrt(stats.f.ppf(1 - 2 * max(tail), 1, sums.clusters - 1))
    known = np.zeros((sums.clusters, 0)) if given is None else given
    ends = [_ends(column, sums.denominator[:, 0], known, reach, tail) for column in sums.numerator[:, 0].T]
    value, low, high = np.array(ends).T
    return Interval(value, low, high, sums.clusters, level, "empirical_likelihood")


def log_ratio(moments: Float[np.ndarray, "C M"]) -> float:
    """-2 log of the largest Π C q_c whose moments Σ q_c moments_c are zero: 2 max_λ Σ log(1 + λ·moments_c), by Newton.

    Where no q has them the value is large instead of infinite (Owen's pseudo-logarithm, quadratic below 1/C).
    """
    return 2 * _dual(moments)[0]


def _dual(moments: np.ndarray) -> tuple[float, np.ndarray]:
    """The maximum over λ of Σ log*(1 + λ·moments) and the q it belongs to."""
    C, M = moments.shape
    scale = np.abs(moments).max(axis=0) if C else np.ones(M)
    x = moments / np.where(scale > 0, scale, 1.0)
    multiplier, best = np.zeros(M), 0.0
    z = np.ones(C)
    for _ in range(STEPS):
        inside = z >= 1 / C
        safe = np.where(inside, z, 1.0)
        slope = np.where(inside, 1 / safe, 2 * C - C * C * z)
        bend = np.where(inside, slope * slope, float(C * C))
        gradient = x.T @ slope
        step = np.linalg.solve((x.T * bend) @ x + 1e-12 * C * np.eye(M), gradient)
        if gradient @ step < 1e-12 or best > 1e4:
            break
        size, previous = 1.0, best
        while size > 1e-6:
            trial = 1 + x @ (multiplier + size * step)
            best = _pseudo_log(trial)
            if best >= previous:
                break
            size /= 2
        multiplier, z = multiplier + size * step, trial
    q = 1 / np.maximum(z, 1 / C) / C
    return best, q


def _pseudo_log(z: np.ndarray) -> float:
    C = len(z)
    inside = z >= 1 / C
    y = C * z
    return float(np.where(inside, np.log(np.where(inside, z, 1.0)), -math.log(C) - 1.5 + 2 * y - y * y / 2).sum())


def _ends(
    above: np.ndarray, below: np.ndarray, known: np.ndarray, reach: float, tail: tuple[float, float]
) -> tuple[float, float, float]:
    """The estimate and both ends for one signal.

    The signed root of -2 log R is nearly linear in v, so few steps find it.
    """
    from scipy import optimize

    free, q = _dual(known) if known.shape[1] else (0.0, np.ones(len(above)))
    value = float(q @ above / (q @ below))
    if math.isinf(reach):
        return value, -math.inf, math.inf
    off = above - value * below
    unit = unit_of(np.abs(off).max())
    spread = float(unit * np.sqrt(((off / unit) ** 2).sum())) / abs(float(below.sum()))

    def root(v: float) -> float:
        moments = np.concatenate([(above - v * below)[:, None], known], axis=1)
        return math.sqrt(max(log_ratio(moments) - 2 * free, 0.0)) - reach

    def end(direction: float) -> float:
        inner, width = value, spread * max(reach, 1.0)
        for _ in range(WIDEST):
            outer = value + direction * width
            if root(outer) > 0:
                if root(inner) >= 0:  # all that varies is rounding
                    return inner
                return float(optimize.brentq(root, inner, outer, xtol=1e-10 * spread, rtol=1e-12))
            inner, width = outer, 2 * width
        return direction * math.inf

    if spread == 0:
        return value, value if tail[0] else -math.inf, value if tail[1] else math.inf
    return value, end(-1.0) if tail[0] else -math.inf, end(1.0) if tail[1] else math.inf
