"""Offline evaluation of bandit policies: from a log and policies that were not run to a table of what they would earn.

`concord run ope/open_bandit` does it on real logs; docs/ope.md has the equations. Estimates depend on no seed; a
bootstrap's intervals do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from marl.report import Metric, Report
from marl.run import Run
from recsys import estimators, formats, policies
from recsys.bootstrap import quantile_interval, replicates
from recsys.config import (
    DataConfig,
    EstimatorsConfig,
    IntervalsConfig,
    OfflineConfig,
    RewardModelConfig,
    TargetConfig,
)
from recsys.diagnostics import diagnose
from recsys.estimators import Ratio
from recsys.intervals import Interval, student_t
from recsys.logged import Columns, Log
from recsys.policies import Policy
from recsys.reward_models import RewardModel, smoothed_mean
from recsys.scan import Sums, Weighed, sum_up
from recsys.verdict import verdict

__all__ = ["Config", "recipe"]

LOGGED = "logged"  # the log's own mean reward, beside the estimates


class Config(OfflineConfig):
    """A log, policies and estimators."""

    data: DataConfig = DataConfig()
    policy: TargetConfig
    estimators: EstimatorsConfig = EstimatorsConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    intervals: IntervalsConfig = IntervalsConfig()
    workers: int = Field(
        2, ge=1, le=256, description="threads that scan the log; the result is the same for any number"
    )

    @model_validator(mode="after")
    def _known(self) -> Config:
        known = standard(self.estimators)
        for name in self.estimators.names:
            if name not in known:
                raise ValueError(f"estimators.names: expected {', '.join(known)}; got {name!r}")
        if "bts" in self.policy.target and self.data.format != "open_bandit":
            raise ValueError("policy.target=bts is the stored policy of data.format=open_bandit")
        return self


def recipe(config: Config, run: Run) -> Report:
    """Scan the log twice, once for the reward model, and tell what each policy would earn."""
    log = open_log(config)
    targets = [make_policy(name, config, log) for name in config.policy.target]
    model = smoothed_mean(log, config.reward_model.prior_rows)  # reads all rows: a bad log leaves no folder behind
    found = run.once("evaluation", lambda: evaluate(config, log, targets, model, run.stage_seeds("bootstrap")[0]))
    metrics = {name: Metric(*values) for name, values in found["metrics"].items()}
    report = Report(config.recipe, config.seed, config.model_dump(mode="json"), metrics, found["tables"])
    report.save(run.folder / "report.json")
    return report


def open_log(config: Config) -> Log:
    """The log, with the columns that the policies read."""
    data, target = config.data, config.policy
    if data.format == "table":
        assert data.path is not None
        assert data.columns is not None
        log = formats.table(data.path, Columns(**data.columns.model_dump(), segments=data.segments), data.actions)
    elif data.format == "kuairand":
        assert data.path is not None
        log = formats.kuairand(Path(data.path), data.version, "random", data.signals, data.segments)
    else:
        path = None if data.path is None else Path(data.path)
        log = formats.open_bandit(path, data.campaign, data.logged_by, data.segments)
    return log.with_context((*data.context, *_score_columns(target, log)))


def _score_columns(target: TargetConfig, log: Log) -> list[str]:
    return [] if target.scores is None else [f"{target.scores}{action}" for action in range(log.actions)]


def make_policy(name: str, config: Config, log: Log) -> Policy:
    """The policy that the config calls `name`."""
    target, scores = config.policy, _score_columns(config.policy, log)
    makers: dict[str, Callable[[], Policy]] = {
        "random": lambda: policies.uniform(log, "random"),
        "uniform": lambda: policies.uniform(log),
        "popularity": lambda: policies.popularity(log),
        "bts": lambda: policies.stored_table(log, formats.open_bandit_policy(config.data.campaign), "bts"),
        "table": lambda: policies.stored_table(log, Path(str(target.table))),
        "softmax": lambda: policies.softmax(log, scores, target.temperature),
        "epsilon_greedy": lambda: policies.epsilon_greedy(log, scores, target.epsilon),
    }
    return makers.get(name, lambda: policies.own(log, name))()


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


def evaluate(config: Config, log: Log, targets: list[Policy], model: RewardModel, seed: int) -> dict[str, Any]:
    """Metrics `<signal>/<policy>/<estimator>` as (value, low, high, n), and tables."""
    known = standard(config.estimators)
    chosen = {name: known[name] for name in config.estimators.names or known}
    sums = sum_up(log, targets, model, {LOGGED: _logged, **chosen}, config.workers)
    metrics: dict[str, Metric] = {}
    verdicts: list[dict[str, Any]] = []
    for policy in targets:
        of = sums[policy.name]
        intervals = intervals_of(of, config.intervals, seed, config.workers)
        metrics |= metrics_of(policy.name, of, log.signals, intervals)
        verdicts += verdicts_of(policy.name, of, log.signals)
    first = sums[targets[0].name]
    if len(targets) == 1:
        metrics |= {name: Metric.exact(value) for name, value in weights_of(first).items()}
    metrics["rows"] = Metric.exact(first.n)
    metrics["clusters"] = Metric.exact(len(first.clusters[1]))
    told = {name: (metric.value, metric.low, metric.high, metric.n) for name, metric in metrics.items()}
    tables = {"verdicts": verdicts, "notes": [{"note": _clusters_note(log)}]}
    if log.columns.segments:
        tables["segments"] = segments(sums, log.signals, config.intervals.level)
    return {"metrics": told, "tables": tables}


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


def verdicts_of(policy: str, sums: Sums, signals: tuple[str, ...]) -> list[dict[str, Any]]:
    """Whether each estimate may be relied on, and why."""
    found = []
    for k, signal in enumerate(signals):
        for name in sums.slots.keys() - {LOGGED}:
            facts = diagnose(sums.weights, len(sums.clusters[1]), events=int(sums.events[k]), model_only=name == "dm")
            judged = verdict(facts)
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
