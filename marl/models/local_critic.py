"""Values from what each agent sees by itself."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from envs.core import EnvSpec, Observation, Streams, Tree
from marl.models.critics import CriticConfig
from marl.models.policies import AgentNetwork


class LocalCritic(nn.Module):
    """Sees what each agent sees; gives that agent's values."""

    def __init__(self, spec: EnvSpec, config: CriticConfig, streams: Streams):
        super().__init__()
        self.channels = len(spec.channels)
        self.copies = 1 if config.share_trunk else self.channels
        self.network = AgentNetwork(
            spec,
            self.channels // self.copies,
            config.network,
            streams,
            share=config.share,
            agent_id=config.agent_id,
            gain=1.0,
            copies=self.copies,
        )

    def initial_memory(self, num_envs: int) -> Tree:
        """Memory at the start of an episode."""
        return self.network.initial_memory(num_envs)

    def forward(self, obs: Observation, memory: Tree) -> tuple[Float[Tensor, "B N K"], Tree]:
        """Values, and what is remembered."""
        return self.network(obs, memory)
