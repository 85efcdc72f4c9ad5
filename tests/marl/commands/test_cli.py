"""The command line: what it leaves behind, and one paragraph with the right exit code for what goes wrong."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv

from envs.core import ConcordError
from envs.particles import SimpleSpread
from envs.world import TensorEnv
from marl.__main__ import main
from marl.commands import sweep
from marl.commands.compare import compare_folders
from marl.training import checkpoints
from marl.training.folders import sole_trainer
from marl.training.metrics_log import read_rows

SMALL = [
    "train.env_steps=2000",
    "learner.steps=16",
    "policy.network.hidden=[8]",
    "critic.network.hidden=[8]",
    "evaluation.episodes=8",
    "evaluation.film_episodes=0",
    "evaluation.twin=null",
]
CLIMBING = ["train.env_steps=2048", "evaluation.episodes=16"]


class Echo(ParallelEnv):
    """One agent; breaks its contract in the way `fault` says."""

    metadata = {"name": "echo_v0"}  # noqa: RUF012
    possible_agents = ["a"]  # noqa: RUF012

    def __init__(self, fault: str = "none"):
        self.fault = fault

    def observation_space(self, agent: str) -> Box:
        return Box(-1, 1, (2,), np.float32)

    def action_space(self, agent: str) -> Discrete:
        return Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.time = ["a"], 0
        self.x = np.random.default_rng(None if self.fault == "irreproducible" else seed).uniform(-1, 1, 2)
        return {"a": self.x.astype(np.float32)}, {"a": {}}

    def step(self, actions: Any) -> Any:
        self.time += 1
        if self.fault == "crash" and self.time == 7:
            os._exit(3)
        if self.fault == "exit" and self.time == 7:
            sys.exit()
        size = 3 if self.fault == "shape" and self.time == 3 else 2
        reward = float("nan") if self.fault == "nan" and self.time == 4 else 1.0
        late = self.time == 9
        seen = {"a": np.resize(self.x, size).astype(np.float32)}
        self.agents = [] if late else ["a"]
        return seen, {"a": reward}, {"a": False}, {"a": late}, {"a": {}}


def concord(*words: str | Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command in this process; gives its exit code."""
    monkeypatch.setattr(sys, "argv", ["concord", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def echo(fault: str, *more: str) -> list[str]:
    env = "env={pettingzoo: 'tests.marl.commands.test_cli:Echo', num_envs: 2, args: {fault: " + fault + "}}"
    return ["cooperative/spread", env, *SMALL, *more]


def test_a_run_leaves_everything_and_can_be_evaluated_compared_and_filmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = [w for w in SMALL if not w.startswith(("evaluation.twin", "evaluation.film"))]
    args = ["cooperative/spread", *words, "evaluation.twin.episodes=2", "evaluation.film_episodes=1", "--out", out]
    assert concord("run", *args, monkeypatch=monkeypatch) == 0
    for name in (
        "config.yaml",
        "metrics.csv",
        "report.json",
        "learning_curve.png",
        "film.gif",
        "events",
        "checkpoints",
    ):
        assert (out / name).exists(), name
    report = json.loads((out / "report.json").read_text())
    assert {"recipe", "seed", "config", "versions", "metrics", "tables"} <= set(report)
    wanted = {"env_steps", "agent_steps", "wall_seconds", "cpu_seconds", "return_per_agent", "return_team"}
    assert wanted <= set(report["metrics"])
    assert set(report["metrics"]["return_team"]) == {"value", "low", "high", "n"}
    assert report["metrics"]["return_team"]["value"] == pytest.approx(
        3 * report["metrics"]["return_per_agent"]["value"]
    )
    assert report["metrics"]["env_steps"]["value"] == 2048
    assert concord("run", *args, monkeypatch=monkeypatch) == 2  # never overwrites
    assert "already holds a run" in capsys.readouterr().err
    for _ in range(2):
        assert concord("evaluate", out, "evaluation.episodes=16", monkeypatch=monkeypatch) == 0
    assert len(list((out / "evaluations").iterdir())) == 2
    assert concord("evaluate", out, "env.args.agents=4", monkeypatch=monkeypatch) == 2
    assert "what an agent sees depends on how many they are" in capsys.readouterr().err
    assert concord("evaluate", out, "policy.network.hidden=[3]", monkeypatch=monkeypatch) == 2
    told = capsys.readouterr().err
    assert "policy.network.hidden changes nothing in an evaluation" in told
    assert "twin" not in told
    assert concord("evaluate", out, "evaluation.twin.episodes=9", monkeypatch=monkeypatch) == 2
    assert "The twin was evaluated after training" in capsys.readouterr().err
    assert concord("render", out, monkeypatch=monkeypatch) == 0
    assert concord("compare", out, "--out", tmp_path / "c.png", monkeypatch=monkeypatch) == 0
    assert (tmp_path / "c.png").exists()
    capsys.readouterr()
    assert concord("compare", out, "--out", out / "report.json" / "c.png", monkeypatch=monkeypatch) == 2
    assert "Choose another --out" in capsys.readouterr().err


class Shy(Echo):
    """Cannot be drawn, in the way `fault` says."""

    metadata = {"name": "shy_v0", "render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, fault: str = "none", render_mode: str | None = None):
        super().__init__(fault)
        self.render_mode = render_mode

    def render(self) -> Any:
        if self.fault == "raises":
            raise RuntimeError("no display")
        return np.zeros((4, 4, 3))


@pytest.mark.parametrize(
    ("maker", "fault", "message"),
    [
        ("Shy", "raises", "no film: Environment 0 raised RuntimeError: no display"),
        ("Shy", "float", "no film: render() gave float64 [4, 4, 3]"),
        ("Echo", "none", "cannot be drawn: it takes no argument render_mode"),
    ],
)
def test_what_cannot_be_drawn_is_told_and_fails_no_run(
    maker: str,
    fault: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word.replace(":Echo", f":{maker}") for word in echo(fault) if "film_episodes" not in word]
    out = tmp_path / "out"
    assert concord("run", *words, "evaluation.film_episodes=1", "--out", out, monkeypatch=monkeypatch) == 0
    assert message in capsys.readouterr().out.replace("\n", " ")
    assert (out / "report.json").exists()


def test_a_world_whose_own_picture_fails_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SimpleSpread, "frame", lambda world, state: 1 / 0)
    words = ["cooperative/spread", *SMALL[:-2], "evaluation.twin=null", "--out", tmp_path / "out"]
    assert concord("run", *words, monkeypatch=monkeypatch) == 0
    assert "no film: ZeroDivisionError: division by zero" in capsys.readouterr().out


def test_an_environment_that_exits_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert concord("run", *echo("exit"), "--out", tmp_path / "out", monkeypatch=monkeypatch) == 1
    assert "raised SystemExit" in capsys.readouterr().err


def test_a_sweep_reports_statistics_and_differences_and_stacks_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_after_the_other(folders: Sequence[Path], processes: int, assignments: Sequence[str]) -> None:
        for folder in folders:
            sweep.resume_folder(folder)

    monkeypatch.setattr(sweep, "_run_processes", one_after_the_other)
    out = tmp_path / "sweep"
    args = ["cooperative/spread", *SMALL, "seed=0,1", "critic.sees=state,agent", "--out", out]
    assert concord("run", *args, monkeypatch=monkeypatch) == 0
    metrics = json.loads((out / "report.json").read_text())["metrics"]
    for stat in ("min", "median", "iqm", "max"):
        assert f"critic.sees=state/return_per_agent/{stat}" in metrics
    difference = metrics["difference/critic.sees=state-critic.sees=agent"]
    assert difference["low"] <= difference["value"] <= difference["high"]
    # Each seed's folder is as a run of its own would have left it.
    alone = tmp_path / "alone"
    args = ["cooperative/spread", *SMALL, "seed=1", "critic.sees=state", "--out", alone]
    assert concord("run", *args, monkeypatch=monkeypatch) == 0
    values = [
        json.loads((path / "report.json").read_text())["metrics"]["return_per_agent"]["value"]
        for path in (alone, out / "seed=1,critic.sees=state")
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-3)


def test_a_sweep_runs_in_processes_and_says_which_point_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    words = [*echo("none"), "env.args.fault=none,nan"]
    assert concord("run", *words, "--out", out, monkeypatch=monkeypatch) == 1
    error = capsys.readouterr().err
    assert "1 of 2 runs failed" in error
    assert f"concord resume {out}" in error.replace("\n", " ")
    assert (out / "env.args.fault=none" / "report.json").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "cooperative/spred"], 2, "Did you mean cooperative/spread"),
        (["run", "cooperative/spread", "learner.cliip=1"], 2, "Did you mean learner.clip?"),
        (["run", "cooperative/spread", "env.world=envs.particles:SimpleSpred"], 2, "Did you mean SimpleSpread?"),
        (["run", "cooperative/spread", "env.args={agnts: 3}"], 2, "Did you mean env.args.agents?"),
        (["run", "cooperative/spread", "env.args.agents=0"], 2, "at least one agent"),
        (["run", "cooperative/spread", "device=cuda:77"], 2, "device: expected"),
        (["run", "cooperative/spread", "learner.sequence_length=3"], 2, "steps must be a multiple of sequence_length"),
        (["run", "cooperative/spread", "learner.steps=1", "env.num_envs=2"], 2, "cannot be dealt into 4 minibatches"),
        (["run", "cooperative/spread", "learner.discount=[0.9,0.8]"], 2, "learner.discount must be one number"),
        (["run", "cooperative/spread", "policy.network.kind=transformer"], 2, "network.kind must be one of"),
        (["run", "cooperative/spread", "seed=0,0"], 2, "names a value twice"),
        (["run", "cooperative/spread", "policy.network.hidden=[0]"], 2, "policy.network.hidden"),
        (["run", "cooperative/spread", "learner.learning_rate=.inf"], 2, "learner.learning_rate"),
        (["run", "cooperative/spread", "device=meta"], 2, "device: expected"),
        (["run", "cooperative/spread", "evaluation.twin.args.N=4"], 2, "evaluation.twin is another task"),
        (["run", "cooperative/spread", "evaluation.twin.args.N=x"], 2, "cannot be made with evaluation.twin.args="),
        (["run", "cooperative/spread", "env.args.agents=1.5"], 2, "cannot be made, or not be played"),
        (["run", "cooperative/spread", "env.args.agents=abc"], 2, "cannot be made, or not be played"),
        (["run", "cooperative/spread", "env.args.dtype=float64"], 2, "cannot be made, or not be played"),
        (["run", "cooperative/spread", "env.world=os", "env.args={}"], 2, "env.world must name a World"),
        (["run", "cooperative/spread", "env.world=os:getcwd", "env.args={}"], 2, "os:getcwd gave a str"),
        (["run", "cooperative/spread", "env={pettingzoo: 'os:getcwd'}"], 2, "it made a builtins.str"),
        (["run", "cooperative/spread", "env={pettingzoo: os}"], 2, "os is a module"),
        (["run", "cooperative/spread", "policy.network.kind=os:getcwd"], 2, "must name a marl.models.layers.Network"),
        (["run", "cooperative/spread", "env.time_limit=null"], 2, "env.time_limit=100"),
        (["run", "cooperative/spread", "recipe=os"], 2, "in os recipe is missing"),
        (["run", "."], 2, "There is no config '.'"),
        (["resume", "nowhere", "evaluation.episodes=2,3"], 2, "one setting at a time"),
        (["compare", "nowhere", "--out", "x.xyz"], 2, "ends in .png"),
        (["resume", "nowhere"], 2, "holds no run"),
        (["render", "nowhere"], 2, "holds no run"),
        (["evaluate", "nowhere"], 2, "holds no run"),
        (["compare", "nowhere"], 2, "holds no finished run"),
        (["bench", "trian"], 2, "train"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(
    words: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = ["--out", str(tmp_path / "out")] if words[0] == "run" else []
    assert concord(*words, *out, monkeypatch=monkeypatch) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert "Nobody foresaw" not in error


@pytest.mark.parametrize("seeds", ["0", "0,1"], ids=["one run", "a sweep"])
@pytest.mark.parametrize(
    "wrong", ["env.args.agents=1.5", "policy.network.kind=os:getcwd", "device=cuda:77", "env.time_limit=null"]
)
def test_what_cannot_be_built_takes_no_folder(
    wrong: str, seeds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["cooperative/spread", *SMALL, f"seed={seeds}", wrong, "--out", tmp_path / "out"]
    assert concord("run", *args, monkeypatch=monkeypatch) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("line", "message"), [("return 5", "got a int"), ("return x", "NameError: name 'x'")])
def test_a_recipe_s_own_mistakes_are_told(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong_recipe.py").write_text(
        "from marl.config.recipe import Recipe\n\n\nclass Wrong(Recipe):\n"
        f"    def run(self, config, run):\n        {line}\n\n\nrecipe = Wrong()\n"
    )
    (tmp_path / "wrong.yaml").write_text("recipe: wrong_recipe\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wrong_recipe", raising=False)
    assert concord("run", tmp_path / "wrong.yaml", "--out", tmp_path / "out", monkeypatch=monkeypatch) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_folder_that_was_damaged_or_edited_by_hand_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    interrupt_after(3, monkeypatch)
    args = ["cooperative/spread", *SMALL, "train.save_seconds=0", "--out", whole]
    assert concord("run", *args, monkeypatch=monkeypatch) == 130
    monkeypatch.undo()

    def resumed(name: str, edit: Callable[[Path], object]) -> tuple[int, str]:
        folder = tmp_path / name
        shutil.copytree(whole, folder)
        edit(folder)
        capsys.readouterr()
        code = concord("resume", folder, monkeypatch=monkeypatch)
        return code, capsys.readouterr().err

    config, state = "config.yaml", "checkpoints/train/000000003/state.json"
    cases: list[tuple[Callable[[Path], object], str]] = [
        (lambda f: edited(f / config, "seed: 0", "seed: some"), "seed: expected a valid integer"),
        (lambda f: edited(f / config, "- 8", "- 16"), "policy.network.hidden is [16], was [8]"),
        (lambda f: edited(f / config, "num_envs: 16", "num_envs: 8"), "env.num_envs is 8, was 16"),
        (lambda f: edited(f / config, "kind: mlp", "kind: os:getcwd"), "must name a marl.models.layers.Network"),
        (lambda f: (f / config).write_text((f / config).read_text()[:600]), "is cut short"),
        (lambda f: (f / config).write_bytes(b"\xff\xfe"), "is cut short"),
        (lambda f: (f / "metrics.csv").write_text("train,0,1\n" * 9), "its first line does not name the columns"),
        (lambda f: edited(f / state, '"learner"', '"teacher"'), "does not fit what the recipe builds"),
        (lambda f: edited(f / state, '"updates"', '"uploads"'), "does not fit what the recipe builds"),
    ]
    for number, (edit, message) in enumerate(cases):
        code, error = resumed(str(number), edit)
        assert code == 2, error
        assert message in error
        assert "Nobody foresaw" not in error
    harmless: list[Callable[[Path], object]] = [
        lambda f: edited(f / config, "threads: 1", "threads: 2"),
        lambda f: (f / "metrics.csv").write_text((f / "metrics.csv").read_text()[:-40]),
        lambda f: (f / "metrics.csv").write_text(""),
    ]
    for number, edit in enumerate(harmless):
        code, error = resumed(f"harmless {number}", edit)
        assert code == 0, error


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, words in (("whole", []), ("cut", ["train.save_seconds=1000"])):
        if name == "cut":
            interrupt_after(3, monkeypatch)
        code = concord("run", "cooperative/spread", *SMALL, *words, "--out", tmp_path / name, monkeypatch=monkeypatch)
        assert code == (130 if name == "cut" else 0)
    monkeypatch.undo()
    assert not checkpoints.checkpoints(tmp_path / "cut" / "checkpoints" / "train")
    assert concord("resume", tmp_path / "cut", monkeypatch=monkeypatch) == 0
    tables = [read_rows(tmp_path / name / "metrics.csv") for name in ("whole", "cut")]
    for row in (*tables[0], *tables[1]):
        del row["wall_seconds"], row["cpu_seconds"]
    assert tables[0] == tables[1]


def test_runs_with_nothing_in_common_are_compared_by_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, args in (
        ("one", ["cooperative/spread", *SMALL]),
        ("other", ["cooperative/climbing", "train.env_steps=2048", "evaluation.episodes=16"]),
    ):
        assert concord("run", *args, "--out", tmp_path / name, monkeypatch=monkeypatch) == 0
    groups = compare_folders([tmp_path / "one", tmp_path / "other"], "return_per_agent", tmp_path / "c.png")
    assert [group.label for group in groups] == [f"{tmp_path.name}/one", f"{tmp_path.name}/other"]
    assert concord("render", tmp_path / "one", monkeypatch=monkeypatch) == 0  # though the run itself filmed nothing


@pytest.mark.parametrize(
    ("fault", "workers", "code", "message"),
    [("shape", 0, 2, "shape"), ("nan", 0, 2, "nan"), ("crash", 1, 1, "worker")],
)
def test_an_environment_that_breaks_its_contract_is_explained(
    fault: str, workers: int, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = echo(fault, f"env.workers={workers}")
    assert concord("run", *words, "--out", tmp_path / "out", monkeypatch=monkeypatch) == code
    error = capsys.readouterr().err
    assert message in error.lower()
    assert "Traceback" not in error


def test_an_irreproducible_environment_is_told_on_resume_and_can_be_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    interrupt_after(3, monkeypatch)
    assert concord("run", *echo("irreproducible", "train.save_seconds=0"), "--out", out, monkeypatch=monkeypatch) == 130
    monkeypatch.undo()
    assert concord("resume", out, monkeypatch=monkeypatch) == 1
    assert "resume.restart_episodes=true" in capsys.readouterr().err
    assert concord("resume", out, "resume.restart_episodes=true", monkeypatch=monkeypatch) == 0


def interrupt_after(updates: int, monkeypatch: pytest.MonkeyPatch, kind: signal.Signals = signal.SIGINT) -> None:
    """Ctrl-C during the update after this many."""
    from marl.learning.actor_critic import ActorCritic

    whole, count = ActorCritic.update, [0]

    def update(self: ActorCritic, batch: Any) -> Any:
        count[0] += 1
        if count[0] > updates:
            signal.raise_signal(kind)
        return whole(self, batch)

    monkeypatch.setattr(ActorCritic, "update", update)


def test_a_nan_loss_stops_the_run_names_the_term_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, count = TensorEnv.advance, [0]

    def advance(self: TensorEnv, *given: Any) -> Any:
        count[0] += 1
        rows, obs, outcomes, final_obs = whole(self, *given)
        if count[0] == 60:
            outcomes[0][:] = float("nan")
        return rows, obs, outcomes, final_obs

    monkeypatch.setattr(TensorEnv, "advance", advance)
    out = tmp_path / "out"
    args = ["cooperative/spread", *SMALL, "train.save_seconds=0", "--out", out]
    assert concord("run", *args, monkeypatch=monkeypatch) == 1
    error = capsys.readouterr().err
    assert "value_error" in error
    assert "update 4" in error
    assert [p.name for p in checkpoints.checkpoints(out / "checkpoints" / "train")][-1] == "000000003"
    monkeypatch.undo()
    assert concord("resume", out, monkeypatch=monkeypatch) == 0


def damage(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "tensors.safetensors").read_bytes())
    content[-5] ^= 1
    (checkpoint / "tensors.safetensors").write_bytes(content)


def test_a_full_disk_keeps_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, count = checkpoints._write, [0]

    def write(path: Path, content: bytes) -> None:
        count[0] += 1
        if count[0] > 5:
            whole(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(path, content)

    monkeypatch.setattr(checkpoints, "_write", write)
    out = tmp_path / "out"
    args = ["cooperative/spread", *SMALL, "train.save_seconds=0", "--out", out]
    assert concord("run", *args, monkeypatch=monkeypatch) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert [p.name for p in checkpoints.checkpoints(out / "checkpoints" / "train")] == ["000000001", "000000002"]
    monkeypatch.undo()
    assert concord("resume", out, monkeypatch=monkeypatch) == 0


def test_events_that_the_disk_refuses_stop_the_run_in_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from small_runs import files_of_at_most  # processes of a sweep import this file, but not that one

    out = tmp_path / "out"
    args = ["cooperative/climbing", "train.env_steps=30000", "train.save_seconds=1000", "--out", out]
    with files_of_at_most(4000):
        assert concord("run", *args, monkeypatch=monkeypatch) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"Error: Cannot write {out / 'events'}")
    assert len(error.splitlines()) == 1


def test_an_unreadable_checkpoint_is_told_and_never_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    interrupt_after(3, monkeypatch)
    args = ["cooperative/spread", *SMALL, "train.save_seconds=0", "--out", out]
    assert concord("run", *args, monkeypatch=monkeypatch) == 130
    monkeypatch.undo()
    newest = checkpoints.checkpoints(out / "checkpoints" / "train")[-1]
    damage(newest)
    assert concord("resume", out, monkeypatch=monkeypatch) == 1
    assert f"{newest} cannot be read" in capsys.readouterr().err.replace("\n", " ")
    shutil.rmtree(newest)
    assert concord("resume", out, monkeypatch=monkeypatch) == 0


def test_an_evaluation_takes_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = ["cooperative/climbing", *CLIMBING, "train.save_seconds=0", "--out", out]
    assert concord("run", *args, monkeypatch=monkeypatch) == 0
    older, newest = checkpoints.checkpoints(out / "checkpoints" / "train")
    damage(newest)
    assert concord("evaluate", out, monkeypatch=monkeypatch) == 0
    assert f"{newest} cannot be read" in capsys.readouterr().out.replace("\n", " ")
    damage(older)
    assert concord("evaluate", out, monkeypatch=monkeypatch) == 1


def test_a_folder_is_named_when_it_is_taken_and_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "meeting.py").touch()
    for out in ("meeting.py", "meeting.py/run"):
        args = ["cooperative/climbing", *CLIMBING, "--out", tmp_path / out]
        assert concord("run", *args, monkeypatch=monkeypatch) == 2
        shown = capsys.readouterr()
        assert "meeting.py is a file" in shown.err
        assert "writing to" not in shown.out
    monkeypatch.chdir(tmp_path)
    assert concord("run", "cooperative/climbing", *CLIMBING, monkeypatch=monkeypatch) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"writing to runs/{folder.name}" in capsys.readouterr().out


def test_being_told_to_end_is_as_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_after(3, monkeypatch, signal.SIGTERM)
    args = ["cooperative/spread", *SMALL, "--out", tmp_path / "out"]
    assert concord("run", *args, monkeypatch=monkeypatch) == 130
    assert "concord resume" in capsys.readouterr().err


def test_only_one_process_trains_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["cooperative/spread", *SMALL, "--out", out]
    with sole_trainer(out):
        assert concord("run", *words, monkeypatch=monkeypatch) == 1
    assert "Another process is training" in capsys.readouterr().err
    assert concord("run", *words, monkeypatch=monkeypatch) == 0
    shutil.rmtree(out / "checkpoints")
    with sole_trainer(out):
        assert concord("resume", out, monkeypatch=monkeypatch) == 1
    assert concord("resume", out, monkeypatch=monkeypatch) == 0


def test_an_interrupted_stacked_sweep_goes_on_with_the_right_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_run_processes", lambda folders, *_: [sweep.resume_folder(f) for f in folders])
    out = tmp_path / "sweep"
    args = ["cooperative/spread", *SMALL, "train.save_seconds=0", "seed=0,1", "critic.sees=state,agent", "--out", out]
    interrupt_after(11, monkeypatch)  # within the second variant's eight updates
    assert concord("run", *args, monkeypatch=monkeypatch) == 130
    first = (out / "seed=0,critic.sees=state" / "metrics.csv").read_text()
    monkeypatch.undo()
    monkeypatch.setattr(sweep, "_run_processes", lambda folders, *_: [sweep.resume_folder(f) for f in folders])
    assert concord("resume", out, monkeypatch=monkeypatch) == 0
    assert (out / "seed=0,critic.sees=state" / "metrics.csv").read_text() == first
    assert len((out / "seed=1,critic.sees=agent" / "metrics.csv").read_text().splitlines()) == 9
    assert list((out / "seed=1,critic.sees=agent" / "events" / "train").iterdir())


def is_held(folder: Path) -> bool:
    """Whether a process trains in a folder."""
    try:
        with sole_trainer(folder):
            return False
    except ConcordError:
        return True


def test_a_killed_sweep_s_processes_end_with_it(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    endless = ["train.env_steps=100000000", "train.save_seconds=0"]
    words = ["cooperative/spread", *SMALL[1:], *endless, "learner.clip=0.1,0.2", "--processes", "2"]
    command = [sys.executable, "-m", "marl", "run", *words, "--out", str(out)]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    points = [out / "learner.clip=0.1", out / "learner.clip=0.2"]
    try:
        wait_until(lambda: all((point / "checkpoints").exists() for point in points))
        assert all(map(is_held, points))
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(map(is_held, points)), seconds=5)


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_sweep_takes_no_more_cores_than_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8}, raising=False)
    assert sweep.usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert sweep.usable_cores() == 1


@pytest.mark.parametrize("plan", ['{"raw": ', "[]", '{"raw": {}, "points": []}'])
def test_a_damaged_plan_of_a_sweep_is_told(
    plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.json").write_text(plan)
    assert concord("resume", tmp_path, monkeypatch=monkeypatch) == 2
    assert "not a plan that Concord wrote" in capsys.readouterr().err


def test_listing_and_showing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert concord("list", monkeypatch=monkeypatch) == 0
    assert "cooperative/spread" in capsys.readouterr().out
    assert concord("show", "cooperative/spread", "learner.clip=0.3", monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "learner.clip" in shown
    assert "0.3" in shown
