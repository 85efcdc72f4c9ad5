"""The shared actor-critic core and the algorithms that learn in simulation.

`train` and `load` are the command line's `run` and `evaluate` for Python.
"""

from __future__ import annotations

from typing import Any

__all__ = ["load", "train"]


def __getattr__(name: str) -> Any:
    """`train` and `load` are imported when they are asked for: torch takes its time."""
    if name in __all__:
        from marl.commands import python

        return getattr(python, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
