"""Returns of a language model that plans alone, enclosed from both sides, in a world whose states can be listed."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs.core import InputError
from envs.tabular import HasTable, Table
from envs.world import World
from marl.output.console import console
from marl.output.report import Metric
from planners.distillation.config import Config
from planners.language.base import LanguageModel
from planners.planning.critic import discount_of
from planners.planning.evaluation import require_first
from planners.planning.exact import earned_once
from planners.planning.tabulated import joint_policy
from planners.read.team import TeamConfig

LEAST = 1e-7  # discounted probability of being in a state at some step, below which the model is not asked there


class Exact:
    """Encloses returns of models by following all that can happen from the start, with its probability.

    A model is asked where it gets with more than `LEAST`; what else may happen earns at least nothing and at most the
    most there is, and what that leaves open is the interval, which is certain. A model that is nearly sure of its plans
    is asked in some hundreds of states out of tens of thousands. Raises InputError for a world whose states cannot be
    listed, whose episodes begin in several of them, or where rewards are below 0.
    """

    def __init__(self, config: Config, world: World[Any]):
        if not isinstance(world, HasTable):
            raise InputError(
                f"distillation.exact follows play through the table of a world, and {type(world).__name__} has none "
                "(envs.tabular.HasTable). Leave it out: episodes are played anyway."
            )
        self.config, self.world = config, world
        with console.status("listing the world's states"):
            self.table: Table = world.table()
        require_first(world, self.table, "distillation.exact")
        if bool((self.table.reward < 0).any()):
            raise InputError(
                f"distillation.exact is for worlds without rewards below 0, and {type(world).__name__} has some. Leave "
                "it out: episodes are played anyway."
            )
        self.discount = discount_of(config)
        self.best = float(self.table.values(self.discount).max())

    def judge(self, model: LanguageModel) -> dict[str, Metric]:
        """Expected returns of the first channel, an agent, from the start, each with its certain interval.

        discounted: J = E[Σ γ^t r_t] without an end, which is what the critic estimates. return: undiscounted, within
        env.time_limit. success: where the goal can be earned but once, and nothing else. asked: states in which the
        model was asked.
        """
        policy = AskedPolicy(self.world, self.table, model, self.config.planner)
        earned, left = follow(self.table, policy, self.discount, None)
        found = {"discounted": enclosed(earned, earned + left * self.best)}
        limit, goal = self.config.env.time_limit, self.config.evaluation.goal
        if limit is not None:
            earned, left = follow(self.table, policy, 1.0, limit)
            found["return"] = enclosed(earned, earned + left * float(self.table.most(limit).max()))
            if goal is not None and earned_once(self.table, goal, limit):
                found["success"] = enclosed(earned / goal, min(1.0, earned / goal + left))
        found["asked"] = Metric.exact(int(policy.known.sum()))
        return {f"exact/{name}": metric for name, metric in found.items()}


class AskedPolicy:
    """A model's probabilities of joint choices, in the states in which it was asked so far; `known` says which."""

    def __init__(self, world: Any, table: Table, model: LanguageModel, config: TeamConfig):
        self.world, self.table, self.model, self.config = world, table, model, config
        self.known = torch.zeros(len(table), dtype=torch.bool)
        self.joint = torch.zeros(table.successor.shape, dtype=torch.float64)

    def ask(self, wanted: Bool[Tensor, " S"]) -> None:
        """Ask the model in those of these states in which it was not."""
        places = (wanted & ~self.known).nonzero().squeeze(1)
        if len(places):
            found = joint_policy(self.world, self.table, self.model, self.config, places)
            self.joint[places] = found.flatten(1)
            self.known[places] = True


def follow(table: Table, policy: AskedPolicy, discount: float, steps: int | None) -> tuple[float, float]:
    """Earnings of play from the start as far as it is followed, and the discounted probability of all that is left.

    It ends after so many steps, or where the rest has less than `LEAST`. Play is left where it gets too rarely.
    """
    place = torch.zeros(len(table), dtype=torch.float64)
    place[0] = 1
    earned, left, weight, step = 0.0, 0.0, 1.0, 0
    while float(place.sum()) * weight > LEAST and step != steps:
        policy.ask(place * weight > LEAST)
        left += weight * float(place[~policy.known].sum())
        flow = place.masked_fill(~policy.known, 0).unsqueeze(1) * policy.joint
        earned += weight * float((flow * table.reward).sum())
        place = _moved(table, flow)
        weight, step = weight * discount, step + 1
    return earned, left + (weight * float(place.sum()) if step != steps else 0.0)


def _moved(table: Table, flow: Float[Tensor, "S J"]) -> Float[Tensor, " S"]:
    """Probabilities of states after a step; what is over is nowhere."""
    after = flow.new_zeros(len(table) + 1).index_add_(0, table.successor.flatten(), flow.flatten())
    return after[: len(table)]


def enclosed(low: float, high: float) -> Metric:
    """A number between two others, for certain: no sample is behind it."""
    return Metric((low + high) / 2, low, high)
