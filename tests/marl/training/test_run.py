"""Stages of a run: what is not written down yet, and budgets that are raised."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SMALL_CONFIG, Mortals, build

from envs.core import InputError
from marl.algorithms.mappo import recipe
from marl.commands.compare import reports_in
from marl.config.load import resolve
from marl.learning.batch import Outcome
from marl.output.report import Report
from marl.training.run import Run
from marl.training.tally import Tally


def test_a_tally_saved_in_the_middle_reads_the_same() -> None:
    small = build(Mortals(), seeds=(0, 1))
    whole, first = Tally(2), Tally(2)
    state = copy.deepcopy(first.state_dict())
    for update, batch in zip(range(3), small.source):
        terms = small.learner.update(batch)
        if update == 2:
            state = copy.deepcopy(first.state_dict())
            first = Tally(2)
            first.load_state_dict(state)
        for tally in (whole, first):
            tally.add({**terms, "map": torch.full((2, 3, 4), float(update))}, batch.outcome)
    (rows, pictures), (wanted, shown) = first.read(), whole.read()
    assert rows == wanted
    assert "map" not in rows[0], "a picture is no column"
    assert torch.equal(pictures["map"], shown["map"])
    assert torch.equal(pictures["map"], torch.ones(2, 3, 4)), "the mean over the updates"
    empty = Tally(2)
    empty.load_state_dict(Tally(2).state_dict())
    assert empty.state_dict() == {"terms": {}, "outcomes": {}, "channels": []}


def test_a_finished_stage_goes_on_where_its_budget_is_raised(tmp_path: Path) -> None:
    raw = {"recipe": "marl.algorithms.mappo", "env": {"world": "small_runs:Mortals", "num_envs": 4}}

    def trained(folder: str, env_steps: int) -> bytes:
        small = {"learner.steps": 8, "policy.network.hidden": [8], "device": "cpu", "train.env_steps": env_steps}
        config = resolve(raw, small)
        policy = recipe.train(config, Run(tmp_path / folder, config))
        assert Run(tmp_path / folder, config).used("train")["env_steps"] == env_steps
        return b"".join(p.detach().numpy().tobytes() for p in policy.parameters())

    first = trained("raised", 64)
    assert trained("raised", 64) == first
    assert trained("raised", 128) == trained("at once", 128) != first


@pytest.mark.parametrize(
    ("key", "value", "was"),
    [
        ("learner.clip", 0.3, "0.2"),
        ("learner.discount", 0.9, "0.99"),
        ("critic.sees", "agent", "'state'"),
        ("advantage.kind", "team", "'own'"),
        ("env.num_envs", 8, "4"),
    ],
)
def test_a_stage_goes_on_only_with_what_it_began_with(tmp_path: Path, key: str, value: Any, was: str) -> None:
    begun = resolve(SMALL_CONFIG, {})
    recipe.train(begun, Run(tmp_path, begun))
    changed = resolve(SMALL_CONFIG, {key: value, "train.env_steps": 1024})
    with pytest.raises(InputError, match=re.escape(f"{key} is {value!r}, was {was}.")):
        recipe.train(changed, Run(tmp_path, changed))


def test_comparison_finds_runs_alone_and_in_sweeps(tmp_path: Path) -> None:
    for name in ("alone", "sweep/seed=0", "sweep/seed=1", "sweep"):
        (tmp_path / "runs" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / name / "report.json").write_text("{}")
    found = [path.parent.relative_to(tmp_path).as_posix() for path in reports_in(tmp_path / "runs")]
    assert found == ["runs/alone", "runs/sweep/seed=0", "runs/sweep/seed=1"]


def test_of_two_who_want_a_folder_one_gets_it(tmp_path: Path) -> None:
    raw = {"recipe": "marl.algorithms.mappo", "env": {"world": "small_runs:Mortals", "num_envs": 4}}
    first, second = (Run.create(tmp_path / "out", resolve(raw, {"seed": seed})) for seed in (1, 2))
    first.begin()
    with pytest.raises(InputError, match="already holds a run"):
        second.begin()
    assert "seed: 1" in (tmp_path / "out" / "config.yaml").read_text()


def test_a_lost_config_is_restored_as_the_message_says(tmp_path: Path) -> None:
    config = resolve({"recipe": "marl.algorithms.mappo", "env": {"world": "envs.games:climbing"}}, {"seed": 3})
    folder = tmp_path / "run"
    Run.create(folder, config).take()
    Report(config.recipe, config.seed, config.model_dump(mode="json"), {}).save(folder / "report.json")
    (folder / "config.yaml").unlink()
    message = r"holds a report, but no config\.yaml\. Write into config\.yaml what report\.json has under config"
    for attempt in (lambda: Run.open(folder), lambda: Run.create(folder, config)):
        with pytest.raises(InputError, match=message.replace("holds", "(already )?holds")):
            attempt()
    held = json.loads((folder / "report.json").read_text())["config"]
    (folder / "config.yaml").write_text(json.dumps(held, indent=2) + "\n...\n")
    assert Run.open(folder).config == config


def test_a_folder_of_other_runs_is_not_filled(tmp_path: Path) -> None:
    config = resolve({"recipe": "marl.algorithms.mappo", "env": {"world": "envs.games:climbing"}}, {})
    Run.create(tmp_path / "runs" / "one", config).take()
    with pytest.raises(InputError, match=r"runs holds other runs, such as .*one.* --out .*runs/NAME"):
        Run.create(tmp_path / "runs", config)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    config = resolve({"recipe": "marl.algorithms.mappo", "env": {"world": "envs.games:climbing"}}, {})
    with pytest.raises(InputError, match=r"Nothing can be written to /proc/x .*Choose another --out"):
        Run.create(Path("/proc/x"), config).take()


def test_what_is_computed_once_takes_its_folder_afterwards_and_is_kept(tmp_path: Path) -> None:
    config = resolve({"recipe": "marl.algorithms.mappo", "env": {"world": "envs.games:climbing"}}, {})
    folder = tmp_path / "run"

    def refused() -> None:
        raise InputError("bad input")

    with pytest.raises(InputError, match="bad input"):
        Run.create(folder, config).once("found", refused)
    assert not folder.exists()
    assert Run.create(folder, config).once("found", lambda: {"x": [1.5, None]}) == {"x": [1.5, None]}
    assert (folder / "config.yaml").exists()
    assert Run.open(folder).once("found", refused) == {"x": [1.5, None]}


def test_means_of_returns_are_over_episodes_and_not_over_updates() -> None:
    tally = Tally(2)
    for value, episodes in ((1.0, [3.0, 1.0]), (5.0, [1.0, 3.0]), (0.0, [0.0, 0.0])):
        one = torch.full((2,), value)
        tally.add({}, Outcome(one.view(2, 1), one.view(2, 1, 1), one, torch.tensor(episodes)))
    rows, _ = tally.read()
    names = ("return_per_agent", "return_team", "discounted_return_per_agent", "episode_length")
    assert [[row[name] for name in names] for row in rows] == [[2.0] * 4, [4.0] * 4]
    assert [row["episodes"] for row in rows] == [4, 4]
