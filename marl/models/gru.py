"""A network that remembers."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs.core import Streams
from marl.models.layers import Linear, Network, NetworkConfig, Trunk


class GRU(Network):
    """Layers, then a gated recurrent unit, then an output: each agent remembers for itself.

    Memory is [B,C,N,H] with H the last hidden size. Source of the unit: Cho et al., EMNLP 2014 (arXiv 1406.1078).
    """

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, *, gain: float, copies: int, streams: Streams):
        super().__init__()
        self.copies, self.policies, self.size = copies, len(streams), config.hidden[-1]
        self.memory_shape = (copies, self.size)
        self.trunk = Trunk(inputs, config, copies=copies, streams=streams)
        self.from_input = Linear(self.size, 3 * self.size, gain=1.0, copies=copies, streams=streams)
        self.from_memory = Linear(self.size, 3 * self.size, gain=1.0, copies=copies, streams=streams)
        self.output = Linear(self.size, outputs, gain=gain, copies=copies, streams=streams)

    def forward(
        self, x: Float[Tensor, "Q R N D"], alive: Bool[Tensor, "B N"], memory: Float[Tensor, "B C N H"]
    ) -> tuple[Float[Tensor, "Q R N out"], Float[Tensor, "B C N H"]]:
        """Outputs, and what is remembered next."""
        copies, rows, agents, features = x.shape
        y = self.trunk(x.reshape(copies, rows * agents, features))
        old = self._from_memory(memory)
        reset_in, update_in, new_in = self.from_input(y).chunk(3, -1)
        reset_old, update_old, new_old = self.from_memory(old).chunk(3, -1)
        reset = torch.sigmoid(reset_in + reset_old)
        update = torch.sigmoid(update_in + update_old)
        new = torch.tanh(new_in + reset * new_old)
        kept = new + update * (old - new)
        return self.output(kept).view(copies, rows, agents, -1), self._to_memory(kept, agents)

    def _from_memory(self, memory: Float[Tensor, "B C N H"]) -> Float[Tensor, "Q X H"]:
        """A policy's copies one after the other, each with all its rows' agents."""
        by_policy = memory.unflatten(0, (self.policies, -1))
        by_copy = by_policy.transpose(1, 2).flatten(0, 1)
        return by_copy.flatten(1, 2)

    def _to_memory(self, kept: Float[Tensor, "Q X H"], agents: int) -> Float[Tensor, "B C N H"]:
        by_copy = kept.view(self.policies, self.copies, -1, agents, self.size)
        return by_copy.transpose(1, 2).flatten(0, 1)
