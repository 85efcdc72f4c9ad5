"""Offline evaluation of bandit policies: from a log and policies that were not run to a table of what they would earn.

`concord run ope/open_bandit` does it on real logs; docs/ope.md has the equations. Estimates depend on no seed; a
bootstrap's intervals do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import Field, model_validator

from marl.report import Report
from marl.run import Run
from recsys import formats, policies
from recsys.config import (
    DataConfig,
    EstimatorsConfig,
    IntervalsConfig,
    OfflineConfig,
    RewardModelConfig,
    SelectionConfig,
    TargetConfig,
)
from recsys.evaluation import Evaluation, evaluate
from recsys.logged import Columns, Log
from recsys.policies import Policy
from recsys.real_actions import KERNEL, PREFIX, RealPolicy, real_log
from recsys.reward_models import smoothed_mean
from recsys.weighing import APART, Known, standard

__all__ = ["Config", "recipe"]


class Config(OfflineConfig):
    """A log, policies and estimators."""

    data: DataConfig = DataConfig()
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
        real = self.data.bandwidth is not None
        known = KERNEL if real else (*standard(self.estimators), *APART)
        for name in self.estimators.names:
            if name not in known:
                raise ValueError(f"estimators.names: expected {', '.join(known)}; got {name!r}")
        for name in self.policy.target:
            if name.startswith(PREFIX) != real:
                raise ValueError("data.bandwidth (real actions) and policy.target=column:NAME belong together")
        needs = {"mips": ("categories",), "balanced_ips": ("loggers",)}
        for name in self.estimators.names:
            for key in needs.get(name.removeprefix("sn_"), ()):
                if not getattr(self.data, key):
                    raise ValueError(f"estimators.names: {name} needs data.{key}")
        if "bts" in self.policy.target and self.data.format != "open_bandit":
            raise ValueError("policy.target=bts is the stored policy of data.format=open_bandit")
        return self


def recipe(config: Config, run: Run) -> Report:
    """Scan the log twice, once for the reward model, and tell what each policy would earn."""
    log = open_log(config)
    targets = [make_policy(name, config, log) for name in config.policy.target]
    model = smoothed_mean(log, config.reward_model.prior_rows)  # reads all rows: a bad log leaves no folder behind
    seed = run.stage_seeds("bootstrap")[0]
    kept = run.once(
        "evaluation",
        lambda: evaluate(
            log,
            targets,
            model,
            known_of(config, log),
            estimators=config.estimators,
            reward_model=config.reward_model,
            intervals=config.intervals,
            selection=config.selection,
            seed=seed,
            workers=config.workers,
        ).to_json(),
    )
    found = Evaluation.from_json(kept)
    report = Report(config.recipe, config.seed, config.model_dump(mode="json"), found.metrics, found.tables)
    report.save(run.folder / "report.json")
    pictures(run)
    return report


def pictures(run: Run) -> list[Path]:
    """The page of a finished run, made from its report alone; `concord render DIR` makes it again."""
    from recsys.report import write_page  # matplotlib takes its time

    write_page(Report.load(run.folder / "report.json"), page := run.folder / "report.html")
    return [page]


def open_log(config: Config) -> Log:
    """The log, with the columns that the policies read."""
    data, target = config.data, config.policy
    if data.format == "table":
        assert data.path is not None
        assert data.columns is not None
        columns = Columns(**data.columns.model_dump(), segments=data.segments)
        if data.bandwidth is not None:
            return real_log(
                formats.read(data.path, columns), columns, [t.removeprefix(PREFIX) for t in target.target], data.path
            )
        log = formats.table(data.path, columns, data.actions)
    elif data.format == "kuairand":
        assert data.path is not None
        log = formats.kuairand(Path(data.path), data.version, "random", data.signals, data.segments)
    else:
        path = None if data.path is None else Path(data.path)
        log = formats.open_bandit(path, data.campaign, data.logged_by, data.segments)
    return log.with_context((*data.context, *data.loggers, *_score_columns(target, log)))


def known_of(config: Config, log: Log) -> Known:
    """What the config tells of the log beyond its columns; a uniform logger is known where the format says so."""
    data, uniform = config.data, config.data.format == "kuairand" or config.data.logged_by == "random"
    how = data.logging or ("uniform" if uniform and data.format != "table" else None)
    logging: Policy | None = None
    if how == "uniform":
        logging = policies.uniform(log, "logging")
    elif how is not None:
        logging = policies.own(log, how, "logging") if ":" in how else policies.stored_table(log, Path(how), "logging")
    category = None if data.categories is None else formats.categories(log, Path(data.categories))
    return Known(logging, category, data.loggers or None)


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
    if name.startswith(PREFIX):
        assert config.data.columns is not None
        assert config.data.bandwidth is not None
        drawn = Columns(**config.data.columns.model_dump())
        return RealPolicy(name.removeprefix(PREFIX), drawn, config.data.bandwidth)
    return makers.get(name, lambda: policies.own(log, name))()
