"""Worlds made from the names that a config has for them, for worlds around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envs.arguments import require_arguments
from envs.core import InputError, import_dotted
from envs.world import World


def inner_world(world: Any, args: Any) -> World[Any]:
    """The World module:Class with these arguments by name. Raises InputError for what makes none."""
    if not isinstance(world, str):
        raise InputError(f"env.args.world must name a World, module:Class; got {world!r}.")
    if not isinstance(args, Mapping | None):
        raise InputError(f"env.args.args are arguments by name; got {args!r}.")
    maker = import_dotted(world)
    given = dict(args or {})
    if not callable(maker):
        raise InputError(f"env.args.world must name a World, module:Class; {world} is a {type(maker).__name__}.")
    require_arguments(maker, given, "env.args.args")
    inner = maker(**given)
    if not isinstance(inner, World):
        raise InputError(f"env.args.world must name a World, module:Class; {world} gave a {type(inner).__name__}.")
    return inner
