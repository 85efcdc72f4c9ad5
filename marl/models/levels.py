"""States of few numbers as networks learn from them best: which of its values each number has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from envs.core import Observation
from marl.models.ordered_critic import OrderedCritic
from marl.models.prefix_critic import PrefixCritic

MOST = 32  # values of a number that are told apart; of one that has more, the number itself is seen
CLOSE = 1e-5  # difference of numbers that are one value


def levels_of(state: Float[Tensor, "B S"]) -> list[list[float]]:
    """The values that each number of these states has; none of a number that has more than `MOST`."""
    found = []
    for column in state.unbind(1):
        values = column.unique()
        distinct = values[torch.diff(values, prepend=values[:1] - 1) > CLOSE]
        found.append(distinct.tolist() if len(distinct) <= MOST else [])
    return found


def level_inputs(levels: Sequence[Sequence[float]]) -> int:
    """Inputs that states of these levels make, at least one."""
    return max(1, sum(1 if not values else len(values) * (len(values) > 1) for values in levels))


class LevelCritic(nn.Module):
    """A critic that sees of each number of the state which of its known values it has, as one of as many inputs.

    Where a state is made of places, directions and things, written as few numbers, a network would have to find their
    boundaries first. levels: by number, such as `levels_of` finds in a log; numbers that never change are left out, and
    a value that is not known is none of them. critic: built for `level_inputs` inputs.
    """

    def __init__(
        self,
        critic: OrderedCritic | PrefixCritic,
        levels: Sequence[Sequence[float]],
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        self.critic = critic
        self.policies: int = critic.policies
        self.channels: int = critic.channels
        self.copies: int = critic.copies
        self.needs_behavior: bool = critic.needs_behavior
        known = [(column, value) for column, values in enumerate(levels) if len(values) > 1 for value in values]
        plain = [column for column, values in enumerate(levels) if not values]
        self._columns = torch.tensor([column for column, _ in known], dtype=torch.int64, device=device)
        self._values = torch.tensor([value for _, value in known], device=device)
        self._plain = torch.tensor(plain, dtype=torch.int64, device=device)

    def forward(
        self,
        obs: Observation,
        action: Int[Tensor, "B N 1"] | None = None,
        given: Bool[Tensor, "*U B N"] | None = None,
        behavior: Float[Tensor, "B N A"] | None = None,
    ) -> Float[Tensor, "*U B N K"]:
        """The critic's values."""
        return self.critic(replace(obs, state=self.inputs(obs.state)), action, given, behavior)

    def inputs(self, state: Float[Tensor, "B S"]) -> Float[Tensor, "B I"]:
        """1 for each value that a number has, 0 for the others; then the numbers with too many values."""
        is_there = ((state[:, self._columns] - self._values).abs() < CLOSE).to(state.dtype)
        seen = torch.cat([is_there, state[:, self._plain]], 1)
        return seen if seen.shape[1] else torch.ones_like(state[:, :1])
