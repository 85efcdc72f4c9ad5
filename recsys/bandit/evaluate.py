"""What policies would have earned by a log: estimates with intervals, differences, verdicts and what to read.

`evaluate` is the whole of it for logs with propensities; docs/ope.md has the equations. Estimates depend on no seed; a
bootstrap's intervals do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from envs.core import InputError
from marl.output.console import console
from marl.output.report import Metric
from marl.output.tables import print_metrics
from recsys.bandit.importance_weights import HALF, LOGGED, WEIGHT, Known, weighers_of
from recsys.bandit.pas_if import pas_if_errors
from recsys.bandit.scan import Sums, scan
from recsys.bandit.segments import estimates_of, segments
from recsys.bandit.verdict_facts import consistent, judge
from recsys.config import EstimatorsConfig, IntervalsConfig, RewardModelConfig, SelectionConfig
from recsys.logs.log import ROW_CLUSTERS, Log
from recsys.models.reward import RewardModel, fit_reward_model
from recsys.policies.base import Policy, policy_of
from recsys.report.terminal import print_judgments
from recsys.statistics.histograms import overlap_table, weight_table
from recsys.statistics.intervals import ClusterSums, Interval, standard_error
from recsys.statistics.methods import Intervals
from recsys.statistics.selection import recommend
from recsys.statistics.verdict import Verdict

Facts = Callable[[str, str], Mapping[str, int | float]]  # of a signal and a policy


@dataclass(frozen=True)
class Evaluation:
    """What a log says of policies: numbers by name, and tables by name, each a list of rows."""

    metrics: dict[str, Metric]
    tables: dict[str, list[dict[str, Any]]]

    def to_json(self) -> dict[str, Any]:
        """As plain values, that a run keeps."""
        told = {name: (metric.value, metric.low, metric.high, metric.n) for name, metric in self.metrics.items()}
        return {"metrics": told, "tables": self.tables}

    def beside(self, truths: Mapping[str, Metric]) -> Evaluation:
        """With each truth, `<signal>/<policy>/truth`, before the estimates of it."""
        metrics: dict[str, Metric] = {}
        for name, metric in self.metrics.items():
            truth = f"{name.rpartition('/')[0]}/truth"
            metrics |= {truth: truths[truth]} if truth in truths else {}
            metrics[name] = metric
        return Evaluation(metrics, self.tables)

    def show(self) -> None:
        """Print the estimates with their intervals and verdicts, as `concord run` does."""
        print_metrics(self.metrics, "evaluation", console)
        print_judgments(self.tables, console)

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Evaluation:
        """What `to_json` gave."""
        return cls({name: Metric(*values) for name, values in kept["metrics"].items()}, kept["tables"])


@dataclass(frozen=True)
class Found:
    """One policy's sums by the kind of weights; those of the plain ones, "", come first."""

    policy: Policy
    sums: dict[str, Sums]
    facts: dict[str, Any]

    @property
    def plain(self) -> Sums:
        """By the plain weights."""
        return self.sums[""]

    def estimates(self) -> dict[str, Sums]:
        """By estimator, where to find it; in the order of computation, those without a finite value too."""
        return {name: of for of in self.used() for name in of.slots if name not in (LOGGED, WEIGHT)}

    def used(self) -> list[Sums]:
        """All but what estimates are only held against."""
        return [of for kind, of in self.sums.items() if kind != HALF]

    def verdicts(self, signals: Sequence[str], facts: Facts | None = None) -> dict[str, list[Verdict]]:
        """By estimator and signal."""
        more = [self.facts | ({} if facts is None else dict(facts(signal, self.policy.name))) for signal in signals]
        half = self.sums.get(HALF)
        judged = [
            judge(of, [name for name in of.slots if name not in (LOGGED, WEIGHT)], more, half)
            for kind, of in self.sums.items()
            if kind != HALF
        ]
        return {name: by_signal for part in judged for name, by_signal in part.items()}

    def cluster_sums(self) -> dict[str, ClusterSums]:
        """Of the estimates that are finite."""
        return {name: of.cluster_sums(name) for of in self.used() for name in estimates_of(of)}


