"""Intervals of off-policy estimates in closed form, from sums over independent clusters.

Axes: n rows, C clusters (users; rows where a log has no user), J ratios in one estimate, K signals. Rows of one user
are not independent, clusters are: every interval here, in `bootstrap` and in `empirical_likelihood` sees clusters
only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from envs.core import InputError
from marl.output.report import Metric

Side = Literal["both", "low", "high"]
Range = tuple[int | float, int | float]
HUGE = 1e90  # the third power of anything below is a number


@dataclass(frozen=True)
class ClusterSums:
    """An estimate as J ratios of sums over C clusters, for K signals.

    estimate_k = Σ_j (Σ_c numerator[c,j,k]) / (Σ_c denominator[c,j])

    A mean over rows has one ratio, whose denominator is the rows of each cluster; SNIPS has Σ w r over Σ w; SNDR is a
    mean plus a ratio (J = 2); CWPDIS has one ratio for each step. The difference of two estimates on the same
    clusters, `a - b`, is again such a sum, so every interval of an estimate is also a paired interval of a
    difference.

    Raises InputError for sums that are not finite or a denominator whose total is not positive.
    """

    numerator: Float[np.ndarray, "C J K"]
    denominator: Float[np.ndarray, "C J"]

    def __post_init__(self) -> None:
        if self.numerator.shape[:2] != self.denominator.shape or not len(self.denominator):
            raise InputError(
                "Sums need a numerator [C,J,K] and a denominator [C,J] with at least one cluster; got "
                f"{list(self.numerator.shape)} and {list(self.denominator.shape)}."
            )
        if not (np.isfinite(self.numerator).all() and np.isfinite(self.denominator).all()):
            raise InputError("The sums of an estimate must be finite: look for NaN rewards and propensities of zero.")
        if not (self.denominator.sum(axis=0) > 0).all():
            raise InputError(
                "The denominators of an estimate add up to nothing: the target policy chose none of the logged "
                "actions. "
                "Such a log says nothing about this policy."
            )

    @property
    def clusters(self) -> int:
        """C."""
        return len(self.denominator)

    @property
    def ratios(self) -> Float[np.ndarray, "J K"]:
        """Each ratio's value."""
        ratios: np.ndarray = self.numerator.sum(axis=0) / self.denominator.sum(axis=0)[:, None]
        return ratios

    @property
    def value(self) -> Float[np.ndarray, " K"]:
        """The estimate."""
        return self.ratios.sum(axis=0)

    def __add__(self, other: ClusterSums) -> ClusterSums:
        """The sum of two estimates on the same clusters. Ratios of equal denominators become one."""
        if self.clusters != other.clusters or self.numerator.shape[2] != other.numerator.shape[2]:
            raise InputError(
                "Estimates can be paired on the same clusters and signals only; got "
                f"{self.clusters} and {other.clusters} clusters, "
                f"{self.numerator.shape[2]} and {other.numerator.shape[2]} signals."
            )
        if np.array_equal(self.denominator, other.denominator):
            return ClusterSums(self.numerator + other.numerator, self.denominator)
        return ClusterSums(
            np.concatenate([self.numerator, other.numerator], axis=1),
            np.concatenate([self.denominator, other.denominator], axis=1),
        )

    def __sub__(self, other: ClusterSums) -> ClusterSums:
        """The paired difference: what a launch decision asks for."""
        return self + ClusterSums(-other.numerator, other.denominator)


@dataclass(frozen=True)
class Interval:
    """An estimate of K signals between `low` and `high`, which are infinite where nothing bounds them."""

    value: Float[np.ndarray, " K"]
    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]
    clusters: int
    level: float
    method: str

    def tells(self, signal: int) -> bool:
        """True where something bounds the estimate of a signal."""
        return bool(np.isfinite(self.low[signal]) or np.isfinite(self.high[signal]))

    def metrics(self) -> list[Metric]:
        """One Metric for each signal; n is the number of clusters."""
        return [
            Metric(float(v), float(low), float(high), self.clusters)
            for v, low, high in zip(self.value, self.low, self.high)
        ]


