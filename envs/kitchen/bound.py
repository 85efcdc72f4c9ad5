"""Steps that a kitchen needs at least until an ordered soup can be served."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from envs.kitchen.rules.codes import Codes
from envs.kitchen.rules.geometry import Geometry
from envs.kitchen.rules.layout import Cell
from envs.kitchen.rules.state import State

NEVER = 10**6
# Worth of the most soups in an episode without counters, by layout and horizon, in kitchens as they come: found by
# search through every state (tests/envs/kitchen/test_oracles.py), which takes minutes.
MOST: dict[tuple[str, int | None], float] = {("cramped_room", 400): 240.0}


class BoundTables(NamedTuple):
    """Steps that are left at least, by what lies or cooks in each slot, and by pose and what is held there."""

    slot: Int[Tensor, "slots codes"]
    held: Int[Tensor, "poses items"]


class LeastSteps:
    """A number of steps that each state needs at least, whoever does what.

    In a step, what somebody holds moves by one cell of floor, or onto a counter, or is taken from one, or both: hands
    act one after the other, so that one cook may take what another has just put down. Every cook adds at most one
    ingredient a step, and cooking takes its time.
    """

    def __init__(self, geometry: Geometry, codes: Codes):
        self.geometry, self.codes = geometry, codes
        self.cooks = len(geometry.layout.starts)
        self._serving = _steps_of_things(geometry, "S")
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
        """The bound of the layout's start: an ingredient is taken and added to a pot, cooks, and the soup is served."""
        layout, codes, poses = self.geometry.layout, self.codes, self.geometry.poses
        times = [time for mixture, time in enumerate(codes.menu.times) if self._ordered(mixture)]
        least: float = NEVER
        for pot in self.geometry.pots:
            adding = _steps_of_things(self.geometry, "P", [pot])
            for start in layout.starts:
                here = 4 * self.geometry.floor_number[start]
                for pose, (cell, _) in enumerate(poses):
                    if layout.tile(self.geometry.faced[pose]) in "OT":
                        walked = min(self.geometry.steps[here + way][pose] for way in range(4))
                        least = min(least, walked + 1 + adding.get(cell, NEVER) + self._to_desk(pot))
        return int(least) - 1 + min(times)

    def _ordered(self, mixture: int) -> bool:
        return any(row[mixture] > 0 for row in self.codes.menu.values)

    def _to_desk(self, cell: Cell) -> int:
        """Steps until what is there is served; from a pot, the first plates it."""
        if cell in self.geometry.pots:
            floors = [floor for floor in self.geometry.layout.around(cell) if floor in self.geometry.floor_number]
            return 1 + min(self._serving.get(floor, NEVER) for floor in floors)
        return self._serving.get(cell, NEVER)

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
        left = max(0, min(needs)) + self._to_desk(cell) if needs else NEVER
        # Or it is emptied first, which takes steps of its own.
        return min(left, self._pot(cell, 0)) if code else left


def _steps_of_things(geometry: Geometry, tile: str, cells: list[Cell] | None = None) -> dict[Cell, int]:
    """By cell of floor (where somebody holds it) or counter (where it lies): steps until a thing is used at a tile."""
    layout = geometry.layout
    goals = set(layout.cells(tile) if cells is None else cells)
    places = set(geometry.floor) | set(geometry.counters)
    steps = {floor: 1 for floor in geometry.floor if goals & set(layout.around(floor))}
    queue = deque(steps)
    while queue:
        cell = queue.popleft()
        for before in _one_step_before(geometry, cell, places):
            if before not in steps:
                steps[before] = steps[cell] + 1
                queue.append(before)
    return steps


def _one_step_before(geometry: Geometry, cell: Cell, places: set[Cell]) -> list[Cell]:
    """Where a thing can have been a step before it was in a cell."""
    near = [other for other in geometry.layout.around(cell) if other in places]
    if cell not in geometry.floor_number:
        return [floor for floor in near if floor in geometry.floor_number]
    counters = [other for other in near if other not in geometry.floor_number]
    # From hand to hand, over a counter.
    handed = [
        floor for counter in counters for floor in geometry.layout.around(counter) if floor in geometry.floor_number
    ]
    return near + handed
