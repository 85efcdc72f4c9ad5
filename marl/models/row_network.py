"""Networks of the rows of P policies, with a copy for every reward channel or one for all."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from envs.core import InputError, Streams
from marl.models.critics import CriticConfig
from marl.models.networks import build_network, check_network
from marl.models.policies import join_copies, stack_copies


class RowNetwork(nn.Module):
    """A network [*U,B,inputs] -> [*U,B,N,K,outputs], rows policy-major whatever axes U come first.

    A channel has a network of its own, unless `share_trunk`; with `output: team` the N agents have one value. Outputs
    begin near 0. Raises InputError for networks that remember.
    """

    def __init__(
        self, config: CriticConfig, inputs: int, outputs: int, *, agents: int, channels: int, streams: Streams
    ):
        super().__init__()
        self.agents, self.channels, self.outputs = agents, channels, outputs
        self.policies, self.copies = len(streams), 1 if config.share_trunk else channels
        self._values = 1 if config.output == "team" else agents
        width = self._values * channels * outputs // self.copies
        network = config.network
        self.body = build_network(network, inputs, width, gain=0.01, copies=self.copies, streams=streams)
        sizes = {"agents": 1, "inputs": inputs, "outputs": width}
        check_network(self.body, network.kind, policies=self.policies, copies=self.copies, **sizes)
        if self.body.memory_shape is not None:
            raise InputError(f"A critic of prefixes needs a network without memory; {network.kind} remembers.")

    def forward(self, x: Float[Tensor, "*U B inputs"]) -> Float[Tensor, "*U B N K outputs"]:
        """Outputs of every agent and channel."""
        before, count = x.shape[:-2], x.shape[-2]
        by_policy = x.reshape(-1, self.policies, count // self.policies, x.shape[-1]).transpose(0, 1)
        flat = by_policy.flatten(0, 2)
        alive = torch.ones(len(flat), 1, dtype=torch.bool, device=x.device)
        y, _ = self.body(stack_copies(flat, self.policies, self.copies).unsqueeze(2), alive, None)
        y = self._by_value(join_copies(y, self.copies).squeeze(1))
        y = y.unflatten(0, by_policy.shape[:3]).transpose(0, 1)
        y = y.reshape(*before, count, *y.shape[-3:])
        return y.expand(*before, count, self.agents, self.channels, self.outputs)

    def _by_value(self, y: Float[Tensor, "B width"]) -> Float[Tensor, "B values K outputs"]:
        """Outputs by value and channel: the copies of channels lie side by side, a shared trunk has them innermost."""
        if self.copies == 1:
            return y.unflatten(-1, (self._values, self.channels, self.outputs))
        return y.unflatten(-1, (self.channels, self._values, self.outputs)).transpose(-3, -2)
