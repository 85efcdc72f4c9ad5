"""Distributions over directed acyclic graphs of agents: an order of the agents, and edges along it.

Order: Plackett and Luce, weights exp(score). Edge i -> j, where i comes before j: Bernoulli. Both have closed-form
log-probabilities, and so has the expected number of edges. Dead agents come last and have no edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from envs.core import Streams
from envs.dags import Edges, parents
from marl.models.distributions import ILLEGAL


class Graph(NamedTuple):
    """Graph along which agents see actions. order: agents, first to last. edges[b,i,j]: j sees i's action.

    noise: what a relaxed graph was drawn with, else None.
    """

    order: Int[Tensor, "*B N"]
    edges: Bool[Tensor, "*B N N"]
    noise: Float[Tensor, "*B 2 N N"] | None = None


def fixed_graph(edges: Edges, agents: int) -> Graph:
    """One graph, [N] and [N,N]. Raises InputError for a cycle or an agent that does not exist."""
    found = parents(edges, agents)
    matrix = torch.zeros(agents, agents, dtype=torch.bool)
    for child, seen in found.items():
        matrix[list(seen), child] = True
    return Graph(torch.tensor(list(found)), matrix)


def levels(edges: Bool[Tensor, "*B N N"]) -> Int[Tensor, "*B N"]:
    """Edges on the longest path to each agent: agents of one level decide at once, from the levels before."""
    agents = edges.shape[-1]
    # Rows last and in small numbers, so that a maximum over senders runs along memory.
    edge = edges.movedim((-2, -1), (0, 1)).to(torch.int16, memory_format=torch.contiguous_format)
    level = edge.new_zeros(agents, *edges.shape[:-2])
    for _ in range(agents - 1):
        before, level = level, (edge * (level + 1).unsqueeze(1)).amax(0)
        if level.device.type == "cpu" and torch.equal(before, level):
            break  # the graph is no deeper; elsewhere the host need not know
    return level.movedim(0, -1).long()


def among_living(graph: Graph, alive: Bool[Tensor, "*B N"]) -> Graph:
    """Without the edges of those who are not there."""
    return graph._replace(edges=graph.edges & alive.unsqueeze(-1) & alive.unsqueeze(-2))


def pairs_of(alive: Bool[Tensor, "*B N"]) -> Bool[Tensor, "*B N N"]:
    """Pairs of different agents who are there."""
    diagonal = torch.eye(alive.shape[-1], dtype=torch.bool, device=alive.device)
    return alive.unsqueeze(-1) & alive.unsqueeze(-2) & ~diagonal


def before(order: Int[Tensor, "*B N"]) -> Bool[Tensor, "*B N N"]:
    """True at [i,j] where i comes before j."""
    place = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    return place.unsqueeze(-1) < place.unsqueeze(-2)


def share_of_pairs(edges: Float[Tensor, " *B"], alive: Bool[Tensor, "*B N"]) -> Float[Tensor, " *B"]:
    """Number of edges as a share of those of a complete graph of the living; 0 for fewer than two."""
    living = alive.sum(-1)
    return edges / (living * (living - 1) / 2).clamp(min=1)


def uniform_pairs(rows: int, agents: int, streams: Streams) -> Float[Tensor, "B N N"]:
    """Numbers in [0, 1) for each pair of agents."""
    shape, device = (agents, agents), streams.device
    return streams.draw(lambda n, g: torch.rand((n, *shape), generator=g, device=device), rows)


class GraphDistribution:
    """Scores [*B,N] say who tends to come first, logits [*B,N,N] which edges are likely (i -> j at [i,j])."""

    decides = True  # one more decider, with a log-probability

    def __init__(self, scores: Float[Tensor, "*B N"], logits: Float[Tensor, "*B N N"], alive: Bool[Tensor, "*B N"]):
        self.scores = scores.masked_fill(~alive, ILLEGAL)
        self.logits, self.alive = logits, alive
        self._pairs = pairs_of(alive)

    def draw(self, streams: Streams) -> Graph:
        """A graph."""
        rows, agents = self.alive.shape
        return self.choose(streams.exponential((rows, agents)), uniform_pairs(rows, agents, streams))

    def incoming(self, graph: Graph) -> Float[Tensor, "*B N N"]:
        """1 where i hears j, at [i,j]."""
        return graph.edges.transpose(-2, -1).to(self.scores.dtype)

    def choose(self, clocks: Float[Tensor, "*B N"], uniform: Float[Tensor, "*B N N"]) -> Graph:
        """The graph that these random numbers stand for: clocks ~ Exp(1), uniform in [0, 1)."""
        # Exponential clocks of rates exp(score) ring in Plackett and Luce's order.
        rings = clocks.log() - self.scores
        forward = (rings.unsqueeze(-1) < rings.unsqueeze(-2)) & self._pairs
        return Graph(rings.argsort(-1), (uniform < self.logits.sigmoid()) & forward)

    def mode(self) -> Graph:
        """The most probable order, and the edges along it that are more likely than not."""
        order = self.scores.argsort(dim=-1, descending=True, stable=True)
        return Graph(order, (self.logits > 0) & self._forward(order))

    def log_prob(self, graph: Graph) -> Float[Tensor, " *B"]:
        """log P(order) + log P(edges | order)."""
        ordered, remaining = self._along(graph.order)
        living = self.alive.gather(-1, graph.order)
        chosen = ((ordered - remaining) * living).sum(-1)
        # log σ(x) = x - softplus(x) for an edge, log σ(-x) = -softplus(x) for none; edges only run forward.
        of_edges = self.logits * graph.edges - F.softplus(self.logits) * self._forward(graph.order)
        return chosen + of_edges.sum((-2, -1))

    def entropy(self, graph: Graph) -> Float[Tensor, " *B"]:
        """Of every choice in turn, given the sampled order so far: its mean over orders is the entropy.

        As a bonus its gradient is that of the choices alone; how scores change which orders are drawn is left out.
        """
        log_p = self._choices(graph.order)
        living = self.alive.gather(-1, graph.order)
        of_order = (-torch.linalg.vecdot(log_p.exp(), log_p) * living).sum(-1)
        of_edge = F.softplus(self.logits) - self.logits * self.logits.sigmoid()
        return of_order + (of_edge * self._forward(graph.order)).sum((-2, -1))

    def kl(self, other: GraphDistribution, graph: Graph) -> Float[Tensor, " *B"]:
        """KL(self || other) of every choice in turn, given the order so far: its mean over graphs is the divergence.

        Of an edge with logits x and y it is σ(x) (x - y) - softplus(x) + softplus(y).
        """
        log_p, log_q = self._choices(graph.order), other._choices(graph.order)
        living = self.alive.gather(-1, graph.order)
        of_order = (torch.linalg.vecdot(log_p.exp(), log_p - log_q) * living).sum(-1)
        x, y = self.logits, other.logits
        of_edge = x.sigmoid() * (x - y) - F.softplus(x) + F.softplus(y)
        return of_order + (of_edge * self._forward(graph.order)).sum((-2, -1))

    def expected_edges(self) -> Float[Tensor, " *B"]:
        """Σ_{i≠j} P(i before j) P(edge): the order's pairwise marginal is σ(s_i - s_j)."""
        before = (self.scores.unsqueeze(-1) - self.scores.unsqueeze(-2)).sigmoid()
        return (self.logits.sigmoid() * before * self._pairs).sum((-2, -1))

    def density(self, graph: Graph | None = None) -> Float[Tensor, " *B"]:
        """Expected edges as a share of those of a complete graph, whichever graph was drawn."""
        return share_of_pairs(self.expected_edges(), self.alive)

    def _along(self, order: Int[Tensor, "*B N"]) -> tuple[Float[Tensor, "*B N"], Float[Tensor, "*B N"]]:
        """Scores in the graph's order, and log Σ exp(score) of whoever is not placed yet at each place."""
        ordered = self.scores.gather(-1, order)
        return ordered, ordered.flip(-1).logcumsumexp(-1).flip(-1)

    def _choices(self, order: Int[Tensor, "*B N"]) -> Float[Tensor, "*B N N"]:
        """At [k, l] log P(the agent of place l comes next | those of the places before k have come)."""
        ordered, remaining = self._along(order)
        places = ordered.shape[-1]
        later = torch.ones(places, places, dtype=torch.bool, device=ordered.device).triu()  # [k, l]: l is not before k
        return (ordered.unsqueeze(-2) - remaining.unsqueeze(-1)).masked_fill(~later, ILLEGAL)

    def _forward(self, order: Int[Tensor, "*B N"]) -> Bool[Tensor, "*B N N"]:
        """Pairs of the living in which i comes before j."""
        return before(order) & self._pairs


def edge_list(edges: Bool[Tensor, "N N"]) -> list[tuple[int, int]]:
    """The edges of one graph as pairs."""
    found: Sequence[Sequence[int]] = edges.nonzero().tolist()
    return [(i, j) for i, j in found]
