"""The evaluation of policies by rows of a log with propensities; docs/ope.md has the equations.

One scan gives the sums of every policy and estimator. Estimates depend on no seed; a bootstrap's intervals do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from envs.core import InputError
from marl.output.report import Metric, Tables
from recsys.bandit.importance_weights import HALF, WEIGHT, LoggerInfo, require_estimators, weighers_of
from recsys.bandit.pas_if import pas_if_errors
from recsys.bandit.scan import Place, Sums, scan
from recsys.bandit.segments import finite_estimates, require_groups, segments
from recsys.bandit.verdict_facts import consistent, judge
from recsys.config import (
    EstimatorsConfig,
    EvaluationSettings,
    IntervalsConfig,
    RewardModelConfig,
    SelectionConfig,
    checked,
)
from recsys.evaluation import Evaluation, LogSummary, PolicyEstimates, Reader, evaluation_of
from recsys.logs.log import ROW_CLUSTERS, Log
from recsys.models.reward import RewardModel, fit_reward_model
from recsys.policies.base import Policy, policies_of
from recsys.statistics.histograms import overlap_table
from recsys.statistics.intervals import ClusterSums, Interval, standard_error
from recsys.statistics.methods import LOGGED, Intervals
from recsys.statistics.selection import Recommendation, recommend, recommend_first, recommend_none
from recsys.statistics.verdict import Verdict

Facts = Callable[[str, str], Mapping[str, int | float]]  # of a signal and a policy


@dataclass(frozen=True)
class ScannedPolicy:
    """One policy's sums by the kind of weights, the plain ones, "", first; and what every verdict on it must know."""

    policy: Policy
    sums: dict[str, Sums]
    facts: dict[str, Any]

    @property
    def plain(self) -> Sums:
        """The sums by the plain weights."""
        return self.sums[""]

    @property
    def used(self) -> dict[str, Sums]:
        """All sums but those that estimates are only held against."""
        return {kind: sums for kind, sums in self.sums.items() if kind != HALF}

    def verdicts(self, signals: Sequence[str], facts: Facts | None = None) -> dict[str, list[Verdict]]:
        """By estimator and signal; of estimates without a finite value too."""
        more = [self.facts | ({} if facts is None else dict(facts(signal, self.policy.name))) for signal in signals]
        verdicts: dict[str, list[Verdict]] = {}
        for sums in self.used.values():
            names = [name for name in sums.slots if name not in (LOGGED, WEIGHT)]
            verdicts |= judge(sums, names, more, self.sums.get(HALF))
        return verdicts

    def cluster_sums(self) -> dict[str, ClusterSums]:
        """By estimator, of the estimates that are finite."""
        return {name: sums.cluster_sums(name) for sums in self.used.values() for name in finite_estimates(sums)}

    def consistent(self) -> set[str]:
        """The finite estimates whose intervals are about the truth."""
        return {name for sums in self.used.values() for name in finite_estimates(sums) if consistent(sums, name)}

    def weight_facts(self) -> dict[str, float]:
        """The facts of each kind of weights, such as ess and mips_ess."""
        facts: dict[str, float] = {}
        for kind, sums in self.used.items():
            facts |= {f"{kind}_{name}" if kind else name: value for name, value in sums.weights.facts.items()}
        return facts

    def estimates(self, verdicts: Mapping[str, Sequence[Verdict]], read: Reader) -> PolicyEstimates:
        """The policy as evaluations take it."""
        sums, weights = self.cluster_sums(), self.weight_facts()
        return PolicyEstimates(self.policy.name, sums, verdicts, weights, self.plain.histograms, read)


