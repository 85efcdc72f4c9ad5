"""What policies would have earned by a log: estimates with intervals, verdicts, and what each segment says.

`evaluate` is the whole of it for logs with propensities; docs/ope.md has the equations. Estimates depend on no seed; a
bootstrap's intervals do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from marl.report import Metric
from recsys import estimators
from recsys.bootstrap import quantile_interval, replicates
from recsys.config import EstimatorsConfig, IntervalsConfig
from recsys.diagnostics import diagnose
from recsys.estimators import Ratio
from recsys.intervals import Interval, student_t
from recsys.logged import Log
from recsys.policies import Policy
from recsys.reward_models import RewardModel
from recsys.scan import Sums, Weighed, sum_up
from recsys.verdict import verdict

LOGGED = "logged"  # the log's own mean reward, beside the estimates


@dataclass(frozen=True)
class Evaluation:
    """What a log says of policies: numbers by name, and tables by name, each a list of rows."""

    metrics: dict[str, Metric]
    tables: dict[str, list[dict[str, Any]]]

    def to_json(self) -> dict[str, Any]:
        """As plain values, that a run keeps."""
        told = {name: (metric.value, metric.low, metric.high, metric.n) for name, metric in self.metrics.items()}
        return {"metrics": told, "tables": self.tables}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Evaluation:
        """What `to_json` gave."""
        return cls({name: Metric(*values) for name, values in kept["metrics"].items()}, kept["tables"])


def standard(settings: EstimatorsConfig) -> dict[str, Callable[[Weighed], Ratio]]:
    """The estimators that any log with propensities allows, by name."""
    cap, threshold = settings.cap, settings.threshold
    shrinkage, subgaussian = settings.shrinkage, settings.subgaussian

    def model(x: Weighed) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return x.weight, x.reward, x.q_logged, x.value

    return {
        "ips": lambda x: estimators.ips(x.weight, x.reward),
        "snips": lambda x: estimators.snips(x.weight, x.reward),
        "capped_ips": lambda x: estimators.capped_ips(x.weight, x.reward, cap),
        "ncis": lambda x: estimators.ncis(x.weight, x.reward, cap),
        "subgaussian_ips": lambda x: estimators.subgaussian_ips(x.weight, x.reward, subgaussian),
        "dm": lambda x: estimators.dm(x.value),
        "dr": lambda x: estimators.dr(*model(x)),
        "sndr": lambda x: estimators.sndr(*model(x)),
        "capped_dr": lambda x: estimators.capped_dr(*model(x), cap),
        "switch_dr": lambda x: estimators.switch_dr(*model(x), threshold),
        "dros": lambda x: estimators.dros(*model(x), shrinkage),
        "subgaussian_dr": lambda x: estimators.subgaussian_dr(*model(x), subgaussian),
    }


def evaluate(
    log: Log,
    targets: Sequence[Policy],
    model: RewardModel,
    settings: EstimatorsConfig,
    sure: IntervalsConfig,
    seed: int = 0,
    workers: int = 2,
    facts: Callable[[str, str], Mapping[str, int | float]] = lambda signal, policy: {},
) -> Evaluation:
    """Metrics `<signal>/<policy>/<estimator>`, verdicts, and what segments say; the log is scanned once.

    facts: more that the verdict should know of a signal and a policy, by the names of `Diagnosis`.
    """
    known = standard(settings)
    chosen = {name: known[name] for name in settings.names or known}
    sums = sum_up(log, targets, model, {LOGGED: _logged, **chosen}, workers)
    metrics: dict[str, Metric] = {}
    verdicts: list[dict[str, Any]] = []
    for policy in targets:
        of = sums[policy.name]
        intervals = intervals_of(of, sure, seed, workers)
        metrics |= metrics_of(policy.name, of, log.signals, intervals)
        verdicts += verdicts_of(policy.name, of, log.signals, facts)
    first = sums[targets[0].name]
    if len(targets) == 1:
        metrics |= {name: Metric.exact(value) for name, value in weights_of(first).items()}
    metrics["rows"] = Metric.exact(first.n)
    metrics["clusters"] = Metric.exact(len(first.clusters[1]))
    tables = {"verdicts": verdicts, "notes": [{"note": _clusters_note(log)}]}
    if log.columns.segments:
        tables["segments"] = segments(sums, log.signals, sure.level)
    return Evaluation(metrics, tables)


def intervals_of(sums: Sums, settings: IntervalsConfig, seed: int, workers: int) -> dict[str, Interval]:
    """Every estimate's interval; those of a bootstrap see the same resamples."""
    estimates = {name: sums.cluster_sums(name) for name in sums.slots if np.isfinite(sums.estimate(name)).all()}
    if settings.method == "t":
        return {name: student_t(estimate, settings.level) for name, estimate in estimates.items()}
    kind: Literal["percentile", "bca"] = "bca" if settings.method == "bca" else "percentile"
    drawn = replicates(list(estimates.values()), settings.replications, seed, workers)
    return {
        name: quantile_interval(estimate, values, settings.level, kind=kind)
        for (name, estimate), values in zip(estimates.items(), drawn, strict=True)
    }


