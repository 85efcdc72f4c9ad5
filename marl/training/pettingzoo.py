"""From the `env` section of a config to PettingZoo environments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from envs.arguments import require_arguments
from envs.core import ConcordError, EnvSpec, InputError, VectorEnv, import_dotted
from marl.config.schema import EnvConfig
from marl.training.number_of_agents import with_agents


def pettingzoo_env(path: str, args: dict[str, Any], num_envs: int, section: str = "args", **options: Any) -> VectorEnv:
    """E copies of the PettingZoo environment that `path(**args)` makes; wrong arguments are told before any is made.

    section: the arguments' place in the config, for messages.
    """
    from envs.pettingzoo import PettingZooEnv  # imports gymnasium, which takes a while

    require_arguments(_maker(path), args, section)
    with _made(path, args, section):
        # Workers get the path: a function of this module would make them import torch.
        return PettingZooEnv(path, num_envs, options=args, **options)


def pettingzoo_spec(path: str, args: dict[str, Any], section: str) -> EnvSpec:
    """Specification of the PettingZoo environment that `path(**args)` makes; see `pettingzoo_env`."""
    from envs.pettingzoo.spec import spec_of

    require_arguments(_maker(path), args, section)
    with _made(path, args, section):
        return spec_of(import_dotted(path), args)


@contextmanager
def _made(path: str, args: dict[str, Any], section: str) -> Iterator[None]:
    """Within, whatever keeps an environment from being made is bad input."""
    try:
        yield
    except InputError:
        raise
    except ConcordError as error:
        raise InputError(f"{path} cannot be made with {section}={args}: {error}") from error


def _maker(path: str) -> Callable[..., Any]:
    """Function that names the arguments of a PettingZoo environment. Raises InputError where there is none to call."""
    function = import_dotted(path)
    if not callable(function):
        kind = type(function).__name__
        raise InputError(
            f"Expected a function that makes a PettingZoo environment, module:function; {path} is a {kind}."
        )
    if inspect.isfunction(function) and not inspect.getfullargspec(function).args:
        # By PettingZoo's convention env(**kwargs) and parallel_env(**kwargs) pass them on to raw_env, which names them.
        function = getattr(import_dotted(path.partition(":")[0]), "raw_env", function)
    made: Callable[..., Any] = function
    return made


def pettingzoo_args(config: EnvConfig) -> dict[str, Any]:
    """The arguments of `env.pettingzoo`, the number of agents among them where `env.agents` says it."""
    assert config.pettingzoo is not None
    return config.args if config.agents is None else with_agents(_maker(config.pettingzoo), config)
