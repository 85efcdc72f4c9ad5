"""Where things are in a kitchen, and how many steps it takes to get there."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from envs.kitchen.rules.layout import DIRECTIONS, FLOOR, Cell, Layout

WAYS = ("north", "south", "east", "west")
ACTIONS = (*WAYS, "stay", "interact")


class Geometry:
    """Places of a layout, numbered.

    floor: cells where cooks can stand; pose = 4 · place in `floor` + direction faced (north, south, east, west).
    slots: cells whose contents change: first the pots, then the counters that can be reached, in reading order.
    """

    def __init__(self, layout: Layout):
        self.layout = layout
        self.floor = layout.cells(FLOOR)
        self.pots = layout.cells("P")
        self.counters = [cell for cell in layout.cells("X") if cell in layout.within_reach]
        self.slots = self.pots + self.counters
        self.poses = [(cell, way) for cell in self.floor for way in range(4)]
        self.height, self.width = len(layout.rows), len(layout.rows[0])

    @cached_property
    def floor_number(self) -> dict[Cell, int]:
        """The place of each cell in `floor`."""
        return {cell: number for number, cell in enumerate(self.floor)}

    @cached_property
    def slot(self) -> dict[Cell, int]:
        """The place of each cell in `slots`."""
        return {cell: slot for slot, cell in enumerate(self.slots)}

    @cached_property
    def faced(self) -> list[Cell]:
        """By pose, the cell ahead."""
        return [beside(cell, way) for cell, way in self.poses]

    def after(self, pose: int, way: int) -> int:
        """The pose after a cook alone in the kitchen pressed a direction: it turns, and goes where floor is."""
        return 4 * self.floor_number.get(beside(self.poses[pose][0], way), pose // 4) + way

    @cached_property
    def steps(self) -> list[list[float]]:
        """[poses][poses] steps of a cook alone in the kitchen from one pose to another; infinite where no way leads."""
        return [self._steps_from(pose) for pose in range(len(self.poses))]

    def cost(self, pose: int, cell: Cell) -> float:
        """Steps until a cook alone has interacted with a cell; infinite where it cannot be reached."""
        goals = [goal for goal, faced in enumerate(self.faced) if faced == cell]
        return 1.0 + min((self.steps[pose][goal] for goal in goals), default=math.inf)

    def nearest(self, pose: int, cells: Iterable[Cell]) -> list[Cell]:
        """The cells that can be reached from a pose, nearest first, of equally near ones the first that was given."""
        costs = {cell: self.cost(pose, cell) for cell in cells}
        return sorted((cell for cell in costs if costs[cell] < math.inf), key=costs.__getitem__)

    def _steps_from(self, start: int) -> list[float]:
        steps = [math.inf] * len(self.poses)
        steps[start], queue = 0.0, deque([start])
        while queue:
            pose = queue.popleft()
            for way in range(4):
                then = self.after(pose, way)
                if steps[then] == math.inf:
                    steps[then] = steps[pose] + 1
                    queue.append(then)
        return steps


def beside(cell: Cell, way: int) -> Cell:
    """The cell next to another in a direction."""
    down, right = DIRECTIONS[way]
    return cell[0] + down, cell[1] + right


def one_hot(choice: int, size: int) -> list[float]:
    """1 at the choice, else 0."""
    return [float(choice == i) for i in range(size)]


def rows_of(table: Float[Tensor, "rows width"], numbers: Int[Tensor, "E n"]) -> Float[Tensor, "E n*width"]:
    """Rows of a table, side by side."""
    return torch.nn.functional.embedding(numbers, table).flatten(1)
