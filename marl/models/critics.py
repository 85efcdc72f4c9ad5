"""Critics: values of every agent and channel in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from envs.core import EnvSpec, Observation, Streams, Tree
from marl.config.schema import Section
from marl.models.layers import NetworkConfig
from marl.models.networks import build_network, check_network
from marl.models.policies import join_copies, stack_copies


class CriticConfig(Section):
    """Configuration of the critic: its view and its networks."""

    sees: Literal["state", "agent"] = Field(
        "state", description="state: the whole, one output an agent (MAPPO); agent: each agent's own view (IPPO)"
    )
    network: NetworkConfig = NetworkConfig()
    share: Literal["kind", "all", "none"] = Field("kind", description="who shares parameters, where it sees an agent")
    agent_id: bool = Field(False, description="append a one-hot of the agent, where it sees an agent")
    share_trunk: bool = Field(False, description="one network for all reward channels instead of one for each")
    output: Literal["agent", "team"] = Field(
        "agent", description="agent: a value for each; team: one for all, for a team reward and any number of agents"
    )

    @model_validator(mode="after")
    def _one_value_needs_the_whole(self) -> CriticConfig:
        if self.output == "team" and self.sees == "agent":
            raise ValueError("output: team gives one value of the state, so it needs sees: state")
        return self

    @model_validator(mode="after")
    def _messages_need_agents(self) -> CriticConfig:
        if self.network.kind == "message_passing" and self.sees == "state":
            raise ValueError("network.kind: message_passing runs between agents, so it needs sees: agent")
        return self


@runtime_checkable
class Critic(Protocol):
    """Values of every agent and reward channel, learned by an `ActorCritic`: the built-in critics, or one of your own.

    channels: K. copies: C networks a policy that share no parameter, which are clipped apart; with P policies, each
    parameter holds P·C of them on its first axis, policy by policy. memory is zero where an episode starts.
    """

    channels: int
    copies: int

    def initial_memory(self, num_envs: int) -> Tree:
        """Memory at the start of an episode; None where nothing is remembered."""

    def __call__(self, obs: Observation, memory: Tree) -> tuple[Float[Tensor, "B N K"], Tree]:
        """Values, and what is remembered."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that are fitted."""

    def state_dict(self) -> dict[str, Any]:
        """State that is saved."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """The inverse."""


class CentralCritic(nn.Module):
    """Sees the state; gives all agents' values at once. Each channel has its own network unless `share_trunk`.

    With `output: team` there is one value for all agents, and the network does not grow with their number.
    """

    def __init__(self, spec: EnvSpec, config: CriticConfig, streams: Streams):
        super().__init__()
        self.agents, self.channels = len(spec.agents), len(spec.channels)
        self.policies, self.copies = len(streams), 1 if config.share_trunk else self.channels
        self._values = 1 if config.output == "team" else self.agents
        outputs = self._values * self.channels // self.copies
        self.body = build_network(
            config.network, spec.state_size, outputs, gain=1.0, copies=self.copies, streams=streams
        )
        sizes = {"agents": 1, "inputs": spec.state_size, "outputs": outputs}
        check_network(self.body, config.network.kind, policies=self.policies, copies=self.copies, **sizes)
        self._device = streams.device

    def initial_memory(self, num_envs: int) -> Tree:
        """Zeros [E,C,1,H], or None where the network remembers nothing."""
        shape = self.body.memory_shape
        return None if shape is None else torch.zeros(num_envs, shape[0], 1, shape[1], device=self._device)

    def forward(self, obs: Observation, memory: Tree) -> tuple[Float[Tensor, "B N K"], Tree]:
        """Values, and what is remembered."""
        x = stack_copies(obs.state, self.policies, self.copies).unsqueeze(2)
        y, memory = self.body(x, obs.alive.any(-1, keepdim=True), memory)
        y = join_copies(y, self.copies).squeeze(1)  # [B, K·N] by channel, or [B, N·K] from a shared trunk
        if self.copies == 1:
            value = y.unflatten(-1, (self._values, self.channels))
        else:
            value = y.unflatten(-1, (self.channels, self._values)).transpose(1, 2)
        return value.expand(-1, self.agents, -1), memory


def build_critic(spec: EnvSpec, config: CriticConfig, streams: Streams) -> Critic:
    """The critic that the config asks for."""
    if config.sees == "state":
        return CentralCritic(spec, config, streams)
    from marl.models.local_critic import LocalCritic

    return LocalCritic(spec, config, streams)
