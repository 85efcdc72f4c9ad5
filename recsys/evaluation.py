"""The evaluation of policies by a log: one way from sums by cluster to what a reader is told.

Estimates as sums by cluster become intervals, intervals become metrics; beside them stand verdicts, the estimator to
read, and differences to the log and to the first policy. `recsys.bandit.evaluate` (rows) and
`recsys.sequential.evaluate` (sessions) hand over `PolicyEstimates` and know nothing of each other.

Axes: C clusters, K signals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from envs.core import InputError
from marl.output.console import console
from marl.output.report import Metric, Report, Tables
from marl.output.tables import print_metrics
from recsys.report import summary, write_page
from recsys.report.results import COUNTED, Results, apart_from_estimates, by
from recsys.report.terminal import print_judgments
from recsys.statistics.diagnostics import ROUNDING, effective_of_change
from recsys.statistics.histograms import Histograms, weight_table
from recsys.statistics.intervals import ClusterSums, Interval, rows_to_tell
from recsys.statistics.methods import BOUNDED, FITTED, LOGGED, Intervals, Pair
from recsys.statistics.selection import Recommendation
from recsys.statistics.verdict import FEW, Level, Verdict

Reader = Callable[[int, Mapping[str, Interval]], Recommendation]  # of a signal's number, and intervals by estimator


@dataclass(frozen=True)
class LogSummary:
    """A log by itself: its signals, counts such as rows and clusters, and its own mean reward or return by cluster.

    independence: a sentence on what intervals take as independent. events: of each signal, how many rows earned
    something; None leaves them out.
    """

    signals: tuple[str, ...]
    counts: Mapping[str, int | float]
    logged: ClusterSums
    independence: str
    events: Sequence[int] | None = None


@dataclass(frozen=True)
class PolicyEstimates:
    """One policy by a log.

    sums: every finite estimate by cluster. verdicts: by estimator, one a signal, also of estimates that are not finite.
    weights: what is told of the weights, by name. histograms: of the weights. read: the choice of an estimator.
    """

    policy: str
    sums: Mapping[str, ClusterSums]
    verdicts: Mapping[str, Sequence[Verdict]]
    weights: Mapping[str, float]
    histograms: Histograms
    read: Reader


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Numbers by name, `<signal>/<policy>/<estimator>`, and tables by name, each a list of rows.

    settings: what the numbers were computed with, for the page; a run has its config instead.
    """

    metrics: dict[str, Metric]
    tables: Tables
    settings: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pl.DataFrame:
        """A row an estimate: signal, policy, estimator, value, low, high, n, verdict."""
        names = ("signal", "policy", "estimator", "value", "low", "high", "n", "verdict")
        return pl.DataFrame(self._results().rows(), schema=names, infer_schema_length=None)

    def __repr__(self) -> str:
        results = self._results()
        counts = [f"{self.metrics[name].value:,.0f} {name}" for name in COUNTED if name in self.metrics]
        return (
            f"Evaluation of {', '.join(results.policies)} by {' '.join(counts)}: {len(results.estimates)} estimates of "
            f"{', '.join(results.signals)}; show() tells them"
        )

    def show(self, every: bool = False) -> None:
        """Print what each policy would change and how far to trust it, as `concord run` does; with all estimates too.

        every: all estimates with their intervals, also those that are not to be read.
        """
        print_metrics(self.metrics if every else apart_from_estimates(self.metrics), "evaluation", console)
        print_judgments(self.tables, console, others="above" if every else "show(every=True)")

    def save(self, path: str | Path) -> None:
        """Write a page, where the path ends with .html, or all numbers, with .json. Raises InputError for others."""
        path = Path(path)
        if path.suffix == ".html":
            write_page(self._report(), path)
        elif path.suffix == ".json":
            self._report().save(path)
        else:
            raise InputError(f"An evaluation is saved as a page, .html, or as numbers, .json; got {path.name}.")

    def _repr_html_(self) -> str:
        """The estimates to read with their verdicts and reasons, and all others on a click: for notebooks."""
        return summary(self._results())

    def _results(self) -> Results:
        return Results(self._report(versions={}))

    def _report(self, **more: Any) -> Report:
        """The same as a run would keep it."""
        settings = {"recipe": "recsys.evaluate", "seed": 0, **self.settings}
        return Report(settings["recipe"], settings["seed"], settings, self.metrics, self.tables, **more)

    def with_more(
        self,
        metrics: Mapping[str, Metric] | None = None,
        tables: Mapping[str, list[dict[str, Any]]] | None = None,
        notes: Sequence[str] = (),
    ) -> Evaluation:
        """With further metrics, tables and notes."""
        told = [*self.tables.get("notes", []), *({"note": note} for note in notes)]
        return replace(
            self, metrics=self.metrics | dict(metrics or {}), tables={**self.tables, **(tables or {}), "notes": told}
        )

    def beside(self, truths: Mapping[str, Metric]) -> Evaluation:
        """With each truth, `<signal>/<policy>/truth`, before the estimates of it, and in the recommendations."""
        metrics: dict[str, Metric] = {}
        for name, metric in self.metrics.items():
            truth = f"{name.rpartition('/')[0]}/truth"
            metrics |= {truth: truths[truth]} if truth in truths else {}
            metrics[name] = metric
        read = [dict(row) for row in self.tables["recommendations"]]
        for row in read:
            known = truths.get(f"{row['signal']}/{row['policy']}/truth")
            row |= {} if known is None else {"truth": known.value}
        return replace(self, metrics=metrics, tables={**self.tables, "recommendations": read})

    def to_json(self) -> dict[str, Any]:
        """Plain values, that a run keeps."""
        plain = {name: (metric.value, metric.low, metric.high, metric.n) for name, metric in self.metrics.items()}
        return {"metrics": plain, "tables": self.tables}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Evaluation:
        """The evaluation that `to_json` made plain."""
        return cls({name: Metric(*values) for name, values in kept["metrics"].items()}, kept["tables"])


