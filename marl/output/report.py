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
    """A value with its 95 % interval and the number of independent samples behind it.

    Where low = high, n = 1 says that it is exact, and n > 1 that all samples were equal: the error is then unknown.
    """

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
        """The mean of independent samples with Student's 95 % interval (infinite for one sample).

        Of two values, such as success and failure, the interval reaches as far as that of Clopper and Pearson too, for
        Student's misses rare successes.
        """
        from scipy import stats

        x = np.asarray(samples, dtype=np.float64)
        value, n = float(x.mean()), len(x)
        if n < 2:
            return cls(value, -math.inf, math.inf, n)
        levels = np.unique(x)
        if len(levels) == 1:
            return cls(float(x[0]), float(x[0]), float(x[0]), n)
        half = float(stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / math.sqrt(n))
        low, high = value - half, value + half
        if len(levels) == 2:
            share, step = cls.proportion(int((x == levels[1]).sum()), n), float(levels[1] - levels[0])
            low, high = min(low, levels[0] + share.low * step), max(high, levels[0] + share.high * step)
        return cls(value, float(low), float(high), n)

    @classmethod
    def proportion(cls, successes: int, trials: int) -> Metric:
        """The share of independent trials that succeeded, with the interval of Clopper and Pearson (1934).

        200 of 200 say that the share is at least .982, not that it is 1.
        """
        from scipy.stats import binomtest

        interval = binomtest(successes, trials).proportion_ci(0.95)
        return cls(successes / trials, float(interval.low), float(interval.high), trials)

    @classmethod
    def difference(cls, one: Metric, other: Metric, correlation: float = 0.0) -> Metric:
        """one - other, with the 95 % interval that theirs make; of independent samples, unless they are correlated.

        Each end of it comes from the ends that pull there (Zou and Donner, Statistics in Medicine 27, 2008).
        """
        gap = one.value - other.value
        below = _third_side(one.value - one.low, other.high - other.value, correlation)
        above = _third_side(one.high - one.value, other.value - other.low, correlation)
        return cls(gap, gap - below, gap + above, min(one.n, other.n))

    @property
    def is_exact(self) -> bool:
        """True for a number that was counted or computed."""
        return self.n == 1 and self.low == self.high

    @property
    def has_spread(self) -> bool:
        """True where the samples tell how far the value may be from the truth."""
        return self.low != self.high

    def __str__(self) -> str:
        if self.is_exact:
            return f"{self.value:.6g}"
        if not self.has_spread:
            return f"{self.value:.6g}, no spread in {self.n}"
        kind = ".3f" if abs(self.value) < 1e15 else ".4g"
        return f"{self.value:{kind}} [{self.low:{kind}}, {self.high:{kind}}]"


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


def _third_side(one: float, other: float, cosine: float) -> float:
    """The third side of a triangle, by two and the cosine between them."""
    if not cosine:
        return math.hypot(one, other)
    return math.sqrt(max(0.0, one**2 + other**2 - 2 * cosine * one * other))


def _strict(x: Any) -> Any:
    """JSON has no infinities: they become strings."""
    if isinstance(x, dict):
        return {key: _strict(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_strict(value) for value in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def _numbers(metric: dict[str, Any]) -> dict[str, Any]:
    return {key: float(value) if isinstance(value, str) else value for key, value in metric.items()}
