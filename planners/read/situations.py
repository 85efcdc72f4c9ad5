"""A growing table of situations: what may be chosen in each, how probable it is, and where it leads."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Situations:
    """Situations of agents who decide in turn, n of them, with W branches at most, which are what can be decided.

    following [n,W]: the next agent's situation after each branch; -1 where it was not met.
    """

    def __init__(self, choices: int):
        self.choices, self._count = choices, 0
        self._reach = torch.ones(0, 1, dtype=torch.float64)  # shares of the branches added up, 1 from the last on
        self._choice = torch.zeros(0, 1, dtype=torch.int64)
        self._behavior = torch.zeros(0, choices)
        self.following = torch.zeros(0, 1, dtype=torch.int64)

    def __len__(self) -> int:
        return self._count

    def add(
        self, share: Float[Tensor, " branches"], choice: Int[Tensor, " branches"], behavior: Float[Tensor, " A"]
    ) -> int:
        """The number of a new situation. choice: the choice that each branch means. behavior: their probabilities."""
        place, width = self._count, len(share)
        self._reserve(place + 1, width)
        total = share.cumsum(0)
        self._reach[place, :width] = total / total[-1]  # exactly 1 at the end, so that nothing is drawn beyond
        self._choice[place, :width] = choice
        self._behavior[place] = behavior
        self._count += 1
        return place

    def draw(
        self, place: Int[Tensor, " E"], chance: Float[Tensor, " E"]
    ) -> tuple[Int[Tensor, " E"], Int[Tensor, " E"], Float[Tensor, "E A"]]:
        """Branches of situations by uniform numbers in [0, 1), what they choose, and the probabilities of choices."""
        branch = (chance.unsqueeze(1) >= self._reach.index_select(0, place)).sum(1)
        return branch, self._choice[place, branch], self._behavior.index_select(0, place)

    def _reserve(self, count: int, width: int) -> None:
        """Room for so many situations of so many branches, at least twice as many of them each time."""
        rows, columns = self._reach.shape
        if count <= rows and width <= columns:
            return
        rows = rows if count <= rows else max(1024, 2 * rows)
        columns = max(columns, width)
        self._reach = _enlarged(self._reach, rows, columns, 1)
        self._choice = _enlarged(self._choice, rows, columns, 0)
        self.following = _enlarged(self.following, rows, columns, -1)
        self._behavior = _enlarged(self._behavior, rows, self.choices, 0)


@torch.inference_mode(False)  # a table that grows while play is recorded can be written to later as well
def _enlarged(table: Tensor, rows: int, columns: int, filling: int) -> Tensor:
    """The same table in the corner of a larger one."""
    larger = table.new_full((rows, columns), filling)
    larger[: table.shape[0], : table.shape[1]] = table
    return larger