def evaluation_of(log: LogSummary, policies: Sequence[PolicyEstimates], intervals: Intervals) -> Evaluation:
    """Metrics, and the tables log, recommendations, verdicts, differences, weights and notes."""
    _require_apart(log.signals)
    metrics = logged_metrics(log, intervals)
    tables: Tables = {"log": log_rows(log, metrics), "recommendations": [], "verdicts": []}
    for estimates in policies:
        by_estimator = intervals.of(estimates.sums)
        metrics |= policy_metrics(log, estimates, by_estimator)
        tables["recommendations"] += recommendations(log.signals, estimates, by_estimator)
        tables["verdicts"] += verdict_rows(log.signals, estimates)
    tables["differences"] = differences(log, policies, intervals, tables["recommendations"])
    tables["weights"] = weight_table({estimates.policy: estimates.histograms for estimates in policies})
    fitted = [name for name in FITTED if any(name in estimates.sums for estimates in policies)]
    notes = [log.independence, *_without_note(intervals), *_fitted_note(fitted)]
    return Evaluation(metrics, tables).with_more(notes=notes)


def _require_apart(signals: Sequence[str]) -> None:
    """Raise InputError for signals whose numbers could not be told apart by their names."""
    for one in signals:
        for other in signals:
            if other.startswith(f"{one}/"):
                raise InputError(
                    f"The signals {one!r} and {other!r} cannot be told apart in names such as {other}/new/ips, where "
                    f"new is a policy and ips an estimator. Rename one of the columns."
                )


def logged_metrics(log: LogSummary, intervals: Intervals) -> dict[str, Metric]:
    """Counts, `<signal>/logged` and `<signal>/events`."""
    metrics = {name: Metric.exact(count) for name, count in log.counts.items()}
    own = intervals.of({LOGGED: log.logged})[LOGGED].metrics()
    for k, signal in enumerate(log.signals):
        metrics[f"{signal}/{LOGGED}"] = own[k]
        if log.events is not None:
            metrics[f"{signal}/events"] = Metric.exact(log.events[k])
    return metrics


