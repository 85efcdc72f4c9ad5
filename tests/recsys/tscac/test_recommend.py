"""`concord run recsys/tscac`: what is raised and held, by whom it is learned and certified, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from envs.core import InputError
from marl.commands.run import run_training
from marl.config.catalog import find_config
from marl.config.load import read_yaml, resolve
from marl.output.report import Report
from marl.training.checkpoints import checkpoints, load_checkpoint
from marl.training.run import Run
from recsys.logs.splits import Parts, Split
from recsys.problems.bandit import synthetic_bandit
from recsys.tscac.task import Judged, choice, task_of

SMALL: dict[str, Any] = {
    "train.env_steps": 4_096,
    "temperature": [0.3, 0.1],
    "rounds": 4,
    "data.synthetic.rows": 4_000,
    "data.synthetic.users": 2_000,
    "intervals.method": "t",
}


def ran(folder: Path, change: dict[str, Any] | None = None) -> Report:
    return run_training(resolve(read_yaml(find_config("recsys/tscac")), {**SMALL, **(change or {})}), folder)


def values(report: Report) -> dict[str, float]:
    return {name: metric.value for name, metric in report.metrics.items()}


def test_it_raises_the_main_goal_and_is_shown_to_hold_the_others(tmp_path: Path) -> None:
    quick = {
        f"stage_{stage}.{name}": 0.01 for stage in ("one", "two") for name in ("learning_rate", "critic_learning_rate")
    }
    sizes = {"train.env_steps": 100_000, "data.synthetic.rows": 40_000, "data.synthetic.users": 10_000}
    wide = {"thresholds.hate": {"at_most": 1.1}, "slack": 2.0, "rounds": 40}
    value = values(ran(tmp_path / "run", {**quick, **sizes, **wide}))
    assert value["watch/learned/truth"] > 1.2 * value["watch/logging/truth"]
    assert value["held"] == 1.0
    assert value["held_wrongly"] == 0.0
    assert value["shortfall"] == 0.0


@pytest.mark.parametrize("anchor", ["auxiliary", "logging", "uniform"])
def test_a_report_tells_each_standing_the_path_and_all_estimates(
    anchor: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ran(tmp_path / "run", {"anchor": anchor})
    rows = report.tables["certificate"]
    assert [row["response"] for row in rows] == ["like", "hate"]
    for row in rows:
        assert row["standing"] in ("HELD", "NOT HELD", "CANNOT TELL")
        assert row["low"] <= row["high"]
        assert row["events"] > 0
    path = report.tables["path"]
    assert [row["temperature"] for row in path] == [0.3, 0.1]
    assert sum(row["chosen"] for row in path) == 1
    assert "watch/learned/sndr" in report.metrics
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What is held" in page
    assert rows[0]["standing"] in page
    stages = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert stages == ({"main"} if anchor == "uniform" else {"anchor", "main"})


def test_the_three_parts_share_no_user_and_are_the_whole_log() -> None:
    log, _ = synthetic_bandit(rows=3_000, users=800)
    parts = Parts(0.3, 0.2, 7)
    frames = [part.frame.collect() for part in (parts.learning(log), parts.validation(log), parts.last.evaluation(log))]
    users = [set(frame["user"]) for frame in frames]
    assert sum(map(len, users)) == 800
    assert len(set.union(*users)) == 800
    assert [len(x) / 800 for x in users] == pytest.approx([0.5, 0.3, 0.2], abs=0.06)
    assert Split(0.2, 7).evaluation(log).frame.collect().equals(frames[2])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(checkpoints(folder / "checkpoints" / "main")[-1])["learner"]
    return {**state["learner"]["policy"], **{"multiplier": state["multipliers"]["multiplier"]}}


def shop(tmp_path: Path, certified_by: str = "as it was") -> dict[str, Any]:
    """A log of one's own; what the certifying users did may be another thing."""
    log, _ = synthetic_bandit(rows=3_000, users=1_000, signals={"watch": 0.4, "like": 0.2, "hate": 0.1})
    table = log.frame.collect()
    config = {
        "recipe": "recsys.tscac.recommend",
        "data": {
            "format": "table",
            "path": str(tmp_path / "log.parquet"),
            "columns": {
                "action": "action",
                "rewards": ["watch", "like", "hate"],
                "propensity": "propensity",
                "user": "user",
            },
            "actions": 10,
            "context": [f"x{d}" for d in range(5)],
        },
        "main": "watch",
        "thresholds": {"like": {"at_least": 0.9}, "hate": {"at_most": 1.1}},
    }
    if certified_by != "as it was":
        seed = Run(tmp_path / "none", resolve(config, {})).stage_seeds("split")[0]
        last = Parts(0.25, 0.25, seed).last.evaluation(log).frame.collect()["user"].unique()
        mine = pl.col("user").is_in(last.implode())
        table = table.with_columns(
            pl.when(mine).then(1 - pl.col(name)).otherwise(pl.col(name)).alias(name) for name in ("like", "hate")
        )
    table.write_parquet(tmp_path / "log.parquet")
    return config


