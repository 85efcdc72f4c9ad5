"""Recipes whose seeds have several members: trained, judged, saved and played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import assert_close

from marl.algorithms.mappo import recipe as mappo
from marl.commands.evaluate import evaluate_folder
from marl.commands.python import load
from marl.commands.run import run_training
from marl.commands.stacking import train_stacked
from marl.config.load import resolve
from marl.evaluation.load import MisfitError, load_actor
from marl.training.checkpoints import checkpoints, load_checkpoint
from marl.training.metrics_log import read_rows
from marl.training.policy_rows import take_policy
from marl.training.run import Run

RAW: dict[str, Any] = {
    "recipe": "small_population",
    "device": "cpu",
    "env": {"world": "small_runs:Mortals", "num_envs": 4},
    "policy": {"network": {"hidden": [8]}},
    "critic": {"network": {"hidden": [8]}},
    "learner": {"steps": 8, "learning_rate": 0.05},
    "train": {"env_steps": 128},
    "evaluation": {"episodes": 16, "film_episodes": 0, "every": 2, "during_episodes": 16, "load": "best"},
}


def newest(folder: Path) -> dict[str, Any]:
    return load_checkpoint(checkpoints(folder / "checkpoints" / "train")[-1])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("members") / "run"
    return folder, run_training(resolve(RAW, {}), folder)


def test_each_member_is_trained_evaluated_meanwhile_and_told(pair: tuple[Path, Any]) -> None:
    folder, report = pair
    rows = [row for row in read_rows(folder / "metrics.csv") if row["evaluation/return_per_agent"]]
    assert [row["policy"] for row in rows] == ["0", "1"] * 2
    (probe,) = newest(folder)["probes"]
    for member in (0, 1):
        own = [float(row["evaluation/return_per_agent"]) for row in rows if row["policy"] == str(member)]
        assert float(probe["value"][member]) == pytest.approx(max(own), abs=1e-5)
    told = [report.metrics[f"policy={member}/return_per_agent"].value for member in (0, 1)]
    assert told[0] == pytest.approx(report.metrics["return_per_agent"].value, abs=1e-5)
    assert told[0] != told[1]


def test_the_first_member_trains_as_a_run_of_one_does_and_is_the_one_that_is_played(
    pair: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, report = pair
    alone = run_training(resolve(RAW, {"recipe": "marl.algorithms.mappo"}), tmp_path / "alone")
    assert report.metrics["return_per_agent"].value == pytest.approx(alone.metrics["return_per_agent"].value, abs=1e-4)
    by_command, _ = evaluate_folder(folder, [])
    assert by_command.metrics["return_per_agent"] == report.metrics["return_per_agent"]
    actor, env = load(folder, num_envs=3)
    (probe,) = newest(folder)["probes"]
    assert_close(dict(actor.state_dict()), take_policy(probe["best_policy"], 0, 2))  # type: ignore[attr-defined]
    assert env.num_envs == 3


def test_seeds_with_members_are_trained_as_one_and_part(pair: tuple[Path, Any], tmp_path: Path) -> None:
    train_stacked(tmp_path, {str(seed): resolve(RAW, {"seed": seed}) for seed in (0, 1)})
    stacked, alone = (newest(folder)["learner"]["policy"] for folder in (tmp_path / "0", pair[0]))
    for name, parameter in alone.items():
        torch.testing.assert_close(stacked[name], parameter, atol=1e-4, rtol=1e-3)


def test_a_folder_with_members_that_the_recipe_does_not_tell_of_is_refused_with_the_hook(
    pair: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(pair[0])
    import small_population

    monkeypatch.setattr(small_population, "recipe", mappo)
    with pytest.raises(MisfitError, match=r"in its hook `members\(config\)`"):
        load_actor(run, 1)
