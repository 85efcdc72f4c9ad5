"""What README and docs show works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import marl

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CORE = (ROOT / "docs" / "core.md").read_text()
QUICK = ["evaluation.episodes=16", "evaluation.num_envs=8", "train.env_steps=8000"]
NAMED = re.compile(
    r"[Pp]ut (?:this|it) into `(\w+\.py)`[^`]*```python\n(.*?)```.*?```\n(concord run [^\n]*)", re.DOTALL
)
EXAMPLES = {name: (code, command) for text in (README, CORE) for name, code, command in NAMED.findall(text)}
LONGEST = {"meeting.py": 26, "reinforce.py": 40, "nets.py": 12}  # lines that are not blank


@pytest.mark.parametrize("name", LONGEST)
def test_the_examples_run_as_printed_and_are_short(name: str, tmp_path: Path) -> None:
    code, shown = EXAMPLES[name]
    assert len([line for line in code.splitlines() if line.strip()]) <= LONGEST[name]
    assert ".flatten(" not in code or name == "nets.py"
    (tmp_path / name).write_text(code)
    words = [word.replace("'", "") for word in re.findall(r"(?:[^\s']|'[^']*')+", shown)[1:]]
    words = [word for word in words if not word.startswith("train.")]
    twin = [] if "twin" in shown or "climbing" in shown else ["evaluation.twin=null", "evaluation.film_episodes=0"]
    concord(["run", *words[1:], *QUICK, *twin, "--out", "out"], tmp_path)
    assert (tmp_path / "out" / "report.json").exists()
    concord(["evaluate", "out", "evaluation.episodes=4"], tmp_path)


def concord(words: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "marl", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_python_s_five_lines_train_quietly_and_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import load, train" in block
    )
    small = {"train.env_steps": 4096, "evaluation.episodes": 8, "evaluation.film_episodes": 0, "evaluation.twin": None}

    def train(config: str, **settings: Any) -> Any:
        return given(config, **{**settings, **small})

    given = marl.train
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(marl, "train", train, raising=False)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(capsys.readouterr().out.splitlines()) == 1, "what the example itself prints"
    obs = names["world"].reset(seed=0)
    assert names["actor"].initial_memory(len(obs.alive)) is None
    assert (names["result"].folder / "report.json").exists()


def test_an_actor_of_one_s_own_is_scored_as_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", CORE, re.DOTALL) if "class Still" in block)
    small = {"train.env_steps": 4096, "evaluation.episodes": 8, "evaluation.film_episodes": 0, "evaluation.twin": None}
    folder = tmp_path / "run"
    marl.train("cooperative/spread", out=folder, **small)  # type: ignore[arg-type]
    capsys.readouterr()
    exec(code.replace("runs/DIR", str(folder)), {})
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_world_is_handed_to_other_libraries_as_shown() -> None:
    from envs.particles import SimpleSpread
    from envs.pettingzoo import parallel_env

    (call,) = re.findall(r"`(parallel_env\(.*\))`", README)
    env = eval(call, {"parallel_env": parallel_env, "SimpleSpread": SimpleSpread})
    observations, _ = env.reset(seed=0)
    assert set(observations) == set(env.agents)


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(README.splitlines()) <= 160


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([\w./-]+\.\w+)(?:#[\w-]+)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
