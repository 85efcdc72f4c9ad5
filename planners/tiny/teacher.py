"""A teacher who plans as well as can be in a world that is a table, and now and then is misled."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from envs.core import tree_map
from envs.tabular import Table
from planners.read.phrases import Phrasebook, Phrases
from planners.tiny.config import TinyConfig

Tree = dict[tuple[int, ...], np.ndarray]  # odds of an agent's plans, by the numbers of the plans before it

DISCOUNT = 0.97  # whoever waits is worse off
RARE = 0.05  # lines that more descriptions have than this share mislead nobody
EQUAL = 1e-9  # difference of values that are the same, of the largest
SAMPLE = 2000  # situations by which it is found out which lines are rare


class Teacher:
    """Plans for one agent after the other: the best there are, or what a line of the description misleads to, or any.

    A line misleads an agent by its letters alone, with the chance `mistakes`, and always to the same plan: a mistake is
    a fixed function of the situation, so that whoever learns from it makes it at any temperature. Lines that are in
    more than a twentieth of all descriptions mislead nobody. Of what is not a mistake, the share `noise` is any plan.
    """

    def __init__(self, world: Any, table: Table, book: Phrasebook, config: TinyConfig):
        self.world, self.table, self.book, self.config = world, table, book, config
        value = table.values(DISCOUNT)
        following = torch.cat([value, value.new_zeros(1)])[table.successor]
        joint = (table.choices,) * table.agents
        self.q: Float[Tensor, "*joint"] = (table.reward + DISCOUNT * following).view(-1, *joint)
        self._close = EQUAL * max(1.0, float(self.q.abs().max()))
        self._common = self._common_lines()
        self._misled: dict[tuple[str, int, int], int | None] = {}

    def phrases(self, places: Int[Tensor, " B"]) -> list[Phrases]:
        """Situations of the table in words."""
        return self.book.of(self.world.observe(tree_map(lambda leaf: leaf[places], self.table.states)))

    def tree(self, here: Phrases, place: int) -> Tree:
        """Probabilities of an agent's plans, by the plans of the agents before it."""
        tree: Tree = {}
        open_prefixes: list[tuple[tuple[int, ...], Tensor]] = [((), self.q[place])]
        for agent in range(len(here.plans)):
            following = []
            for numbers, q in open_prefixes:
                tree[numbers] = self._odds(here, agent, q)
                following += [((*numbers, plan), q[choice]) for plan, choice in enumerate(here.actions[agent].tolist())]
            open_prefixes = following
        return tree

    def _odds(self, here: Phrases, agent: int, q: Float[Tensor, "*joint"]) -> np.ndarray:
        """Probabilities of an agent's plans, by the values of its choices and those after it."""
        count = len(here.plans[agent])
        wrong = self.mistake(here, agent)
        if wrong is not None:
            good = np.eye(count)[wrong]
        else:
            value = q.flatten(1).amax(1) if q.dim() > 1 else q
            good = (value[here.actions[agent]] >= value.max() - self._close).double().numpy()
        if not good.any():  # no plan does what would be best
            good[:] = 1
        return (1 - self.config.noise) * good / good.sum() + self.config.noise / count

    def mistake(self, phrases: Phrases, agent: int) -> int | None:
        """The plan to which the first misleading line leads this agent; None where none does."""
        count = len(phrases.plans[agent])
        for line in phrases.words.split("\n"):
            led = self._lead(line, agent, count)
            if led is not None:
                return led
        return None

    def _lead(self, line: str, agent: int, count: int) -> int | None:
        key = line, agent, count
        if key not in self._misled:
            digest = hashlib.sha256(f"{self.config.seed} {agent} {line}".encode()).digest()
            chance = int.from_bytes(digest[:4], "big") / 2**32
            led = int.from_bytes(digest[4:8], "big") % count
            misleads = chance < self.config.mistakes and line not in self._common
            self._misled[key] = led if misleads else None
        return self._misled[key]

    def _common_lines(self) -> set[str]:
        """Lines that many descriptions have."""
        generator = torch.Generator().manual_seed(self.config.seed)
        places = torch.randint(len(self.table), (SAMPLE,), generator=generator)
        lines = Counter(line for phrases in self.phrases(places) for line in set(phrases.words.split("\n")))
        return {line for line, count in lines.items() if count > RARE * SAMPLE}
