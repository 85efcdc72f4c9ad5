"""Environments in which a team is evaluated: which, and how many are stepped together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import torch

from envs.core import EnvSpec, InputError, VectorEnv
from marl.config.schema import EnvConfig, TrainingConfig
from marl.training.environments import make_env, make_world

AGENTS_AT_ONCE = 2**18  # more would be no faster, and take gigabytes


def evaluation_config(config: TrainingConfig) -> EnvConfig:
    """The environment of training, with `evaluation.args` over its arguments, at every depth, and its own time limit.

    Raises InputError for a time limit of environments that have none.
    """
    env, section = config.env, config.evaluation
    if section.time_limit is not None and env.pettingzoo is not None:
        raise InputError(
            "evaluation.time_limit is for native worlds; a PettingZoo environment takes its own in its args."
        )
    limit = env.time_limit if section.time_limit is None else section.time_limit
    return with_args(env, section.args).model_copy(update={"time_limit": limit})


def with_args(env: EnvConfig, args: Mapping[str, Any]) -> EnvConfig:
    """An environment with other arguments over its own, at every depth."""
    return env.model_copy(update={"args": _over(env.args, args)})


def _over(args: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    both = {name: _over(args[name], other) for name, other in others.items() if _are_mappings(args.get(name), other)}
    return {**args, **others, **both}


def _are_mappings(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def make_evaluation_env(
    config: TrainingConfig, num_envs: int | None = None, device: torch.device | str = "cpu"
) -> VectorEnv:
    """Environments to evaluate in, by default as many as `evaluation_rows` says.

    Raises InputError where there are none, and where `evaluation.args` make another task of them.
    """
    args = config.evaluation.args
    if evaluation_config(config) == config.env:
        rows = evaluation_rows(config) if num_envs is None else num_envs
        return make_env(config.env, num_envs=rows, device=device)
    try:
        rows = evaluation_rows(config) if num_envs is None else num_envs
        env = make_env(evaluation_config(config), num_envs=rows, device=device)
    except InputError as error:
        raise InputError(f"In evaluations, with evaluation.args={args}: {error}") from error
    with closing(make_env(config.env, num_envs=1)) as trained:
        if other := differing(trained.spec, env.spec):
            env.close()
            raise InputError(
                f"evaluation.args={args} make another task of env, whose agents, what they see and choose, rewards and "
                f"horizon must stay: {other}."
            )
    return env


def differing(one: EnvSpec, other: EnvSpec) -> str:
    """Fields of two specifications that are not the same, in words; nothing where all are."""
    names = [
        field.name for field in dataclasses.fields(EnvSpec) if getattr(one, field.name) != getattr(other, field.name)
    ]
    return "; ".join(f"{name} were {getattr(one, name)}, are {getattr(other, name)}" for name in names)


def require_effect(config: TrainingConfig, point: Mapping[str, Any]) -> None:
    """Raise InputError for assignments of `env.args` in whose place evaluations of a run have `evaluation.args`."""
    if "env.time_limit" in point and config.evaluation.time_limit is not None:
        raise InputError("env.time_limit changes nothing here: set evaluation.time_limit, which this run has.")
    for name, other in config.evaluation.args.items():
        if f"env.args.{name}" in point or name in (point.get("env.args") or {}):
            raise InputError(
                f"env.args.{name} changes nothing here: evaluations of this run have evaluation.args.{name}={other}; "
                "set that."
            )


def evaluation_rows(config: TrainingConfig) -> int:
    """Number of environments that an evaluation steps together: of large swarms as few as fit `AGENTS_AT_ONCE`.

    Batched rows cost next to nothing, others a copy each.
    """
    rows = min(config.evaluation.num_envs, config.evaluation.episodes)
    if config.env.pettingzoo is not None:
        return min(rows, config.env.num_envs)
    if config.env.world is None:
        return rows
    agents = len(make_world(evaluation_config(config), config.env.world).spec.agents)
    return rows_at_once(rows, agents, config.evaluation.episodes)


def rows_at_once(rows: int, agents: int, episodes: int) -> int:
    """At most `rows`, and at most `AGENTS_AT_ONCE` agents in all, so that rows share the episodes evenly."""
    most = max(1, min(rows, AGENTS_AT_ONCE // agents))
    return rows if most == rows else math.ceil(episodes / math.ceil(episodes / most))