def cluster_sums(
    numerator: Float[np.ndarray, "n K"],
    denominator: Float[np.ndarray, " n"] | None = None,
    cluster: Int[np.ndarray, " n"] | None = None,
) -> ClusterSums:
    """The sums of one ratio by cluster; J = 1.

    Without a denominator the estimate is the mean over rows, without a cluster each row is its own. Clusters are
    numbered by any integers.
    """
    below = np.ones(len(numerator)) if denominator is None else denominator
    if cluster is None:
        return ClusterSums(numerator[:, None, :], below[:, None])
    names, index = np.unique(cluster, return_inverse=True)
    sums = [np.bincount(index, column, len(names)) for column in numerator.T]
    return ClusterSums(np.stack(sums, axis=1)[:, None, :], np.bincount(index, below, len(names))[:, None])


def influence(sums: ClusterSums) -> Float[np.ndarray, "C K"]:
    """The pull of each cluster on the estimate, to first order.

    It is Σ_j (numerator_cj - R_j denominator_cj) / mean denominator_j. The pulls add up to 0, and for a plain mean over
    clusters they are the deviations from it. (Taylor linearization of ratios: Särndal, Swensson and Wretman, Model
    Assisted Survey Sampling, 1992, section 5.5.)
    """
    mean = sums.denominator.mean(axis=0)
    deviation = sums.numerator - sums.ratios * sums.denominator[:, :, None]
    pull: np.ndarray = (deviation / mean[:, None]).sum(axis=1)
    return pull


def standard_error(sums: ClusterSums) -> Float[np.ndarray, " K"]:
    """sqrt(Σ_c influence² / (C (C-1))); infinite for one cluster."""
    C = sums.clusters
    if C < 2:
        return np.full(sums.numerator.shape[2], math.inf)
    pull = influence(sums)
    unit = unit_of(np.abs(pull).max(axis=0))
    error: np.ndarray = unit * np.sqrt(((pull / unit) ** 2).sum(axis=0) / (C * (C - 1)))
    return error


def rows_to_tell(sums: ClusterSums, rows: int | float, level: float, power: float = 0.8) -> Float[np.ndarray, " K"]:
    """Rows like the `rows` behind an estimate with which one of this size is told from 0; infinite where it is 0.

    rows ((z_{(1+level)/2} + z_power) · standard error / estimate)²: an interval at `level` then leaves out 0 in the
    share `power` of logs, if the truth is what the estimate says. (Cohen, Statistical Power Analysis, 1988.)
    """
    from scipy import special

    needed = float(special.ndtri((1 + level) / 2) + special.ndtri(power))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found: np.ndarray = rows * (needed * standard_error(sums) / np.abs(sums.value)) ** 2
    return np.where(np.isnan(found), math.inf, found)


def in_units_of_the_largest(pull: Float[np.ndarray, "C K"]) -> Float[np.ndarray, "C K"]:
    """Pulls divided by the largest of their signal, so that no power of them is too large for a number."""
    most = np.abs(pull).max(axis=0)
    return pull / np.where(most > 0, most, 1.0)


def unit_of(largest: Float[np.ndarray, "*K"] | float) -> Float[np.ndarray, "*K"]:
    """A power of 2 in whose units squares and cubes of values up to `largest` are numbers: 1 for all but huge ones."""
    unit: np.ndarray = np.where(largest > HUGE, np.exp2(np.floor(np.log2(np.maximum(largest, 1.0)))), 1.0)
    return unit


def student_t(sums: ClusterSums, level: float = 0.95, side: Side = "both") -> Interval:
    """estimate ± t_{C-1} · standard error.

    Assumes many independent clusters with finite variance, no bounds. (Student, Biometrika 1908; for clusters: Liang
    and Zeger, Biometrika 1986.)
    """
    from scipy import special

    error, value = standard_error(sums), sums.value
    with np.errstate(invalid="ignore"):
        low, high = [
            error * (special.stdtrit(max(sums.clusters - 1, 1), 1 - tail) if tail else math.inf)
            for tail in tails(level, side)
        ]
    # 0 · ∞ is a bound that was not asked for, on a signal that never varied
    return Interval(value, value - _endless(low), value + _endless(high), sums.clusters, level, "t")


