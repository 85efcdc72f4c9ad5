"""Best of n: plans of a language model of which a critic takes the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from envs.core import InputError, Observation
from planners.language.base import LanguageModel, Query
from planners.read.critics import PlanCritic
from planners.read.proposals import propose, take_anything
from planners.read.team import Open, TeamConfig, TeamPlanner


class BestOfNConfig(TeamConfig):
    """One query for several plans."""

    n: int = Field(5, ge=1, description="plans that are proposed for a decision; 1 is the model alone")
    max_tokens: int = Field(128, ge=1, description="tokens of a proposal, at most")


class BestOfN(TeamPlanner):
    """An Actor that takes the plan with the greatest advantage of n that a language model proposes in one query.

    Nothing is sent back, and nothing that was refused is told: what is left of `ReadPlanner` without its loop. Where
    none of the n is a legal plan, it is any plan. Of n = 1 it is the model alone, with the queries of
    `ReadPlanner(critic=None)`. Raises InputError for several plans without a critic, or at temperature 0.
    """

    def __init__(self, world: Any, model: LanguageModel, critic: PlanCritic | None, config: BestOfNConfig):
        super().__init__(world, model, critic, config)
        self.config = config
        if config.n > 1 and (critic is None or config.temperature == 0):
            came = "no critic" if critic is None else "temperature 0, at which they are all the same"
            raise InputError(
                f"The best of n={config.n} plans needs plans that differ and a critic that judges them; got {came}. "
                "Give a critic and a temperature above 0, or set n=1."
            )

    def settle(
        self, asked: Sequence[Open], obs: Observation, before: Bool[Tensor, " N"], given: Bool[Tensor, " N"]
    ) -> None:
        """Ask once, and take the best."""
        baseline = self.worth(asked, [0] * len(asked), obs, before).tolist()
        proposals = propose(self.model, asked, [self._query(one) for one in asked])
        fresh = [(place, plan) for place, found in enumerate(proposals) for plan in found if plan is not None]
        ones, plans = [asked[place] for place, _ in fresh], [plan for _, plan in fresh]
        values = self.worth(ones, plans, obs, given).tolist()
        for (place, plan), one, value in zip(fresh, ones, values, strict=True):
            one.scores[plan] = value - baseline[place]
        for one in asked:
            one.chosen = one.best
            if one.chosen is None:
                take_anything(one)

    def _query(self, one: Open) -> Query:
        """A query for n plans."""
        return Query(
            self.messages(one),
            choices=one.plans,
            n=self.config.n,
            temperature=self.config.temperature,
            max_tokens=self.config.max_tokens,
            seed=one.seed if self.config.temperature else 0,
        )
