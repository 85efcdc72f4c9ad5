"""What the README shows works as it stands there."""

import re
import subprocess
import sys
import tomllib
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from marl.__main__ import main

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


def test_the_core_exists_once() -> None:
    """One rollout, one GAE, one clipped surrogate, one training loop in the whole repository."""
    packages = ("envs", "marl", "recsys", "planners")
    sources = [path.read_text() for package in packages for path in (ROOT / package).rglob("*.py")]
    wanted = [rf"^\s*def {name}\(" for name in ("rollout", "gae", "clipped_surrogate")]
    # Run.fit is the one loop: nobody else asks a learner to update.
    for pattern in [*wanted, r"= learner\.update\(batch\)"]:
        assert sum(len(re.findall(pattern, source, re.MULTILINE)) for source in sources) == 1, pattern


def test_from_yaml_to_gradient_in_seven_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's files on the call stacks of a real run where the YAML is read, the loss taken, and its gradient."""
    read: set[str] = set()

    def spied(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def spy(*given: Any, **options: Any) -> Any:
            if not read & {f"after {name}"}:
                read.update(f.filename for f in traceback.extract_stack() if f.filename.startswith(str(ROOT / "marl")))
                read.add(f"after {name}")
            return function(*given, **options)

        monkeypatch.setattr(owner, name, spy)

    for owner, name in ((yaml, "load"), (torch, "min"), (torch.Tensor, "backward")):
        spied(owner, name)  # torch.min is the heart of the clipped surrogate
    small = ["env.num_envs=2", "learner.steps=8", "train.env_steps=16", "evaluation.episodes=2", "device=cpu"]
    quick = ["evaluation.film_episodes=0", "evaluation.twin=null", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["concord", "run", "cooperative/spread", *small, *quick])
    with pytest.raises(SystemExit, match="0"):
        main()
    files = sorted(Path(name).relative_to(ROOT / "marl").as_posix() for name in read if name.startswith("/"))
    wanted = ["__main__", "algorithms/mappo/__init__", "config", "learners", "losses", "run", "training"]
    assert files == [f"{name}.py" for name in wanted]


def test_every_package_is_installed() -> None:
    """A folder of modules that the build file does not list would be missing from a wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    tops = ("envs", "marl", "recsys", "planners")
    found = {str(p.parent.relative_to(ROOT)).replace("/", ".") for top in tops for p in (ROOT / top).rglob("*.py")}
    assert found == {name for name in listed if not name.startswith("marl.configs")}
