"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch
from pathlib import Path
from marl.commands.allocator import keep_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.ones(8).sum()
before = resident()
x = [torch.ones(4 * 2**20) for _ in range(10)]  # 16 MB each
del x
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_what_is_freed_stays_resident() -> None:
    def kept(how: str) -> float:
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert kept("leave") < 80 < kept("keep")