def evaluate(
    log: Log,
    targets: Sequence[Policy] | Mapping[str, Any],
    model: RewardModel | None = None,
    known: Known | None = None,
    *,
    estimators: EstimatorsConfig | None = None,
    reward_model: RewardModelConfig | None = None,
    intervals: IntervalsConfig | None = None,
    selection: SelectionConfig | None = None,
    seed: int = 0,
    workers: int = 2,
    facts: Facts | None = None,
) -> Evaluation:
    """Metrics `<signal>/<policy>/<estimator>` and tables of differences, verdicts, what to read, and segments.

    targets: policies, or by name what `policies.policy_of` makes one of. model: by default what `reward_model` asks
    for, which takes a scan of its own; `mrdr` takes one for each policy; all the rest takes one together. facts: more
    that the verdict should know of a signal and a policy, by the names of `Diagnosis`.
    """
    settings, sure = estimators or EstimatorsConfig(), intervals or IntervalsConfig()
    means, choice = reward_model or RewardModelConfig(), selection or SelectionConfig()
    if isinstance(targets, Mapping):
        targets = [policy_of(what, log, name) for name, what in targets.items()]
    if not targets:
        raise InputError("There is nothing to evaluate: give at least one policy.")
    if selection is not None and selection.method == "pas_if" and means.kind != "mean":
        raise InputError(
            "PAS-IF fits a mean to every split of the log: take reward_model.kind=mean, or select by slope."
        )
    model = model or fit_reward_model(log, means)
    log = log.with_context(model.columns)
    known = known or Known()
    ways = [weighers_of(log, policy, model, settings, known, means.prior_rows) for policy in targets]
    sums = scan(log, [weigher for of in ways for weigher in of], workers)
    found = [
        Found(policy, {weigher.weights: sums[weigher.place] for weigher in of}, facts_of(policy, log))
        for policy, of in zip(targets, ways, strict=True)
    ]
    require_bounds(found, sure)
    dealt = 1 if log.columns.user is not None else math.ceil(found[0].plain.n / ROW_CLUSTERS)
    how = Intervals(sure, settings, seed, workers, dealt)
    metrics: dict[str, Metric] = logged_metrics(found[0].plain, log.signals, how)
    tables: dict[str, list[dict[str, Any]]] = {"recommendations": [], "verdicts": []}
    for of in found:
        metrics |= metrics_of(of, log.signals, how.of(of.cluster_sums()))
        verdicts = of.verdicts(log.signals, facts)
        tables["verdicts"] += verdict_rows(of.policy.name, log.signals, verdicts)
        errors = None
        if choice.method == "pas_if":
            errors = pas_if_errors(log, of.policy, known.logging, settings, choice, means.prior_rows, seed)
        tables["recommendations"] += recommendations(of, log.signals, verdicts, errors, choice.biased)
    if len(targets) == 1:
        metrics |= {name: Metric.exact(value) for name, value in weights_of(found[0].plain).items()}
    tables["differences"] = differences(found, log.signals, how)
    drawn = {of.policy.name: of.plain.histograms for of in found}
    tables |= {"weights": weight_table(drawn), "overlap": overlap_table(drawn)}
    if log.columns.segments:
        tables["segments"] = segments(
            sums, log.signals, sure.level, sure.multiplicity, {of.policy.name: of.facts for of in found}
        )
    tables["notes"] = [{"note": note} for note in (_clusters_note(log), *_without_note(how))]
    return Evaluation(metrics, tables)


def facts_of(policy: Policy, log: Log) -> dict[str, Any]:
    """What every verdict on a policy must know: of the log, and whether it is made of the rows that it is judged by.

    Such a policy's mean weight exceeds 1: by about actions / rows for one that is in proportion to counts.
    """
    if not getattr(policy, "of_the_log", False):
        return log.facts
    return {**log.facts, "mean_slack": math.inf}


def require_bounds(found: Sequence[Found], sure: IntervalsConfig) -> None:
    """Raise InputError where bounds that were said to be known are exceeded by the log."""
    known = sure.bounds
    for of in found if known is not None else ():
        assert known is not None
        seen = {"weight": (of.plain.weights.max_weight, known.weight), "reward": (of.plain.most.max(), known.reward[1])}
        for name, (largest, bound) in seen.items():
            if largest > bound:
                raise InputError(
                    f"intervals.bounds.{name} says that nothing exceeds {bound:.6g}, but the log has {largest:.6g} "
                    f"(policy {of.policy.name}): widen the bound, or it is none."
                )
        if of.plain.least.min() < known.reward[0]:
            raise InputError(
                f"intervals.bounds.reward says that nothing is below {known.reward[0]:.6g}, but the log has "
                f"{of.plain.least.min():.6g}: widen the range, or it is none."
            )


