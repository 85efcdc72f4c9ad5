"""Exact returns and success of a language model that plans alone, in a world whose states can be listed."""

from __future__ import annotations

from typing import Any

from envs.core import InputError
from envs.tabular import HasTable, Table
from envs.world import World
from marl.output.console import console
from marl.output.report import Metric
from planners.distillation.config import Config
from planners.language.base import LanguageModel
from planners.planning.critic import discount_of
from planners.planning.exact import earned_once
from planners.planning.tabulated import joint_policy


class Exact:
    """Judges models by asking them in every state. Raises InputError for a world whose states cannot be listed."""

    def __init__(self, config: Config, world: World[Any]):
        if not isinstance(world, HasTable):
            raise InputError(
                f"distillation.exact asks a model in every state of its world, and {type(world).__name__} has no table "
                "(envs.tabular.HasTable). Leave it out: episodes are played anyway."
            )
        self.config, self.world = config, world
        with console.status("listing the world's states"):
            self.table: Table = world.table()

    def judge(self, model: LanguageModel) -> dict[str, Metric]:
        """Expected returns of the first channel, an agent, from the start.

        discounted: J = E[Σ γ^t r_t] without an end, which is what the critic estimates. return: undiscounted, within
        env.time_limit. success: where the goal can be earned but once, and nothing else.
        """
        policy = joint_policy(self.world, self.table, model, self.config.planner).flatten(1)
        found = {"discounted": float(self.table.evaluate(policy, discount_of(self.config))[0])}
        limit, goal = self.config.env.time_limit, self.config.evaluation.goal
        if limit is not None:
            found["return"] = float(self.table.within(policy, limit)[0])
            if goal is not None and earned_once(self.table, goal, limit):
                found["success"] = found["return"] / goal
        return {f"exact/{name}": Metric.exact(value) for name, value in found.items()}
