"""Present of a kitchen, in integers."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor


class State(NamedTuple):
    """Present of E kitchens with N cooks, P pots and C counters that can be reached.

    pose: 4 · floor cell + direction that a cook faces. held, things: codes of what is held, and of what is in each pot,
    then on each counter. order: the order that counts, where one is drawn an episode. served: ordered soups served,
    where the task ends after so many.
    """

    pose: Int[Tensor, "E N"]
    held: Int[Tensor, "E N"]
    things: Int[Tensor, "E slots"]
    order: Int[Tensor, " E"]
    served: Int[Tensor, " E"]
