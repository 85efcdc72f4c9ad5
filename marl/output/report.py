"""Report of a run: metrics with intervals, in one JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from envs.core import InputError
from marl.output.files import write_atomically
from marl.output.versions import versions

REPORT = "report.json"  # of a run that has finished
Tables = dict[str, list[dict[str, Any]]]  # by name, a list of rows


@dataclass(frozen=True)
class Metric:
    """A value with its 95 % interval and the number of independent samples behind it."""

    value: float
    low: float
    high: float
    n: int = 1

    @classmethod
    def exact(cls, value: int | float) -> Metric:
        """A number that was counted or computed, not sampled."""
        return cls(float(value), float(value), float(value))

    @classmethod
    def mean(cls, samples: Sequence[float] | np.ndarray) -> Metric:
        """The mean of independent samples with Student's 95 % interval (infinite for one sample)."""
        from scipy import stats

        x = np.asarray(samples, dtype=np.float64)
        value, n = float(x.mean()), len(x)
        if n < 2:
            return cls(value, -math.inf, math.inf, n)
        half = float(stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / math.sqrt(n))
        return cls(value, value - half, value + half, n)

    @classmethod
    def proportion(cls, successes: int, trials: int) -> Metric:
        """The share of independent trials that succeeded, with the interval of Clopper and Pearson (1934).

        200 of 200 say that the share is at least .982, not that it is 1.
        """
        from scipy.stats import binomtest

        interval = binomtest(successes, trials).proportion_ci(0.95)
        return cls(successes / trials, float(interval.low), float(interval.high), trials)

    @classmethod
    def difference(cls, one: Metric, other: Metric) -> Metric:
        """one - other of independent samples, with the 95 % interval that theirs make."""
        gap = one.value - other.value
        half = math.hypot(one.value - one.low, other.value - other.low)
        return cls(gap, gap - half, gap + half, min(one.n, other.n))

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.6g}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Report:
    """The result of a run. Tables are {name: list of rows}, each row a dict."""

    recipe: str
    seed: int | list[int]
    config: dict[str, Any]
    metrics: dict[str, Metric]
    tables: Tables = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def save(self, path: Path) -> None:
        """Write the report; the file is whole or not there."""
        write_atomically(path, json.dumps(_strict(asdict(self)), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read a report. Raises InputError where there is none or it is damaged."""
        try:
            raw = json.loads(path.read_text())
            found = {name: Metric(**_numbers(metric)) for name, metric in raw.pop("metrics").items()}
            return cls(metrics=found, **raw)
        except FileNotFoundError:
            raise InputError(
                f"There is no report at {path}: the run has not finished. `concord resume {path.parent}` finishes it."
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is not a report that Concord wrote: {error}") from None


def _strict(x: Any) -> Any:
    """JSON has no infinities: they become strings."""
    if isinstance(x, dict):
        return {key: _strict(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_strict(value) for value in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def _numbers(metric: dict[str, Any]) -> dict[str, Any]:
    return {key: float(value) if isinstance(value, str) else value for key, value in metric.items()}
