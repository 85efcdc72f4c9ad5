"""The house: what exists once, how far it is from a config to a gradient, and that every room stays small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from marl.__main__ import main

ROOT = Path(__file__).parent.parent
PACKAGES = ("envs", "marl", "recsys", "planners")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
SMALL = ["env.num_envs=2", "learner.steps=8", "train.env_steps=16", "evaluation.episodes=2", "device=cpu"]


def test_the_core_exists_once() -> None:
    """One rollout, one GAE, one clipped surrogate, one training loop in the whole repository."""
    sources = [path.read_text() for path in SOURCES]
    wanted = [rf"^\s*def {name}\(" for name in ("rollout", "gae", "clipped_surrogate")]
    # Run.fit is the one loop: nobody else asks a learner to update.
    for pattern in [*wanted, r"= self\.learner\.update\(batch\)"]:
        assert sum(len(re.findall(pattern, source, re.MULTILINE)) for source in sources) == 1, pattern


def test_from_yaml_to_gradient_in_nine_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    for owner, name in ((yaml, "load"), (torch, "min"), (torch.autograd, "grad")):
        spied(owner, name)  # torch.min is the heart of the clipped surrogate
    quick = ["evaluation.film_episodes=0", "evaluation.twin=null", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["concord", "run", "cooperative/spread", *SMALL, *quick])
    with pytest.raises(SystemExit, match="0"):
        main()
    files = sorted(Path(name).relative_to(ROOT / "marl").as_posix() for name in read if name.startswith("/"))
    assert "learning/losses.py" in files
    assert len(files) <= 9, files


def test_little_is_imported_before_the_first_gradient(tmp_path: Path) -> None:
    """Training imports no reports, sweeps, tables or claims."""
    program = f"""
import os, sys, torch
def told(*given, **options):
    print("MODULES", *sorted(m.__file__ for m in list(sys.modules.values())
                             if m.__name__.partition(".")[0] in {PACKAGES} and getattr(m, "__file__", None)))
    sys.stdout.flush()
    os._exit(0)
torch.autograd.grad = told
from marl.__main__ import main
sys.argv = ["concord", "run", "cooperative/spread", "evaluation.twin=null", *{SMALL}, "--out", {str(tmp_path / "x")!r}]
main()
"""
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    (line,) = [line for line in answer.stdout.splitlines() if line.startswith("MODULES")]
    files = [Path(name) for name in line.split()[1:]]
    names = {file.relative_to(ROOT).as_posix() for file in files}
    assert not any(
        word in name for name in names for word in ("sweep", "claims", "recsys", "tables", "vmas", "workers")
    )
    lines = sum(len(file.read_text().splitlines()) for file in files)
    assert lines <= 6000, sorted(names)


def test_no_hook_of_a_recipe_is_probed() -> None:
    """A recipe's hooks have defaults, so nobody asks which it has."""
    probed = re.compile(r"(has|get)attr\(recipe\b|(has|get)attr\(.*load_recipe")
    assert [path for path in SOURCES if probed.search(path.read_text())] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_functions_and_signatures_are_short(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 450
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len([a for a in given if a.arg not in ("self", "cls")]) <= 10, node.name
