"""Policies: networks that act for all agents. A policy only acts; losses and optimizers belong to learners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from envs.core import Continuous, Decision, Discrete, EnvSpec, Observation, Streams, Tree
from marl.config.schema import Section
from marl.models.distributions import ActionUnits, IndependentCategorical, IndependentGaussian, JointDistribution
from marl.models.layers import Network, NetworkConfig
from marl.models.networks import build_for_kinds, build_network, check_network


class PolicyConfig(Section):
    """Configuration of the agents' networks."""

    network: NetworkConfig = NetworkConfig()
    share: Literal["kind", "all", "none"] = Field(
        "kind", description="who shares parameters: agents of a kind, all, none"
    )
    agent_id: bool = Field(False, description="append a one-hot of the agent to what it sees")
    initial_std: float = Field(0.5, gt=0, description="deviation of continuous actions, in half-ranges")


def shared_by(spec: EnvSpec, share: Literal["kind", "all", "none"]) -> tuple[int, ...]:
    """A number for each agent; agents with equal numbers share parameters."""
    groups = {"kind": spec.kind, "all": (0,) * len(spec.agents), "none": tuple(range(len(spec.agents)))}
    return groups[share]


@runtime_checkable
class JointActor(Protocol):
    """An Actor that gives a joint distribution over what all agents do."""

    def initial_memory(self, num_envs: int) -> Tree:
        """Memory at the start of an episode."""

    def __call__(self, obs: Observation, memory: Tree) -> tuple[JointDistribution, Tree]:
        """The joint distribution in each row, and what is remembered."""

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Draw what all agents do."""


@runtime_checkable
class JointPolicy(JointActor, Protocol):
    """A JointActor that can be learned: a module.

    space: the padded action space. members [M,N] says for which agents each of M deciders decides; None means that
    every agent decides for itself.
    """

    space: Discrete | Continuous

    @property
    def members(self) -> Bool[Tensor, "M N"] | None:
        """Agents that each decider decides for; None where every agent decides for itself."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that a learner improves."""

    def state_dict(self) -> dict[str, Any]:
        """State that is saved."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """The inverse."""


class AgentNetwork(nn.Module):
    """A network that sees what each agent sees, [B,N,D] -> [B,N,out], shared as the config says."""

    def __init__(
        self,
        spec: EnvSpec,
        outputs: int,
        network: NetworkConfig,
        streams: Streams,
        *,
        share: Literal["kind", "all", "none"],
        agent_id: bool,
        gain: float,
        copies: int = 1,
    ):
        super().__init__()
        self.policies, self.copies = len(streams), copies
        agents, kinds = len(spec.agents), sorted(set(spec.kind))
        label = torch.eye(agents) if agent_id else torch.empty(agents, 0)
        if share == "all" and len(kinds) > 1 and not agent_id:
            # One network for unlike agents must be told whose place it fills.
            label = torch.eye(len(kinds))[[kinds.index(k) for k in spec.kind]]
        self._label = label.to(streams.device)
        network.options.check(agents, min(spec.observation_sizes))
        groups = shared_by(spec, share)
        inputs = spec.observation_size + label.shape[1]

        def build() -> Network:
            return build_network(network, inputs, outputs, gain=gain, copies=copies, streams=streams)

        self.body = build_for_kinds(groups, build, streams.device)
        sizes = {"agents": agents, "inputs": inputs, "outputs": outputs}
        check_network(self.body, network.kind, policies=self.policies, copies=copies, **sizes)
        shape = self.body.memory_shape
        self.memory_shape = None if shape is None else (shape[0], agents, shape[1])

    def initial_memory(self, num_envs: int) -> Tensor | None:
        """Zeros [E,C,N,H], or None where the network remembers nothing."""
        return None if self.memory_shape is None else self._label.new_zeros(num_envs, *self.memory_shape)

    def forward(self, obs: Observation, memory: Tree) -> tuple[Float[Tensor, "B N out"], Tree]:
        """Outputs of each agent; with C copies, their outputs side by side."""
        y, memory = self.body(self.inputs(obs), obs.alive, memory)
        return join_copies(y, self.copies), memory

    def inputs(self, obs: Observation) -> Float[Tensor, "Q R N D"]:
        """Each agent's view, with its label, for each copy."""
        x = obs.agent
        if self._label.shape[1]:
            x = torch.cat([x, self._label.expand(*x.shape[:-1], -1)], -1)
        return stack_copies(x, self.policies, self.copies)


def stack_copies(x: Tensor, policies: int, copies: int) -> Tensor:
    """[B,…] policy-major -> [Q,R,…], each policy's rows repeated for its copies."""
    x = x.reshape(policies, -1, *x.shape[1:])
    return x if copies == 1 else x.repeat_interleave(copies, 0)


def join_copies(y: Float[Tensor, "Q R N out"], copies: int) -> Float[Tensor, "B N outs"]:
    """[Q,R,N,out] -> [B,N,C·out]."""
    if copies == 1:
        return y.flatten(0, 1)
    return y.unflatten(0, (-1, copies)).movedim(1, -2).flatten(-2).flatten(0, 1)


class Deviations(nn.Module):
    """The logarithm of the standard deviation of each real action, in half-ranges: a parameter, shared as networks are.

    groups: a number for each agent; agents with equal numbers share (see `shared_by`).
    """

    def __init__(self, groups: Sequence[int], size: int, initial: float, streams: Streams):
        super().__init__()
        self.agents, names = len(groups), sorted(set(groups))
        self.log_std = nn.Parameter(torch.full((len(streams), 1, len(names), size), initial).log().to(streams.device))
        self._group = torch.tensor([names.index(group) for group in groups], device=streams.device)

    def forward(self, rows: int) -> Float[Tensor, "B N out"]:
        """The same in each of B rows, policy-major."""
        policies, _, groups, size = self.log_std.shape
        by_agent = self.log_std if groups == 1 else self.log_std.index_select(2, self._group)
        return by_agent.expand(policies, rows // policies, self.agents, size).flatten(0, 1)


class IndependentPolicy(nn.Module):
    """Agents that decide alone, each from what it sees and remembers: the graph without edges.

    Serves P policies at once, one for each generator of `streams`, which also draw the first weights.
    """

    members = None
    draws_alike = True

    def __init__(self, spec: EnvSpec, config: PolicyConfig, streams: Streams):
        super().__init__()
        self.space = spec.action
        self.policies = len(streams)
        self.outputs = outputs = sum(self.space.choices) if isinstance(self.space, Discrete) else self.space.size
        self.network = AgentNetwork(
            spec, outputs, config.network, streams, share=config.share, agent_id=config.agent_id, gain=0.01
        )
        if isinstance(self.space, Continuous):
            self.deviations = Deviations(shared_by(spec, config.share), outputs, config.initial_std, streams)
            self._units = ActionUnits.of([s for s in spec.actions if isinstance(s, Continuous)], streams.device)

    def initial_memory(self, num_envs: int) -> Tree:
        """Memory at the start of an episode."""
        return self.network.initial_memory(num_envs)

    def forward(self, obs: Observation, memory: Tree) -> tuple[IndependentCategorical | IndependentGaussian, Tree]:
        """The joint distribution in each row, and what is remembered."""
        y, memory = self.network(obs, memory)
        if isinstance(self.space, Discrete):
            return IndependentCategorical(y, self.space.choices, obs.legal), memory
        return IndependentGaussian(y, self.deviations(len(y)), self._units, obs.legal), memory

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Draw what all agents do."""
        distribution, memory = self(obs, memory)
        return distribution.sample(streams), memory
