"""A joint policy that is a Bayesian network: agents see the sampled actions of their parents before they choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from envs.core import Continuous, Decision, Discrete, EnvSpec, Observation, Streams, Tree
from envs.dags import named_edges
from marl.algorithms.bnpg.generator import GraphConfig, GraphGenerator
from marl.algorithms.bnpg.graphs import Graph, GraphDistribution, among_living, fixed_graph, levels
from marl.distributions import ActionUnits, IndependentCategorical, IndependentGaussian
from marl.networks import NetworkConfig
from marl.policies import AgentNetwork, PolicyConfig

Conditionals = IndependentCategorical | IndependentGaussian


class BayesianPolicyConfig(PolicyConfig):
    """Independent agents' settings, and the graph that they act along."""

    graph: GraphConfig = GraphConfig()
    messages: Literal["action", "action_and_observation"] = Field(
        "action", description="what an agent sees of its parents"
    )


class Noise(NamedTuple):
    """The random numbers of a joint decision: for each agent's choice, and for the graph where it is sampled."""

    choice: Float[Tensor, "B N out"]
    clocks: Float[Tensor, "B N"] | None = None
    uniform: Float[Tensor, "B N N"] | None = None


class BayesianPolicy(nn.Module):
    """π(a | o) = Π_i π_i(a_i | o_i, a_{parents of i}), with a graph that is fixed, random, or sampled from context.

    What an agent sees and remembers goes through its own network; a head joins that with its parents' messages, so
    that an ancestral draw costs one pass of the network and one of the head for each level of the graph. A learned
    graph is one more decider. Source: Chen and Zhang, ICML 2023 (arXiv 2306.01920).
    """

    def __init__(self, spec: EnvSpec, config: BayesianPolicyConfig, streams: Streams):
        super().__init__()
        self.space, self.agents, self.policies = spec.action, len(spec.agents), len(streams)
        self.config, self.device = config.graph, streams.device
        self.outputs = sum(self.space.choices) if isinstance(self.space, Discrete) else self.space.size
        hidden = config.network.hidden[-1]
        self._sends_observation = config.messages == "action_and_observation"
        letter = 1 + self.outputs + (spec.observation_size if self._sends_observation else 0)
        shared: dict[str, Any] = {"share": config.share, "agent_id": config.agent_id}
        self.body = AgentNetwork(spec, hidden, config.network, streams, gain=2**0.5, **shared)
        told = dataclasses.replace(spec, observation_sizes=(hidden + self.agents * letter,) * self.agents)
        head = NetworkConfig(hidden=(hidden,), activation=config.network.activation)
        self.head = AgentNetwork(told, self.outputs, head, streams, gain=0.01, **shared)
        if isinstance(self.space, Continuous):
            start = torch.full((self.policies, 1, self.agents, self.outputs), config.initial_std).log()
            self.log_std = nn.Parameter(start.to(streams.device))
            self._units = ActionUnits.of([s for s in spec.actions if isinstance(s, Continuous)], streams.device)
        self.generator = GraphGenerator(spec, config.graph, streams) if config.graph.kind == "learned" else None
        self.density: Tensor
        self.register_buffer("density", torch.tensor(config.graph.density, device=streams.device))
        self.pairs = self.agents * (self.agents - 1) // 2
        fixed = _fixed(config.graph, self.agents)
        self._fixed = None if fixed is None else Graph(*(x.to(streams.device) for x in fixed))
        # Levels to draw, where the graph's kind says how many; None where every batch has its own.
        self.depth = None if fixed is None else int(levels(fixed.edges).max()) + 1

    @property
    def members(self) -> Bool[Tensor, "M N"] | None:
        """The agents, and the graph's decider where there is one, who decides for all."""
        if self.generator is None:
            return None
        one = torch.eye(self.agents, dtype=torch.bool, device=self.device)
        return torch.cat([one, torch.ones_like(one[:1])])

    def initial_memory(self, num_envs: int) -> Tree:
        """Memory at the start of an episode; it holds what an agent saw, never its parents' actions."""
        return self.body.initial_memory(num_envs)

    def forward(self, obs: Observation, memory: Tree) -> tuple[BayesianNetwork, Tree]:
        """The joint distribution in each row, and what is remembered."""
        seen, memory = self.body(obs, memory)
        graphs = None if self.generator is None else self.generator(obs)
        return BayesianNetwork(self, obs, seen.tanh(), graphs), memory

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Draw a graph and what all agents do."""
        distribution, memory = self(obs, memory)
        return distribution.sample(streams), memory

    def conditionals(
        self, obs: Observation, seen: Float[Tensor, "B N H"], action: Tensor, edges: Bool[Tensor, "B N N"]
    ) -> Conditionals:
        """Every agent's distribution given what its parents in `edges` do in `action`."""
        messages = self._messages(obs, action)  # [B,N,letter], by sender
        # [B, receiver, sender · letter]: the letters of an agent's parents, zeros from everybody else.
        read = (edges.transpose(1, 2).unsqueeze(-1) * messages.unsqueeze(1)).flatten(2)
        y, _ = self.head(dataclasses.replace(obs, agent=torch.cat([seen, read], -1)), None)
        if isinstance(self.space, Discrete):
            return IndependentCategorical(y, self.space.choices, obs.legal)
        log_std = self.log_std.expand(-1, len(y) // self.policies, -1, -1).flatten(0, 1)
        return IndependentGaussian(y, log_std, self._units, obs.legal)

    def given_graph(self, rows: int, streams: Streams) -> Graph:
        """The graph of each row where it is not learned; a random one has each forward edge with `density`."""
        assert self._fixed is not None
        order, edges = (x.expand(rows, *x.shape) for x in self._fixed)
        if self.config.kind == "random":
            shape = (self.agents, self.agents)
            uniform = streams.draw(lambda n, g: torch.rand((n, *shape), generator=g, device=self.device), rows)
            edges = edges & (uniform < self.density)
        return Graph(order, edges)

    def _messages(self, obs: Observation, action: Tensor) -> Float[Tensor, "B N letter"]:
        """One, what an agent did (one-hot, or in the actions' units), and what it saw where that is sent too."""
        if isinstance(self.space, Discrete):
            parts = zip(action.unbind(-1), self.space.choices)
            did = torch.cat([F.one_hot(part, count) for part, count in parts], -1).to(obs.agent.dtype)
        else:
            did = (action - self._units.middle) / self._units.scale * self._units.present
        letter = [torch.ones_like(did[..., :1]), did]
        return torch.cat([*letter, obs.agent] if self._sends_observation else letter, -1)


class WithoutEdges:
    """The same team when nobody hears of anybody: what decentralized execution would earn."""

    def __init__(self, policy: BayesianPolicy):
        self.policy = policy

    def initial_memory(self, num_envs: int) -> Tree:
        """Memory at the start of an episode."""
        return self.policy.initial_memory(num_envs)

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Draw what all agents do, each from what it sees alone."""
        seen, memory = self.policy.body(obs, memory)
        return BayesianNetwork(self.policy, obs, seen.tanh(), None).sample_without_edges(streams), memory


class BayesianNetwork:
    """The joint distribution of one observation batch: graphs (None where they are not learned), then actions."""

    def __init__(
        self,
        policy: BayesianPolicy,
        obs: Observation,
        seen: Float[Tensor, "B N H"],
        graphs: GraphDistribution | None,
    ):
        self.policy, self.obs, self.seen, self.graphs = policy, obs, seen, graphs

    def sample(self, streams: Streams) -> Decision:
        """Draw a graph, then actions in its order, each given its parents' (ancestral sampling, level by level)."""
        rows, agents = self.obs.alive.shape
        if self.graphs is None:
            graph = self.policy.given_graph(rows, streams)
        else:
            uniform = streams.draw(
                lambda n, g: torch.rand((n, agents, agents), generator=g, device=self.seen.device), rows
            )
            graph = self.graphs.choose(streams.exponential((rows, agents)), uniform)
        return self._ancestral(graph, self._chooser(streams))

    def sample_without_edges(self, streams: Streams) -> Decision:
        """Draw actions as if the graph were empty."""
        rows, agents = self.obs.alive.shape
        order = torch.arange(agents, device=self.seen.device).expand(rows, -1)
        edges = torch.zeros(rows, agents, agents, dtype=torch.bool, device=self.seen.device)
        return self._ancestral(Graph(order, edges), self._chooser(streams))

    def mode(self) -> Decision:
        """The most probable graph, and along it every agent's most probable choice given its parents' (greedily)."""
        if self.graphs is None:
            graph = self.policy.given_graph(len(self.obs.alive), Streams([0], self.seen.device))
        else:
            graph = self.graphs.mode()
        return self._ancestral(graph, lambda given: given.mode())

    def log_prob(self, decision: Decision) -> Float[Tensor, "B M"]:
        """Of every agent's action given those of its parents in the executed graph; then of the graph."""
        graph = decision.latent
        of_agents = self._given(decision).log_prob(decision)
        return of_agents if self.graphs is None else _beside(of_agents, self.graphs.log_prob(graph))

    def entropy(self, decision: Decision) -> Float[Tensor, "B M"]:
        """Of every agent's choice given its parents' actions, and of the graph."""
        of_agents = self._given(decision).entropy(decision)
        return of_agents if self.graphs is None else _beside(of_agents, self.graphs.entropy(decision.latent))

    def price(self, decision: Decision) -> Float[Tensor, "B M"] | None:
        """What the graph's decider pays for the density of what it draws, less the bonus for not settling yet."""
        if self.graphs is None:
            return None
        generator = self.policy.generator
        assert generator is not None
        paid = generator.price * self.graphs.density() - generator.bonus * self.graphs.entropy(decision.latent)
        return _beside(paid.new_zeros(self.obs.alive.shape), paid)

    def log_probs(self) -> Float[Tensor, "B N A"]:
        """Agents that see one another's actions have no list of choices of their own."""
        raise TypeError("log_probs lists the choices of independent agents; these follow a graph: use log_prob.")

    def _chooser(self, streams: Streams) -> Callable[[Conditionals], Decision]:
        """Draws from conditionals, level after level, with the same random numbers."""
        shape = (*self.obs.alive.shape, self.policy.outputs)
        noise = streams.exponential(shape) if isinstance(self.policy.space, Discrete) else streams.normal(shape)
        return lambda given: given.choose(noise)

    def _given(self, decision: Decision) -> Conditionals:
        """All conditionals at once: the parents' actions are known."""
        return self.policy.conditionals(self.obs, self.seen, decision.action, decision.latent.edges)

    def _ancestral(self, graph: Graph, choose: Callable[[Conditionals], Decision]) -> Decision:
        graph = among_living(graph, self.obs.alive)
        level = levels(graph.edges)
        action: Tensor | None = None
        log_prob: Tensor | None = None
        for now in range(self._depth(level)):
            known = self._nothing() if action is None else action
            drawn = choose(self.policy.conditionals(self.obs, self.seen, known, graph.edges))
            assert drawn.log_prob is not None
            mine = level == now
            action = drawn.action if action is None else torch.where(mine.unsqueeze(-1), drawn.action, action)
            log_prob = drawn.log_prob if log_prob is None else torch.where(mine, drawn.log_prob, log_prob)
        assert action is not None
        assert log_prob is not None
        if self.graphs is not None:
            log_prob = _beside(log_prob, self.graphs.log_prob(graph))
        return Decision(action, graph, log_prob)

    def _depth(self, level: Tensor) -> int:
        """Levels to draw. On a GPU the host does not wait to learn how many this batch needs."""
        if self.policy.depth is not None:
            return self.policy.depth
        return int(level.max()) + 1 if level.device.type == "cpu" else level.shape[-1]

    def _nothing(self) -> Tensor:
        space, shape = self.policy.space, (*self.obs.alive.shape, self.policy.space.size)
        dtype = torch.int64 if isinstance(space, Discrete) else self.seen.dtype
        return torch.zeros(shape, dtype=dtype, device=self.seen.device)


def _beside(of_agents: Float[Tensor, "B N"], of_graph: Float[Tensor, " B"]) -> Float[Tensor, "B M"]:
    return torch.cat([of_agents, of_graph.unsqueeze(-1)], -1)


def _fixed(config: GraphConfig, agents: int) -> Graph | None:
    """The graph that the config gives; for a random one, the complete graph that its edges are drawn from."""
    if config.kind == "learned":
        return None
    name = "complete" if config.kind == "random" else config.kind
    return fixed_graph(config.edges if name == "edges" else named_edges(name, agents), agents)
