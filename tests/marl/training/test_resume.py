"""A run that is killed and resumed ends where the uninterrupted one does, byte for byte."""

import json
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

import pytest

from marl.__main__ import main
from marl.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from marl.training.metrics_log import read_rows

SMALL = [
    "train.env_steps=5000",
    "train.save_seconds=0",
    "learner.steps=32",
    "policy.network.hidden=[16]",
    "critic.network.hidden=[16]",
    "evaluation.episodes=16",
    "evaluation.num_envs=16",
    "evaluation.film_episodes=0",
    "evaluation.twin=null",
]
RECURRENT = ["cooperative/spread", "policy.network.kind=gru", "critic.network.kind=gru", "learner.sequence_length=16"]
FOREIGN = [
    "cooperative/spread",
    "env={pettingzoo: 'mpe2.simple_spread_v3:parallel_env', args: {N: 3, max_cycles: 25}, num_envs: 4}",
    "train.env_steps=2500",
]


# Commands start as forks of a process that has imported everything, so that random moments fall into the run itself.
FORKS = multiprocessing.get_context("forkserver")
LIBRARIES = ["pytest", "torch._dynamo", "torch.utils.tensorboard", "scipy.stats", "mpe2.simple_spread_v3"]
FORKS.set_forkserver_preload(
    [
        *LIBRARIES,
        "matplotlib.backends.backend_agg",
        "marl.commands.sweep",
        "marl.output.tables",
        "marl.algorithms.mappo",
    ]
)


def run_command(words: list[str], log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["concord", *words]
    main()


def concord(*words: str | Path, log: Path, seconds: float | None = None) -> int | None:
    """Run a command, and kill it after some seconds; gives its exit code."""
    process = FORKS.Process(target=run_command, args=([*map(str, words)], log))
    process.start()
    process.join(120 if seconds is None else seconds)
    process.kill()
    process.join()
    return process.exitcode


def final_tensors(folder: Path) -> dict[str, bytes]:
    (finished,) = [p for p in checkpoints(folder / "checkpoints" / "train") if p.name.endswith("finished")]
    state = load_checkpoint(finished)["learner"]
    return {
        f"{part}/{name}": tensor.numpy().tobytes()
        for part in ("policy", "critic", "optimizer")
        for name, tensor in state[part].items()
    }


def assignments(setting: list[str]) -> list[str]:
    own = {word.split("=")[0] for word in setting[1:]}
    return setting + [word for word in SMALL if word.split("=")[0] not in own]


@pytest.mark.parametrize("setting", [RECURRENT, FOREIGN], ids=["native and recurrent", "mpe2"])
def test_a_killed_run_resumes_to_the_same_bytes(setting: list[str], tmp_path: Path) -> None:
    words, log, whole, cut = assignments(setting), tmp_path / "log", tmp_path / "whole", tmp_path / "cut"
    concord("list", log=log)  # the process to fork from takes a while to start
    began = time.monotonic()
    assert concord("run", *words, "--out", whole, log=log) == 0, log.read_text()
    duration = time.monotonic() - began

    def go_on(seconds: float | None = None) -> int | None:
        begun = (cut / "config.yaml").exists()
        again: list[str | Path] = ["resume", cut] if begun else ["run", *words, "--out", cut]
        return concord(*again, log=log, seconds=seconds)

    moments = [random.uniform(0, duration) for _ in range(3)]
    for moment in moments:
        go_on(moment)
    assert go_on() == 0, log.read_text()
    assert final_tensors(cut) == final_tensors(whole), (duration, moments)
    reports = [json.loads((folder / "report.json").read_text())["metrics"] for folder in (whole, cut)]
    assert reports[0]["return_per_agent"] == reports[1]["return_per_agent"]
    rows = [[drop_clocks(row) for row in read_rows(folder / "metrics.csv")] for folder in (whole, cut)]
    assert rows[0] == rows[1], (duration, moments)


def drop_clocks(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if not name.endswith("_seconds")}


def test_a_checkpoint_cut_short_is_never_loaded(tmp_path: Path) -> None:
    import torch

    save_checkpoint(tmp_path / "000000001", {"x": torch.ones(3)})
    partial = tmp_path / ".000000002.partial"
    partial.mkdir()
    (partial / "tensors.safetensors").write_bytes(b"half")
    assert [p.name for p in checkpoints(tmp_path)] == ["000000001"]
