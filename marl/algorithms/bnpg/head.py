"""Where an agent's own view meets its parents' messages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from envs.core import Streams
from marl.networks import ACTIVATIONS, Linear

Agents = Int[Tensor, "B n"]


class Head(nn.Module):
    """Logits from what an agent has seen and what its parents say: W_o act(seen_i + Σ_j A_ji W_j letter_j) + b.

    Agents of one group share weights. Only the messages and the output are computed along the graph.
    """

    def __init__(
        self, groups: Sequence[int], hidden: int, letter: int, outputs: int, activation: str, streams: Streams
    ):
        super().__init__()
        count, self.policies = len(set(groups)), len(streams)
        names = sorted(set(groups))
        self._group = torch.tensor([names.index(group) for group in groups], device=streams.device)
        # Weights [P, senders · letter, hidden], drawn as if all senders were heard at once.
        sources = len(groups) * letter
        self.heard = nn.ModuleList(
            Linear(sources, hidden, gain=2**0.5, copies=1, streams=streams) for _ in range(count)
        )
        self.output = nn.ModuleList(Linear(hidden, outputs, gain=0.01, copies=1, streams=streams) for _ in range(count))
        self.activation = ACTIVATIONS[activation]

    def forward(
        self, seen: Float[Tensor, "B n H"], letters: Float[Tensor, "B N L"], heard: Bool[Tensor, "B n N"], who: Agents
    ) -> Float[Tensor, "B n out"]:
        """Outputs of the agents `who`, given whom they hear and what everybody says."""
        heard = heard.to(letters.dtype)
        by_sender = letters.unflatten(0, (self.policies, -1)).transpose(1, 2).flatten(0, 1)  # [P·N,R,L]
        if len(self.heard) == 1:
            return self._of_group(0, seen, by_sender, heard)
        group = self._group[who].unsqueeze(-1)
        y = self._of_group(0, seen, by_sender, heard)
        for number in range(1, len(self.heard)):
            y = torch.where(group == number, self._of_group(number, seen, by_sender, heard), y)
        return y

    def _of_group(
        self,
        number: int,
        seen: Float[Tensor, "B n H"],
        by_sender: Float[Tensor, "S R L"],
        heard: Float[Tensor, "B n N"],
    ) -> Float[Tensor, "B n out"]:
        listen, speak = self.heard[number], self.output[number]
        weight: Tensor = listen.get_parameter("weight")
        weight = weight.unflatten(1, (-1, by_sender.shape[-1])).flatten(0, 1)  # [P·N,L,H]
        said = torch.bmm(by_sender, weight).unflatten(0, (self.policies, -1)).transpose(1, 2).flatten(0, 1)
        y = self.activation(seen + torch.bmm(heard, said))
        spoken: Tensor = speak(y.reshape(self.policies, -1, y.shape[-1]))
        return spoken.view(*seen.shape[:-1], -1)
