"""Planners that think aloud, and remember in words what they thought, did and earned in an episode."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor

from envs.core import Decision, InputError, Observation, Step, Streams, Tree
from planners.baselines.diary import Diary
from planners.language.base import LanguageModel, Message, Query
from planners.read.prompts import THOUGHTFUL, Refused, ask_all, ask_one
from planners.read.proposals import propose, take_anything
from planners.read.team import COUNTS, Open, TeamConfig, TeamPlanner
from planners.read.thoughts import read_thought


class ThinkingConfig(TeamConfig):
    """Thoughts and plans as free text, and how far back prompts tell."""

    history: int = Field(10, ge=0, description="latest steps of the episode that stand in a prompt")
    rounds: int = Field(3, ge=1, description="answers for a decision, at most, until one has a legal plan")
    max_tokens: int = Field(256, ge=1, description="tokens of a thought and a plan, at most")


class ThinkingPlanner(TeamPlanner):
    """An Actor whose model writes a thought and then a plan, reading what came of those before, by row.

    What is no legal plan is sent back, `rounds` times at most; then it is any plan. Nobody judges legal ones. What was
    earned stands in prompts where somebody tells it (`envs.actors.Hears`), as evaluations do.

    The text of a row is its own, which memory cannot be: memory counts the steps of the episode [E,1], and where it is
    0 the text begins anew. So every row must be shown, each time (`envs.core.KeepsRows`), of which those with nobody
    alive are not asked; `initial_memory` forgets everything.
    """

    keeps_rows = True

    def __init__(self, world: Any, model: LanguageModel, config: ThinkingConfig):
        super().__init__(world, model, None, config)
        self.config = config
        self.channels: tuple[str, ...] = world.spec.channels
        self.diaries: list[Diary] = []

    @abstractmethod
    def lessons(self, row: int) -> Sequence[str]:
        """Lines of earlier episodes for a row's prompts."""

    @abstractmethod
    def look_back(self, rows: Sequence[int]) -> dict[int, dict[str, int | float]]:
        """Learn from the episodes in the diaries of these rows, which are over. Gives what that took, by row."""

    def initial_memory(self, num_envs: int) -> Tree:
        """Steps of each row's episode, [E,1]: none."""
        self.diaries = [self._diary() for _ in range(num_envs)]
        return torch.zeros(num_envs, 1, dtype=torch.int64)

    def act(self, obs: Observation, memory: Int[Tensor, "E 1"], streams: Streams) -> tuple[Decision, Tree]:
        """Plan for all rows. The first decision of an episode counts what looking back at the one before took."""
        self._require_rows(len(obs.alive))
        begins = obs.alive.any(-1) & (memory.to(obs.alive.device).squeeze(-1) == 0)
        looked_back = self._begin(begins.nonzero().squeeze(1).tolist())
        decision, _ = super().act(obs, None, streams)
        for diary, decisions in zip(self.diaries, self.latest, strict=True):
            if decisions:
                diary.note(decisions)
        assert decision.counts is not None
        for row, counts in looked_back.items():
            for name, count in counts.items():
                decision.counts[name][row] += count
        return decision, memory.to(obs.alive.device) + 1

    def hear(self, step: Step) -> None:
        """Note what the rows that were asked have earned."""
        earned = step.reward.mean(1, dtype=torch.float64).tolist()
        for diary, decisions, rewards in zip(self.diaries, self.latest, earned, strict=True):
            if decisions:
                diary.hear(dict(zip(self.channels, rewards, strict=True)))

    def settle(
        self, asked: Sequence[Open], obs: Observation, before: Bool[Tensor, " N"], given: Bool[Tensor, " N"]
    ) -> None:
        """Ask until every answer has a legal plan."""
        waiting = list(asked)
        for number in range(self.config.rounds):
            if not waiting:
                return
            queries = [self._query(one, number) for one in waiting]
            for one, (plan,) in zip(waiting, propose(self.model, waiting, queries, _plan_of), strict=True):
                one.chosen = plan
                if plan is not None:
                    one.scores[plan] = 0.0
            waiting = [one for one in waiting if one.chosen is None]
        for one in waiting:
            take_anything(one)

    def messages(self, one: Open, refused: Sequence[Refused] = ()) -> tuple[Message, ...]:
        """Messages that ask for a thought and a plan."""
        past = self._past(one.row)
        if self.joint:
            return ask_all(one.names, one.words, one.own, refused, past=past, rules=THOUGHTFUL)
        name, plans = one.names[0], one.plans
        return ask_one(self.agents, name, one.words, plans, one.decided, refused, past=past, rules=THOUGHTFUL)

    def _query(self, one: Open, number: int) -> Query:
        """A query in free text; what was no plan is told."""
        return Query(
            self.messages(one, one.refused),
            temperature=self.config.temperature,
            max_tokens=self.config.max_tokens,
            seed=one.seed if self.config.temperature else 0,
            attempt=number,
        )

    def _past(self, row: int) -> list[str]:
        """Lines about what came before, then a mark where the present begins; none where nothing did."""
        steps = self.diaries[row].lines()
        lines = [*self.lessons(row), *(["What happened so far:", *steps] if steps else [])]
        return [*lines, "", "Now:"] if lines else []

    def _begin(self, rows: Sequence[int]) -> dict[int, dict[str, int | float]]:
        """Look back at the episodes that were played in these rows, and open diaries for the next."""
        looked_back = self.look_back([row for row in rows if self.diaries[row].count])
        for row in rows:
            self.diaries[row] = self._diary()
        return looked_back

    def _diary(self) -> Diary:
        return Diary(deque(maxlen=self.config.history))

    def _require_rows(self, rows: int) -> None:
        """Raise InputError unless all rows are shown."""
        if rows != len(self.diaries):
            raise InputError(
                f"{type(self).__name__} remembers each row's episode in words, and is to be shown all of them: "
                f"{len(self.diaries)} rows since initial_memory; got {rows}. Call initial_memory({rows}) first."
            )


def nothing_counted() -> dict[str, int | float]:
    """Zero of everything that is counted."""
    return dict.fromkeys(COUNTS, 0)


def _plan_of(text: str, one: Open) -> str:
    """The part of a text that is the plan, a line for each agent who decides."""
    return read_thought(text, len(one.names)).plan
