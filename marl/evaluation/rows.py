"""How many environments an evaluation steps together."""

from __future__ import annotations

import math

from marl.config.schema import TrainingConfig
from marl.training.environments import make_world

AGENTS_AT_ONCE = 2**18  # more would be no faster, and take gigabytes


def evaluation_rows(config: TrainingConfig) -> int:
    """Number of environments that an evaluation steps together: of large swarms as few as fit `AGENTS_AT_ONCE`."""
    if config.env.world is None:
        return config.evaluation_envs
    agents = len(make_world(config.env, config.env.world).spec.agents)
    return rows_at_once(config.evaluation_envs, agents, config.evaluation.episodes)


def rows_at_once(rows: int, agents: int, episodes: int) -> int:
    """At most `rows`, and at most `AGENTS_AT_ONCE` agents in all, so that rows share the episodes evenly."""
    most = max(1, min(rows, AGENTS_AT_ONCE // agents))
    return rows if most == rows else math.ceil(episodes / math.ceil(episodes / most))
