"""From the `env` section of a config to a `VectorEnv`."""

from __future__ import annotations

from typing import Any

import torch

from envs.arguments import require_arguments
from envs.core import ConcordError, InputError, Observation, Streams, VectorEnv, import_dotted
from envs.forms import require_form
from envs.world import RandomActor, TensorEnv, Transition, World
from marl.config.schema import EnvConfig
from marl.output.console import in_words


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
        return TensorEnv(make_world(config, config.world), num_envs, time_limit=config.time_limit, device=device)
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
    from marl.training.pettingzoo import pettingzoo_args, pettingzoo_env

    return pettingzoo_env(
        config.pettingzoo,
        pettingzoo_args(config),
        num_envs,
        "env.args",
        device=device,
        workers=min(config.workers, num_envs),
        restart_episodes=restart_episodes,
    )


def make_world(config: EnvConfig, path: str) -> World[Any]:
    """The world, tried for one step before anything is trained in it."""
    maker = import_dotted(path)
    if not callable(maker):
        raise InputError(f"env.world must name a World, module:Class; {path} is a {type(maker).__name__}.")
    args = config.args
    if config.agents is not None:
        from marl.training.number_of_agents import with_agents

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