def metrics_of(policy: str, sums: Sums, signals: tuple[str, ...], intervals: dict[str, Interval]) -> dict[str, Metric]:
    """Every estimate of one policy with its interval, `<signal>/logged`, and what the weights are like."""
    metrics = {}
    clusters = len(sums.clusters[1])
    for k, signal in enumerate(signals):
        for name in sums.slots:
            value = float(sums.estimate(name)[k])
            low, high = -math.inf, math.inf
            if name in intervals:
                low, high = float(intervals[name].low[k]), float(intervals[name].high[k])
            key = f"{signal}/{LOGGED}" if name == LOGGED else f"{signal}/{policy}/{name}"
            metrics[key] = Metric(value, low, high, clusters)
        metrics |= {f"{signal}/{policy}/{name}": Metric.exact(value) for name, value in weights_of(sums).items()}
        metrics[f"{signal}/events"] = Metric.exact(int(sums.events[k]))
    return metrics


def verdicts_of(
    policy: str, sums: Sums, signals: tuple[str, ...], more: Callable[[str, str], Mapping[str, int | float]]
) -> list[dict[str, Any]]:
    """Whether each estimate may be relied on, and why."""
    found = []
    for k, signal in enumerate(signals):
        for name in sums.slots.keys() - {LOGGED}:
            facts = {"events": int(sums.events[k]), "model_only": name == "dm", **more(signal, policy)}
            judged = verdict(diagnose(sums.weights, len(sums.clusters[1]), **facts))
            found.append(
                {
                    "estimate": f"{signal}/{policy}/{name}",
                    "verdict": judged.level.name,
                    "check": judged.check,
                    "reason": judged.reason,
                }
            )
    return sorted(found, key=lambda row: list(sums.slots).index(row["estimate"].rpartition("/")[2]))


def segments(sums: dict[str, Sums], signals: tuple[str, ...], level: float) -> list[dict[str, Any]]:
    """The same for each value of each segment column, a row an estimate, with Student's intervals."""
    rows = []
    for place, of in sums.items():
        policy, bar, segment = place.partition("|")
        for name in of.slots if bar else ():
            value = of.estimate(name)
            if not np.isfinite(value).all():
                continue
            interval = student_t(of.cluster_sums(name), level)
            for k, signal in enumerate(signals):
                row = {"segment": segment, "signal": signal, "policy": policy, "estimator": name, "rows": of.n}
                row |= {"value": float(value[k]), "low": float(interval.low[k]), "high": float(interval.high[k])}
                rows.append({**row, **weights_of(of), "events": int(of.events[k])})
    return rows


def _logged(x: Weighed) -> Ratio:
    """The log's own mean reward."""
    return Ratio(x.reward)


def weights_of(sums: Sums) -> dict[str, float]:
    """What the weights are like."""
    return {"ess": sums.weights.ess, "max_weight": sums.weights.max_weight, "mean_weight": sums.weights.mean}


def _clusters_note(log: Log) -> str:
    if log.columns.user is not None:
        return f"Intervals take the rows of one {log.columns.user} as one draw."
    return "There is no column of users, so intervals take every row as independent of the others."
