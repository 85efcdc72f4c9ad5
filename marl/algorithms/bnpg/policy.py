"""A joint policy that is a Bayesian network: agents see the sampled actions of their parents before they choose."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Num
from pydantic import Field
from torch import Tensor, nn

from envs.core import Continuous, Decision, Discrete, EnvSpec, Observation, Streams, Tree
from envs.dags import Edges, named_edges
from marl.algorithms.bnpg.generator import GraphConfig, GraphGenerator
from marl.algorithms.bnpg.graphs import Graph, GraphDistribution, among_living, by_level, fixed_graph, ragged_levels
from marl.algorithms.bnpg.head import Head
from marl.distributions import ActionUnits, IndependentCategorical, IndependentGaussian
from marl.policies import AgentNetwork, PolicyConfig, shared_by

Conditionals = IndependentCategorical | IndependentGaussian


class BayesianPolicyConfig(PolicyConfig):
    """Independent agents' settings, and the graph that they act along."""

    graph: GraphConfig = GraphConfig()
    messages: Literal["action", "action_and_observation"] = Field(
        "action", description="what an agent sees of its parents"
    )


class BayesianPolicy(nn.Module):
    """π(a | o) = Π_i π_i(a_i | o_i, a_{parents of i}), with a graph that is fixed, random, or sampled from context.

    What an agent sees and remembers goes through its own network, once; a head joins that with its parents' messages,
    so that an ancestral draw costs one pass of the network, and of the head a part for each level of the graph. A
    learned graph is one more decider. Source: Chen and Zhang, ICML 2023 (arXiv 2306.01920).
    """

    def __init__(self, spec: EnvSpec, config: BayesianPolicyConfig, streams: Streams):
        super().__init__()
        self.space, self.agents, self.policies = spec.action, len(spec.agents), len(streams)
        self.config, self.device = config.graph, streams.device
        self.outputs = sum(self.space.choices) if isinstance(self.space, Discrete) else self.space.size
        hidden = config.network.hidden
        self.letters = Letters(spec, config.messages == "action_and_observation", streams.device)
        # The last hidden layer is where messages come in, so that a graph costs no layer.
        body = config.network.model_copy(update={"hidden": hidden[:-1] or hidden})
        self.body = AgentNetwork(
            spec, hidden[-1], body, streams, share=config.share, agent_id=config.agent_id, gain=2**0.5
        )
        self.head = Head(
            shared_by(spec, config.share),
            hidden[-1],
            self.letters.size,
            self.outputs,
            config.network.activation,
            streams,
        )
        if isinstance(self.space, Continuous):
            start = torch.full((self.policies, 1, self.agents, self.outputs), config.initial_std).log()
            self.log_std = nn.Parameter(start.to(streams.device))
        self.generator = GraphGenerator(spec, config.graph, streams) if config.graph.kind == "learned" else None
        self.density: Tensor
        self.register_buffer("density", torch.tensor(config.graph.density, device=streams.device))
        self.pairs = self.agents * (self.agents - 1) // 2
        self._everybody = torch.arange(self.agents, device=streams.device)
        fixed = _fixed(config.graph, self.agents)
        self._fixed = None if fixed is None else Graph(*(x.to(streams.device) for x in fixed))
        self._levels = None if fixed is None else [level.to(streams.device) for level in by_level(fixed.edges)]

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
        return BayesianNetwork(self, obs, seen, graphs), memory

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Draw a graph and what all agents do."""
        distribution, memory = self(obs, memory)
        return distribution.sample(streams), memory

    def conditionals(
        self,
        obs: Observation,
        seen: Float[Tensor, "B N H"],
        letters: Float[Tensor, "B N L"],
        edges: Bool[Tensor, "B N N"],
        who: Int[Tensor, "B n"] | None = None,
    ) -> Conditionals:
        """The distributions of the agents `who` (all in slot order), given the letters of their parents in `edges`."""
        heard, legal = edges.transpose(1, 2), obs.legal
        if who is None:
            who = self._everybody.expand(len(seen), -1)
        else:
            seen, heard = take(seen, who), take(heard, who)
            legal = None if legal is None else take(legal, who)
        y = self.head(seen, letters, heard, who)
        if isinstance(self.space, Discrete):
            return IndependentCategorical(y, self.space.choices, legal)
        log_std = self.log_std.expand(-1, len(y) // self.policies, -1, -1).flatten(0, 1)
        units = self.letters.units
        assert units is not None
        return IndependentGaussian(y, take(log_std, who), ActionUnits(*(unit[who] for unit in units)), legal)

    def given_graph(self, rows: int, streams: Streams) -> Graph:
        """The graph of each row where it is not learned; a random one has each forward edge with `density`."""
        assert self._fixed is not None
        order, edges = (x.expand(rows, *x.shape) for x in self._fixed)
        if self.config.kind == "random":
            edges = edges & (self.uniform(rows, streams) < self.density)
        return Graph(order, edges)

    def uniform(self, rows: int, streams: Streams) -> Float[Tensor, "B N N"]:
        """Numbers in [0, 1) for each pair of agents."""
        shape = (self.agents, self.agents)
        return streams.draw(lambda n, g: torch.rand((n, *shape), generator=g, device=self.device), rows)

    def turns(self, graph: Graph) -> list[Int[Tensor, "B n"]]:
        """Who decides at once, and after whom: level by level. Together they name everybody."""
        rows = len(graph.order)
        if self._levels is not None:
            return [level.expand(rows, -1) for level in self._levels]
        if graph.edges.device.type == "cpu":
            return ragged_levels(graph.edges)
        return list(graph.order.split(1, -1))  # one by one: the host need not learn how many levels there are


class WithoutEdges:
    """The same team when nobody hears along the edges of `cut`, whatever graph is drawn.

    cut None cuts all of them: what decentralized execution would earn. It draws the policy's own random numbers, so
    that both can be compared episode by episode.
    """

    def __init__(self, policy: BayesianPolicy, cut: Edges | None = None):
        self.policy = policy
        self._kept = torch.full((policy.agents, policy.agents), cut is not None, device=policy.device)
        for sender, receiver in cut or ():
            self._kept[sender, receiver] = False

    def initial_memory(self, num_envs: int) -> Tree:
        """Memory at the start of an episode."""
        return self.policy.initial_memory(num_envs)

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Draw a graph, cut it, and draw what all agents do along the rest."""
        distribution, memory = self.policy(obs, memory)
        return distribution.sample(streams, self._kept), memory


