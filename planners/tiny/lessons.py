"""Prompts of planners with a teacher's answers, as play meets them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from planners.language.base import Message
from planners.read.phrases import Phrases
from planners.read.prompts import Refused, ask_all, ask_one, joint_plans
from planners.tiny.teacher import Teacher, Tree

ROWS = 256  # games played side by side
LIMIT = 20  # steps, after which a game begins anew
AT_START = 0.25  # share of games that begin where play does; the others anywhere
SENT_BACK = 0.3  # share of prompts that tell of plans that were sent back
MOST_SENT_BACK = 3
MOST_TOGETHER = 100  # joint plans
LOW = "which is too low"


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """A chat, the plans that may answer it, and their probabilities in the teacher's mouth."""

    messages: tuple[Message, ...]
    choices: tuple[str, ...]
    odds: np.ndarray


class Lessons:
    """Lessons without end: in each situation of the teacher's play, one for each agent and one for all at once.

    Some prompts tell of plans that were sent back, which are plans that the teacher might have said; the answer is then
    one of the others, so that feedback is heeded. Teams with more than `MOST_TOGETHER` joint plans have no lessons for
    all at once.
    """

    def __init__(self, teacher: Teacher, seed: int):
        self.teacher = teacher
        self.agents = teacher.book.agents
        self.random = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[Lesson]:
        place, age = self._starts(ROWS), self.random.integers(LIMIT, size=ROWS)
        while True:
            phrases = self.teacher.phrases(place)
            action = torch.zeros(ROWS, len(self.agents), dtype=torch.int64)
            for row, here in enumerate(phrases):
                tree = self.teacher.tree(here, int(place[row]))
                yield from self._of_situation(here, tree, action[row])
            place = self._next(place, action, age)

    def _of_situation(self, here: Phrases, tree: Tree, action: Int[Tensor, " N"]) -> Iterator[Lesson]:
        """Lessons of one situation; plays what the teacher says, into `action`."""
        said: list[str] = []
        numbers: tuple[int, ...] = ()
        for agent, name in enumerate(self.agents):
            odds, own = tree[numbers], here.plans[agent]
            decided = [f"{other}: {plan}" for other, plan in zip(self.agents, said)]
            left, refused = self._with_refusals(own, odds)
            yield Lesson(ask_one(self.agents, name, here.words, own, decided, refused), own, left)
            plan = int(self.random.choice(len(odds), p=odds))
            action[agent] = here.actions[agent][plan]
            numbers, said = (*numbers, plan), [*said, own[plan]]
        if math.prod(map(len, here.plans)) <= MOST_TOGETHER:
            together = tuple(joint_plans(self.agents, here.plans))
            left, refused = self._with_refusals(together, joint_odds(tree, here))
            yield Lesson(ask_all(self.agents, here.words, here.plans, refused), together, left)

    def _with_refusals(self, plans: Sequence[str], odds: np.ndarray) -> tuple[np.ndarray, list[Refused]]:
        """Odds of what is left, and what was sent back with some score."""
        if self.random.random() >= SENT_BACK or np.count_nonzero(odds) < 2:
            return odds, []
        count = min(int(self.random.integers(1, MOST_SENT_BACK + 1)), int(np.count_nonzero(odds)) - 1)
        back = self.random.choice(len(odds), size=count, replace=False, p=odds)
        left = odds.copy()
        left[back] = 0
        return left / left.sum(), [Refused(plans[n], float(self.random.uniform(-2, 0.5)), LOW) for n in back]

    def _starts(self, count: int) -> Int[Tensor, " count"]:
        """Places where games begin."""
        anywhere = self.random.integers(len(self.teacher.table), size=count)
        at_start = self.random.random(count) < AT_START
        return torch.from_numpy(np.where(at_start, 0, anywhere))

    def _next(self, place: Int[Tensor, " B"], action: Int[Tensor, "B N"], age: np.ndarray) -> Int[Tensor, " B"]:
        """Places after a step; games that are over, or old, begin anew."""
        table = self.teacher.table
        joint = torch.zeros_like(place)
        for agent in range(table.agents):
            joint = joint * table.choices + action[:, agent]
        place = table.successor[place, joint]
        age += 1
        over = (place == len(table)).numpy() | (age >= LIMIT)
        age[over] = 0
        return torch.where(torch.from_numpy(over), self._starts(len(place)), place)


def joint_odds(tree: Tree, here: Phrases) -> np.ndarray:
    """Probabilities of joint plans, in the order of `joint_plans`."""
    odds = [1.0]
    prefixes: list[tuple[int, ...]] = [()]
    for own in here.plans:
        odds = [chance * each for chance, prefix in zip(odds, prefixes) for each in tree[prefix]]
        prefixes = [(*prefix, plan) for prefix in prefixes for plan in range(len(own))]
    return np.array(odds)
