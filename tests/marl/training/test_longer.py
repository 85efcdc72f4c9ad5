"""`concord resume DIR train.env_steps=…`: a finished run, or a sweep, goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SMALL_CONFIG

from envs.core import InputError
from marl.commands import sweep
from marl.commands.run import run_training
from marl.commands.sweep import resume_folder, run_sweep
from marl.config.load import read_yaml, resolve
from marl.learning.actor_critic import ActorCritic
from marl.output.report import Report
from marl.training.checkpoints import checkpoints, load_checkpoint
from marl.training.metrics_log import read_rows
from marl.training.run import Run


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    learned: dict[str, torch.Tensor] = Run.open(folder).load("train", "policy")
    return learned


def assert_same(one: Path, other: Path, tolerance: float = 0.0) -> None:
    for name, value in parameters(one).items():
        torch.testing.assert_close(value, parameters(other)[name], atol=tolerance, rtol=tolerance)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("longer") / "at once"
    run_training(resolve(SMALL_CONFIG, {"train.env_steps": 160}), folder)
    return folder


def test_a_finished_run_trains_on_and_ends_as_if_it_had_been_asked_at_once(at_once: Path, tmp_path: Path) -> None:
    run_training(resolve(SMALL_CONFIG, {}), tmp_path / "run")
    report = resume_folder(tmp_path / "run", ["train.env_steps=160"])
    assert report.metrics["env_steps"].value == 160
    assert_same(tmp_path / "run", at_once)
    config = read_yaml(tmp_path / "run" / "config.yaml")
    assert config["train"]["env_steps"] == 160
    assert Report.load(tmp_path / "run" / "report.json").config["train"]["env_steps"] == 160
    updates = [[row["updates"] for row in read_rows(folder / "metrics.csv")] for folder in (at_once, tmp_path / "run")]
    assert updates[0] == updates[1]


def test_what_fades_follows_the_new_total_from_then_on(tmp_path: Path) -> None:
    run_training(resolve(SMALL_CONFIG, {"learner.entropy_end": 0.0}), tmp_path / "run")
    assert resume_folder(tmp_path / "run", ["train.env_steps=128"]).metrics["updates"].value == 4


def test_an_extension_that_is_interrupted_goes_on_by_itself(
    at_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    run_training(resolve(SMALL_CONFIG, {"train.save_seconds": 0}), folder)

    def update(self: ActorCritic, batch: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(ActorCritic, "update", update)
    with pytest.raises(KeyboardInterrupt):
        resume_folder(folder, ["train.env_steps=160"])
    monkeypatch.undo()
    assert not (folder / "report.json").exists()
    assert resume_folder(folder).metrics["env_steps"].value == 160
    assert_same(folder, at_once)


def test_a_budget_of_processor_time_may_be_set_and_lifted(tmp_path: Path) -> None:
    run_training(resolve(SMALL_CONFIG, {"train.env_steps": 100_000_000, "train.cpu_seconds": 0.2}), tmp_path / "run")
    before = Run.open(tmp_path / "run").used("train")["updates"]
    report = resume_folder(tmp_path / "run", ["train.cpu_seconds=0.6"])
    assert report.metrics["updates"].value > before
    assert report.metrics["cpu_seconds"].value >= 0.6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.env_steps=64"], r"has trained 64 env_steps .* leaves nothing to train; set more"),
        (["train.env_steps=x"], r"train\.env_steps: expected"),
        (["learner.clip=0.3"], r"keeps its config.*not learner\.clip"),
        (["train.save_seconds=3"], r"keeps its config.*not train\.save_seconds"),
        (["evaluation.every=3"], r"keeps its config.*not evaluation\.every"),
        (["train.env_steps=128", "evaluation.episdes=3"], r"Did you mean evaluation\.episodes"),
    ],
)
def test_what_a_resumed_run_cannot_be_given_is_told_and_changes_nothing(
    words: Sequence[str], message: str, tmp_path: Path
) -> None:
    run_training(resolve(SMALL_CONFIG, {}), tmp_path / "run")
    config, report = ((tmp_path / "run" / name).read_text() for name in ("config.yaml", "report.json"))
    with pytest.raises(InputError, match=message):
        resume_folder(tmp_path / "run", words)
    assert (tmp_path / "run" / "config.yaml").read_text() == config
    assert (tmp_path / "run" / "report.json").read_text() == report


def test_a_later_stage_is_not_left_behind_unnoticed(tmp_path: Path) -> None:
    raw = {
        **SMALL_CONFIG,
        "recipe": "marl.algorithms.bnpg",
        "policy": {**SMALL_CONFIG["policy"], "graph": {"kind": "complete"}},
    }
    run_training(resolve(raw, {"distill.env_steps": 64}), tmp_path / "run")
    with pytest.raises(InputError, match=r"has trained distill from what train gave.*Move"):
        resume_folder(tmp_path / "run", ["train.env_steps=128"])


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_after_the_other(folders: Sequence[Path], processes: int, assignments: Sequence[str]) -> None:
        for folder in folders:
            resume_folder(folder, assignments)

    monkeypatch.setattr(sweep, "_run_processes", one_after_the_other)


@pytest.mark.usefixtures("in_this_process")
def test_a_sweep_trains_on_its_stacked_seeds_included(at_once: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    points = [{"seed": seed, "learner.clip": clip} for seed in (0, 1) for clip in (0.2, 0.1)]
    run_sweep({"small": SMALL_CONFIG}, points, out, 1)
    report = resume_folder(out, ["train.env_steps=160", "evaluation.episodes=32"])
    assert [row["env_steps"] for row in report.tables["points"]] == [160] * 4
    one = out / "seed=0,learner.clip=0.2"
    assert Report.load(one / "report.json").metrics["return_per_agent"].n == 32
    assert read_yaml(one / "config.yaml")["train"]["env_steps"] == 160
    assert_same(one, at_once, 1e-4)
    assert all(point["train.env_steps"] == 160 for point in json.loads((out / "sweep.json").read_text())["points"])
    with pytest.raises(InputError, match="leaves nothing to train"):
        resume_folder(out, ["train.env_steps=160"])
    newest = checkpoints(one / "checkpoints" / "train")[-1]
    before = load_checkpoint(newest)["used"]
    resume_folder(out)
    assert load_checkpoint(newest)["used"] == before


@pytest.mark.usefixtures("in_this_process")
def test_a_sweep_over_budgets_keeps_them(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    run_sweep({"small": SMALL_CONFIG}, [{"train.env_steps": steps} for steps in (32, 64)], out, 1)
    with pytest.raises(InputError, match=r"compares values of train\.env_steps"):
        resume_folder(out, ["train.env_steps=160"])
    with pytest.raises(InputError, match="leaves nothing to train"):
        resume_folder(out, ["train.cpu_seconds=100"])


@pytest.mark.usefixtures("in_this_process")
def test_settings_that_change_nothing_in_a_sweep_are_told(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    run_sweep({"small": SMALL_CONFIG}, [{"learner.clip": clip} for clip in (0.1, 0.2)], out, 1)
    plan = (out / "sweep.json").read_text()
    for words, message in (
        (["evaluation.episodes=9"], r"Every run of .* has finished, so evaluation\.episodes=9 changes nothing"),
        (["evaluation.episdes=9"], r"Did you mean evaluation\.episodes"),
        (["train.env_steps=160", "evaluation.episdes=9"], r"Did you mean evaluation\.episodes"),
    ):
        with pytest.raises(InputError, match=message):
            resume_folder(out, words)
        assert (out / "sweep.json").read_text() == plan
    (out / "learner.clip=0.1" / "report.json").unlink()
    (out / "learner.clip=0.1" / "config.yaml").unlink()
    with pytest.raises(InputError, match=f"`concord resume {out}` writes it"):
        Run.open(out / "learner.clip=0.1")
    assert len(resume_folder(out).tables["points"]) == 2


@pytest.mark.usefixtures("in_this_process")
def test_a_sweep_that_goes_on_has_no_report_until_it_has_finished_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sweep"
    run_sweep({"small": SMALL_CONFIG}, [{"learner.clip": clip} for clip in (0.2, 0.1)], out, 1)
    assert (out / "report.json").exists()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "_run_processes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resume_folder(out, ["train.env_steps=160"])
    assert not list(out.rglob("report.json"))


@pytest.mark.usefixtures("in_this_process")
def test_a_sweep_trains_on_twice(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    run_sweep({"small": SMALL_CONFIG}, [{"learner.clip": clip} for clip in (0.2, 0.1)], out, 1)
    for steps in (96, 128):
        report = resume_folder(out, [f"train.env_steps={steps}"])
        assert [row["env_steps"] for row in report.tables["points"]] == [steps] * 2
