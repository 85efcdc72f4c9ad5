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

SIGNIFICANT = 3.0  # standard errors that a gap must exceed to count
FEWEST = 2  # points of a line
ROUNDS = 100  # of bringing gaps to a reference back to gaps to the limit
SHALLOWEST = -0.05  # the slope beyond which a reference would say nothing of the limit


class Gap(NamedTuple):
    """J_N - J with its standard error, of N agents."""

    agents: int
    value: float
    error: float

    @property
    def counts(self) -> bool:
        """True where the gap is too large to be chance: beyond `SIGNIFICANT` standard errors."""
        return abs(self.value) > SIGNIFICANT * self.error


def standard_error(metric: Metric) -> float:
    """Of a mean, from its 95 % interval; infinite where one sample made it, 0 where it is exact."""
    from scipy import stats

    half = (metric.high - metric.low) / 2
    return half if half in (0.0, math.inf) else half / float(stats.t.ppf(0.975, metric.n - 1))


def gaps(returns: dict[int, Metric], limit: Metric) -> list[Gap]:
    """J_N - J for each N, the error of both in its standard error."""
    error = standard_error(limit)
    return [Gap(n, j.value - limit.value, math.hypot(standard_error(j), error)) for n, j in returns.items()]


class Fit(NamedTuple):
    """A line through log |gap| over log N. doubt: the chance of points as far from a line as these, if they lie on one.

    The interval of the slope holds what chance does to returns, that of the limit included, and is as much wider as the
    points are farther from a line than chance explains (Birge, 1932). It does not hold what choosing the gaps that
    count does, which pulls slopes towards 0 where few gaps stand out.
    """

    slope: Metric
    doubt: float


def fit(found: Sequence[Gap], limit_error: float = 0.0, reference: int | None = None) -> Fit | None:
    """The slope of log |gap| on log N by weighted least squares, over the gaps that count; None for fewer than two.

    By the delta method log |gap| has the standard error e/|gap|, and the weight of a point is (gap/e)². limit_error:
    that of the limit's return, which all gaps share. reference: the N whose return stands for the limit's, if it is not
    exact: gaps to it are c (N^s - reference^s), and are brought back to c N^s with the slope s that is found.
    """
    used = [gap for gap in found if gap.counts]
    if len({gap.agents for gap in used}) < FEWEST:
        return None
    agents, value, error = np.array(used, dtype=np.float64).T
    share = 1 / np.maximum(error / np.abs(value), 1e-12)  # exact returns weigh alike, not infinitely much
    weight = share**2
    x = np.log(agents) - np.average(np.log(agents), weights=weight)
    lever = weight * x / (weight * x**2).sum()
    steepness, height = -1.0, np.log(np.abs(value))
    for _ in range(ROUNDS if reference is not None else 1):
        left = 1.0 if reference is None else -np.expm1(min(steepness, SHALLOWEST) * np.log(reference / agents))
        height = np.log(np.abs(value) / left)
        steepness = float(lever @ height)
    own = np.maximum(error**2 - limit_error**2, 0)
    covariance = (np.diag(own) + limit_error**2) / np.outer(value, value)  # of log |gap|, signs included
    half = 1.96 * math.sqrt(max(0.0, float(lever @ covariance @ lever)))
    spread, doubt = _misfit(height - np.average(height, weights=weight) - steepness * x, weight)
    return Fit(Metric(steepness, steepness - half * spread, steepness + half * spread, len(used)), doubt)


def _misfit(residual: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Distance from the line as a multiple of that which chance explains, at least 1; and the chance of it."""
    from scipy import stats

    freedom = len(residual) - 2
    if freedom < 1:
        return 1.0, 1.0
    square = float((weight * residual**2).sum())
    return math.sqrt(max(1.0, square / freedom)), float(stats.chi2.sf(square, freedom))
