"""Planners in words: who is asked for which plan, and what the plans that are chosen make the agents do."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from envs.core import Decision, InputError, Observation, Streams, Tree
from marl.config.schema import Section
from marl.learning.batch import take_rows
from marl.models.action_critic import only_choice
from planners.language.base import LanguageModel, Message, Query, Scores
from planners.read.critics import PlanCritic
from planners.read.phrases import Phrasebook, Phrases
from planners.read.prior import choice_shares, conditionals, log_shares, require_scores, score_all
from planners.read.prompts import Refused, ask_all, ask_one, joint_plans

COUNTS = (
    "queries",
    "asked",
    "proposals",
    "sent_back",
    "illegal",
    "nothing_acceptable",
    "tokens_read",
    "tokens_written",
    "seconds",  # that answers took, of those that were asked for
)


class TeamConfig(Section):
    """The plans that are asked for, and of whom."""

    mode: Literal["sequential", "joint"] = Field(
        "sequential", description="sequential: one agent after the other (ReAd-S); joint: all at once (ReAd-J)"
    )
    plans: Literal["all", "steps"] = Field("all", description="what may be planned: all plans, or single steps")
    temperature: float = Field(1.0, ge=0, description="of the model's sampling")


@dataclass(eq=False)
class Open:
    """A decision in one row. plans, actions: what may be proposed, and what the agents given then do.

    names, own: agents who decide, and the plans of each. decided: what those before them will do. seed: of its random
    numbers. proposed: in order, what the model wrote and the number of the plan that it means, None for what is none.
    scores: advantages of the plans that were proposed. chosen: number of the plan taken. told: the model's
    log-probabilities of the plans, where it was asked for them. policy: by which probabilities a plan was drawn, where
    the planner draws one. behavior: with each plan, probabilities of the choices of the agents given, each after those
    before it, where the critic needs them.
    """

    row: int
    seed: int
    words: str
    names: tuple[str, ...]
    own: tuple[tuple[str, ...], ...]
    decided: tuple[str, ...]
    plans: tuple[str, ...]
    actions: Int[Tensor, "plans N 1"]
    proposed: list[tuple[str, int | None]] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)
    chosen: int | None = None
    told: Scores | None = None
    policy: Float[Tensor, " plans"] | None = None
    behavior: Float[Tensor, "plans N A"] | None = None
    counts: dict[str, int | float] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))

    @property
    def best(self) -> int | None:
        """The best plan so far, of equals the first in the list; None where none was scored."""
        return max(self.scores, key=lambda plan: (self.scores[plan], -plan), default=None)

    def left(self, repeats: bool) -> list[int]:
        """Numbers of the plans that may still be proposed."""
        return [plan for plan in range(len(self.plans)) if repeats or plan not in self.scores]


class TeamPlanner(ABC):
    """An Actor whose plans a language model and a critic choose, one agent after the other, or for all at once.

    A subclass defines `settle`. world: one that describes itself (`envs.core.Describes`). critic: None for a planner
    that goes without. With one that needs the model's probabilities of what the agents choose, the model scores the
    plans of each decision once, whatever is asked beside that; raises InputError for a model that cannot. latest: by
    row of the last `act`, its decisions in the order of the agents.
    """

    reads_scores = False  # whether `settle` needs `Open.told`, critic or no critic

    def __init__(self, world: Any, model: LanguageModel, critic: PlanCritic | None, config: TeamConfig):
        self.phrasebook = Phrasebook(world, config.plans)
        self.agents = self.phrasebook.agents
        require_model(model)
        require_critic(critic)
        self.model, self.critic = model, critic
        self.joint, self.temperature = config.mode == "joint", config.temperature
        self.latest: list[list[Open]] = []
        self.choices = only_choice(world.spec.action)
        self.weighs_behavior = critic is not None and critic.needs_behavior
        if self.weighs_behavior:
            instead = "take a critic that needs none, such as one fitted to a PrefixCritic"
            require_scores(model, "A critic that needs the probabilities of what agents choose", instead)

    @abstractmethod
    def settle(
        self, asked: Sequence[Open], obs: Observation, before: Bool[Tensor, " N"], given: Bool[Tensor, " N"]
    ) -> None:
        """Choose a plan for each decision. before, given: agents whose choices are known without it, and with it."""

    def initial_memory(self, num_envs: int) -> Tree:
        """None: nothing is remembered."""
        return None

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Plan for all rows. `counts` tells by row what that took; see `COUNTS`."""
        rows, agents = obs.alive.shape
        seeds = streams.draw(_seeds, rows).tolist()
        phrases = self.phrasebook.of(obs)
        action = torch.zeros(rows, agents, 1, dtype=torch.int64)
        behavior = torch.zeros(rows, agents, self.choices)
        decided: list[tuple[str, ...]] = [()] * rows
        counts = torch.zeros(rows, len(COUNTS), dtype=torch.float64)
        given = torch.zeros(agents, dtype=torch.bool)
        self.latest = [[] for _ in range(rows)]
        for agent in range(1 if self.joint else agents):
            before, given = given, given.clone()
            given[slice(None) if self.joint else agent] = True
            asked = [
                self._joint(row, seeds[row], phrases[row])
                if self.joint
                else self._single(row, seeds[row], phrases[row], agent, action[row], decided[row])
                for row in range(rows)
                if (any(phrases[row].plans) if self.joint else phrases[row].plans[agent])
            ]
            for one in asked:
                if len(one.plans) == 1:
                    one.chosen = 0  # nothing to ask
            self._weigh(asked, agent, behavior)
            self.settle([one for one in asked if one.chosen is None], obs, before, given)
            for one in asked:
                assert one.chosen is not None
                self.latest[one.row].append(one)
                action[one.row] = one.actions[one.chosen]
                if one.behavior is not None:
                    behavior[one.row] = one.behavior[one.chosen]
                decided[one.row] = (*one.decided, f"{self.agents[agent]}: {one.plans[one.chosen]}")
                counts[one.row] += torch.tensor([one.counts[name] for name in COUNTS])
        named = dict(zip(COUNTS, counts.to(obs.alive.device).unbind(1), strict=True))
        return Decision(action.to(obs.alive.device), counts=named), memory

    def _single(
        self, row: int, seed: int, phrases: Phrases, agent: int, action: Int[Tensor, "N 1"], decided: tuple[str, ...]
    ) -> Open:
        """The decision of one agent, those before it in the order having decided."""
        actions = action.repeat(len(phrases.plans[agent]), 1, 1)
        actions[:, agent, 0] = phrases.actions[agent]
        names = (self.agents[agent],)
        plans = phrases.plans[agent]
        return Open(row, seed + agent, phrases.words, names, (plans,), decided, plans, actions)

    def _joint(self, row: int, seed: int, phrases: Phrases) -> Open:
        """The decision of all agents who are there at once."""
        here = [agent for agent, own in enumerate(phrases.plans) if own]
        names = tuple(self.agents[agent] for agent in here)
        own = tuple(phrases.plans[agent] for agent in here)
        actions = phrases.combinations
        return Open(row, seed, phrases.words, names, own, (), tuple(joint_plans(names, own)), actions)

    def _weigh(self, asked: Sequence[Open], agent: int, before: Float[Tensor, "E N A"]) -> None:
        """Ask how probable the plans are, where somebody needs it: `told` and `behavior` of each decision.

        agent: who decides, of none but itself unless all do. before: probabilities of choices of those before it.
        """
        if not (self.reads_scores or self.weighs_behavior):
            return
        unsure = [one for one in asked if one.chosen is None]
        queries = [Query(self.messages(one), choices=one.plans) for one in unsure]
        for one, scores in zip(unsure, score_all(self.model, queries, [one.counts for one in unsure]), strict=True):
            one.told = scores
        if self.weighs_behavior:
            for one in asked:
                one.behavior = self._behavior(one, agent, before[one.row])

    def _behavior(self, one: Open, agent: int, before: Float[Tensor, "N A"]) -> Float[Tensor, "plans N A"]:
        """Probabilities of choices with each plan of a decision; those of a single plan are certain."""
        if one.told is None:
            share = torch.ones(len(one.plans), dtype=torch.float64)
        else:
            share = log_shares(self.model, one.told, self.temperature).exp()
        if self.joint:
            return conditionals(share, one.actions.squeeze(-1), self.choices).float()
        known = before.clone()
        known[agent] = choice_shares(share, one.actions[:, agent, 0], self.choices)
        return known.expand(len(one.plans), -1, -1)

    def messages(self, one: Open, refused: Sequence[Refused] = ()) -> tuple[Message, ...]:
        """Messages that ask for a plan."""
        if self.joint:
            return ask_all(one.names, one.words, one.own, refused)
        return ask_one(self.agents, one.names[0], one.words, one.plans, one.decided, refused)

    def worth(
        self, asked: Sequence[Open], plans: Sequence[int], obs: Observation, given: Bool[Tensor, " N"]
    ) -> Float[Tensor, " X"]:
        """Values of a plan of each decision, in the critic's scale; 0 where there is no critic.

        Raises InputError for values that are none.
        """
        if self.critic is None or not asked:
            return torch.zeros(len(asked), dtype=torch.float64)
        device = obs.alive.device
        rows = torch.tensor([one.row for one in asked], device=device)
        action = torch.stack([one.actions[plan] for one, plan in zip(asked, plans, strict=True)]).to(device)
        shown = take_rows(obs, rows)
        behavior = None
        if self.weighs_behavior:
            with_each = [one.behavior[plan] for one, plan in zip(asked, plans, strict=True) if one.behavior is not None]
            behavior = torch.stack(with_each).to(device)
        values = self.critic.values(shown, action, given.to(device) & shown.alive, behavior)
        if not isinstance(values, Tensor) or tuple(values.shape) != (len(rows),) or not bool(values.isfinite().all()):
            came = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"A critic must give a finite number for each of {len(rows)} rows, [{len(rows)}]; "
                f"{type(self.critic).__name__} gave {came}, or numbers that are not finite."
            )
        return values.double().cpu() / self.critic.scale


def require_model(model: Any) -> None:
    """Raise InputError for what is no language model."""
    if not isinstance(model, LanguageModel):
        raise InputError(
            "A planner asks a language model (planners.language.base.LanguageModel), such as open_model gives; got "
            f"{model!r:.80}."
        )


def require_critic(critic: Any) -> None:
    """Raise InputError for what is no critic, or has no unit."""
    if critic is None:
        return
    if not isinstance(critic, PlanCritic):
        raise InputError(
            "A critic of plans has `values`, `scale` and `needs_behavior` (planners.read.critics.PlanCritic), as "
            f"LearnedCritic has; {type(critic).__name__} has not all of them."
        )
    if not 0 < critic.scale < math.inf:
        raise InputError(f"A critic's scale is the unit of its advantages, above 0 and finite; got {critic.scale}.")


def _seeds(count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    return torch.randint(2**31, (count,), generator=generator, device=generator.device)
