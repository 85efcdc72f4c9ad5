"""Sums over an agent's neighborhood."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


class Sums(NamedTuple):
    """The sum of the vectors in each agent's neighborhood, and how many these are, `number`."""

    total: Float[Tensor, "E N 2"]
    number: Float[Tensor, "E N"]

    def without(self, own: Float[Tensor, "E N 2"]) -> Sums:
        """The same without each agent's own vector."""
        return Sums(self.total - own, self.number - 1)

    def mean(self) -> Float[Tensor, "E N 2"]:
        """The mean vector; zero where nobody is. (On a grid the number is a real number, and noisy.)"""
        share = self.number.clamp(min=0.5).reciprocal().where(self.number >= 0.5, 0)
        return self.total * share.unsqueeze(-1)


def beside(*columns: Shaped[Tensor, "*B"]) -> Shaped[Tensor, "*B d"]:
    """Columns side by side on a new last axis, each in one piece of memory.

    Pairs of numbers that alternate in memory are several times slower to make and to take apart again.
    """
    return torch.stack(columns).movedim(0, -1)
