"""A network whose agents attend to one another."""

from __future__ import annotations

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from envs.core import InputError, Streams
from marl.models.layers import ACTIVATIONS, Linear, Network, NetworkConfig, NetworkOptions, Trunk


class AttentionOptions(NetworkOptions):
    """Attention over agents."""

    heads: int = Field(4, ge=1, description="attention heads; must divide the last hidden size")


def attention(
    query: Float[Tensor, "*X N d"],
    key: Float[Tensor, "*X N d"],
    value: Float[Tensor, "*X N d"],
    attend: Bool[Tensor, "*#X 1 N"],
) -> Float[Tensor, "*X N d"]:
    """Scaled dot-product attention to those with attend [*X,1,N]; for few agents several times the library's speed."""
    score = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    score = score.masked_fill(~attend, -1e9)
    weight = (score - score.amax(-1, keepdim=True).detach()).exp()
    return weight @ value / weight.sum(-1, keepdim=True)


class Attention(Network):
    """Agents attend to one another: an embedding, one block of multi-head attention over the living, and an output.

    Permutation-equivariant, so it serves any number of agents. As a policy it is communication: every agent sees what
    the others see. Source: Vaswani et al., NeurIPS 2017 (arXiv 1706.03762), without positions.
    """

    Options = AttentionOptions
    mixes_agents = True

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, *, gain: float, copies: int, streams: Streams):
        super().__init__()
        heads = AttentionOptions.of(config).heads
        if config.hidden[-1] % heads:
            raise InputError(
                f"network.heads must divide the last hidden size; got {heads} heads for {config.hidden[-1]}."
            )
        self.heads, self.activation = heads, ACTIVATIONS[config.activation]
        self.trunk = Trunk(inputs, config, copies=copies, streams=streams)
        size = config.hidden[-1]
        self.projection = Linear(size, 3 * size, gain=1.0, copies=copies, streams=streams)
        self.mixed = Linear(size, size, gain=1.0, copies=copies, streams=streams)
        self.output = Linear(size, outputs, gain=gain, copies=copies, streams=streams)

    def forward(
        self, x: Float[Tensor, "Q R N D"], alive: Bool[Tensor, "B N"], memory: None
    ) -> tuple[Float[Tensor, "Q R N out"], None]:
        """Outputs, and no memory. Nobody attends to the dead; where nobody lives, everybody attends to all."""
        copies, rows, agents, features = x.shape
        y = self.trunk(x.reshape(copies, rows * agents, features))
        query, key, value = (self._by_head(part, agents) for part in self.projection(y).chunk(3, -1))
        heard = attention(query, key, value, self._attend(alive, copies, rows))
        # Side by side again: [Q,R,heads,N,H/heads] -> [Q,R·N,H].
        heard = heard.transpose(2, 3).flatten(3)
        y = y + self.activation(self.mixed(heard.flatten(1, 2)))
        return self.output(y).view(copies, rows, agents, -1), None

    def _by_head(self, part: Float[Tensor, "Q X H"], agents: int) -> Float[Tensor, "Q R heads N d"]:
        by_agent = part.unflatten(1, (-1, agents))
        return by_agent.unflatten(-1, (self.heads, -1)).transpose(2, 3)

    def _attend(self, alive: Bool[Tensor, "B N"], copies: int, rows: int) -> Bool[Tensor, "Q R 1 1 N"]:
        """To whom everyone attends: the living; to all where nobody lives. A policy's copies attend alike."""
        attend = alive | ~alive.any(-1, keepdim=True)
        by_policy = attend.view(-1, 1, rows, 1, 1, alive.shape[1])
        return by_policy.expand(-1, copies // len(by_policy), -1, -1, -1, -1).flatten(0, 1)
