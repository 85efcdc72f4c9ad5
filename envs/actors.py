"""Check of what is given for an actor."""

from __future__ import annotations

from typing import Any

from envs.core import Actor, InputError


def require_actor(actor: Any, name: str) -> None:
    """Raise InputError unless this is an Actor; `name` says what it was given for."""
    if isinstance(actor, type):
        kind, hint = f"the class {actor.__name__}", f"Make one, {actor.__name__}(…)."
    elif isinstance(actor, Actor):
        return
    else:
        kind = f"a {type(actor).__name__}"
        hint = "A function of (obs, streams) that gives actions becomes one by envs.world.Scripted(function)."
    raise InputError(
        f"{name} must be an Actor (envs.core.Actor), an object with initial_memory(num_envs) and act(obs, memory, "
        f"streams); got {kind}. {hint}"
    )