def test_nothing_is_learned_or_chosen_by_the_users_who_certify(tmp_path: Path) -> None:
    few = {name: value for name, value in SMALL.items() if "synthetic" not in name}
    found = []
    for name in ("as it was", "otherwise"):
        report = run_training(resolve(shop(tmp_path, name), few), tmp_path / name)
        found.append((weights_of(tmp_path / name), report))
    for key, tensor in found[0][0].items():
        assert torch.equal(tensor, found[1][0][key]), key
    assert found[0][1].tables["path"] == found[1][1].tables["path"]
    assert found[0][1].tables["certificate"] != found[1][1].tables["certificate"]


def test_a_run_that_is_killed_goes_on_to_equal_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from marl.commands.sweep import resume_folder
    from marl.learning.offline_actor_critic import LoggedActorCritic

    change = {"train.save_seconds": 0}
    ran(tmp_path / "whole", change)
    learn, calls = LoggedActorCritic.update, iter(range(1, 100))

    def killed(self: Any, batch: Any) -> Any:
        if next(calls) == 14:
            raise KeyboardInterrupt
        return learn(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(LoggedActorCritic, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            ran(tmp_path / "cut", change)
    resume_folder(tmp_path / "cut")
    whole, cut = (weights_of(tmp_path / name) for name in ("whole", "cut"))
    for key, tensor in whole.items():
        assert torch.equal(tensor, cut[key]), key
    reports = [Report.load(tmp_path / name / "report.json").tables for name in ("whole", "cut")]
    assert reports[0] == reports[1]


def test_what_was_chosen_is_a_target_for_users_that_nothing_was_chosen_by(tmp_path: Path) -> None:
    few = {name: value for name, value in SMALL.items() if "synthetic" not in name}
    config = shop(tmp_path)
    first = run_training(resolve(config, few), tmp_path / "run")
    raw = {"recipe": "recsys.ope", "data": config["data"], "policy": {"target": f"run:{tmp_path / 'run'}"}}
    again = run_training(resolve(raw, {"intervals.method": "t"}), tmp_path / "again")
    assert again.metrics["rows"] == first.metrics["rows"]
    assert again.metrics["watch/run/sndr"].value == pytest.approx(first.metrics["watch/learned/sndr"].value, rel=1e-6)


def test_of_the_open_bandit_sample_nothing_can_be_told(tmp_path: Path) -> None:
    raw = {"recipe": "recsys.tscac.recommend", "data": {"format": "open_bandit"}, "main": "click"}
    raw["thresholds"] = {"click": {"at_least": 0.98}}
    few = {name: value for name, value in SMALL.items() if "synthetic" not in name}
    report = run_training(resolve(raw, few), tmp_path / "run")
    (row,) = report.tables["certificate"]
    assert row["standing"] == "CANNOT TELL"
    assert row["events"] < 20
    assert row["needed"] > 6_000


def test_the_best_that_holds_is_chosen_else_what_misses_least_else_what_stays_closest() -> None:
    main, trusted = np.array([0.1, 0.3, 0.2]), np.array([True, True, True])
    held, missed = np.array([[0.1], [-0.1], [0.0]]), np.array([[-0.3], [-0.1], [-0.2]])
    temperature = (0.1, 0.3, 1.0)
    assert choice(Judged(main, held, trusted), temperature) == 2
    assert choice(Judged(main, missed, trusted), temperature) == 1
    assert choice(Judged(main, missed, np.array([True, False, True])), temperature) == 2
    assert choice(Judged(main, held, ~trusted), temperature) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"main": "watched"}, "responses of the log, watch, like, hate; got 'watched'"),
        ({"thresholds.shares": {"at_least": 1.0}}, "got 'shares'"),
        ({"thresholds": {}}, "at least 1 entry"),
        ({"thresholds.like": {"at_least": 1.0, "at_most": 2.0}}, "either at_least or at_most"),
        ({"parts.validate_by": 0.6, "parts.certify_by": 0.4}, "at least a tenth is left to learn from"),
        ({"temperature": [0.0]}, "greater than 0"),
        ({"anchor": "nothing"}, "anchor"),
        ({"against.target": "run:runs/x"}, "compared by recipe recsys.ope"),
        ({"data.columns.propensity": None}, "with propensities"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_learned(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    few = {name: value for name, value in SMALL.items() if "synthetic" not in name}
    with pytest.raises(InputError, match=told):
        run_training(resolve(shop(tmp_path), {**few, **change}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_responses_that_never_vary_are_learned_without_a_wrong_number(tmp_path: Path) -> None:
    config = shop(tmp_path)
    table = pl.read_parquet(tmp_path / "log.parquet").with_columns(like=pl.lit(0.0), hate=pl.lit(1.0))
    table.write_parquet(tmp_path / "log.parquet")
    few = {name: value for name, value in SMALL.items() if "synthetic" not in name}
    report = run_training(resolve(config, few), tmp_path / "run")
    like, hate = report.tables["certificate"]
    assert like["standing"] == "CANNOT TELL"  # no event stands behind it
    assert hate["standing"] in ("HELD", "CANNOT TELL")
    assert all(np.isfinite([row["logged"] for row in (like, hate)]))
    run = Run.open(tmp_path / "run")
    assert task_of(run.config, run).constraints[0].name == "like"
