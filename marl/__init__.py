"""The shared actor-critic core and the algorithms that learn in simulation."""

from __future__ import annotations

import atexit
import os
import sys

PACKAGES = ("envs", "marl", "recsys", "planners")


def loaded_modules() -> list[str]:
    """The project's own modules that this process has imported, sorted."""
    return sorted(name for name in list(sys.modules) if name.partition(".")[0] in PACKAGES)


def _record_loaded(path: str) -> None:
    # One write to a file opened for appending: processes that end together do not mix their lines.
    with open(path, "a") as file:
        file.write("".join(f"{name}\n" for name in loaded_modules()))


# `concord claims` asks, through this variable, every process of a command which modules its result rests on.
if "CONCORD_LOADED" in os.environ:
    atexit.register(_record_loaded, os.environ["CONCORD_LOADED"])
