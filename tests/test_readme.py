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


@pytest.mark.parametrize("number", [0, 1], ids=["environment", "recipe"])
def test_the_examples_run_as_printed_and_are_short(number: int, tmp_path: Path) -> None:
    code = blocks("python")[number]
    assert len([line for line in code.splitlines() if line.strip()]) <= 40
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


def test_from_yaml_to_gradient_in_seven_files() -> None:
    """The files that README names are all that a reader needs; each is where it says."""
    path = ["__main__", "algorithms/mappo/__init__", "run", "sources", "learners", "returns", "losses"]
    files = [ROOT / "marl" / f"{name}.py" for name in path]
    assert len(files) <= 7
    text = [file.read_text() for file in files]
    found = [
        ["run_training"],
        ["run.fit(", "OnPolicy(", "ActorCritic("],
        ["learner.update(batch)"],
        ["def rollout("],
        [".backward()", "gae(", "clipped_surrogate("],
        ["def gae("],
        ["def clipped_surrogate("],
    ]
    for file, words in enumerate(found):
        for word in words:
            assert word in text[file], (path[file], word)
