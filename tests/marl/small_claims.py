"""Entries of claims.yaml and a small repository with them, for the tests of claims and of their measurement."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from marl.claims.entries import Claim

REPOSITORY = Path(__file__).resolve().parents[2]
ENTRY: dict[str, Any] = {
    "id": "core/speed",
    "claim": "It is fast.",
    "command": "concord bench step",
    "metric": "step/16/calibrated",
    "bar": ">= 120000",
    "tier": "quick",
    "seeds": 1,
    "minutes": 1,
    "measured": None,
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MEASURED = {"value": 1.5, "date": "2026-01-31", "commit": COMMIT, "machine": "x"}
TEST = {**ENTRY, "id": "core/exact", "command": "pytest tests/test_toy.py", "metric": "passed", "bar": "== 1"}
SYSTEMS = {"core": ["envs", "marl/learn.py"], "bnpg": ["marl/graphs.py"]}
PAGE = "# Claims\n\n<!-- claims: core/ -->\n<!-- /claims -->\n"


def make_root(folder: Path, *entries: dict[str, Any]) -> Path:
    """A small repository with these claims."""
    files = {
        "benchmarks/claims.yaml": yaml.safe_dump(list(entries)),
        "benchmarks/systems.yaml": yaml.safe_dump(SYSTEMS, sort_keys=False),
        "docs/claims.md": PAGE,
        "marl/__init__.py": "",
        "marl/learn.py": "rate = 1",
        "marl/graphs.py": "edges = 1",
        "envs/__init__.py": "",
        "tests/test_toy.py": "def test_true():\n    assert True\n",
        ".gitignore": "__pycache__/\n.pytest_cache/\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def commit(root: Path, message: str = "Change") -> str:
    """Commit everything in a repository, which is made if there is none; gives the commit."""
    author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    if not (root / ".git").exists():
        git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, *author, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(root, "rev-parse", "HEAD").strip()


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True).stdout


def claim(**fields: Any) -> Claim:
    return Claim.model_validate({**ENTRY, **fields})
