"""Head of a policy, in which an agent's own view meets its parents' messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from envs.core import Streams
from marl.models.layers import ACTIVATIONS, Linear


class Head(nn.Module):
    """Logits from what an agent has seen and what its parents say: W_o act(seen_i + Σ_j A_ji W_j letter_j) + b.

    Agents of one group share weights. Only this part of the policy is computed along the graph.
    """

    def __init__(
        self, groups: Sequence[int], hidden: int, message: int, outputs: int, activation: str, streams: Streams
    ):
        super().__init__()
        self.policies = len(streams)
        names = sorted(set(groups))
        self.group = torch.tensor([names.index(group) for group in groups], device=streams.device)
        self._agents = [(self.group == number).nonzero().squeeze(1) for number in range(len(names))]
        self._inverse = torch.cat(self._agents).argsort()
        sources = len(groups) * message
        self.incoming = nn.ModuleList(Linear(sources, hidden, gain=2**0.5, copies=1, streams=streams) for _ in names)
        self.output = nn.ModuleList(Linear(hidden, outputs, gain=0.01, copies=1, streams=streams) for _ in names)
        self.activation = ACTIVATIONS[activation]
        self.register_load_state_dict_pre_hook(_rename)

    def forward(
        self, seen: Float[Tensor, "B N H"], messages: Float[Tensor, "B N L"], incoming: Float[Tensor, "B N N"]
    ) -> Float[Tensor, "B N out"]:
        """Of all agents at once, when all messages are known; incoming[b,i,j] is 1 where i hears j."""
        if len(self._agents) == 1:
            return self._of_group(0, seen, messages, incoming)
        parts = [
            self._of_group(number, seen[:, agents], messages, incoming[:, agents])
            for number, agents in enumerate(self._agents)
        ]
        return torch.cat(parts, 1)[:, self._inverse]

    def forward_at(
        self, group: int | None, seen: Float[Tensor, "X H"], told: Float[Tensor, "X S"], who: Tensor
    ) -> Float[Tensor, "X out"]:
        """Of one place each, given the messages it hears side by side; policy-major, all of one group or of any (None).

        who [X]: the agent of each place.
        """
        if group is not None:
            return self._answer(group, seen, told)
        group_of = self.group[who].unsqueeze(-1)
        y = self._answer(0, seen, told)
        for number in range(1, len(self._agents)):
            y = torch.where(group_of == number, self._answer(number, seen, told), y)
        return y

    def _of_group(
        self,
        number: int,
        seen: Float[Tensor, "B n H"],
        messages: Float[Tensor, "B N L"],
        incoming: Float[Tensor, "B n N"],
    ) -> Float[Tensor, "B n out"]:
        told = listen(incoming, messages.unsqueeze(1))
        return self._answer(number, seen.flatten(0, 1), told.flatten(0, 1)).view(*seen.shape[:2], -1)

    def _answer(self, number: int, seen: Float[Tensor, "X H"], told: Float[Tensor, "X S"]) -> Float[Tensor, "X out"]:
        said = self.incoming[number](told.view(self.policies, -1, told.shape[-1]))
        return self.output[number](self.activation(seen.view_as(said) + said)).flatten(0, 1)


def _rename(head: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Give the parameters of older checkpoints their names of today."""
    for key in [key for key in state if key.startswith(f"{prefix}heard.")]:
        state[key.replace(f"{prefix}heard.", f"{prefix}incoming.", 1)] = state.pop(key)


def listen(incoming: Float[Tensor, "*X N"], messages: Float[Tensor, "*#X N L"]) -> Float[Tensor, "*X S"]:
    """The messages of those who are heard side by side, zeros for the others; S = N·L."""
    return (incoming.unsqueeze(-1) * messages).flatten(-2)
