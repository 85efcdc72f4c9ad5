"""The same policies by a slice of the log that was shown at random, beside what fitted propensities say.

There the propensity is known, 1 over the actions shown, so a difference means confounding that the model's columns
do not hold, or that both have other rows. A policy is compared by what it does among the slice's actions, and rows are
compared by context: each context of a frequency model counts in the slice as often as in the log.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from envs.core import InputError
from marl.output.report import Metric
from recsys.bandit import estimators
from recsys.bandit.scan import Estimators, Sums, sum_up
from recsys.config import RewardModelConfig
from recsys.evaluation import Evaluation
from recsys.logs.log import Chunk, Log
from recsys.models.cross_fitting import complete
from recsys.models.propensity_frequency import Contexts
from recsys.models.reward import fit_reward_model
from recsys.policies.base import ContextPolicy, Policy, TablePolicy
from recsys.statistics.intervals import standard_error, student_t
from recsys.statistics.multiple_testing import holm

COMPARED: Estimators = {
    "ips": lambda x: estimators.ips(x.weight, x.reward),
    "snips": lambda x: estimators.snips(x.weight, x.reward),
    "dr": lambda x: estimators.dr(x.weight, x.reward, x.q_logged, x.value),
}
Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """Both estimates of each policy, signal and estimator; their differences; and sentences."""

    estimates: Table
    differences: Table
    notes: list[str]

    def facts(self, signal: str, policy: str) -> dict[str, float]:
        """z of the difference of SNIPS for the verdict: 0 where it is less than 5 %, NaN where there is none."""
        for row in self.differences:
            if (row["signal"], row["policy"], row["estimator"]) == (signal, policy, "snips"):
                return {"slice_z": abs(row["z"]) if abs(row["difference"]) > 0.05 * abs(row["random"]) else 0.0}
        return {}

    def added_to(self, evaluation: Evaluation) -> Evaluation:
        """An evaluation with the tables, notes and metrics of this."""
        metrics = {
            f"random_slice/{row['signal']}/{row['policy']}/{row['estimator']}": Metric(
                row["difference"], row["low"], row["high"]
            )
            for row in self.differences
        }
        tables = {"random_slice": self.estimates, "random_slice_differences": self.differences}
        return evaluation.with_more(metrics, tables, self.notes)


def compare(
    log: Log,
    slice_: Log,
    targets: Sequence[Policy],
    contexts: tuple[str, ...] | None,
    reward_model: RewardModelConfig,
    level: float = 0.95,
    workers: int = 1,
) -> Comparison:
    """Policies by a log with fitted propensities and by its random slice, over one catalog.

    contexts: columns by whose values rows are matched; None takes both as they are. The two are taken as independent.
    """
    drawn = np.zeros(log.actions, bool)
    for rows in slice_.chunks():
        drawn[rows.action] = True
    told: list[str] = []
    if contexts:
        log, slice_, kept = matched(log, slice_, contexts)
        told.append(
            f"The random slice is compared by {', '.join(contexts)}: each context counts in it as often as in the log; "
            f"{kept:.1%} of the log's rows have a context that the slice has."
        )
    sources = {"fitted": log, "random": slice_}
    models = {name: fit_reward_model(source, reward_model) for name, source in sources.items()}
    sources = {name: source.with_context(models[name].columns) for name, source in sources.items()}
    estimates: Table = []
    differences: Table = []
    for policy in targets:
        try:
            own = restricted(policy, drawn)
            sums = {
                name: sum_up(source, [own], models[name], COMPARED, workers)[policy.name]
                for name, source in sources.items()
            }
        except NothingSharedError:
            told.append(f"{policy.name} shows, in some rows, nothing that the random slice does: not compared with it.")
            continue
        estimates += [row for name in sources for row in _estimates(policy.name, name, sums[name], log.signals, level)]
        differences += _differences(policy.name, sums["fitted"], sums["random"], log.signals, level)
    return Comparison(estimates, differences, [*told, *_sentences(differences)])


def restricted(policy: Policy, actions: Bool[np.ndarray, " A"]) -> Policy:
    """A policy among some actions: π(a|x) / π(these|x). Raises NothingSharedError where it takes none of them."""

    def among(chances: Float[np.ndarray, "n A"]) -> Float[np.ndarray, "n A"]:
        kept = chances * actions
        total = kept.sum(1, keepdims=True)
        if (total <= 0).any():
            raise NothingSharedError
        return kept / total

    if policy.table is not None:
        return TablePolicy(policy.name, among(policy.table))
    return ContextPolicy(policy.name, policy.actions, lambda rows: among(policy.distribution(rows)))


class NothingSharedError(InputError):
    """A policy takes none of the actions that it was restricted to."""


def matched(log: Log, slice_: Log, columns: tuple[str, ...]) -> tuple[Log, Log, float]:
    """Log and slice with the same rows by context, as multiplicities, and the share of the log's rows that is left.

    The slice's rows are reweighed; the log's are those with contexts that the slice has. Raises InputError where they
    share none.
    """
    for name in columns:
        if slice_.schema.get(name) != log.schema[name]:
            raise InputError(
                f"Column {name!r} must be of one kind in a log and its random slice; it is {log.schema[name]} and "
                f"{slice_.schema.get(name, 'missing')}."
            )
    contexts, logs = Contexts(columns), (log.with_context(columns), slice_.with_context(columns))
    counts = [np.zeros(0), np.zeros(0)]
    for i, source in enumerate(logs):
        for rows in complete(source, columns):
            number = contexts.learn(rows)
            more = np.bincount(number, rows.multiplicity, len(contexts)).astype(np.float64)
            counts[i] = more + np.pad(counts[i], (0, len(more) - len(counts[i])))
    size = len(contexts)
    of_log, of_slice = (np.pad(count, (0, size - len(count))) for count in counts)
    both = (of_log > 0) & (of_slice > 0)
    if not both.any():
        raise InputError(
            f"The log and its random slice share no values of {', '.join(columns)}: nothing can be compared."
        )
    ratio = np.divide(of_log, of_slice, out=np.zeros(size), where=both)

    def weighing(factor: np.ndarray) -> Any:
        def weigh(rows: Chunk) -> Chunk:
            return replace(rows, multiplicity=rows.counted(factor[contexts.number(rows)]))

        return weigh

    # The slice's rows add up to as many as it has, so that nothing else takes it for longer than it is.
    ratio *= of_slice[both].sum() / of_log[both].sum()
    changed = logs[0].with_change(weighing(both.astype(np.float64))), logs[1].with_change(weighing(ratio))
    return *changed, float(of_log[both].sum() / of_log.sum())


def _estimates(policy: str, source: str, sums: Sums, signals: tuple[str, ...], level: float) -> Table:
    rows = []
    for name in sums.slots:
        interval = student_t(sums.cluster_sums(name), level)
        for k, signal in enumerate(signals):
            ends = {"low": float(interval.low[k]), "high": float(interval.high[k])}
            row = {"signal": signal, "policy": policy, "estimator": name, "source": source}
            rows.append({**row, "value": float(interval.value[k]), **ends})
    return rows


def _differences(policy: str, fitted: Sums, random: Sums, signals: tuple[str, ...], level: float) -> Table:
    from scipy import stats

    rows, wide = [], float(stats.norm.ppf((1 + level) / 2))
    for name in fitted.slots:
        sums = [of.cluster_sums(name) for of in (fitted, random)]
        difference = sums[0].value - sums[1].value
        error = np.hypot(*(standard_error(of) for of in sums))
        for k, signal in enumerate(signals):
            d, e = float(difference[k]), float(error[k])
            z = d / e if e > 0 else math.copysign(math.inf, d) if d else 0.0
            row = {"signal": signal, "policy": policy, "estimator": name, "random": float(sums[1].value[k])}
            rows.append({**row, "difference": d, "low": d - wide * e, "high": d + wide * e, "z": z})
    return rows


def _sentences(differences: Table) -> list[str]:
    from scipy import stats

    known = [row for row in differences if math.isfinite(row["difference"])]
    if not known:
        return []
    adjusted = holm(2 * stats.norm.sf(np.abs([row["z"] for row in known])))
    inside = sum(row["low"] <= 0 <= row["high"] for row in known)
    worst = max(known, key=lambda row: abs(row["z"]))
    named = f"{worst['signal']}/{worst['policy']}/{worst['estimator']}"
    said = f"Fitted propensities less random slice: {inside} of {len(known)} intervals contain 0; "
    if adjusted.min() < 0.05:
        return [
            f"{said}{named} differs by {worst['difference']:.4g} (z = {worst['z']:.1f}). Something that moved both "
            "what was shown and the reward is not among behavior.columns, or users and times of the slice are others."
        ]
    return [f"{said}the furthest is {named} (z = {worst['z']:.1f}), which chance explains."]
