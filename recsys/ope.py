"""Offline evaluation of bandit policies: from a log and policies that were not run to a table of what they would earn.

`concord run ope/open_bandit` does it on real logs; docs/ope.md has the equations. Estimates depend on no seed; a
bootstrap's intervals do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from marl.report import Report
from marl.run import Run
from recsys import formats, policies, random_slice, unknown
from recsys.config import (
    BehaviorConfig,
    DataConfig,
    EstimatorsConfig,
    IntervalsConfig,
    OfflineConfig,
    RewardModelConfig,
    TargetConfig,
)
from recsys.evaluation import Evaluation, evaluate, standard
from recsys.logged import Columns, Log
from recsys.policies import Policy
from recsys.reward_models import smoothed_mean

__all__ = ["Config", "recipe"]


class Config(OfflineConfig):
    """A log, policies and estimators."""

    data: DataConfig = DataConfig()
    behavior: BehaviorConfig | None = Field(None, description="for logs without propensities: how these are fitted")
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
        if self.data.fitted and self.behavior is None:
            raise ValueError(
                "this log has no propensities; a section behavior says how to fit them, such as behavior: {model: "
                "frequency, columns: [tab]} with all columns that moved what was shown (docs/ope_propensities.md)"
            )
        if self.behavior is not None and not self.data.fitted:
            raise ValueError("behavior fits propensities, but this log has them; leave the section out")
        return self


def recipe(config: Config, run: Run) -> Report:
    """Scan the log twice, once for the reward model, and tell what each policy would earn."""
    log, slice_ = open_slice(config, open_log(config))
    targets = [make_policy(name, config, log) for name in config.policy.target]
    model = smoothed_mean(log, config.reward_model.prior_rows)  # reads all rows: a bad log leaves no folder behind
    fitted = None if config.behavior is None else unknown.fit(log, config.behavior)
    seed = run.stage_seeds("bootstrap")[0]

    def evaluated() -> Evaluation:
        settings = (config.estimators, config.intervals, seed, config.workers)
        if fitted is None:
            return evaluate(log, targets, model, *settings)
        compared = None if slice_ is None else _compare(config, fitted, slice_, targets)

        def facts(signal: str, policy: str) -> dict[str, int | float]:
            return fitted.facts | ({} if compared is None else compared.facts(signal, policy))

        found = evaluate(fitted.log, targets, model, *settings, facts)
        known = "propensity_score" if config.data.hide_propensity else None
        found = unknown.findings(fitted, targets, found, known, config.workers)
        return found if compared is None else compared.added_to(found)

    found = Evaluation.from_json(run.once("evaluation", lambda: evaluated().to_json()))
    report = Report(config.recipe, config.seed, config.model_dump(mode="json"), found.metrics, found.tables)
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
        logged_by: Literal["random", "standard"] = "standard" if data.logged_by == "standard" else "random"
        log = formats.kuairand(Path(data.path), data.version, logged_by, data.signals, data.segments)
    else:
        path = None if data.path is None else Path(data.path)
        log = formats.open_bandit(path, data.campaign, "bts" if data.logged_by == "bts" else "random", data.segments)
        if data.hide_propensity:
            columns = replace(log.columns, propensity=None)
            log = Log(log.frame, columns, log.catalog, log.position_catalog, log.name)
    return log.with_context((*data.context, *_score_columns(target, log)))


def open_slice(config: Config, log: Log) -> tuple[Log, Log | None]:
    """The log and its random slice, where the config names one, over the actions of both."""
    data = config.data
    if data.random_slice and data.format == "kuairand":
        slice_ = formats.kuairand(Path(str(data.path)), data.version, "random", data.signals)
        slice_ = formats.random_slice(slice_.frame, slice_.columns, slice_.name)
    elif data.random_slice:
        return log, formats.open_bandit(None if data.path is None else Path(data.path), data.campaign, "random")
    elif data.random is not None and data.random.path is not None:
        frame = formats.scan(formats.matching(data.random.path), data.random.path, log.columns.numbers())
        slice_ = formats.random_slice(frame, log.columns, data.random.path)
    elif data.random is not None:
        log, frame = formats.random_rows(log, str(data.random.column))
        slice_ = formats.random_slice(frame, log.columns, f"the random rows of {data.path}")
    else:
        return log, None
    slice_ = slice_.with_context(log.context)
    if data.actions is not None:
        return log, formats.with_catalog(slice_, log.catalog, log)
    return formats.one_catalog(log, slice_)


def _compare(config: Config, fitted: unknown.Fitted, slice_: Log, targets: Sequence[Policy]) -> random_slice.Comparison:
    contexts = fitted.settings.columns if fitted.settings.model == "frequency" else None
    prior, level = config.reward_model.prior_rows, config.intervals.level
    return random_slice.compare(fitted.log, slice_, targets, contexts, prior, level, config.workers)


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
