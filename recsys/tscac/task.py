"""What is asked of a log: three parts of its users, thresholds, and policies judged by those who did not teach them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from envs.core import EnvSpec
from marl.learning.offline_batch import chooser_spec
from marl.output.report import Metric
from marl.training.run import Run
from recsys.bandit.evaluate import ScannedPolicy, scan_policies
from recsys.bandit.importance_weights import LoggerInfo
from recsys.build import read_log
from recsys.config import EstimatorsConfig, EvaluationSettings
from recsys.evaluation import Evaluation
from recsys.logs.log import Log
from recsys.logs.splits import Parts
from recsys.models.reward import RewardModel, fit_reward_model
from recsys.policies.base import Policy
from recsys.policies.from_run import View
from recsys.problems.bandit import SyntheticBandit
from recsys.statistics.intervals import ClusterSums
from recsys.statistics.methods import LOGGED
from recsys.statistics.verdict import Level
from recsys.tscac.certificate import Standing, standing
from recsys.tscac.config import Config
from recsys.tscac.constraints import Constraint, certified, constraints_of, lower_bounds, margins, units

READ = "sndr"  # the estimator that chooses and certifies, the first that evaluations read too
NAME = "learned"  # what the policy is called among the metrics


class Judged(NamedTuple):
    """Policies by off-policy evaluation: main estimates [P], lower bounds of margins [P,m] in units of thresholds.

    trusted [P]: no estimate of these is UNRELIABLE.
    """

    main: Float[np.ndarray, " P"]
    margin: Float[np.ndarray, "P m"]
    trusted: Bool[np.ndarray, " P"]


class Task(NamedTuple):
    """What is asked of a log: its parts, constraints, how a policy sees it, and the model that estimates lean on."""

    config: Config
    log: Log
    learning: Log
    validating: Log
    certifying: Log
    constraints: Sequence[Constraint]
    view: View
    model: RewardModel

    @property
    def settings(self) -> EvaluationSettings:
        """Of the estimates that choose and certify."""
        return EvaluationSettings(estimators=EstimatorsConfig(names=(READ,)), workers=self.config.workers)

    @property
    def spec(self) -> EnvSpec:
        """What a policy sees and does."""
        return chooser_spec(self.view.size, self.log.actions, self.log.signals)

    def scanned(self, log: Log, policies: Sequence[Policy]) -> list[ScannedPolicy]:
        """Sums of each policy over one part of the log."""
        with_model = log.with_context(self.model.columns)
        return scan_policies(with_model, policies, self.model, self.settings, LoggerInfo())[1]

    def margin(self, one: ScannedPolicy) -> ClusterSums:
        """By how much the policy is above each threshold. Raises InputError where weights leave no estimate."""
        return margins(one.plain.cluster_sums(READ), one.plain.cluster_sums(LOGGED), self.constraints)

    def judged(self, policies: Sequence[Policy]) -> Judged:
        """Estimates by the validating users; a policy of whom nothing is known holds nothing."""
        signals = {self.main, *(each.signal for each in self.constraints)}
        main, bounds, trusted = [], [], []
        for one in self.scanned(self.validating, policies):
            size = units(one.plain.cluster_sums(LOGGED), self.constraints)
            known = bool(np.isfinite(one.plain.estimate(READ)).all())
            main.append(float(one.plain.estimate(READ)[self.main]) if known else -np.inf)
            nothing = np.full(len(self.constraints), -np.inf)
            low = lower_bounds(self.margin(one), self.config.level, self.config.slack) if known else nothing
            bounds.append(low / size)
            verdicts = one.verdicts(self.log.signals)[READ]
            trusted.append(known and all(verdicts[k].level is not Level.UNRELIABLE for k in signals))
        return Judged(np.array(main), np.stack(bounds), np.array(trusted))

    @property
    def main(self) -> int:
        """The number of the main response."""
        return self.log.signals.index(self.config.main)


def task_of(config: Config, run: Run) -> Task:
    """The log in its three parts, held in memory. Raises InputError for whatever is no such log."""
    log = read_log(config.data, config.seed, config.observation).with_context(config.observation)
    constraints = constraints_of(config.thresholds, log.signals, config.main)
    parts = parts_of(config, run)
    learning, validating = (_in_memory(part) for part in (parts.learning(log), parts.validation(log)))
    model = fit_reward_model(learning, config.reward_model)
    view = View.of(learning, config.observation)
    return Task(config, log, learning, validating, parts.last.evaluation(log), constraints, view, model)


def parts_of(config: Config, run: Run) -> Parts:
    """Who is learned from, who is chosen by, and who certifies."""
    return Parts(config.parts.validate_by, config.parts.certify_by, run.stage_seeds("split")[0])


def _in_memory(log: Log) -> Log:
    return log.of_rows(log.frame.collect().lazy())


def choice(judged: Judged, temperature: Sequence[float]) -> int:
    """The best main estimate of trusted ones that hold all thresholds; where none does, the one that misses least.

    Where no estimate can be trusted, the policy that stays closest to its anchor, of the largest Λ.
    """
    if not judged.trusted.any():
        return int(np.argmax(temperature))
    worst = np.where(judged.trusted, judged.margin.min(1), -np.inf)
    holds = worst >= 0
    return int(np.argmax(np.where(holds, judged.main, -np.inf)) if holds.any() else np.argmax(worst))


def certificate(task: Task, policy: Policy, seed: int) -> list[dict[str, Any]]:
    """A row for each threshold: its standing by the certifying users, and what that rests on.

    Where the verdict on the estimate is UNRELIABLE, nothing can be told, whatever the interval.
    """
    (one,) = task.scanned(task.certifying, [policy])
    logged = one.plain.cluster_sums(LOGGED)
    verdicts = one.verdicts(task.log.signals)[READ]
    known = bool(np.isfinite(one.plain.estimate(READ)).all())
    endless = np.full(len(task.constraints), np.inf)
    low, high = certified(task.margin(one), task.config.level, seed) if known else (-endless, endless)
    size, rows = units(logged, task.constraints), []
    told = standing(low, high, np.zeros(len(low)))
    for i, constraint in enumerate(task.constraints):
        k, rate = constraint.signal, float(logged.value[constraint.signal])
        verdict = verdicts[k]
        row: dict[str, Any] = {"response": constraint.name, "must": _must(constraint)}
        row |= {"logged": rate, "learned": float(one.plain.estimate(READ)[k])}
        row |= {"low": float(low[i] / size[i]), "high": float(high[i] / size[i])}
        unreliable = verdict.level is Level.UNRELIABLE
        row["standing"] = str(Standing.CANNOT_TELL if unreliable else told[i])
        row |= {"events": int(one.plain.events[k]), "needed": constraint.needed_events(rate, task.config.level)}
        rows.append({**row, "verdict": verdict.level.name, "reason": verdict.reason})
    return rows


def standings(rows: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """`<response>/held`, 1 where it is HELD and else 0; `held`, the share of these."""
    found = {f"{row['response']}/held": float(row["standing"] == Standing.HELD) for row in rows}
    return {name: Metric.exact(x) for name, x in {**found, "held": float(np.mean(list(found.values())))}.items()}


def held_wrongly(task: Task, evaluation: Evaluation, problem: SyntheticBandit) -> dict[str, Metric]:
    """Where the truth is known: the largest true shortfall, in units of thresholds, and `held_wrongly`, 1 or 0."""
    logged = problem.value(problem.logging).value
    truth = np.array([evaluation.metrics[f"{name}/{NAME}/truth"].value for name in task.log.signals])
    short, wrong = [], False
    for one, row in zip(task.constraints, evaluation.tables["certificate"], strict=True):
        bound = one.bound * (logged[one.signal] if one.relative else 1.0)
        short.append(one.sign * (bound - truth[one.signal]) / (abs(bound) or 1.0))
        wrong |= row["standing"] == Standing.HELD and short[-1] > 0
    return {"shortfall": Metric.exact(max(0.0, max(short))), "held_wrongly": Metric.exact(float(wrong))}


def _must(constraint: Constraint) -> str:
    side = "at least" if constraint.sign > 0 else "at most"
    return f"{side} {constraint.bound:.4g}{' of the log' if constraint.relative else ''}"