def evaluate(
    log: Log,
    policies: Sequence[Policy] | Mapping[str, Any],
    *,
    logger: LoggerInfo | None = None,
    estimators: EstimatorsConfig | Mapping[str, Any] | None = None,
    reward_model: RewardModelConfig | Mapping[str, Any] | None = None,
    intervals: IntervalsConfig | Mapping[str, Any] | None = None,
    selection: SelectionConfig | Mapping[str, Any] | None = None,
    seed: int = 0,
    workers: int = 2,
) -> Evaluation:
    """The evaluation of policies, each row of the log being one decision; `evaluate_sessions` is of whole episodes.

    policies: by name probabilities, a function of a `Chunk`, or a name such as "uniform" (`policies.base.policy_of`).
    logger: what is known of who logged. Sections of settings may be plain, such as intervals={"method": "t"}. The
    reward model takes a scan of its own and `mrdr` one for each policy; all the rest takes one together. Raises
    InputError for a log or a policy that cannot be evaluated.
    """
    settings = checked(
        EvaluationSettings,
        estimators=estimators or {},
        reward_model=reward_model or {},
        intervals=intervals or {},
        selection=selection or {},
        seed=seed,
        workers=workers,
    )
    require_estimators(settings.estimators)
    evaluation = evaluate_rows(log, policies_of(policies, log), settings, logger=logger)
    data = {"segments": list(log.columns.segments)}
    return replace(evaluation, settings={"recipe": "recsys.evaluate", "data": data, **settings.model_dump(mode="json")})


def evaluate_rows(
    log: Log,
    policies: Sequence[Policy],
    settings: EvaluationSettings,
    model: RewardModel | None = None,
    logger: LoggerInfo | None = None,
    facts: Facts | None = None,
) -> Evaluation:
    """The evaluation for a recipe: metrics `<signal>/<policy>/<estimator>`, and tables.

    model: the one that `settings.reward_model` asks for, where it is fitted already. facts: more that the verdict
    should know of a signal and a policy, by the names of `Diagnosis`.
    """
    means, choice = settings.reward_model, settings.selection
    if choice.method == "pas_if" and means.kind != "mean":
        raise InputError(
            "PAS-IF fits a mean to every split of the log: take reward_model.kind=mean, or select by slope."
        )
    require_groups(log)
    model = model or fit_reward_model(log, means)
    log = log.with_context(model.columns)
    logger = logger or LoggerInfo()
    sums, scanned = scan_policies(log, policies, model, settings, logger)
    require_bounds(scanned, settings.intervals)
    estimates = []
    for one in scanned:
        verdicts = one.verdicts(log.signals, facts)
        errors = None
        if choice.method == "pas_if":
            errors = pas_if_errors(
                log, one.policy, logger.logging, settings.estimators, choice, means.prior_rows, settings.seed
            )
        read = reader(one, verdicts, choice, errors)
        estimates.append(one.estimates(verdicts, read))
    plain = scanned[0].plain
    dealt = 1 if log.columns.user is not None else math.ceil(plain.n / ROW_CLUSTERS)
    intervals = Intervals(settings.intervals, settings.estimators, settings.seed, settings.workers, dealt)
    evaluation = evaluation_of(summary_of(log, plain), estimates, intervals)
    return with_tables_of_rows(evaluation, log, sums, scanned, settings.intervals)


def scan_policies(
    log: Log, policies: Sequence[Policy], model: RewardModel, settings: EvaluationSettings, logger: LoggerInfo
) -> tuple[dict[Place, Sums], list[ScannedPolicy]]:
    """One scan for all policies: all sums by place, and those over the whole log by policy."""
    prior_rows = settings.reward_model.prior_rows
    ways = [weighers_of(log, policy, model, settings.estimators, logger, prior_rows) for policy in policies]
    sums = scan(log, [weigher for of_policy in ways for weigher in of_policy], settings.workers)
    scanned = []
    for policy, of_policy in zip(policies, ways, strict=True):
        by_kind = {weigher.weights: sums[weigher.place] for weigher in of_policy}
        scanned.append(ScannedPolicy(policy, by_kind, facts_of(policy, log)))
    return sums, scanned


