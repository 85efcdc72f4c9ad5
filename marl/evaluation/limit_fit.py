"""Rate at which a swarm's return approaches its limit as the swarm grows.

J_N is the return with N agents, J the limit's. The gap |J_N - J| of a decision rule falls at least like 1/sqrt(N), and
like 1/N where the agents' noise averages out (`docs/mean_field.md`), which the slope of log gap on log N shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from marl.output.report import Metric

SIGNIFICANT = 3.0  # standard errors that a gap must exceed to count, more where few episodes tell what an error is
FEWEST = 2  # points of a line; only more can show that it is none
FEWEST_EPISODES = 5  # of a point: errors of fewer are too uncertain to weigh by
ROUNDS = 100  # of bringing gaps to a reference back to gaps to the limit
SHALLOWEST = -0.05  # the slope beyond which a reference would say nothing of the limit


class Gap(NamedTuple):
    """J_N - J with its standard error, of N agents. freedom: degrees of freedom that this error was estimated with."""

    agents: int
    value: float
    error: float
    freedom: float = math.inf

    @property
    def has_error(self) -> bool:
        """True where enough episodes, not all alike, tell how far the gap may be from the truth."""
        return self.error < math.inf and self.freedom >= FEWEST_EPISODES - 1

    @property
    def counts(self) -> bool:
        """True where the gap is too large to be chance: as rare as `SIGNIFICANT` standard errors of a normal."""
        return self.has_error and abs(self.value) > _as_rare_as(SIGNIFICANT, self.freedom) * self.error

    @property
    def half(self) -> float:
        """Half of its 95 % interval."""
        return _as_rare_as(1.96, self.freedom) * self.error


def _as_rare_as(deviations: float, freedom: float) -> float:
    """The multiple of an estimated standard error that Student's t exceeds as rarely as a normal these deviations."""
    from scipy import stats

    return float(stats.t.isf(stats.norm.sf(deviations), freedom)) if 0 < freedom < math.inf else deviations


def standard_error(metric: Metric) -> float:
    """Of a mean, from its 95 % interval; 0 where it is exact, infinite where one sample, or equal ones, cannot tell."""
    from scipy import stats

    if metric.is_exact:
        return 0.0
    half = (metric.high - metric.low) / 2
    return half / float(stats.t.ppf(0.975, metric.n - 1)) if 0 < half < math.inf else math.inf


def gaps(returns: dict[int, Metric], limit: Metric) -> list[Gap]:
    """J_N - J for each N, with the error of both; of the degrees of freedom the fewer."""
    error = standard_error(limit)
    return [
        Gap(n, j.value - limit.value, math.hypot(standard_error(j), error), min(_freedom(j), _freedom(limit)))
        for n, j in returns.items()
    ]


def _freedom(metric: Metric) -> float:
    return math.inf if metric.is_exact else metric.n - 1.0


def differ_in_sign(found: Sequence[Gap]) -> bool:
    """True where gaps that count lie on both sides of the limit, so that no power of N describes them."""
    return len({gap.value > 0 for gap in found if gap.counts}) > 1


class Fit(NamedTuple):
    """A line through log |gap| over log N.

    doubt: the chance of points as far from a line as these, if they lie on one; None for two, which always do.

    The interval of the slope holds what chance does to returns, that of the limit included, and is as much wider as the
    points are farther from a line than chance explains (Birge, 1932). It does not hold what choosing the gaps that
    count does, which pulls slopes towards 0 where few gaps stand out.
    """

    slope: Metric
    doubt: float | None


def fit(found: Sequence[Gap], limit_error: float = 0.0, reference: int | None = None) -> Fit | None:
    """The slope of log |gap| on log N by weighted least squares, over the gaps that count.

    None for fewer than two, and where they differ in sign. By the delta method log |gap| has the standard error
    e/|gap|, and the weight of a point is (gap/e)². limit_error: that of the limit's return, which all gaps share.
    reference: the N whose return stands for the limit's, if it is not exact: gaps to it are c (N^s - reference^s), and
    are brought back to c N^s with the slope s that is found. Student's t takes the fewest degrees of freedom of a gap.
    """
    used = [gap for gap in found if gap.counts]
    if len({gap.agents for gap in used}) < FEWEST or differ_in_sign(used):
        return None
    agents, value, error, freedom = np.array(used, dtype=np.float64).T
    share = 1 / np.maximum(error / np.abs(value), 1e-12)  # exact returns weigh alike, not infinitely much
    weight = share**2
    x = np.log(agents) - np.average(np.log(agents), weights=weight)
    lever = weight * x / (weight * x**2).sum()
    if reference is None:
        height, answer = np.log(np.abs(value)), 1.0
        steepness = float(lever @ height)
    else:
        steepness, height, answer = _to_the_limit(np.log(np.abs(value)), np.log(reference / agents), lever)
    own = np.maximum(error**2 - limit_error**2, 0)
    covariance = (np.diag(own) + limit_error**2) / np.outer(value, value)  # of log |gap|
    half = _as_rare_as(1.96, freedom.min()) * math.sqrt(max(0.0, float(lever @ covariance @ lever))) * answer
    spread, doubt = _misfit(height - np.average(height, weights=weight) - steepness * x, weight)
    return Fit(Metric(steepness, steepness - half * spread, steepness + half * spread, len(used)), doubt)


def _to_the_limit(height: np.ndarray, distance: np.ndarray, lever: np.ndarray) -> tuple[float, np.ndarray, float]:
    """The slope s of log gaps to a reference, brought back to the limit by it; the gaps so; how s answers to them.

    left = 1 - (reference/N)^s is the share of a gap that remains, distance = log(reference/N), and s = lever·(height -
    log left(s)): a change of height by d changes s by lever·d / (1 + lever·(d log left/ds)).
    """
    steepness, whole = -1.0, height
    for _ in range(ROUNDS):
        left = -np.expm1(min(steepness, SHALLOWEST) * distance)
        whole = height - np.log(left)
        steepness = float(lever @ whole)
    change = -distance * (1 - left) / left
    return steepness, whole, 1 / max(abs(1 + float(lever @ change)), 1e-12)


def _misfit(residual: np.ndarray, weight: np.ndarray) -> tuple[float, float | None]:
    """Distance from the line as a multiple of that which chance explains, at least 1; and the chance of it."""
    from scipy import stats

    freedom = len(residual) - 2
    if freedom < 1:
        return 1.0, None
    square = float((weight * residual**2).sum())
    return math.sqrt(max(1.0, square / freedom)), float(stats.chi2.sf(square, freedom))
