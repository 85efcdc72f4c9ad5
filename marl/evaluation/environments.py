"""Environments in which a team is evaluated: which, and how many are stepped together."""

from __future__ import annotations

import math

import torch

from envs.core import InputError, VectorEnv
from marl.config.schema import EnvConfig, TrainingConfig
from marl.training.environments import make_env, make_world

AGENTS_AT_ONCE = 2**18  # more would be no faster, and take gigabytes


def evaluation_config(config: TrainingConfig) -> EnvConfig:
    """The environment of training, with `evaluation.args` over its arguments."""
    return config.env.model_copy(update={"args": {**config.env.args, **config.evaluation.args}})


def make_evaluation_env(
    config: TrainingConfig, num_envs: int | None = None, device: torch.device | str = "cpu"
) -> VectorEnv:
    """Environments to evaluate in, by default as many as `evaluation_rows` says.

    Raises InputError where there are none, and where `evaluation.args` make another task of them.
    """
    rows = evaluation_rows(config) if num_envs is None else num_envs
    env = make_env(evaluation_config(config), num_envs=rows, device=device)
    if config.evaluation.args:
        trained = make_env(config.env, num_envs=1)
        trained.close()
        if trained.spec != env.spec:
            env.close()
            raise InputError(
                f"evaluation.args={config.evaluation.args} make another task of env: agents, what they see, what they "
                f"choose, rewards and horizon must stay. Trained: {trained.spec}. Evaluated: {env.spec}."
            )
    return env


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
