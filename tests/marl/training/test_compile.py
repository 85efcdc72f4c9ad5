"""Compiled methods are the plain ones, whatever else was compiled in the same process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run_program(name: str, *arguments: str, seconds: int) -> None:
    """Run a program of tests/marl in a process whose shapes nobody checks: such checks cannot be compiled."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    answer = subprocess.run(
        [sys.executable, ROOT / "tests" / "marl" / name, *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert answer.returncode == 0, answer.stderr


def test_owners_of_one_process_are_each_compiled_with_their_own_constants() -> None:
    run_program("compiled_twice.py", seconds=120)


@pytest.mark.slow
@pytest.mark.parametrize("shown", ["descent", "rollout", "resume", "alone"])
def test_what_the_compiler_makes_is_what_it_was_given(shown: str) -> None:
    run_program("compiled_for_real.py", shown, seconds=900)
