"""Versions, machine and revision, on which a result may depend."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path


def versions() -> dict[str, str]:
    """Versions of Python and packages, the machine and the revision, on which the result may depend."""
    found = {"python": platform.python_version(), "machine": machine()}
    for package in ("concord-rl", "torch", "numpy", "polars", "pettingzoo", "mpe2", "vmas"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    revision = _revision()
    return {**found, "revision": revision} if revision else found


def machine() -> str:
    """Processor family and cores, without anything that names the computer."""
    return f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores"


def _revision() -> str | None:
    here = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
