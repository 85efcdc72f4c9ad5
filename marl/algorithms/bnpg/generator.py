"""Graphs learned from context: a permutation-equivariant network scores each agent for the order and each pair."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, StrictInt, model_validator
from torch import Tensor, nn

from envs.core import EnvSpec, InputError, Observation, Streams
from marl.algorithms.bnpg.graphs import GraphDistribution
from marl.algorithms.bnpg.relaxed import RelaxedGraphs
from marl.config.schema import Section
from marl.models.layers import NetworkConfig
from marl.models.networks import build_network

Graphs = GraphDistribution | RelaxedGraphs


class GraphConfig(Section):
    """Configuration of the graph: the agents that may see one another's actions.

    Until a learned graph is empty, execution is centralized: one sampler sees the context of all agents.
    """

    kind: Literal["empty", "line", "complete", "random", "edges", "learned"] = Field(
        "complete", description="a fixed graph; random: edges by chance; learned: sampled from the context"
    )
    edges: tuple[tuple[StrictInt, StrictInt], ...] = Field(
        (),
        description="pairs (i, j), agent j sees i's action: the graph of kind edges; of kind random those that may be "
        "there, by default every (i, j) with i < j",
    )
    density: float = Field(
        0.5, ge=0, le=1, description="the chance of each edge: of a random graph, and of a learned one at first"
    )
    context: Literal["all", "public", "local"] = Field(
        "all",
        description="what a learned graph depends on: all observations; their public features; or, for edge i -> j, "
        "public features and what the receiver j sees",
    )
    public: tuple[int, ...] = Field((), description="features of every agent's observation that everybody may know")
    network: NetworkConfig = NetworkConfig(kind="attention", hidden=(32,), heads=1)
    agent_id: bool = Field(True, description="tell the generator which agent is which")
    price: float = Field(0.0, ge=0, description="what a learned graph pays for its expected density")
    estimator: Literal["likelihood", "straight_through"] = Field(
        "likelihood",
        description="likelihood: the graph is one more decider; straight_through: gradients of the actions through "
        "its edges and a Gumbel-Sinkhorn order, as published",
    )
    bonus: float = Field(0.1, ge=0, description="weight of a learned graph's entropy at the start")
    bonus_until: float = Field(0.6, gt=0, le=1, description="share of training over which the bonus falls to 0")

    @model_validator(mode="after")
    def _consistent(self) -> GraphConfig:
        if self.edges and self.kind not in ("edges", "random"):
            raise ValueError(f"graph.edges is for graph.kind: edges or random; the kind is {self.kind}")
        if self.kind == "edges" and not self.edges:
            raise ValueError("graph.kind: edges needs graph.edges, such as [[0, 1]]; for no edges there is kind: empty")
        if self.kind == "learned" and self.context != "all" and not self.public:
            raise ValueError(
                f"graph.context: {self.context} needs graph.public, the indices of the observation features that "
                "everybody may know"
            )
        return self


class GraphGenerator(nn.Module):
    """A distribution over graphs in each row, from that row alone and from nothing but the chosen context.

    Scores of the order never depend on what is private in a `local` or `public` context, and whether an agent has a
    parent never depends on what others see privately; so nobody can read a private bit off its set of parents. (An
    edge that depended on what the sender sees would carry a bit without a message.) Serves one policy at a time.
    """

    def __init__(self, spec: EnvSpec, config: GraphConfig, streams: Streams):
        super().__init__()
        if len(streams) > 1:
            raise InputError("A learned graph trains one policy at a time: sweep its seeds as runs of their own.")
        wrong = [feature for feature in config.public if not 0 <= feature < spec.observation_size]
        if wrong:
            raise InputError(
                f"policy.graph.public: features are numbered 0 to {spec.observation_size - 1}; got {wrong}."
            )
        agents = len(spec.agents)
        self._public = None if config.context == "all" else torch.tensor(config.public, device=streams.device)
        inputs = spec.observation_size if self._public is None else len(self._public)
        self._label = torch.eye(agents if config.agent_id else 0, device=streams.device)
        self._size = size = config.network.hidden[-1]
        labels = self._label.shape[1]
        # For each agent its score for the order (or one for each place), and its vectors as a sender and a receiver.
        self._relaxed = config.estimator == "straight_through"
        self._parts = (agents if self._relaxed else 1, size, size)
        self.shared = build_network(config.network, inputs + labels, sum(self._parts), gain=2**0.5, streams=streams)
        if self.shared.memory_shape is not None:
            raise InputError(
                f"policy.graph.network.kind: {config.network.kind} remembers, and a graph depends on what is seen now; "
                "choose attention or mlp."
            )
        alone = NetworkConfig(hidden=config.network.hidden, activation=config.network.activation)
        self.private = (
            build_network(alone, spec.observation_size + labels, size, gain=2**0.5, streams=streams)
            if config.context == "local"
            else None
        )
        chance = torch.full((1,), config.density).clamp(0.01, 0.99)
        self.offset = nn.Parameter(chance.logit().to(streams.device))
        self.price: Tensor
        self.bonus: Tensor
        self.register_buffer("price", torch.tensor(config.price, device=streams.device))
        self.register_buffer("bonus", torch.tensor(config.bonus, device=streams.device))

    def forward(self, obs: Observation) -> Graphs:
        """The distribution of graphs in each row."""
        seen = obs.agent if self._public is None else obs.agent.index_select(-1, self._public)
        score, sender, receiver = self._encode(self.shared, seen, obs).split(self._parts, -1)
        if self.private is not None:
            receiver = receiver + self._encode(self.private, obs.agent, obs)
        logits = sender @ receiver.transpose(1, 2) * self._size**-0.5 + self.offset
        if self._relaxed:
            return RelaxedGraphs(score, logits, obs.alive)
        # At first nobody is likely to come before others.
        return GraphDistribution(0.1 * score.squeeze(-1), logits, obs.alive)

    def _encode(self, network: nn.Module, x: Float[Tensor, "B N D"], obs: Observation) -> Float[Tensor, "B N H"]:
        labeled = torch.cat([x, self._label.expand(len(x), -1, -1)], -1) if self._label.numel() else x
        y, _ = network(labeled.unsqueeze(0), obs.alive, None)
        return y.squeeze(0)
