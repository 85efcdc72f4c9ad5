"""Folders of runs from before fields, recipes and saved states got their names of today."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from envs.core import InputError
from marl.commands.evaluate import evaluate_folder
from marl.commands.sweep import resume_folder
from marl.config.load import resolve
from marl.output.report import Report
from marl.training.run import Run
from recsys.policies.from_run import load

OLD = Path(__file__).parents[2] / "fixtures" / "old_runs"
RENAMED = {
    "learner.gae_lambda": 0.9,
    "learner.sequence_length": 1,
    "learner.max_grad_norm": 0.4,
    "advantage.kind": "team",
}


@pytest.fixture
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the folder that the test names."""
    folder = tmp_path / request.param
    shutil.copytree(OLD / request.param, folder)
    return folder


@pytest.mark.parametrize("old", ["mappo", "bnpg", "mean_field"], indirect=True)
def test_an_old_run_plays_as_it_did(old: Path) -> None:
    before = Report.load(old / "report.json").metrics
    report, _ = evaluate_folder(old, [])
    for name in ("return_per_agent", "mode/return_per_agent"):
        assert report.metrics[name] == before[name]


@pytest.mark.parametrize("old", ["mappo", "bnpg", "mean_field", "tabular", "slate"], indirect=True)
def test_an_old_run_resumes_to_its_old_results(old: Path) -> None:
    before = Report.load(old / "report.json").metrics
    (old / "report.json").unlink()
    after = resume_folder(old).metrics
    kept = {name for name in before.keys() & after.keys() if not name.endswith("_seconds")}
    assert len(kept) > len(before) // 2
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


@pytest.mark.parametrize("old", ["mappo"], indirect=True)
def test_an_old_run_whose_advantage_was_changed_by_hand_is_told(old: Path) -> None:
    (old / "report.json").unlink()
    config = old / "config.yaml"
    text = config.read_text()
    assert "weighing: team" in text
    config.write_text(text.replace("weighing: team", "weighing: own"))
    with pytest.raises(InputError, match=r"advantage\.kind is 'own', was 'team'"):
        resume_folder(old)


@pytest.mark.parametrize("old", ["bnpg"], indirect=True)
def test_what_was_distilled_before_still_plays(old: Path) -> None:
    before = Report.load(old / "report.json").metrics["distilled/return_per_agent"]
    report, _ = evaluate_folder(old, ["evaluation.team=distilled"])
    assert report.metrics["return_per_agent"] == before


@pytest.mark.parametrize("old", ["learned"], indirect=True)
def test_what_was_learned_from_a_log_before_is_still_a_target(old: Path) -> None:
    assert load(str(old)).policy is not None


@pytest.mark.parametrize("old", ["mappo"], indirect=True)
def test_an_old_config_has_todays_names_when_it_is_opened(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Run.open(old).config.model_dump()
    assert {name: value_of(config, name) for name in RENAMED} == RENAMED
    assert capsys.readouterr().out == "", "nobody can change what is done"


def value_of(config: dict[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value


def test_an_old_key_is_understood_and_the_new_one_told(capsys: pytest.CaptureFixture[str]) -> None:
    raw = {"recipe": "marl.algorithms.mappo", "env": {"world": "envs.games:climbing"}, "weighing": "team"}
    config = resolve(raw, {"learner.trace": 0.5})
    assert config.model_dump()["learner"]["gae_lambda"] == 0.5
    assert config.model_dump()["advantage"]["kind"] == "team"
    told = capsys.readouterr().out
    assert "weighing is called advantage now" in told
    assert "learner.trace is called learner.gae_lambda now" in told


def test_an_old_key_beside_the_new_one_is_refused() -> None:
    raw = {"recipe": "marl.algorithms.mappo", "env": {"world": "envs.games:climbing"}}
    with pytest.raises(InputError, match=r"leave learner\.trace out"):
        resolve({**raw, "learner": {"trace": 0.5, "gae_lambda": 0.6}}, {})
    with pytest.raises(InputError, match=r"leave learner\.trace out"):
        resolve(raw, {"learner.trace": 0.5, "learner.gae_lambda": 0.6})


@pytest.mark.parametrize(("old", "has_team"), [("mappo", False), ("bnpg", True)], indirect=["old"])
def test_only_settings_that_a_recipe_has_are_offered_to_an_evaluation(old: Path, has_team: bool) -> None:
    with pytest.raises(InputError, match=r"learner\.clip changes nothing in an evaluation") as caught:
        evaluate_folder(old, ["learner.clip=1"])
    assert ("evaluation.team" in str(caught.value)) == has_team


@pytest.mark.parametrize("old", ["mappo"], indirect=True)
def test_a_wrong_key_is_told_of_old_runs_too(old: Path) -> None:
    with pytest.raises(InputError, match=r"Did you mean env\.time_limit"):
        evaluate_folder(old, ["env.time_limt=3"])
    with pytest.raises(InputError, match=r"policy\.network"):
        Run.open(old, {"policy.network.heads": 2})
    config = old / "config.yaml"
    config.write_text(config.read_text().replace("  time_limit: null", "  time_limt: 3"))
    with pytest.raises(InputError, match=r"Did you mean env\.time_limit"):
        Run.open(old)


def test_the_fixtures_are_old() -> None:
    state = json.loads(next((OLD / "bnpg" / "checkpoints" / "train").glob("*/state.json")).read_text())
    assert "trace" in json.dumps(state)