class BayesianNetwork:
    """The joint distribution of one observation batch: graphs (None where they are not learned), then actions."""

    def __init__(
        self, policy: BayesianPolicy, obs: Observation, seen: Float[Tensor, "B N H"], graphs: GraphDistribution | None
    ):
        self.policy, self.obs, self.seen, self.graphs = policy, obs, seen, graphs
        self._known: tuple[Decision, Conditionals] | None = None

    def sample(self, streams: Streams, kept: Bool[Tensor, "N N"] | None = None) -> Decision:
        """Draw a graph, then actions along what is `kept` of it, each given its parents' (ancestral sampling)."""
        rows, agents = self.obs.alive.shape
        if self.graphs is None:
            graph = self.policy.given_graph(rows, streams)
        else:
            graph = self.graphs.choose(streams.exponential((rows, agents)), self.policy.uniform(rows, streams))
        if kept is not None:
            graph = graph._replace(edges=graph.edges & kept)
        return self._ancestral(graph, self._noise(streams))

    def mode(self) -> Decision:
        """The most probable graph, and along it every agent's most probable choice given its parents' (greedily)."""
        if self.graphs is None:
            graph = self.policy.given_graph(len(self.obs.alive), Streams([0], self.seen.device))
        else:
            graph = self.graphs.mode()
        return self._ancestral(graph, None)

    def log_prob(self, decision: Decision) -> Float[Tensor, "B M"]:
        """Of every agent's action given those of its parents in the executed graph; then of the graph."""
        of_agents = self._given(decision).log_prob(decision)
        return of_agents if self.graphs is None else _beside(of_agents, self.graphs.log_prob(decision.latent))

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

    def _given(self, decision: Decision) -> Conditionals:
        """All conditionals at once: the parents' actions are known. Asked for twice, computed once."""
        if self._known is None or self._known[0] is not decision:
            letters = self.policy.letters(decision.action, self.obs)
            given = self.policy.conditionals(self.obs, self.seen, letters, decision.latent.edges)
            self._known = decision, given
        return self._known[1]

    def _ancestral(self, graph: Graph, noise: Float[Tensor, "B N out"] | None) -> Decision:
        """Everybody's choice, level by level; the most probable ones without noise."""
        graph = among_living(graph, self.obs.alive)
        action = self._nothing()
        log_prob = self.seen.new_zeros(self.obs.alive.shape)
        for who in self.policy.turns(graph):
            letters = self.policy.letters(action, self.obs)
            given = self.policy.conditionals(self.obs, self.seen, letters, graph.edges, who)
            drawn = given.mode() if noise is None else given.choose(take(noise, who))
            assert drawn.log_prob is not None
            action = action.scatter(1, who.unsqueeze(-1).expand_as(drawn.action), drawn.action)
            log_prob = log_prob.scatter(1, who, drawn.log_prob)
        if self.graphs is not None:
            log_prob = _beside(log_prob, self.graphs.log_prob(graph))
        return Decision(action, graph, log_prob)

    def _noise(self, streams: Streams) -> Float[Tensor, "B N out"]:
        shape = (*self.obs.alive.shape, self.policy.outputs)
        return streams.exponential(shape) if isinstance(self.policy.space, Discrete) else streams.normal(shape)

    def _nothing(self) -> Tensor:
        space, shape = self.policy.space, (*self.obs.alive.shape, self.policy.space.size)
        dtype = torch.int64 if isinstance(space, Discrete) else self.seen.dtype
        return torch.zeros(shape, dtype=dtype, device=self.seen.device)


