"""A run that is killed and resumed ends where the uninterrupted one does, byte for byte."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marl.checkpoints import checkpoints, load_checkpoint, save_checkpoint

SMALL = [
    "train.env_steps=8000",
    "train.save_seconds=0",
    "learner.steps=32",
    "policy.network.hidden=[16]",
    "critic.network.hidden=[16]",
    "evaluation.episodes=16",
    "evaluation.num_envs=16",
    "evaluation.film_episodes=0",
    "evaluation.twin=null",
]
RECURRENT = ["cooperative/spread", "policy.network.kind=gru", "critic.network.kind=gru", "learner.segment=16"]
FOREIGN = [
    "cooperative/spread",
    "env={pettingzoo: 'mpe2.simple_spread_v3:parallel_env', args: {N: 3, max_cycles: 25}, num_envs: 4}",
    "train.env_steps=3000",
]


def concord(*words: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "marl", *map(str, words)], capture_output=True, text=True, timeout=timeout
    )


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
    words = assignments(setting)
    whole = concord("run", *words, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "marl", "run", *words, "--out", str(tmp_path / "cut")], stdout=subprocess.DEVNULL
    )
    stage = tmp_path / "cut" / "checkpoints" / "train"
    while process.poll() is None and not checkpoints(stage):
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = concord("resume", tmp_path / "cut")
    assert resumed.returncode == 0, resumed.stderr
    assert final_tensors(tmp_path / "cut") == final_tensors(tmp_path / "whole")
    reports = [json.loads((tmp_path / name / "report.json").read_text())["metrics"] for name in ("whole", "cut")]
    assert reports[0]["return_per_agent"] == reports[1]["return_per_agent"]
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "cut")]
    assert len(rows[0]) == len(rows[1])


def test_a_checkpoint_cut_short_is_never_loaded(tmp_path: Path) -> None:
    import torch

    save_checkpoint(tmp_path / "000000001", {"x": torch.ones(3)})
    partial = tmp_path / ".000000002.partial"
    partial.mkdir()
    (partial / "tensors.safetensors").write_bytes(b"half")
    assert [p.name for p in checkpoints(tmp_path)] == ["000000001"]
