"""`env.agents`: the number of agents, whatever an environment calls it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from envs.core import InputError
from marl.config.schema import EnvConfig

NUMBER_OF_AGENTS = ("agents", "num_agents", "n_agents", "N")  # what functions call it, the likeliest first


def with_agents(function: Callable[..., Any], config: EnvConfig) -> dict[str, Any]:
    """`env.args` with `env.agents` under the name that `function` has for it.

    Raises InputError for a function that has no such argument, and for two different numbers.
    """
    names = [p.name for p in _named(function)]
    known = [name for name in NUMBER_OF_AGENTS if name in names]
    title = getattr(function, "__name__", str(function))
    if not known:
        raise InputError(
            f"env.agents says how many agents there are, and {title} has no argument for that, none of "
            f"{', '.join(NUMBER_OF_AGENTS)}. It takes: {', '.join(names) or 'nothing that it names'}."
        )
    if config.args.get(known[0], config.agents) != config.agents:
        raise InputError(
            f"{title} calls the number of agents {known[0]}: env.agents={config.agents} and "
            f"env.args.{known[0]}={config.args[known[0]]} are two of them. Set env.args.{known[0]} alone."
        )
    rest = {name: value for name, value in config.args.items() if name != "agents"}
    return {**rest, known[0]: config.agents}


def _named(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The arguments that a function names; none where it cannot be asked."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
