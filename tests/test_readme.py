"""What the README shows works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
QUICK = ["evaluation.episodes=16", "evaluation.num_envs=8", "train.env_steps=8000"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def file_names() -> list[str]:
    return re.findall(r"[Pp]ut (?:this|it) into `(\w+\.py)`", README)


@pytest.mark.parametrize("number", [0, 1, 2], ids=["environment", "recipe", "network"])
def test_the_examples_run_as_printed_and_are_short(number: int, tmp_path: Path) -> None:
    code = blocks("python")[number]
    assert len([line for line in code.splitlines() if line.strip()]) <= (
        12 if file_names()[number] == "nets.py" else 40
    )
    (tmp_path / file_names()[number]).write_text(code)
    (tmp_path / "reinforce.yaml").write_text(blocks("yaml")[0])
    commands = re.findall(rf"^concord run .*{file_names()[number][:-3]}.*$", README, re.MULTILINE)
    words = re.findall(r"(?:[^\s']|'[^']*')+", commands[0])[1:]
    words = [word.replace("'", "") for word in words]
    words = [word for word in words if not word.startswith("train.")]
    command = [sys.executable, "-m", "marl", *words, *QUICK, "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "report.json").exists()
    command = [sys.executable, "-m", "marl", "evaluate", "out", "evaluation.episodes=4"]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=120)
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_world_is_handed_to_other_libraries_as_shown() -> None:
    from envs.particles import SimpleSpread
    from envs.pettingzoo import parallel_env

    (call,) = re.findall(r"`(parallel_env\(.*\))`", README)
    env = eval(call, {"parallel_env": parallel_env, "SimpleSpread": SimpleSpread})
    observations, _ = env.reset(seed=0)
    assert set(observations) == set(env.agents)


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}
