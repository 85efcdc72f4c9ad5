"""From the `env` section of a config to a `VectorEnv`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch

from envs.core import InputError, VectorEnv, import_dotted
from envs.world import TensorEnv, World
from marl.config import EnvConfig


def make_env(
    config: EnvConfig,
    *,
    num_envs: int | None = None,
    device: torch.device | str = "cpu",
    restart_episodes: bool = False,
) -> VectorEnv:
    """The environments that the config asks for, `num_envs` where given. Raises InputError for what is no world."""
    num_envs = num_envs or config.num_envs
    if config.world is not None:
        world = call_with(import_dotted(config.world), config.args, "env.args")
        if not isinstance(world, World):
            raise InputError(
                f"env.world must name a World (see envs.world.World); {config.world} gave a {type(world).__name__}."
            )
        return TensorEnv(world, num_envs, time_limit=config.time_limit, device=device)
    assert config.pettingzoo is not None
    return pettingzoo_env(
        config.pettingzoo,
        config.args,
        num_envs,
        device=device,
        workers=min(config.workers, num_envs),
        restart_episodes=restart_episodes,
    )


def pettingzoo_env(path: str, args: dict[str, Any], num_envs: int, **options: Any) -> VectorEnv:
    """E copies of the PettingZoo environment that `path(**args)` makes; wrong arguments are told before any is made."""
    from envs.pettingzoo import PettingZooEnv  # imports gymnasium, which takes a while

    function = import_dotted(path)
    if inspect.isfunction(function) and not inspect.getfullargspec(function).args:
        # By PettingZoo's convention env(**kwargs) and parallel_env(**kwargs) pass them on to raw_env, which names them.
        function = getattr(import_dotted(path.partition(":")[0]), "raw_env", function)
    require_arguments(function, args, "args")
    # Workers get the path: a function of this module would make them import torch.
    return PettingZooEnv(path, num_envs, options=args, **options)


def call_with(function: Callable[..., Any], args: dict[str, Any], section: str) -> Any:
    """`function(**args)`; a wrong argument name is an InputError that tells the right ones."""
    require_arguments(function, args, section)
    return function(**args)


def require_arguments(function: Callable[..., Any], args: dict[str, Any], section: str) -> None:
    """Raise InputError, with the right names, for arguments that `function` does not take or lacks."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [p.name for p in named]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for unknown in [name for name in args if name not in names]:
            near = difflib.get_close_matches(unknown, names, 1)
            hint = f"Did you mean {section}.{near[0]}?" if near else f"It takes: {', '.join(names) or 'nothing'}."
            raise InputError(f"Unknown key {section}.{unknown}. {hint}")
    missing = [p.name for p in named if p.default is p.empty and p.name not in args]
    if missing:
        raise InputError(f"{section}.{missing[0]} is missing: {getattr(function, '__name__', function)} needs it.")
