"""Offline evaluation of bandit policies: from a log and policies that were not run to a table of what they would earn.

`concord run ope/open_bandit` does it on real logs; docs/ope.md has the equations. Estimates depend on no seed; a
bootstrap's intervals do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field, model_validator

from envs.core import InputError
from marl.report import Metric, Report
from marl.run import Run
from recsys import formats, policies
from recsys.config import (
    KNOWN,
    TRAINED,
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
from recsys.reward_models import RewardModel, smoothed_mean
from recsys.synthetic import SyntheticBandit
from recsys.trained import columns_of, trained, unseen

__all__ = ["Config", "recipe"]


class Config(OfflineConfig):
    """A log, policies and estimators."""

    data: DataConfig = DataConfig()
    policy: TargetConfig
    estimators: EstimatorsConfig = EstimatorsConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    intervals: IntervalsConfig = IntervalsConfig()
    workers: int = Field(
        2, ge=1, le=256, description="threads that scan the log; the result is the same for any number"
    )

    @model_validator(mode="after")
    def _known(self) -> Config:
        require_known(self.data, self.policy, self.estimators, "policy")
        return self


def require_known(data: DataConfig, policy: TargetConfig, settings: EstimatorsConfig, section: str) -> None:
    """Raise ValueError for estimators that there are not, and for targets that this log does not have."""
    known = standard(settings)
    for name in settings.names:
        if name not in known:
            raise ValueError(f"estimators.names: expected {', '.join(known)}; got {name!r}")
    if "bts" in policy.target and data.format != "open_bandit":
        raise ValueError(f"{section}.target=bts is the stored policy of data.format=open_bandit")
    if set(KNOWN) & set(policy.target) and data.format != "synthetic":
        raise ValueError(f"{section}.target={' and '.join(KNOWN)} are known of data.format=synthetic only")


def recipe(config: Config, run: Run) -> Report:
    """Scan the log twice, once for the reward model, and tell what each policy would earn."""
    whole = read_log(config.data, config.seed)
    log = with_columns(config, unseen(whole, _runs(config), config.data, config.seed))
    targets = make_policies(config, log)
    model = smoothed_mean(log, config.reward_model.prior_rows)  # reads all rows: a bad log leaves no folder behind
    seed = run.stage_seeds("bootstrap")[0]
    kept = run.once("evaluation", lambda: judge(config, log, targets, model, seed).to_json())
    found = Evaluation.from_json(kept)
    if log.name != whole.name:
        found.tables["notes"].append({"note": "Only rows count that no policy here was learned from."})
    report = Report(config.recipe, config.seed, config.model_dump(mode="json"), found.metrics, found.tables)
    report.save(run.folder / "report.json")
    return report


def judge(config: Config, log: Log, targets: Sequence[Policy], model: RewardModel, seed: int) -> Evaluation:
    """The estimates; for a synthetic log with the truth beside them, `<signal>/<policy>/truth`."""
    found = evaluate(log, targets, model, config.estimators, config.intervals, seed, config.workers)
    problem = problem_of(config)
    if problem is None:
        return found
    truths, metrics = problem.truths(targets), dict[str, Metric]()
    for name, metric in found.metrics.items():
        truth = f"{name.rpartition('/')[0]}/truth"
        metrics |= {truth: truths[truth]} if truth in truths else {}
        metrics[name] = metric
    return replace(found, metrics=metrics)


def read_log(data: DataConfig, seed: int) -> Log:
    """The log; the rows of a synthetic one follow from the seed."""
    if data.format == "synthetic":
        return SyntheticBandit(data.synthetic).log(seed).with_context(data.context)
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
    return log.with_context(data.context)


def problem_of(config: Config) -> SyntheticBandit | None:
    """The problem that a synthetic log is from."""
    return SyntheticBandit(config.data.synthetic) if config.data.format == "synthetic" else None


def with_columns(config: Config, log: Log) -> Log:
    """The log with the columns that the policies read."""
    seen = [column for path in _runs(config) for column in columns_of(path, config.policy.observation)]
    return log.with_context((*_score_columns(config.policy, log), *seen))


def _runs(config: Config) -> list[str]:
    return [name.removeprefix(TRAINED) for name in config.policy.target if name.startswith(TRAINED)]


def _score_columns(target: TargetConfig, log: Log) -> list[str]:
    return [] if target.scores is None else [f"{target.scores}{action}" for action in range(log.actions)]


def make_policies(config: Config, log: Log) -> list[Policy]:
    """All that the config asks for. Raises InputError where two would go by one name."""
    found = [make_policy(name, config, log) for name in config.policy.target]
    names = [policy.name for policy in found]
    for asked, name in zip(config.policy.target, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"policy.target: {asked} and another target both go by the name {name}; rename one.")
    return found


def make_policy(name: str, config: Config, log: Log) -> Policy:
    """The policy that the config calls `name`."""
    target, scores = config.policy, _score_columns(config.policy, log)
    if name.startswith(TRAINED):
        return trained(log, name.removeprefix(TRAINED), target.observation)
    problem = problem_of(config)
    makers: dict[str, Callable[[], Policy]] = (
        {} if problem is None else {"best": problem.best, "logging": lambda: problem.logging}
    )
    makers |= {
        "random": lambda: policies.uniform(log, "random"),
        "uniform": lambda: policies.uniform(log),
        "popularity": lambda: policies.popularity(log),
        "bts": lambda: policies.stored_table(log, formats.open_bandit_policy(config.data.campaign), "bts"),
        "table": lambda: policies.stored_table(log, Path(str(target.table))),
        "softmax": lambda: policies.softmax(log, scores, target.temperature),
        "epsilon_greedy": lambda: policies.epsilon_greedy(log, scores, target.epsilon),
    }
    return makers.get(name, lambda: policies.own(log, name))()
