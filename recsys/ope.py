"""Offline evaluation of bandit policies: from a log and policies that were not run to a table of what they would earn.

`concord run ope/open_bandit` does it on real logs; docs/ope.md has the equations. Nothing here is random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from marl.report import Metric, Report
from marl.run import Run
from recsys import estimators, formats, policies
from recsys.config import DataConfig, EstimatorsConfig, OfflineConfig, RewardModelConfig, TargetConfig
from recsys.estimators import Ratio
from recsys.logged import Columns, Log
from recsys.policies import Policy
from recsys.reward_models import smoothed_mean
from recsys.scan import Slot, Sums, Weighed, sum_up

__all__ = ["Config", "recipe"]


class Config(OfflineConfig):
    """A log, policies and estimators."""

    data: DataConfig = DataConfig()
    policy: TargetConfig
    estimators: EstimatorsConfig = EstimatorsConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
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
    found = run.once("evaluation", lambda: evaluate(config, log, targets))
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


def evaluate(config: Config, log: Log, targets: list[Policy]) -> dict[str, Any]:
    """Metrics `<signal>/<policy>/<estimator>` as (value, low, high, n), and tables."""
    model = smoothed_mean(log, config.reward_model.prior_rows)
    known = standard(config.estimators)
    chosen = {name: known[name] for name in config.estimators.names or known}
    sums = sum_up(log, targets, model, {"logged": _logged, **chosen}, config.workers)
    metrics: dict[str, Metric] = {}
    for policy in targets:
        metrics |= metrics_of(policy.name, sums[policy.name], log.signals)
    first = sums[targets[0].name]
    if len(targets) == 1:
        metrics |= {name: Metric.exact(value) for name, value in weights_of(first).items()}
    metrics["rows"] = Metric.exact(first.n)
    metrics["clusters"] = Metric.exact(len(first.clusters[1]))
    told = {name: (metric.value, metric.low, metric.high, metric.n) for name, metric in metrics.items()}
    tables = {"notes": [{"note": _clusters_note(log)}]}
    if log.columns.segments:
        tables["segments"] = segments(sums, log.signals)
    return {"metrics": told, "tables": tables}


def metrics_of(policy: str, sums: Sums, signals: tuple[str, ...]) -> dict[str, Metric]:
    """Every estimate of one policy with its interval, `<signal>/logged`, and what the weights are like."""
    metrics = {}
    for k, signal in enumerate(signals):
        for name, slot in sums.slots.items():
            metrics[f"{signal}/logged" if name == "logged" else f"{signal}/{policy}/{name}"] = interval(sums, slot, k)
        metrics |= {f"{signal}/{policy}/{name}": Metric.exact(value) for name, value in weights_of(sums).items()}
        metrics[f"{signal}/events"] = Metric.exact(int(sums.events[k]))
    return metrics


def segments(sums: dict[str, Sums], signals: tuple[str, ...]) -> list[dict[str, Any]]:
    """The same for each value of each segment column, a row an estimate."""
    rows = []
    for place, of in sums.items():
        policy, bar, segment = place.partition("|")
        for k, signal in enumerate(signals if bar else ()):
            for name, slot in of.slots.items():
                metric = interval(of, slot, k)
                row = {"segment": segment, "signal": signal, "policy": policy, "estimator": name, "rows": of.n}
                row |= {"value": metric.value, "low": metric.low, "high": metric.high}
                rows.append({**row, "ess": of.ess, "max_weight": of.max_weight, "events": int(of.events[k])})
    return rows


def _logged(x: Weighed) -> Ratio:
    """The log's own mean reward."""
    return Ratio(x.reward)


def weights_of(sums: Sums) -> dict[str, float]:
    """What the weights are like."""
    return {"ess": sums.ess, "max_weight": sums.max_weight, "mean_weight": sums.mean_weight}


def interval(sums: Sums, slot: Slot, signal: int) -> Metric:
    """The estimate with Student's 95 % interval over clusters, by linearizing the ratio.

    An estimate plain / n + a / b moves with cluster c by (plain_c - n_c plain / n) / n + (a_c - (a / b) b_c) / b; the
    sum of squares of these, times C / (C - 1), is its variance. Means over rows that are their own clusters get the
    usual interval.
    """
    from scipy import stats

    by_cluster, rows = sums.clusters
    value, count = float(slot.estimate(sums.total, np.asarray(sums.n))[signal]), len(rows)
    if count < 2 or not math.isfinite(value):
        return Metric(value, -math.inf, math.inf, count)
    moves = np.zeros(count)
    if slot.plain is not None:
        column = slot.plain.start + signal
        moves += (by_cluster[:, column] - rows * sums.total[column] / sums.n) / sums.n
    if slot.numerator is not None:
        column, below = slot.numerator.start + signal, sums.total[slot.denominator]
        moves += (by_cluster[:, column] - sums.total[column] / below * by_cluster[:, slot.denominator]) / below
    half = float(stats.t.ppf(0.975, count - 1)) * math.sqrt(float(moves @ moves) * count / (count - 1))
    return Metric(value, value - half, value + half, count)


def _clusters_note(log: Log) -> str:
    if log.columns.user is not None:
        return f"Intervals take the rows of one {log.columns.user} as one draw."
    return "There is no column of users, so intervals take every row as independent of the others."