class Letters:
    """What agents tell their children: that they decided, what they did, and what they saw where that is sent too."""

    def __init__(self, spec: EnvSpec, sends_observation: bool, device: torch.device):
        self._space, self._sends_observation = spec.action, sends_observation
        spaces = [s for s in spec.actions if isinstance(s, Continuous)]
        self.units = ActionUnits.of(spaces, device) if spaces else None
        did = sum(spec.action.choices) if isinstance(spec.action, Discrete) else spec.action.size
        self.size = 1 + did + (spec.observation_size if sends_observation else 0)

    def __call__(self, action: Num[Tensor, "B N A"], obs: Observation) -> Float[Tensor, "B N L"]:
        """One; the action, one-hot or in units of its range; the observation."""
        if isinstance(self._space, Discrete):
            parts = zip(action.split(1, -1), self._space.choices)
            did = [part == torch.arange(count, device=part.device) for part, count in parts]
            letter = [torch.ones_like(did[0][..., :1]), *did]
            told = torch.cat(letter, -1).to(obs.agent.dtype)
        else:
            assert self.units is not None
            did_there = (action - self.units.middle) / self.units.scale * self.units.present
            told = torch.cat([torch.ones_like(did_there[..., :1]), did_there], -1)
        return torch.cat([told, obs.agent], -1) if self._sends_observation else told


def take(x: Tensor, who: Int[Tensor, "B n"]) -> Tensor:
    """The entries [B,n,…] of these agents among [B,N,…]."""
    return x.gather(1, who.view(*who.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))


def _beside(of_agents: Float[Tensor, "B N"], of_graph: Float[Tensor, " B"]) -> Float[Tensor, "B M"]:
    return torch.cat([of_agents, of_graph.unsqueeze(-1)], -1)


def _fixed(config: GraphConfig, agents: int) -> Graph | None:
    """The graph that the config gives; for a random one, the complete graph that its edges are drawn from."""
    if config.kind == "learned":
        return None
    name = "complete" if config.kind == "random" else config.kind
    return fixed_graph(config.edges if name == "edges" else named_edges(name, agents), agents)