def logged_metrics(sums: Sums, signals: Sequence[str], intervals: Intervals) -> dict[str, Metric]:
    """`<signal>/logged`, `<signal>/events`, and how many rows and clusters there are."""
    own = intervals.of({LOGGED: sums.cluster_sums(LOGGED)})[LOGGED]
    metrics = {"rows": Metric.exact(sums.n), "clusters": Metric.exact(len(sums.clusters[1]))}
    for signal, metric, events in zip(signals, own.metrics(), sums.events, strict=True):
        metrics |= {f"{signal}/{LOGGED}": metric, f"{signal}/events": Metric.exact(int(events))}
    return metrics


def metrics_of(found: Found, signals: Sequence[str], intervals: Mapping[str, Interval]) -> dict[str, Metric]:
    """Every estimate of one policy with its interval, and what the weights are like."""
    metrics: dict[str, Metric] = {}
    for name, of in found.estimates().items():
        endless = Metric(math.nan, -math.inf, math.inf, len(of.clusters[1]))
        by_signal = intervals[name].metrics() if name in intervals else [endless] * len(signals)
        metrics |= {f"{signal}/{found.policy.name}/{name}": m for signal, m in zip(signals, by_signal, strict=True)}
    for kind, of in found.sums.items():
        if kind == HALF:
            continue
        told = {f"{kind}_{name}" if kind else name: Metric.exact(value) for name, value in weights_of(of).items()}
        metrics |= {f"{signal}/{found.policy.name}/{name}": value for signal in signals for name, value in told.items()}
    return metrics


def verdict_rows(
    policy: str, signals: Sequence[str], verdicts: Mapping[str, Sequence[Verdict]]
) -> list[dict[str, Any]]:
    """Whether each estimate may be relied on, and why."""
    return [
        {
            "estimate": f"{signal}/{policy}/{name}",
            "verdict": by_signal[k].level.name,
            "check": by_signal[k].check,
            "reason": by_signal[k].reason,
        }
        for name, by_signal in verdicts.items()
        for k, signal in enumerate(signals)
    ]


def recommendations(
    found: Found,
    signals: Sequence[str],
    verdicts: Mapping[str, Sequence[Verdict]],
    errors: Mapping[str, Float[np.ndarray, " K"]] | None = None,
    biased: bool = False,
) -> list[dict[str, Any]]:
    """Which estimate of each signal to read, and why; biased: also those whose intervals do not know their bias."""
    where = found.estimates()
    sums = {name: of for name, of in found.cluster_sums().items() if biased or consistent(where[name], name)}
    rows = []
    for k, signal in enumerate(signals):
        if not sums:
            told = verdicts[next(iter(verdicts))][k]
            rows.append({"signal": signal, "policy": found.policy.name, "estimator": None, "sentence": told.reason})
            continue
        value = {name: float(of.value[k]) for name, of in sums.items()}
        error = {name: float(standard_error(of)[k]) for name, of in sums.items()}
        mse = None if errors is None else {name: float(of_signal[k]) for name, of_signal in errors.items()}
        best = recommend({name: verdicts[name][k] for name in sums}, value, error, mse)
        row = {"signal": signal, "policy": found.policy.name, "estimator": best.estimator, "sentence": best.sentence}
        rows.append(row)
    return rows


def differences(found: Sequence[Found], signals: Sequence[str], intervals: Intervals) -> list[dict[str, Any]]:
    """What a launch would change: each policy minus the log's own mean, and minus the first policy; paired by users."""
    rows = []
    first = found[0].cluster_sums()
    logged = found[0].plain.cluster_sums(LOGGED)
    for place, of in enumerate(found):
        pairs = {}
        for name, sums in of.cluster_sums().items():
            pairs[of.policy.name, name, LOGGED, LOGGED] = (sums, logged)
            if place and name in first:
                pairs[of.policy.name, name, found[0].policy.name, name] = (sums, first[name])
        for (policy, name, against, _), interval in intervals.of_differences(pairs).items():
            for signal, metric in zip(signals, interval.metrics(), strict=True):
                row = {"signal": signal, "policy": policy, "against": against, "estimator": name}
                rows.append({**row, "value": metric.value, "low": metric.low, "high": metric.high})
    return rows


def weights_of(sums: Sums) -> dict[str, float]:
    """What the weights are like."""
    return {"ess": sums.weights.ess, "max_weight": sums.weights.max_weight, "mean_weight": sums.weights.mean}


def _clusters_note(log: Log) -> str:
    if log.columns.user is not None:
        return f"Intervals take the rows of one {log.columns.user} as one draw."
    return "There is no column of users, so intervals take every row as independent of the others."


def _without_note(intervals: Intervals) -> list[str]:
    if not intervals.without:
        return []
    names = ", ".join(sorted(intervals.without))
    return [f"{intervals.config.method} bounds one ratio of sums, so there is no such interval of {names}."]
