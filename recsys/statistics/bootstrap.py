"""Intervals by resampling clusters: percentile and BCa, and simultaneous intervals over segments.

Clusters are resampled, not rows: their sums are small, so a thousand replications cost one product of counts and sums
whatever the number of rows. Replications come in blocks of `BLOCK`, each from its own seed, so neither the number of
workers nor the order in which they finish changes a bit. Axes as in `intervals`, and R replications.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from jaxtyping import Float

from envs.core import InputError
from recsys.statistics.intervals import (
    ClusterSums,
    Interval,
    Side,
    in_units_of_the_largest,
    influence,
    standard_error,
    student_t,
    tails,
    unit_of,
)

BLOCK = 8  # replications drawn together: 8 C counts in memory for each worker


def replicates(
    estimates: Sequence[ClusterSums], replications: int = 1_000, seed: int = 0, workers: int = 1
) -> list[Float[np.ndarray, "R K"]]:
    """Each estimate on the same resamples of the clusters; NaN where a resample has no weight at all.

    All estimates of a log at once cost little more than one, and are paired. Estimates on other clusters see the same
    resamples if there are equally many, with the same seed. Raises InputError where their clusters differ in number.
    """
    if len({sums.clusters for sums in estimates}) != 1:
        raise InputError(
            "A joint bootstrap needs at least one estimate, and all must list the same clusters in the same order, "
            f"with zeros where a cluster has no row; got {sorted({sums.clusters for sums in estimates})} clusters."
        )
    C = estimates[0].clusters
    tables = [np.concatenate([sums.numerator.reshape(C, -1), sums.denominator], axis=1) for sums in estimates]
    totals = resampled_totals(np.concatenate(tables, axis=1), replications, seed, workers)
    parts = np.split(totals, np.cumsum([table.shape[1] for table in tables])[:-1], axis=1)
    return [_values(part, *sums.numerator.shape[1:]) for part, sums in zip(parts, estimates)]


def resampled_totals(
    table: Float[np.ndarray, "C F"], replications: int = 1_000, seed: int = 0, workers: int = 1
) -> Float[np.ndarray, "R F"]:
    """Column sums over C clusters drawn with replacement from C: multinomial counts times the table."""
    if replications < 1 or workers < 1:
        raise InputError(f"A bootstrap needs replications and workers; got {replications} and {workers}.")
    C = len(table)
    blocks = range(math.ceil(replications / BLOCK))

    def draw(block: int) -> np.ndarray:
        random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(block,)))
        counts = np.stack([np.bincount(random.integers(C, size=C, dtype=np.int32), minlength=C) for _ in range(BLOCK)])
        drawn: np.ndarray = counts.astype(np.float64) @ table
        return drawn

    if workers == 1:
        drawn = [draw(block) for block in blocks]
    else:
        with ThreadPoolExecutor(workers) as pool:
            drawn = list(pool.map(draw, blocks))
    return np.concatenate(drawn)[:replications]


def bootstrap(
    sums: ClusterSums,
    level: float = 0.95,
    side: Side = "both",
    kind: Literal["percentile", "bca"] = "percentile",
    replications: int = 1_000,
    seed: int = 0,
    workers: int = 1,
) -> Interval:
    """Quantiles of the estimate over resampled clusters.

    Assumes many independent clusters, none of which dominates; no bounds, no symmetry. `percentile` takes the plain
    quantiles; `bca` corrects them for median bias and skewness (z0 from the share of replicates below the estimate,
    the acceleration from the estimate without each cluster in turn). A resample without any weight counts as
    unbounded on both sides. (Efron, Annals of Statistics 1979; BCa: Efron, JASA 1987; by cluster: Davison and Hinkley
    1997, section 3.8.)
    """
    return quantile_interval(sums, replicates([sums], replications, seed, workers)[0], level, side, kind)


def quantile_interval(
    sums: ClusterSums,
    drawn: Float[np.ndarray, "R K"],
    level: float = 0.95,
    side: Side = "both",
    kind: Literal["percentile", "bca"] = "percentile",
) -> Interval:
    """The interval of `bootstrap` from replicates that were drawn before."""
    a, b = tails(level, side)
    shift = _bca_levels(sums, drawn) if kind == "bca" else _same_levels
    K = drawn.shape[1]
    low = _quantiles(np.where(np.isnan(drawn), -math.inf, drawn), shift(a), "lower") if a else np.full(K, -math.inf)
    high = _quantiles(np.where(np.isnan(drawn), math.inf, drawn), shift(1 - b), "higher") if b else np.full(K, math.inf)
    return Interval(sums.value, low, high, sums.clusters, level, f"bootstrap_{kind}")


def studentized(
    estimates: Sequence[ClusterSums], level: float = 0.95, replications: int = 1_000, seed: int = 0, workers: int = 1
) -> list[Interval]:
    """The bootstrap-t of estimates on the same clusters, and where Student's interval is wider, that.

    estimate - t* standard error, t* the quantiles of (estimate* - estimate) / standard error* over resamples. Each
    resample has a standard error of its own, so that the interval follows skewness, as of rare events and heavy
    rewards, to second order; where a few clusters pull both ways it is too narrow, and Student's is not. Both are of
    the influence values, so that any sum of ratios takes two columns a signal. (Efron 1979; Hall, Annals of Statistics
    1988.) One cluster has endless intervals.
    """
    pulls = [in_units_of_the_largest(influence(sums)) for sums in estimates]
    table = np.concatenate([column for pull in pulls for column in (pull, pull**2)], axis=1)
    totals = resampled_totals(table, replications, seed, workers) / len(table)
    miss = (1 - level) / 2
    found, start = [], 0
    for sums, pull in zip(estimates, pulls, strict=True):
        K = pull.shape[1]
        mean, square = totals[:, start : start + K], totals[:, start + K : start + 2 * K]
        start += 2 * K
        t = _t_of_resamples(mean, square, len(table))
        own = student_t(sums, level)
        error = standard_error(sums)
        with np.errstate(invalid="ignore"):
            down = np.nan_to_num(_quantiles(t, 1 - miss, "higher") * error, nan=0.0, posinf=math.inf)
            up = np.nan_to_num(-_quantiles(t, miss, "lower") * error, nan=0.0, posinf=math.inf)
        low, high = np.minimum(own.low, sums.value - down), np.maximum(own.high, sums.value + up)
        found.append(Interval(sums.value, low, high, sums.clusters, level, "studentized"))
    return found


def _t_of_resamples(mean: np.ndarray, square: np.ndarray, clusters: int) -> Float[np.ndarray, "R K"]:
    """Mean pulls of resamples in their own standard errors; endless where a resample does not vary."""
    error = np.sqrt(np.maximum(square - mean**2, 0.0) / max(clusters - 1, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        t: np.ndarray = np.where(error > 0, mean / error, np.where(mean == 0, 0.0, np.copysign(math.inf, mean)))
    return t


def simultaneous(
    segments: Sequence[ClusterSums], level: float = 0.95, side: Side = "both", replications: int = 1_000, seed: int = 0
) -> list[Interval]:
    """Intervals of several segments (or policies, or estimators) that hold all at once, for each signal.

    estimate_m ± q s_m, where q is the quantile of max_m |estimate*_m - estimate_m| / s_m over resamples of the
    clusters that all segments share, and s_m the standard error. Narrower than Bonferroni where segments move
    together. Every segment lists the same clusters in the same order, with zeros where a cluster has no row in it.
    (max-t: Romano and Wolf, Econometrica 2005; sup-t bands: Montiel Olea and Plagborg-Møller, Journal of Applied
    Econometrics 2019.)
    """
    value = np.stack([segment.value for segment in segments])
    error = np.stack([standard_error(segment) for segment in segments])
    drawn = np.stack(replicates(segments, replications, seed), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error > 0, (drawn - value) / error, 0.0)
    t = np.where(np.isnan(drawn), math.inf, t)
    worst = {"both": np.abs(t), "low": t, "high": np.where(np.isinf(t), t, -t)}[side].max(axis=1)
    half = np.quantile(worst, level, axis=0, method="higher") * error
    tail = tails(level, side)
    low, high = (value - half if tail[0] else value - math.inf), (value + half if tail[1] else value + math.inf)
    return [Interval(value[m], low[m], high[m], segment.clusters, level, "max_t") for m, segment in enumerate(segments)]


def without_each(sums: ClusterSums) -> Float[np.ndarray, "C K"]:
    """The estimate without each cluster in turn (the jackknife); NaN where nothing would be left."""
    above = sums.numerator.sum(axis=0) - sums.numerator
    below = (sums.denominator.sum(axis=0) - sums.denominator)[:, :, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        values: np.ndarray = np.where(below > 0, above / below, math.nan).sum(axis=1)
    return values


def _values(totals: np.ndarray, J: int, K: int) -> np.ndarray:
    """Ratios of resampled totals, whose columns are J K numerators and J denominators."""
    above, below = totals[:, : J * K].reshape(-1, J, K), totals[:, J * K :, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        values: np.ndarray = np.where(below > 0, above / below, math.nan).sum(axis=1)
    return values


def _same_levels(tail: float) -> float:
    return tail


def _quantiles(drawn: np.ndarray, level: np.ndarray | float, method: Literal["lower", "higher"]) -> np.ndarray:
    """One quantile for each signal. No interpolation: between a number and infinity there is none."""
    levels = np.broadcast_to(level, drawn.shape[1:])
    return np.array([np.quantile(drawn[:, k], levels[k], method=method) for k in range(drawn.shape[1])])


def _bca_levels(sums: ClusterSums, drawn: np.ndarray) -> Callable[[float], np.ndarray]:
    """Maps a nominal probability to the corrected one of each signal."""
    from scipy import stats

    left = np.where(np.isnan(drawn), sums.value, drawn)
    below = ((left < sums.value).mean(axis=0) + (left <= sums.value).mean(axis=0)) / 2
    edge = 0.5 / len(drawn)
    z0 = stats.norm.ppf(below.clip(edge, 1 - edge))
    jack = without_each(sums)
    off = np.nan_to_num(np.nanmean(jack, axis=0) - jack)
    off /= unit_of(np.abs(off).max(axis=0))  # of no matter to what follows, but that it is a number
    spread = (off**2).sum(axis=0) ** 1.5
    with np.errstate(invalid="ignore"):
        acceleration = np.where(spread > 0, (off**3).sum(axis=0) / (6 * spread), 0.0)

    def level(tail: float) -> np.ndarray:
        z = z0 + stats.norm.ppf(tail)
        room = 1 - acceleration * z
        # Past a pole of the transformation no replicate is extreme enough: the last one is taken.
        beyond = np.where(z > 0, math.inf, -math.inf)
        corrected: np.ndarray = stats.norm.cdf(np.where(room > 0, z0 + z / np.where(room > 0, room, 1.0), beyond))
        return corrected

    return level