def skewness(sums: ClusterSums) -> Float[np.ndarray, " K"]:
    """Of the estimate itself, Σ_c influence³ / (Σ_c influence²)^{3/2}: that of one cluster over the root of C."""
    pull = in_units_of_the_largest(influence(sums))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = (pull**3).sum(axis=0) / (pull**2).sum(axis=0) ** 1.5
    return np.nan_to_num(found)


def skewed_t(t: Float[np.ndarray, " K"], skew: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """T + a T² / 3 + a² T³ / 27 + a / 6, as nearly normal as T = (estimate - truth) / standard error is of no skew a.

    (Hall, On the removal of skewness by transformation, JRSS B 1992.)
    """
    moved: np.ndarray = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6
    return moved


def unskewed_t(x: Float[np.ndarray, " K"], skew: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """The T that `skewed_t` makes x."""
    least = 1e-9
    a = np.where(np.abs(skew) < least, least, skew)
    t: np.ndarray = 3 / a * (np.cbrt(1 + a * (x - a / 6)) - 1)
    return t


def skewness_corrected(sums: ClusterSums, level: float = 0.95) -> Interval:
    """Hall's interval, corrected for skewness in closed form, and where Student's is wider, that.

    For small segments and small chances of an error, to which no bootstrap reaches: of 40 segments with ten clicks and
    more, Student's intervals for all at once miss somewhere in a third of logs (docs/ope_intervals.md). Infinite for
    one cluster.
    """
    from scipy import special

    error, skew = standard_error(sums), skewness(sums)
    wide = np.full(len(skew), special.stdtrit(max(sums.clusters - 1, 1), 1 - tails(level, "both")[0]))
    with np.errstate(invalid="ignore"):  # 0 · ∞, of one cluster that earned nothing
        below = _endless(error * np.maximum(wide, unskewed_t(wide, skew)))
        above = _endless(error * np.maximum(wide, -unskewed_t(-wide, skew)))
    return Interval(sums.value, sums.value - below, sums.value + above, sums.clusters, level, "hall")


def hoeffding(
    sums: ClusterSums,
    numerator_range: Range,
    denominator_range: Range | None = None,
    level: float = 0.95,
    side: Side = "both",
    independent: int = 1,
) -> Interval:
    """Hoeffding's bound: holds for any number of clusters, at the price of width.

    Each side errs with probability at most a: |mean numerator - v mean denominator| ≤ (R_num + |v| R_den)
    sqrt(log(1/a) / 2C) at the true v, solved for v. For a mean of values in [l, h] this is mean ± (h-l) sqrt(log(1/a)
    / 2C). Needs bounds on a cluster's numerator (and denominator, where it varies) that are known beforehand: the
    largest possible weight times the largest reward, not the largest that was seen. Where a cluster is made of
    `independent` rows that were dealt into it, its sum counts as the root of so many widths of a row, not as so many.
    (Hoeffding, JASA 1963.)

    Raises InputError for a sum of several ratios and for data outside the ranges.
    """
    width, below = _widths(sums, numerator_range, denominator_range)

    def half(tail: float) -> tuple[np.ndarray, float]:
        scale = math.sqrt(math.log(1 / tail) / (2 * sums.clusters * independent))
        return np.full(sums.numerator.shape[2], scale * width), scale * below

    return _solved(sums, half, level, side, "hoeffding")


def empirical_bernstein(
    sums: ClusterSums,
    numerator_range: Range,
    denominator_range: Range | None = None,
    level: float = 0.95,
    side: Side = "both",
) -> Interval:
    """The empirical Bernstein bound: as safe as Hoeffding's, and narrow where the variance is small beside the range.

    For a mean of values in a range R, each side errs with probability at most a: half width = sd sqrt(2 log(2/a) / C)
    + 7 R log(2/a) / (3 (C-1)). Ratios are solved for v as in `hoeffding`, with the standard deviation of numerator -
    v denominator bounded by the sum of both. (Maurer and Pontil, COLT 2009, theorem 4.)

    Raises InputError for a sum of several ratios and for data outside the ranges.
    """
    width, below = _widths(sums, numerator_range, denominator_range)
    C = sums.clusters

    def half(tail: float) -> tuple[np.ndarray, float]:
        if C < 2:
            return np.full(sums.numerator.shape[2], math.inf), math.inf
        log = math.log(2 / tail)
        by_sd, by_range = math.sqrt(2 * log / C), 7 * log / (3 * (C - 1))
        above = sums.numerator[:, 0].std(axis=0, ddof=1) * by_sd + width * by_range
        return above, float(sums.denominator.std(ddof=1) * by_sd + below * by_range)

    return _solved(sums, half, level, side, "empirical_bernstein")


def tails(level: float, side: Side) -> tuple[float, float]:
    """The probability to err below and above; 0 where no bound is asked for.

    Raises InputError for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise InputError(f"The level of an interval lies between 0 and 1, for example 0.95; got {level}.")
    miss = 1 - level
    return {"both": (miss / 2, miss / 2), "low": (miss, 0.0), "high": (0.0, miss)}[side]


def _endless(half: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(half), math.inf, half)


def _widths(sums: ClusterSums, numerator_range: Range, denominator_range: Range | None) -> tuple[float, float]:
    """The ranges' widths, after the data have been held against them."""
    if sums.denominator.shape[1] != 1:
        raise InputError(
            f"Hoeffding and Bernstein bound one ratio of sums; this estimate has {sums.denominator.shape[1]}. "
            "Use a t, bootstrap or, for a single ratio, empirical-likelihood interval."
        )
    seen = float(sums.denominator.min()), float(sums.denominator.max())
    if denominator_range is None and seen[0] != seen[1]:
        raise InputError(
            f"The denominator varies between clusters, from {seen[0]:.6g} to {seen[1]:.6g}: give denominator_range, "
            "the least "
            "and the most that one cluster can have (for a mean over rows, rows of a user; for SNIPS, its weight)."
        )
    ranges = {
        "numerator": (sums.numerator, numerator_range),
        "denominator": (sums.denominator, denominator_range or seen),
    }
    for name, (x, (low, high)) in ranges.items():
        if x.min() < low or x.max() > high:
            raise InputError(
                f"The {name} of a cluster was said to lie in [{low:.6g}, {high:.6g}], but the log has [{x.min():.6g}, "
                f"{x.max():.6g}]: widen the range, or the bound is no bound."
            )
    low, high = denominator_range or seen
    return float(numerator_range[1] - numerator_range[0]), float(high - low)


def _solved(
    sums: ClusterSums, half: Callable[[float], tuple[np.ndarray, float]], level: float, side: Side, method: str
) -> Interval:
    """Both ends of {v: |mean numerator - v mean denominator| ≤ above + |v| below}."""
    mean, per = sums.numerator[:, 0].mean(axis=0), float(sums.denominator.mean())
    a, b = tails(level, side)
    low = _lower(mean, per, *half(a)) if a else np.full_like(mean, -math.inf)
    high = -_lower(-mean, per, *half(b)) if b else np.full_like(mean, math.inf)
    return Interval(sums.value, low, high, sums.clusters, level, method)


def _lower(mean: np.ndarray, per: float, above: np.ndarray, below: float) -> np.ndarray:
    """The v where mean - above = v per + |v| below; none where the denominator itself may be 0."""
    if math.isinf(below):
        return np.full_like(mean, -math.inf)
    least = mean - above
    negative = least / (per - below) if per > below else np.full_like(mean, -math.inf)
    bound: np.ndarray = np.where(least >= 0, least / (per + below), negative)
    return bound
