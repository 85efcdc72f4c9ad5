"""Entries of claims.yaml and a small repository with them, for the tests of claims and of their measurement."""

from __future__ import annotations

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
MEASURED = {"value": 1.5, "date": "2026-01-31", "versions": {"torch": "2"}, "machine": "x", "digest": "0"}
TEST = {**ENTRY, "id": "core/exact", "command": "pytest tests/test_toy.py", "metric": "passed", "bar": "== 1"}


def make_root(folder: Path, *entries: dict[str, Any]) -> Path:
    """A small repository with these claims."""
    for name, text in (
        ("benchmarks/claims.yaml", yaml.safe_dump(list(entries))),
        ("marl/__init__.py", ""),
        ("marl/learn.py", "rate = 1"),
        ("marl/claims.py", "nothing = 1"),
        ("envs/__init__.py", ""),
        ("tests/test_toy.py", "def test_true():\n    assert True\n"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def claim(**fields: Any) -> Claim:
    return Claim.model_validate({**ENTRY, **fields})
