"""A report's metrics and tables by what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from marl.output.report import Metric, Report
from recsys.report.markup import number, rounded
from recsys.statistics.diagnostics import WEIGHT_FACTS
from recsys.statistics.methods import LOGGED

COUNTED = ("rows", "sessions")  # metrics, one of which says how much a log holds
Rows = list[dict[str, Any]]


def apart_from_estimates(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """The metrics that are no estimate of a policy or of the log, and nothing of weights."""
    signals = signals_of(metrics)
    told = (*WEIGHT_FACTS, LOGGED)
    return {
        name: metric
        for name, metric in metrics.items()
        if not parts_of(name, signals)[1] and name.rpartition("/")[2] not in told
    }


def signals_of(metrics: Iterable[str]) -> list[str]:
    """The signals whose mean in the log is among metrics of these names."""
    ending = f"/{LOGGED}"
    return [name.removesuffix(ending) for name in metrics if name.endswith(ending)]


def parts_of(name: str, signals: Sequence[str]) -> tuple[str, str, str]:
    """Signal, policy and estimator of a metric's name; the last two are empty for any other metric."""
    signal = max((known for known in signals if name.startswith(f"{known}/")), key=len, default="")
    policy, _, estimator = name[len(signal) + 1 :].rpartition("/") if signal else ("", "", "")
    return signal, policy, estimator


class Results:
    """Metrics by signal, policy and estimator, whose names may have slashes, and what tables say of each."""

    def __init__(self, report: Report):
        self.report = report
        self.tables: dict[str, Rows] = report.tables
        self.level = number(report.config.get("intervals", {}).get("level", 0.95))
        self.signals = signals_of(report.metrics)
        self.estimates: dict[tuple[str, str, str], Metric] = {}
        self.facts: dict[str, dict[str, float]] = {}
        for key, metric in report.metrics.items():
            signal, policy, name = self.parts(key)
            if policy and name in WEIGHT_FACTS:
                self.facts.setdefault(policy, {})[name] = metric.value
            elif policy and not name.endswith(WEIGHT_FACTS):  # mips_ess is of other weights, and no estimate
                self.estimates[signal, policy, name] = metric
        self.policies = list(dict.fromkeys(policy for _, policy, _ in self.estimates))
        self.verdicts = {self.parts(row["estimate"]): row for row in self.tables.get("verdicts", [])}

    def parts(self, key: str) -> tuple[str, str, str]:
        """Signal, policy and estimator of a metric's name; the last two are empty for any other metric."""
        return parts_of(key, self.signals)

    def logged(self, signal: str) -> Metric:
        """The log's own mean."""
        return self.report.metrics[f"{signal}/{LOGGED}"]

    def rows(self) -> Rows:
        """A row an estimate: signal, policy, estimator, value, low, high, n, verdict."""
        rows = []
        for key, metric in self.estimates.items():
            row = dict(zip(("signal", "policy", "estimator"), key, strict=True))
            rows.append({**row, **asdict(metric), "verdict": self.verdict(*key)})
        return rows

    def verdict(self, signal: str, policy: str, estimator: str) -> str:
        """RELIABLE, CAUTION or UNRELIABLE; empty where none was given."""
        return str(self.verdicts.get((signal, policy, estimator), {}).get("verdict", ""))

    def recommended(self, signal: str, policy: str) -> str | None:
        """The estimator to read, where the report recommends one."""
        rows = self.tables.get("recommendations", [])
        return next((row["estimator"] for row in rows if (row["signal"], row["policy"]) == (signal, policy)), None)

    def changes(self) -> Rows:
        """Differences by the estimators to read."""
        read = {(row["signal"], row["policy"]): row["estimator"] for row in self.tables.get("recommendations", [])}
        return [dict(row) for row in changes_to_read(self.tables.get("differences", []), read)]

    def read(self, signal: str, policy: str) -> str:
        """The recommended estimator, or else the first."""
        first = next((name for *of, name in self.estimates if of == [signal, policy]), "")
        return self.recommended(signal, policy) or first

    @property
    def interval(self) -> str:
        """The name of intervals, with their level."""
        return f"{rounded(100 * self.level)} % interval"


def grouped(rows: Rows, *keys: str) -> list[tuple[Any, Rows]]:
    """Rows by the values of one column, or of several, as they first come."""
    groups: dict[Any, Rows] = {}
    for row in rows:
        groups.setdefault(row[keys[0]] if len(keys) == 1 else tuple(row[key] for key in keys), []).append(row)
    return list(groups.items())


def numbers(rows: Rows) -> Rows:
    """Rows whose columns, other than the policy, are numbers again."""
    return [{key: value if key == "policy" else number(value) for key, value in row.items()} for row in rows]


def changes_to_read(
    rows: Sequence[Mapping[str, Any]], chosen: Mapping[tuple[str, str], str | None]
) -> list[Mapping[str, Any]]:
    """Each difference by the estimator to read, or by those two of two policies, so that it is that of what is told."""
    read = []
    for row in rows:
        signal, policy, against = row["signal"], row["policy"], row["against"]
        own = chosen.get((signal, policy))
        other = chosen.get((signal, against), own)
        if own is not None and other is not None and row["estimator"] == by(own, other):
            read.append(row)
    return read


def by(own: str, other: str) -> str:
    """The estimators of a difference, once where both policies have the same."""
    return own if own == other else f"{own} - {other}"


def width_of(row: Mapping[str, Any]) -> float:
    """Of a row's interval."""
    return float(row["high"]) - float(row["low"])
