"""Offline evaluation of bandit policies: from a log and policies that were not run to a table of what they would earn.

`concord run ope/open_bandit` does it on real logs; docs/ope.md has the equations. Estimates depend on no seed; a
bootstrap's intervals do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field, model_validator

from marl.report import Metric, Report
from marl.run import Run
from recsys.assembly import known_of, make_policies, problem_of, read_log, runs_of, with_columns
from recsys.config import (
    COLUMN,
    KNOWN,
    DataConfig,
    EstimatorsConfig,
    IntervalsConfig,
    OfflineConfig,
    RewardModelConfig,
    SelectionConfig,
    TargetConfig,
)
from recsys.evaluation import Evaluation, evaluate
from recsys.logged import Log
from recsys.policies import Policy
from recsys.real_actions import KERNEL
from recsys.reward_models import RewardModel, smoothed_mean
from recsys.trained import unseen
from recsys.weighing import APART, standard

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
        require_known(self.data, self.policy, self.estimators, "policy")
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


def recipe(config: Config, run: Run) -> Report:
    """Scan the log twice, once for the reward model, and tell what each policy would earn."""
    whole = read_log(config.data, config.seed)
    log = with_columns(config.policy, unseen(whole, runs_of(config.policy), config.data, config.seed))
    targets = make_policies(config.data, config.policy, log)
    model = smoothed_mean(log, config.reward_model.prior_rows)  # reads all rows: a bad log leaves no folder behind
    seed = run.stage_seeds("bootstrap")[0]
    kept = run.once("evaluation", lambda: judge(config, log, targets, model, seed).to_json())
    found = Evaluation.from_json(kept)
    if log.name != whole.name:
        found.tables["notes"].append({"note": "Only rows count that no policy here was learned from."})
    report = Report(config.recipe, config.seed, config.model_dump(mode="json"), found.metrics, found.tables)
    report.save(run.folder / "report.json")
    pictures(run)
    return report


def pictures(run: Run) -> list[Path]:
    """The page of a finished run, made from its report alone; `concord render DIR` makes it again."""
    from recsys.report import write_page  # matplotlib takes its time

    write_page(Report.load(run.folder / "report.json"), page := run.folder / "report.html")
    return [page]


def judge(config: Config, log: Log, targets: Sequence[Policy], model: RewardModel, seed: int) -> Evaluation:
    """The estimates; for a synthetic log with the truth beside them, `<signal>/<policy>/truth`."""
    found = evaluate(
        log,
        targets,
        model,
        known_of(config.data, log),
        estimators=config.estimators,
        reward_model=config.reward_model,
        intervals=config.intervals,
        selection=config.selection,
        seed=seed,
        workers=config.workers,
    )
    problem = problem_of(config.data)
    if problem is None:
        return found
    truths, metrics = problem.truths(targets), dict[str, Metric]()
    for name, metric in found.metrics.items():
        truth = f"{name.rpartition('/')[0]}/truth"
        metrics |= {truth: truths[truth]} if truth in truths else {}
        metrics[name] = metric
    return replace(found, metrics=metrics)
