"""Thresholds of responses: by how much a policy stays above them, as sums by cluster with bounds of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator

from envs.core import InputError
from marl.config.schema import Section
from recsys.statistics.bootstrap import studentized
from recsys.statistics.intervals import ClusterSums, student_t
from recsys.tscac.certificate import level_of_each, quantile_of_each


class ThresholdConfig(Section):
    """The least or the most that a response may be."""

    at_least: float | None = Field(None, description="such as 0.98: no less than 98 % of what the log earns")
    at_most: float | None = Field(None, description="such as 1.05, for what should be rare")
    relative: bool = Field(True, description="to the log's own mean; false takes the number as it is")

    @model_validator(mode="after")
    def _one(self) -> ThresholdConfig:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a threshold is either at_least or at_most")
        return self


@dataclass(frozen=True)
class Constraint:
    """sign · (V_k - bound) ≥ 0 for the signal of number k; a relative bound is a share of the log's own mean."""

    name: str
    signal: int
    sign: int
    bound: float
    relative: bool

    def needed_events(self, rate: float, level: float) -> float:
        """Events that tell a change as large as the margin, (z / margin)² (1 - rate), at weights of 1."""
        margin = abs(1 - self.bound) if self.relative else abs(1 - self.bound / rate) if rate else 0.0
        return (quantile_of_each(level, 1) / margin) ** 2 * (1 - min(abs(rate), 1.0)) if margin else np.inf


def constraints_of(thresholds: Mapping[str, ThresholdConfig], signals: Sequence[str], main: str) -> list[Constraint]:
    """Constraints in the order of their thresholds. Raises InputError for responses that the log does not have."""
    for name in (main, *thresholds):
        if name not in signals:
            raise InputError(f"main and thresholds name responses of the log, {', '.join(signals)}; got {name!r}.")
    found = []
    for name, told in thresholds.items():
        bound = told.at_most if told.at_least is None else told.at_least
        assert bound is not None
        found.append(
            Constraint(name, list(signals).index(name), -1 if told.at_least is None else 1, bound, told.relative)
        )
    return found


def margins(policy: ClusterSums, logged: ClusterSums, constraints: Sequence[Constraint]) -> ClusterSums:
    """sign · (V_k - bound) of each constraint, as m signals on the same clusters.

    logged: the log's own means, whose denominators are rows.
    """
    signals = [one.signal for one in constraints]
    sign = np.array([one.sign for one in constraints], dtype=np.float64)
    bound = np.array([one.bound for one in constraints])
    relative = np.array([one.relative for one in constraints])
    own = ClusterSums(sign * policy.numerator[:, :, signals], policy.denominator)
    reference = np.where(relative, bound * logged.numerator[:, :, signals], bound * logged.denominator[:, :, None])
    return own + ClusterSums(-sign * reference, logged.denominator)


def units(logged: ClusterSums, constraints: Sequence[Constraint]) -> Float[np.ndarray, " m"]:
    """The size of each bound, in which shortfalls are told; 1 for a bound of 0."""
    value = logged.value
    size = np.array([abs(one.bound * (value[one.signal] if one.relative else 1.0)) for one in constraints])
    return np.where(size > 0, size, 1.0)


def lower_bounds(margin: ClusterSums, level: float, slack: float) -> Float[np.ndarray, " m"]:
    """Lower bounds of margins that hold at once, less so many standard errors more: for choosing, not for telling."""
    each = level_of_each(level, margin.numerator.shape[2])
    found = student_t(margin, each, "low")
    wider = (found.value - found.low) * (1 + slack / quantile_of_each(each, 1))
    return np.where(np.isfinite(wider), found.value - wider, -np.inf)


def certified(
    margin: ClusterSums, level: float, seed: int, replications: int = 1_000
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """One-sided bounds of each margin, low and high, all m at once (Bonferroni), by a bootstrap of t over clusters."""
    each = level_of_each(level, margin.numerator.shape[2])
    (found,) = studentized([margin], 2 * each - 1, replications, seed)
    return found.low, found.high
