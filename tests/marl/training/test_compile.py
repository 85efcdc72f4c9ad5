"""Compiled methods are the plain ones, whatever else was compiled in the same process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "compiled_twice.py"


def test_owners_of_one_process_are_each_compiled_with_their_own_constants() -> None:
    root = Path(__file__).parents[3]
    answer = subprocess.run(
        [sys.executable, PROGRAM],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (root, root / "tests")))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
