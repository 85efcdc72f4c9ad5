"""Reflexion: ReAct that looks back at each episode, and reads that in the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from envs.core import Tree
from planners.baselines.diary import Diary
from planners.baselines.thinking import ThinkingConfig, ThinkingPlanner, nothing_counted
from planners.language.base import Answer, LanguageModel, Message, Query, in_order
from planners.read.prior import count_answer
from planners.read.prompts import TEAM, quoted

REFLECTION = 480  # characters of a reflection in later prompts
RULES = TEAM + (
    "You are told how an episode went. Say in two or three sentences what went wrong and what the team should do "
    "otherwise in the next one. Write nothing else."
)


class ReflexionConfig(ThinkingConfig):
    """Thoughts and plans of one episode, and reflections on those before."""

    reflections: int = Field(3, ge=1, description="latest reflections of a row that stand in its prompts")
    reflection_tokens: int = Field(128, ge=1, description="tokens of a reflection, at most")


class Reflexion(ThinkingPlanner):
    """Verbal reinforcement: after each episode of a row the model writes a reflection on it, for the row's next ones.

    A reflection is asked for when the next episode begins, and counted with its first decision: after the last episode
    of a row nobody would read it, and nobody is asked. Rows do not read each other's.

    Source: Shinn et al., NeurIPS 2023 (arXiv 2303.11366). Departures: there an episode is tried again only where it
    failed, from the same start; here each one is looked back at, with what it earned, and starts are the world's.
    """

    config: ReflexionConfig

    def __init__(self, world: Any, model: LanguageModel, config: ReflexionConfig):
        super().__init__(world, model, config)
        self.reflections: list[deque[str]] = []

    def initial_memory(self, num_envs: int) -> Tree:
        """Steps of each row's episode, [E,1]: none, and no reflections."""
        self.reflections = [deque(maxlen=self.config.reflections) for _ in range(num_envs)]
        return super().initial_memory(num_envs)

    def lessons(self, row: int) -> Sequence[str]:
        """Reflections on the row's latest episodes."""
        told = self.reflections[row]
        return ["Lessons of earlier episodes:", *(f"- {one}" for one in told), ""] if told else []

    def look_back(self, rows: Sequence[int]) -> dict[int, dict[str, int | float]]:
        """Ask for a reflection on the episode of each of these rows."""
        queries = [self._question(self.diaries[row]) for row in rows]
        answers: list[Answer] = in_order(self.model.complete(queries)) if queries else []
        counted = {}
        for row, answer in zip(rows, answers, strict=True):
            counted[row] = nothing_counted()
            count_answer(counted[row], answer)
            reflection = quoted(answer.completions[0].text, REFLECTION)
            if reflection:
                self.reflections[row].append(reflection)
        return counted

    def _question(self, diary: Diary) -> Query:
        """A query for a reflection on an episode."""
        rules = Message("system", RULES.format(agents=", ".join(self.agents)))
        asked = Message("user", "\n".join([*diary.lines(), diary.outcome(), "What should the team do otherwise?"]))
        return Query(
            (rules, asked),
            temperature=self.config.temperature,
            max_tokens=self.config.reflection_tokens,
            seed=diary.seed if self.config.temperature else 0,
        )