def log_rows(log: LogSummary, metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """What each signal came to in the log itself."""
    own = {signal: metrics[f"{signal}/{LOGGED}"] for signal in log.signals}
    return [{"signal": signal, "value": m.value, "low": m.low, "high": m.high} for signal, m in own.items()]


def policy_metrics(log: LogSummary, estimates: PolicyEstimates, intervals: Mapping[str, Interval]) -> dict[str, Metric]:
    """Every estimate of one policy with its interval, NaN where it is not finite, and the facts of the weights."""
    metrics: dict[str, Metric] = {}
    endless = [Metric(math.nan, -math.inf, math.inf, log.logged.clusters)] * len(log.signals)
    for name in estimates.verdicts:
        by_signal = intervals[name].metrics() if name in intervals else endless
        for signal, metric in zip(log.signals, by_signal, strict=True):
            metrics[f"{signal}/{estimates.policy}/{name}"] = metric
    for signal in log.signals:
        for name, value in estimates.weights.items():
            metrics[f"{signal}/{estimates.policy}/{name}"] = Metric.exact(value)
    return metrics


def verdict_rows(signals: Sequence[str], estimates: PolicyEstimates) -> list[dict[str, Any]]:
    """Each estimate's verdict, the check that decided, and the reason."""
    rows = []
    for name, by_signal in estimates.verdicts.items():
        for signal, verdict in zip(signals, by_signal, strict=True):
            row = {"estimate": f"{signal}/{estimates.policy}/{name}", "verdict": verdict.level.name}
            rows.append({**row, "check": verdict.check, "reason": verdict.reason})
    return rows


def recommendations(
    signals: Sequence[str], estimates: PolicyEstimates, intervals: Mapping[str, Interval]
) -> list[dict[str, Any]]:
    """The estimator to read for each signal, None for none of them, its estimate, and why."""
    rows = []
    for k, signal in enumerate(signals):
        best = estimates.read(k, intervals)
        row: dict[str, Any] = {"signal": signal, "policy": estimates.policy}
        row |= {"estimator": best.estimator, "sentence": best.sentence}
        if best.estimator is not None:
            metric = intervals[best.estimator].metrics()[k]
            row |= {"value": metric.value, "low": metric.low, "high": metric.high}
        rows.append(row)
    return rows


def differences(
    log: LogSummary, policies: Sequence[PolicyEstimates], intervals: Intervals, read: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Changes that a launch would bring: each policy minus the log itself, and minus the first; paired by cluster.

    read: the table of recommendations; where they name two estimators for two policies, the difference of these too.
    rows_to_tell: how many rows or sessions like these it takes to tell a change of that size from none.
    """
    rows = []
    first = policies[0]
    verdicts = {(each.policy, name): told for each in policies for name, told in each.verdicts.items()}
    counted = next(log.counts[name] for name in COUNTED if name in log.counts)
    chosen = {(row["signal"], row["policy"]): row["estimator"] for row in read}
    for place, estimates in enumerate(policies):
        pairs: dict[Pair, tuple[ClusterSums, ClusterSums]] = {}
        for name, sums in estimates.sums.items():
            pairs[estimates.policy, name, LOGGED, LOGGED] = (sums, log.logged)
            if place and name in first.sums:
                pairs[estimates.policy, name, first.policy, name] = (sums, first.sums[name])
        for signal in log.signals if place else ():
            own, other = (chosen.get((signal, each.policy)) for each in (estimates, first))
            if own is not None and other is not None:
                pairs[estimates.policy, own, first.policy, other] = (estimates.sums[own], first.sums[other])
        for pair, interval in intervals.of_differences(pairs).items():
            policy, own, against, other = pair
            interval = without_rounding(interval, *pairs[pair])
            enough = rows_to_tell(pairs[pair][0] - pairs[pair][1], counted, interval.level)
            judged = [verdicts[each] for each in ((policy, own), (against, other)) if each in verdicts]
            levels = levels_of_change(*pairs[pair], judged)
            for signal, metric, needed, told in zip(log.signals, interval.metrics(), enough, levels, strict=True):
                row: dict[str, Any] = {"signal": signal, "policy": policy, "against": against}
                row["estimator"] = own if against == LOGGED else by(own, other)
                row |= {"value": metric.value, "low": metric.low, "high": metric.high}
                asymptotic = math.isfinite(metric.low) and intervals.config.method not in BOUNDED
                row |= {"rows_to_tell": float(needed) if asymptotic else math.inf}
                rows.append({**row, "verdict": told.name})
    return rows


def without_rounding(interval: Interval, one: ClusterSums, other: ClusterSums) -> Interval:
    """The interval of one minus the other; nothing at all where they differ by no more than rounding."""
    size = np.maximum(np.abs(one.value), np.abs(other.value))
    known = np.isfinite(interval.low) & np.isfinite(interval.high)
    same = known & np.isnan(effective_of_change(one, other)) & (np.abs(interval.value) <= ROUNDING * size)
    value, low, high = (np.where(same, 0.0, x) for x in (interval.value, interval.low, interval.high))
    return replace(interval, value=value, low=low, high=high)


def levels_of_change(one: ClusterSums, other: ClusterSums, judged: Sequence[Sequence[Verdict]]) -> list[Level]:
    """For each signal the worst verdict on the estimates of a difference; at best CAUTION where few clusters decide it.

    judged: of both estimates, or of one where the other is the log's own mean.
    """
    worst = [max(verdict.level for verdict in of_signal) for of_signal in zip(*judged, strict=True)]
    few = (effective_of_change(one, other) < FEW).tolist()
    return [max(level, Level.CAUTION) if decided_by_few else level for level, decided_by_few in zip(worst, few)]


def _fitted_note(fitted: Sequence[str]) -> list[str]:
    if not fitted:
        return []
    return [
        f"There is no interval of {', '.join(fitted)}: none here has the error of the fit, which may be the larger."
    ]


def _without_note(intervals: Intervals) -> list[str]:
    if not intervals.without:
        return []
    names = ", ".join(sorted(intervals.without))
    return [f"{intervals.config.method} bounds one ratio of sums, so there is no such interval of {names}."]
