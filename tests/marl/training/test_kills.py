"""Runs and sweeps that are killed at each of their writes, one after the other, and resumed, end as if undisturbed."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import marl.algorithms.bnpg
import marl.commands.compare
import marl.evaluation.policy_report
import marl.output.versions
from marl.commands import sweep
from marl.commands.run import run_training
from marl.commands.sweep import resume_folder, run_sweep
from marl.config.load import resolve
from marl.output.report import Metric, Report
from marl.training.metrics_log import read_rows

SMALL: dict[str, Any] = {
    "device": "cpu",
    "policy.network.hidden": [4],
    "critic.network.hidden": [4],
    "learner.steps": 8,
    "learner.epochs": 1,
    "learner.minibatches": 1,
    "train.env_steps": 256,
    "train.save_seconds": 0,
    "evaluation.episodes": 4,
    "evaluation.num_envs": 4,
    "evaluation.film_episodes": 0,
}
CLIMBING = {"world": "envs.games:climbing", "num_envs": 16}
NETWORK = {"recipe": "marl.algorithms.bnpg", "env": CLIMBING}
PLAIN = {"recipe": "marl.algorithms.mappo", "env": CLIMBING}


@contextmanager
def killed_at(write: int) -> Iterator[None]:
    """Within, this write is not done, counted from 1: an interruption comes first, or the wish to exit.

    A write is whatever makes something last: files and folders of checkpoints get their name once they are whole, a
    stack of seeds is marked as finished and removed.
    """
    left = [write]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(place: Path, *args: Any, **options: Any) -> Any:
            if function is not remove or Path(place).name.startswith(".stacked"):
                left[0] -= 1
                if left[0] == 0:
                    raise (KeyboardInterrupt, SystemExit)[write % 2]
            return function(place, *args, **options)

        return call

    remove = shutil.rmtree
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((Path, "replace"), (Path, "rename"), (Path, "touch"), (shutil, "rmtree")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        yield


def one_run(folder: Path) -> None:
    small = {**SMALL, "policy.graph.kind": "random", "distill.env_steps": 128}
    run_training(resolve(NETWORK, small), folder)


def stacked_sweep(folder: Path) -> None:
    run_sweep({"climbing": PLAIN}, [{**SMALL, "seed": seed} for seed in (0, 1)], folder, 1)


def go_on(begin: Callable[[Path], None], folder: Path) -> None:
    """As a person would: resume what there is, or begin again where nothing was kept."""
    if (folder / "config.yaml").exists() or (folder / "sweep.json").exists():
        resume_folder(folder)
    else:
        begin(folder)


def results(folder: Path) -> dict[str, Any]:
    """Metrics of all reports and all logged rows, without what clocks say."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("report.json")):
        metrics = Report.load(path).metrics
        place = path.relative_to(folder).as_posix()
        found[place] = {name: None if "seconds" in name else str(metric) for name, metric in metrics.items()}
    for path in sorted(folder.rglob("metrics.csv")):
        rows = read_rows(path)
        place = path.relative_to(folder).as_posix()
        found[place] = [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]
    return found


@pytest.mark.parametrize("begin", [one_run, stacked_sweep])
def test_killed_at_any_write_and_resumed_all_results_are_there(
    begin: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What takes long and writes nothing that a resumed run needs.
    monkeypatch.setattr(marl.evaluation.policy_report, "learning_curve", lambda folder, target: target)
    monkeypatch.setattr(marl.output.versions, "_revision", lambda: None)
    monkeypatch.setattr(marl.algorithms.bnpg, "heat_map", lambda *_: None)
    monkeypatch.setattr(marl.commands.compare, "summarize", lambda values: {"mean": Metric.mean(values)})
    monkeypatch.setattr(sweep, "_run_processes", lambda folders, *_: [resume_folder(folder) for folder in folders])
    begin(tmp_path / "whole")
    wanted = results(tmp_path / "whole")
    assert "return_per_agent" in str(wanted["report.json"])
    for write in itertools.count(1):
        folder = tmp_path / str(write)
        try:
            with killed_at(write):
                begin(folder)
        except (KeyboardInterrupt, SystemExit):
            go_on(begin, folder)
            assert results(folder) == wanted, f"killed at write {write}"
            assert not list(folder.rglob("*.partial")), f"killed at write {write}"
            assert not [path for path in folder.glob(".stacked-*") if path.is_dir()], f"killed at write {write}"
            shutil.rmtree(folder)
        else:
            break
    assert write > 8, "it was hardly killed anywhere"