def summary_of(log: Log, plain: Sums) -> LogSummary:
    """The log by itself, by the plain sums of any policy."""
    user = log.columns.user
    independence = "There is no column of users, so intervals take every row as independent of the others."
    if user is not None:
        independence = f"Intervals take the rows of one {user} as one draw."
    counts = {"rows": plain.n, "clusters": len(plain.clusters[1])}
    return LogSummary(log.signals, counts, plain.cluster_sums(LOGGED), independence, plain.events.tolist())


def facts_of(policy: Policy, log: Log) -> dict[str, Any]:
    """The facts that every verdict on a policy must know: the log's, and more slack if it is made of the log's rows.

    Such a policy's mean weight exceeds 1: by about actions / rows for one that is in proportion to counts.
    """
    if not getattr(policy, "of_the_log", False):
        return log.facts
    return {**log.facts, "mean_slack": math.inf}


def require_bounds(scanned: Sequence[ScannedPolicy], intervals: IntervalsConfig) -> None:
    """Raise InputError where bounds that were said to be known are exceeded by the log."""
    bounds = intervals.bounds
    if bounds is None:
        return
    for one in scanned:
        plain = one.plain
        seen = {"weight": (plain.weights.max_weight, bounds.weight), "reward": (plain.most.max(), bounds.reward[1])}
        for name, (largest, bound) in seen.items():
            if largest > bound:
                raise InputError(
                    f"intervals.bounds.{name} says that nothing exceeds {bound:.6g}, but the log has {largest:.6g} "
                    f"(policy {one.policy.name}): widen the bound, or it is none."
                )
        if plain.least.min() < bounds.reward[0]:
            raise InputError(
                f"intervals.bounds.reward says that nothing is below {bounds.reward[0]:.6g}, but the log has "
                f"{plain.least.min():.6g}: widen the range, or it is none."
            )


def reader(
    scanned: ScannedPolicy,
    verdicts: Mapping[str, Sequence[Verdict]],
    choice: SelectionConfig,
    errors: Mapping[str, Float[np.ndarray, " K"]] | None = None,
) -> Reader:
    """The choice of an estimator: in a fixed order, by SLOPE, or by errors [K] that were estimated."""
    readable = scanned.consistent()
    sums = {name: of for name, of in scanned.cluster_sums().items() if choice.biased or name in readable}

    def read(k: int, intervals: Mapping[str, Interval]) -> Recommendation:
        if not sums:
            first = next(iter(verdicts))
            return Recommendation(None, verdicts[first][k].reason)
        told = {name: verdicts[name][k] for name in sums if intervals[name].tells(k)}
        if not told:
            return recommend_none({name: verdicts[name][k] for name in sums})
        if choice.method == "fixed":
            return recommend_first(told)
        value = {name: float(of.value[k]) for name, of in sums.items()}
        error = {name: float(standard_error(of)[k]) for name, of in sums.items()}
        mse = None if errors is None else {name: float(by_signal[k]) for name, by_signal in errors.items()}
        return recommend(told, value, error, mse)

    return read


def with_tables_of_rows(
    evaluation: Evaluation,
    log: Log,
    sums: Mapping[Place, Sums],
    scanned: Sequence[ScannedPolicy],
    intervals: IntervalsConfig,
) -> Evaluation:
    """With the tables overlap and segments; where there is but one policy, also with ess and its kin alone."""
    metrics = {}
    if len(scanned) == 1:
        metrics = {name: Metric.exact(value) for name, value in scanned[0].plain.weights.facts.items()}
    tables: Tables = {"overlap": overlap_table({one.policy.name: one.plain.histograms for one in scanned})}
    if log.columns.segments:
        facts = {one.policy.name: one.facts for one in scanned}
        tables["segments"] = segments(sums, log.signals, intervals.level, intervals.multiplicity, facts)
    return evaluation.with_more(metrics, tables)
