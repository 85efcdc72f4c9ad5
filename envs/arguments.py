"""Check of the arguments that a config has for a function."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from envs.core import InputError


def require_arguments(function: Callable[..., Any], args: dict[str, Any], section: str) -> None:
    """Raise InputError, with the right names, for arguments that `function` does not take or lacks."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    name = getattr(function, "__name__", str(function))
    named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [p.name for p in named]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for unknown in [name for name in args if name not in names]:
            near = difflib.get_close_matches(unknown, names, 1)
            hint = f"Did you mean {section}.{near[0]}?" if near else f"{name} takes: {', '.join(names) or 'nothing'}."
            raise InputError(f"Unknown key {section}.{unknown}. {hint}")
    missing = [p.name for p in named if p.default is p.empty and p.name not in args]
    if missing:
        raise InputError(f"{section}.{missing[0]} is missing: {name} needs it.")
