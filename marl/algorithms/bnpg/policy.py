"""A joint policy that is a Bayesian network: agents see the sampled actions of their parents before they choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from pydantic import Field
from torch import Tensor, nn

from envs.core import Continuous, Decision, Discrete, EnvSpec, Observation, Streams, Tree
from envs.dags import Edges, named_edges
from marl.algorithms.bnpg.generator import GraphConfig, GraphGenerator, Graphs
from marl.algorithms.bnpg.graphs import Graph, GraphDistribution, among_living, fixed_graph, uniform_pairs
from marl.algorithms.bnpg.message_head import Head, listen
from marl.algorithms.bnpg.sampling_order import SamplingOrder
from marl.models.distributions import ActionUnits, IndependentCategorical, IndependentGaussian, require_same_kind
from marl.models.policies import AgentNetwork, Deviations, PolicyConfig, shared_by

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

    draws_alike = True

    def __init__(self, spec: EnvSpec, config: BayesianPolicyConfig, streams: Streams):
        super().__init__()
        self.space, self.agents, self.policies = spec.action, len(spec.agents), len(streams)
        self.config, self.device = config.graph, streams.device
        self.outputs = sum(self.space.choices) if isinstance(self.space, Discrete) else self.space.size
        hidden = config.network.hidden
        self.message_encoder = MessageEncoder(spec, config.messages == "action_and_observation", streams.device)
        # The last hidden layer is where messages come in, so that a graph costs no layer.
        body = config.network.model_copy(update={"hidden": hidden[:-1] or hidden})
        self.body = AgentNetwork(
            spec, hidden[-1], body, streams, share=config.share, agent_id=config.agent_id, gain=2**0.5
        )
        self.head = Head(
            shared_by(spec, config.share),
            hidden[-1],
            self.message_encoder.size,
            self.outputs,
            config.network.activation,
            streams,
        )
        if isinstance(self.space, Continuous):
            groups = shared_by(spec, config.share)
            self.deviations = Deviations(groups, self.outputs, config.initial_std, streams)
        self.generator = GraphGenerator(spec, config.graph, streams) if config.graph.kind == "learned" else None
        self.density: Tensor
        self.register_buffer("density", torch.tensor(config.graph.density, device=streams.device))
        fixed = _fixed(config.graph, self.agents)
        self._fixed = None if fixed is None else Graph(fixed.order.to(streams.device), fixed.edges.to(streams.device))
        # How many edges there can be: what a density is a share of.
        possible = fixed.edges.sum() if fixed is not None and config.graph.kind == "random" else None
        self.pairs = self.agents * (self.agents - 1) // 2 if possible is None else int(possible)
        varies = config.graph.kind in ("learned", "random")
        self.sampling_order = SamplingOrder(self.head.group, self.policies, None if varies else self._fixed)

    @property
    def members(self) -> Bool[Tensor, "M N"] | None:
        """The agents, and the graph's decider where there is one, who decides for all."""
        if self.generator is None or self.config.estimator == "straight_through":
            return None
        one = torch.eye(self.agents, dtype=torch.bool, device=self.device)
        return torch.cat([one, torch.ones_like(one[:1])])

    def initial_memory(self, num_envs: int) -> Tree:
        """Memory at the start of an episode; it holds what an agent saw, never its parents' actions."""
        return self.body.initial_memory(num_envs)

    def forward(self, obs: Observation, memory: Tree) -> tuple[BayesianNetworkDistribution, Tree]:
        """The joint distribution in each row, and what is remembered."""
        seen, memory = self.body(obs, memory)
        graphs = None if self.generator is None else self.generator(obs)
        return BayesianNetworkDistribution(self, obs, seen, graphs), memory

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Draw a graph and what all agents do."""
        distribution, memory = self(obs, memory)
        return distribution.sample(streams), memory

    def conditionals(
        self, y: Float[Tensor, "*X out"], obs: Observation, places: Int[Tensor, " X"] | None = None
    ) -> Conditionals:
        """The distributions that the head's outputs stand for: [B,N,out], or [X,out] at these places b·N + i."""
        legal = obs.legal
        if places is not None and legal is not None:
            legal = legal.flatten(0, 1)[places]
        if isinstance(self.space, Discrete):
            return IndependentCategorical(y, self.space.choices, legal)
        units, log_std = self.message_encoder.units, self.deviations(len(obs.alive))
        assert units is not None
        if places is not None:
            log_std = log_std.flatten(0, 1)[places]
            units = ActionUnits(*(unit[places % self.agents] for unit in units))
        return IndependentGaussian(y, log_std, units, legal)

    def given_graph(self, alive: Bool[Tensor, "B N"], streams: Streams | None) -> Graph:
        """The graph of each row where it is not learned; a random one has each of its edges with chance `density`.

        Without streams the most probable one: all edges where that chance is above one half, else none.
        """
        assert self._fixed is not None
        rows = len(alive)
        order, edges = (x.expand(rows, *x.shape) for x in (self._fixed.order, self._fixed.edges))
        if self.config.kind == "random":
            chance = 0.5 if streams is None else uniform_pairs(rows, self.agents, streams)
            edges = edges & (chance < self.density)
        return among_living(Graph(order, edges), alive)


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

    def __call__(self, obs: Observation, memory: Tree) -> tuple[BayesianNetworkDistribution, Tree]:
        """The joint distribution in each row, and what is remembered."""
        distribution, memory = self.policy(obs, memory)
        distribution.kept = self._kept
        return distribution, memory

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Draw a graph, cut it, and draw what all agents do along the rest."""
        distribution, memory = self(obs, memory)
        return distribution.sample(streams), memory


class BayesianNetworkDistribution:
    """The joint distribution of one observation batch: graphs (None where they are not learned), then actions.

    kept: the edges that are left of whatever graph is drawn, where some are cut.
    """

    kept: Bool[Tensor, "N N"] | None = None

    def __init__(self, policy: BayesianPolicy, obs: Observation, seen: Float[Tensor, "B N H"], graphs: Graphs | None):
        self.policy, self.obs, self.seen, self.graphs = policy, obs, seen, graphs
        self._known: tuple[Decision, Conditionals] | None = None

    def sample(self, streams: Streams) -> Decision:
        """Draw a graph, then actions along it, each given its parents' (ancestral sampling)."""
        graph = self.policy.given_graph(self.obs.alive, streams) if self.graphs is None else self.graphs.draw(streams)
        with torch.no_grad():
            return self._ancestral(graph, self._noise(streams))

    def mode(self) -> Decision:
        """The most probable graph, and along it every agent's most probable choice given its parents' (greedily)."""
        graph = self.policy.given_graph(self.obs.alive, None) if self.graphs is None else self.graphs.mode()
        with torch.no_grad():
            return self._ancestral(graph, None)

    def log_prob(self, decision: Decision) -> Float[Tensor, "B M"]:
        """Of every agent's action given those of its parents in the executed graph; then of the graph."""
        of_agents = self.given(decision).log_prob(decision)
        return self._beside(of_agents, lambda graphs: graphs.log_prob(decision.latent))

    def entropy(self, decision: Decision) -> Float[Tensor, "B M"]:
        """Of every agent's choice given its parents' actions, and of the graph."""
        of_agents = self.given(decision).entropy(decision)
        return self._beside(of_agents, lambda graphs: graphs.entropy(decision.latent))

    def kl(self, other: BayesianNetworkDistribution, decision: Decision | None = None) -> Float[Tensor, "B M"]:
        """KL(self || other) of every agent's choice given its parents' actions, and of the graph, in the executed one.

        Raises TypeError without a decision: the divergence over all that parents may do has no closed form.
        """
        require_same_kind(self, other)
        if decision is None:
            raise TypeError(
                "kl of a Bayesian network is given what the parents did: kl(other, decision). Its mean over decisions "
                "drawn from the network is the divergence of the joint distributions."
            )
        of_agents = self.given(decision).kl(other.given(decision))  # type: ignore[arg-type]
        if not isinstance(self.graphs, GraphDistribution):
            return of_agents
        assert isinstance(other.graphs, GraphDistribution)
        of_graph = self.graphs.kl(other.graphs, decision.latent)
        return torch.cat([of_agents, of_graph.unsqueeze(-1)], -1)

    def price(self, decision: Decision) -> Float[Tensor, "B M"] | None:
        """Price paid for the density of the graph, less the bonus for not settling yet.

        The graph's decider pays; where it is none, all agents pay alike, together as much as that decider would.
        """
        if self.graphs is None:
            return None
        generator, graph = self.policy.generator, decision.latent
        assert generator is not None
        paid = generator.price * self.graphs.density(graph) - generator.bonus * self.graphs.entropy(graph)
        if not self.graphs.decides:
            return paid.unsqueeze(-1).expand_as(self.obs.alive) / (self.policy.agents + 1)
        return self._beside(paid.new_zeros(self.obs.alive.shape), lambda graphs: paid)

    def log_probs(self) -> Float[Tensor, "B N A"]:
        """Agents that see one another's actions have no list of choices of their own."""
        raise TypeError("log_probs lists the choices of independent agents; these follow a graph: use log_prob.")

    def given(self, decision: Decision) -> Conditionals:
        """All conditionals at once: the parents' actions are known. Asked for twice, computed once."""
        if self._known is None or self._known[0] is not decision:
            policy = self.policy
            graph = decision.latent
            edges = graph.edges.transpose(1, 2).to(self.seen.dtype)
            incoming = edges if self.graphs is None else self.graphs.incoming(graph)
            y = policy.head(self.seen, policy.message_encoder(decision.action, self.obs.agent), incoming)
            self._known = decision, policy.conditionals(y, self.obs)
        return self._known[1]

    def _ancestral(self, graph: Graph, noise: Float[Tensor, "B N out"] | None) -> Decision:
        """Everybody's choice, turn by turn; the most probable ones without noise."""
        policy, agents = self.policy, self.policy.agents
        if self.kept is not None:
            graph = graph._replace(edges=graph.edges & self.kept)
        incoming = graph.edges.transpose(1, 2).flatten(0, 1)
        seen, saw = self.seen.flatten(0, 1), self.obs.agent.flatten(0, 1)
        messages = seen.new_zeros(*self.obs.alive.shape, policy.message_encoder.size)
        action, log_prob = self._nothing().flatten(0, 1), seen.new_zeros(len(seen))
        for group, places in policy.sampling_order(graph):
            who = places % agents
            told = listen(incoming.index_select(0, places).to(seen.dtype), messages.index_select(0, places // agents))
            y = policy.head.forward_at(group, seen.index_select(0, places), told, who)
            given = policy.conditionals(y, self.obs, places)
            drawn = given.mode() if noise is None else given.choose(noise.flatten(0, 1).index_select(0, places))
            assert drawn.log_prob is not None
            action.index_copy_(0, places, drawn.action)
            log_prob.index_copy_(0, places, drawn.log_prob)
            message = policy.message_encoder(drawn.action, saw.index_select(0, places), who)
            messages.flatten(0, 1).index_copy_(0, places, message)
        of_all = self._beside(log_prob.view_as(self.obs.alive), lambda graphs: graphs.log_prob(graph))
        return Decision(action.unflatten(0, self.obs.alive.shape), graph, of_all)

    def _beside(
        self, of_agents: Float[Tensor, "B N"], of_graph: Callable[[GraphDistribution], Float[Tensor, " B"]]
    ) -> Float[Tensor, "B M"]:
        """The agents' numbers, and beside them the graph's where it is a decider."""
        if not isinstance(self.graphs, GraphDistribution):
            return of_agents
        return torch.cat([of_agents, of_graph(self.graphs).unsqueeze(-1)], -1)

    def _noise(self, streams: Streams) -> Float[Tensor, "B N out"]:
        shape = (*self.obs.alive.shape, self.policy.outputs)
        return streams.exponential(shape) if isinstance(self.policy.space, Discrete) else streams.normal(shape)

    def _nothing(self) -> Tensor:
        space, shape = self.policy.space, (*self.obs.alive.shape, self.policy.space.size)
        dtype = torch.int64 if isinstance(space, Discrete) else self.seen.dtype
        return torch.zeros(shape, dtype=dtype, device=self.seen.device)


class MessageEncoder:
    """Messages from agents to their children: a 1 for having decided, the action, and the observation if sent too."""

    def __init__(self, spec: EnvSpec, sends_observation: bool, device: torch.device):
        self._space, self._sends_observation = spec.action, sends_observation
        spaces = [s for s in spec.actions if isinstance(s, Continuous)]
        self.units = ActionUnits.of(spaces, device) if spaces else None
        self._choices: list[Tensor] = []
        if isinstance(spec.action, Discrete):
            did = sum(spec.action.choices)
            # For each component a row for each choice: the one-hots of all components side by side, after a 1.
            rows = F.pad(torch.eye(did, device=device), (1, 0))
            self._choices = list(rows.split(spec.action.choices))
            self._choices[0][:, 0] = 1
        else:
            did = spec.action.size
        self.size = 1 + did + (spec.observation_size if sends_observation else 0)

    def __call__(
        self, action: Num[Tensor, "*X A"], saw: Float[Tensor, "*X D"], who: Int[Tensor, " X"] | None = None
    ) -> Float[Tensor, "*X L"]:
        """One; the action, one-hot or in units of its range; the observation. Of all agents [B,N], or of these [X]."""
        if isinstance(self._space, Discrete):
            parts = [table[part] for table, part in zip(self._choices, action.unbind(-1))]
            told = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        else:
            assert self.units is not None
            units = self.units if who is None else ActionUnits(*(unit[who] for unit in self.units))
            did_there = (action - units.middle) / units.scale * units.present
            told = torch.cat([torch.ones_like(did_there[..., :1]), did_there], -1)
        return torch.cat([told, saw], -1) if self._sends_observation else told


def _fixed(config: GraphConfig, agents: int) -> Graph | None:
    """The graph that the config gives; for a random one, the graph that its edges are drawn from."""
    if config.kind == "learned":
        return None
    listed = config.kind == "edges" or (config.kind == "random" and config.edges)
    name = "complete" if config.kind == "random" else config.kind
    return fixed_graph(config.edges if listed else named_edges(name, agents), agents)
