"""Steps that a kitchen needs at least until an ordered soup can be served."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from envs.kitchen.geometry import Geometry
from envs.kitchen.layout import Cell
from envs.kitchen.rules import Codes
from envs.kitchen.state import State

NEVER = 10**6


class BoundTables(NamedTuple):
    """Steps that are left at least, by what lies or cooks in each slot, and by pose and what is held there."""

    slot: Int[Tensor, "slots codes"]
    held: Int[Tensor, "poses items"]


class LeastSteps:
    """A number of steps that each state needs at least: no soup moves by more than one cell in a step, whoever carries
    it; every cook adds at most one ingredient a step; and cooking takes its time."""

    def __init__(self, geometry: Geometry, codes: Codes):
        self.geometry, self.codes = geometry, codes
        self.cooks = len(geometry.layout.starts)
        pots = [[self._pot(cell, code) for code in range(codes.count)] for cell in geometry.pots]
        counters = [[self._dish(cell, code) for code in range(codes.count)] for cell in geometry.counters]
        held = [[self._dish(cell, code) for code in range(codes.items)] for cell, _ in geometry.poses]
        self._tables = BoundTables(torch.tensor(pots + counters), torch.tensor(held))

    def __call__(self, state: State) -> Int[Tensor, " E"]:
        """The bound of each state."""
        slots = torch.arange(state.things.shape[1])
        lying = self._tables.slot[slots, state.things].amin(-1)
        return torch.minimum(lying, self._tables.held[state.pose, state.held].amin(-1))

    def from_start(self) -> int:
        """The bound of the layout's start: the way to an ingredient, with it to a pot, cooking, and on to a desk."""
        layout, codes = self.geometry.layout, self.codes
        times = [time for mixture, time in enumerate(codes.menu.times) if self._ordered(mixture)]
        ways = [
            min(_apart(start, food) for start in layout.starts) + _apart(food, pot) + self._to_desk(pot)
            for food in layout.cells("OT")
            for pot in self.geometry.pots
        ]
        return min(ways) - 1 + min(times)

    def _ordered(self, mixture: int) -> bool:
        return any(row[mixture] > 0 for row in self.codes.menu.values)

    def _to_desk(self, cell: Cell) -> int:
        return min(_apart(cell, desk) for desk in self.geometry.layout.cells("S"))

    def _dish(self, cell: Cell, code: int) -> int:
        """Of a soup on a counter or in hand."""
        mixture = self.codes.soup_of(code) if code < self.codes.items else None
        return self._to_desk(cell) if mixture is not None and self._ordered(mixture) else NEVER

    def _pot(self, cell: Cell, code: int) -> int:
        """Of a pot; one whose soup nobody ordered needs at least what an empty one does."""
        menu, pot = self.codes.menu, self.codes.in_pot(code)
        if pot is not None and pot[1] is not None and self._ordered(pot[0]):
            return menu.times[pot[0]] - pot[1] + self._to_desk(cell)
        cold = menu.mixtures[pot[0]] if pot is not None and pot[1] is None else (0,) * len(menu.ingredients)
        needs = [
            -(-(sum(order) - sum(cold)) // self.cooks) - 1 + time
            for mixture, (order, time) in enumerate(zip(menu.mixtures, menu.times))
            if self._ordered(mixture) and all(have <= want for have, want in zip(cold, order))
        ]
        if needs:
            return max(0, min(needs)) + self._to_desk(cell)
        return self._pot(cell, 0) if code else NEVER


def _apart(one: Cell, other: Cell) -> int:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])
