"""From the `env` section of a config to a `VectorEnv`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from envs.arguments import require_arguments
from envs.core import ConcordError, EnvSpec, InputError, Observation, Streams, VectorEnv, import_dotted
from envs.forms import require_form
from envs.world import RandomActor, TensorEnv, Transition, World
from marl.config.schema import EnvConfig, TrainingConfig
from marl.output.console import in_words

NUMBER_OF_AGENTS = ("agents", "num_agents", "n_agents", "N")  # what functions call it, the likeliest first
AGENTS_AT_ONCE = 2**18  # in an evaluation: more would be no faster, and take gigabytes


def make_env(
    config: EnvConfig,
    *,
    num_envs: int | None = None,
    device: torch.device | str = "cpu",
    restart_episodes: bool = False,
) -> VectorEnv:
    """The environments that the config asks for, `num_envs` where given.

    Raises InputError for what is no world, for arguments of which none can be made, and for episodes that never end.
    """
    num_envs = config.num_envs if num_envs is None else num_envs
    if config.vmas is not None and config.agents is not None:
        raise InputError(
            "A scenario of VMAS has a name of its own for the number of its agents, such as env.args.n_agents; set "
            "that one instead of env.agents."
        )
    if config.world is not None:
        return TensorEnv(_world(config, config.world), num_envs, time_limit=config.time_limit, device=device)
    if config.vmas is not None:
        from envs.vmas import VmasEnv  # few need it

        return VmasEnv(
            config.vmas,
            num_envs,
            device=device,
            time_limit=config.time_limit,
            options=config.args,
            restart_episodes=restart_episodes,
        )
    assert config.pettingzoo is not None
    return pettingzoo_env(
        config.pettingzoo,
        pettingzoo_args(config),
        num_envs,
        "env.args",
        device=device,
        workers=min(config.workers, num_envs),
        restart_episodes=restart_episodes,
    )


def _world(config: EnvConfig, path: str) -> World[Any]:
    """The world, tried for one step before anything is trained in it."""
    maker = import_dotted(path)
    if not callable(maker):
        raise InputError(f"env.world must name a World, module:Class; {path} is a {type(maker).__name__}.")
    args = with_agents(maker, config)
    require_arguments(maker, args, "env.args")
    try:
        world = maker(**args)
        first = _first_step(world) if isinstance(world, World) else None
    except ConcordError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} with env.args={args} cannot be made, or not be played for a step: {in_words(error)}"
        ) from error
    if first is None:
        raise InputError(f"env.world must name a World (see envs.world.World); {path} gave a {type(world).__name__}.")
    # A world that may terminate is believed: whether it ever does, only playing could tell.
    if config.time_limit is None and world.spec.horizon is None and first.terminated is None:
        raise InputError(
            f"Episodes of {path} never end: it has no horizon, and its transition never terminates. Give them an end, "
            "such as env.time_limit=100."
        )
    return world


def _first_step(world: World[Any]) -> Transition:
    """One step of random play, after which every row starts anew. Raises InputError where its form is another."""
    rows = 3 if len(world.spec.agents) == 2 else 2  # an axis of rows is told from one of agents by its length
    env, generator = TensorEnv(world, rows, time_limit=1), torch.Generator().manual_seed(0)
    decision, _ = RandomActor(env.spec).act(env.reset(0), None, Streams([0]))
    env.step(decision.action)
    state = world.initial(world.initial_noise(rows, generator))
    require_form(world, world.observe(state), Observation, rows, env.device, exact=True)
    first = world.transition(state, decision.action, world.noise(rows, generator))
    require_form(world, first, Transition, rows, env.device, exact=True)
    return first


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


def with_agents(function: Callable[..., Any], config: EnvConfig) -> dict[str, Any]:
    """`env.args` with `env.agents` under the name that `function` has for it.

    Raises InputError for a function that has no such argument, and for two different numbers.
    """
    if config.agents is None:
        return config.args
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


def evaluation_rows(config: TrainingConfig) -> int:
    """Number of environments that an evaluation steps together: of large swarms as few as fit `AGENTS_AT_ONCE`."""
    if config.env.world is None:
        return config.evaluation_envs
    agents = len(_world(config.env, config.env.world).spec.agents)
    return rows_at_once(config.evaluation_envs, agents, config.evaluation.episodes)


def rows_at_once(rows: int, agents: int, episodes: int) -> int:
    """At most `rows`, and at most `AGENTS_AT_ONCE` agents in all, so that rows share the episodes evenly."""
    most = max(1, min(rows, AGENTS_AT_ONCE // agents))
    return rows if most == rows else math.ceil(episodes / math.ceil(episodes / most))
