"""Check of what is given for an actor, and what it is told beside what it sees."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from envs.core import Actor, InputError, Step


@runtime_checkable
class Hears(Protocol):
    """An Actor that is told what its decisions led to, such as a planner whose prompts say what was earned."""

    def hear(self, step: Step) -> None:
        """Consequences of its last decision, in the rows that it was shown."""


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
