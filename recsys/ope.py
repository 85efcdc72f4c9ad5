"""Offline evaluation of bandit policies: from a log and policies that were not run to a table of what they would earn.

`concord run ope/open_bandit` does it on real logs; docs/ope.md has the equations. Estimates depend on no seed; a
bootstrap's intervals do.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator

from marl.config.schema import RunConfig
from marl.output.report import Report
from marl.training.run import Run
from recsys.bandit import fitted_propensities, random_slice
from recsys.bandit.evaluate import Facts, evaluate_rows
from recsys.bandit.fitted_propensities import Fitted
from recsys.bandit.importance_weights import APART, standard
from recsys.bandit.kernel import KERNEL
from recsys.build import logger_of, make_policies, open_slice, problem_of, read_log, runs_of, with_columns
from recsys.config import (
    COLUMN,
    KNOWN,
    EstimatorsConfig,
    EvaluationSettings,
    IntervalsConfig,
    RewardModelConfig,
    SelectionConfig,
    TargetConfig,
)
from recsys.evaluation import Evaluation
from recsys.logs.config import BehaviorConfig, DataConfig
from recsys.logs.log import Log
from recsys.models.reward import RewardModel, fit_reward_model
from recsys.policies.base import Policy
from recsys.policies.from_run import unseen
from recsys.recipe import LogRecipe, kept, reported

__all__ = ["Config", "recipe"]


class Config(RunConfig):
    """A log, policies and estimators."""

    data: DataConfig = DataConfig()
    behavior: BehaviorConfig | None = Field(None, description="for logs without propensities: how these are fitted")
    policy: TargetConfig
    estimators: EstimatorsConfig = EstimatorsConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    intervals: IntervalsConfig = IntervalsConfig()
    selection: SelectionConfig = SelectionConfig()
    workers: int = Field(
        2, ge=1, le=256, description="threads that scan the log; the result is the same for any number"
    )

    @model_validator(mode="after")
    def _known(self) -> Config:
        require_known(self.data, self.policy, self.estimators, "policy")
        if self.data.fitted and self.behavior is None:
            raise ValueError(
                "this log has no propensities; a section behavior says how to fit them, such as behavior: {model: "
                "frequency, columns: [tab]} with all columns that moved what was shown (docs/ope_propensities.md)"
            )
        if self.behavior is not None and not self.data.fitted:
            raise ValueError("behavior fits propensities, but this log has them; leave the section out")
        if self.reward_model.kind != "mean" and self.selection.method == "pas_if":
            raise ValueError("selection.method=pas_if fits a mean to every split; it goes with reward_model.kind=mean")
        if self.reward_model.kind != "mean" and self.data.bandwidth is not None:
            raise ValueError("data.bandwidth (real actions) has no estimator that uses reward_model; leave it out")
        return self


def require_known(data: DataConfig, policy: TargetConfig, settings: EstimatorsConfig, section: str) -> None:
    """Raise ValueError for estimators that there are not, or not here, and for targets that this log does not have."""
    real = data.bandwidth is not None
    known = KERNEL if real else (*standard(settings), *APART)
    needs = {"mips": "categories", "balanced_ips": "loggers"}
    for name in settings.names:
        if name not in known:
            raise ValueError(f"estimators.names: expected {', '.join(known)}; got {name!r}")
        key = needs.get(name.removeprefix("sn_"))
        if key is not None and not getattr(data, key):
            raise ValueError(f"estimators.names: {name} needs data.{key}")
    for name in policy.target:
        if name.startswith(COLUMN) != real:
            raise ValueError(f"data.bandwidth (real actions) and {section}.target=column:NAME belong together")
    if "bts" in policy.target and data.format != "open_bandit":
        raise ValueError(f"{section}.target=bts is the stored policy of data.format=open_bandit")
    if set(KNOWN) & set(policy.target) and data.format != "synthetic":
        raise ValueError(f"{section}.target={' and '.join(KNOWN)} are known of data.format=synthetic only")


class OfflineEvaluation(LogRecipe):
    """A log, policies that were not run, and what they would have earned."""

    config = Config

    def run(self, config: Config, run: Run) -> Report:
        """Scan the log twice, once for the reward model, and tell what each policy would earn."""
        behind = () if config.behavior is None else config.behavior.columns  # what moved the logger
        whole = read_log(config.data, config.seed, (*behind, *config.policy.observation))
        log = with_columns(config.policy, unseen(whole, runs_of(config.policy), config.data, config.seed))
        log, slice_ = open_slice(config.data, log, behind)
        targets = make_policies(config.data, config.policy, log)
        model = fit_reward_model(log, config.reward_model)  # reads all rows: a bad log leaves no folder behind
        fitted = None if config.behavior is None else fitted_propensities.fit(log, config.behavior)
        seed = run.stage_seeds("bootstrap")[0]

        def evaluated() -> Evaluation:
            if fitted is None:
                return judge(config, log, targets, model, seed)
            return judge_fitted(config, fitted, slice_, targets, model, seed)

        evaluation = kept(run, whole, evaluated)
        if log.name != whole.name:
            evaluation = evaluation.with_more(notes=["Only rows count that no policy here was learned from."])
        return reported(config, run, evaluation.metrics, evaluation.tables)


def judge_fitted(
    config: Config, fitted: Fitted, slice_: Log | None, targets: Sequence[Policy], model: RewardModel, seed: int
) -> Evaluation:
    """The estimates by fitted propensities, how far to trust these, and what the random slice says instead."""
    compared = None
    if slice_ is not None:
        contexts = fitted.settings.columns if fitted.settings.model == "frequency" else None
        level = config.intervals.level
        compared = random_slice.compare(
            fitted.log, slice_, targets, contexts, config.reward_model, level, config.workers
        )

    evaluation = judge(config, fitted.log, targets, model, seed, None if compared is None else compared.facts)
    known = "propensity_score" if config.data.hide_propensity else None
    evaluation = fitted_propensities.findings(fitted, targets, evaluation, known, config.workers)
    return evaluation if compared is None else compared.added_to(evaluation)


def judge(
    config: Config,
    log: Log,
    targets: Sequence[Policy],
    model: RewardModel,
    seed: int,
    facts: Facts | None = None,
) -> Evaluation:
    """The estimates; for a synthetic log with the truth beside them, `<signal>/<policy>/truth`.

    facts: more that the verdict should know of a signal and a policy, by the names of `Diagnosis`.
    """
    settings = EvaluationSettings(
        estimators=config.estimators,
        reward_model=config.reward_model,
        intervals=config.intervals,
        selection=config.selection,
        seed=seed,
        workers=config.workers,
    )
    evaluation = evaluate_rows(log, targets, settings, model, logger_of(config.data, log), facts)
    problem = problem_of(config.data)
    return evaluation if problem is None else evaluation.beside(problem.truths(targets))


recipe = OfflineEvaluation()
