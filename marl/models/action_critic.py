"""A critic of every single action, for what is learned from logs."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from envs.core import Continuous, Discrete, EnvSpec, InputError, Observation, Streams
from marl.models.layers import NetworkConfig
from marl.models.policies import AgentNetwork


class ActionCritic(nn.Module):
    """Q(s, ·): what every single action of an agent is worth, by channel; a network of its own for each channel.

    Sees what the agent sees. Its outputs begin near 0. Raises InputError for actions of several components or of real
    numbers, and for networks that remember.
    """

    def __init__(self, spec: EnvSpec, network: NetworkConfig, streams: Streams):
        super().__init__()
        self.actions, self.channels = only_choice(spec.action), len(spec.channels)
        self.network = AgentNetwork(
            spec, self.actions, network, streams, share="kind", agent_id=False, gain=0.01, copies=self.channels
        )
        if self.network.memory_shape is not None:
            raise InputError(f"Values of logged actions need a network without memory; {network.kind} remembers.")

    def forward(self, obs: Observation) -> Float[Tensor, "B N A K"]:
        """Values."""
        y, _ = self.network(obs, None)  # [B,N,K·A]
        return y.unflatten(-1, (self.channels, self.actions)).transpose(-1, -2)


def only_choice(space: Discrete | Continuous) -> int:
    """A, of an action that is one choice among A. Raises InputError for any other."""
    if isinstance(space, Continuous) or space.size != 1:
        kind = "real numbers" if isinstance(space, Continuous) else f"{space.size} choices at once"
        raise InputError(f"An action must be one choice among finitely many here; it is {kind}.")
    return space.choices[0]
