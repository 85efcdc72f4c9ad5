"""The published route to a learned graph: a Gumbel-Sinkhorn order, straight-through edges, no likelihood of the graph.

Order: position logits plus Gumbel noise, made doubly stochastic by Sinkhorn's normalizations, rounded to a permutation.
Edges: two-way Gumbel-softmax. The executed graph is hard; gradients reach the generator through its soft double, inside
the agents' log-probabilities. Sources: Mena et al., ICLR 2018 (arXiv 1802.08665); Charpentier et al., ICLR 2022 (arXiv
2203.08509); Chen and Zhang, ICML 2023 (arXiv 2306.01920). Where we depart: the graph and its noise are stored and never
drawn again, so that PPO's ratio is 1 before the first step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from envs.core import Streams
from marl.algorithms.bnpg.graphs import Graph, before, pairs_of, share_of_pairs
from marl.models.distributions import ILLEGAL

NORMALIZATIONS = 20


class RelaxedGraphs:
    """position [B,N,N]: how well agent i suits place k; logits [B,N,N]: of edges i -> j, at temperature 1."""

    decides = False  # it has no likelihood of its own, so it is no decider

    def __init__(self, position: Float[Tensor, "B N N"], logits: Float[Tensor, "B N N"], alive: Bool[Tensor, "B N"]):
        self.position, self.logits, self.alive = F.logsigmoid(position), logits, alive
        self._pairs = pairs_of(alive)

    def draw(self, streams: Streams) -> Graph:
        """A graph and its noise: Gumbel for the order, logistic for the edges."""
        shape = self.logits.shape
        gumbel, one, other = (-streams.exponential(shape).log() for _ in range(3))
        return self._hard(torch.stack([gumbel, one - other], -3))

    def mode(self) -> Graph:
        """The graph without noise."""
        return self._hard(torch.zeros_like(self.logits).unsqueeze(-3).repeat(1, 2, 1, 1))

    def incoming(self, graph: Graph) -> Float[Tensor, "B N N"]:
        """1 where i hears j, at [i,j]; the gradient is that of the soft graph."""
        soft = self._soft(graph)
        return (graph.edges + soft - soft.detach()).transpose(1, 2)

    def density(self, graph: Graph) -> Float[Tensor, " B"]:
        """Of the graph itself, with the soft one's gradient."""
        return share_of_pairs(self.incoming(graph).sum((-2, -1)), self.alive)

    def entropy(self, graph: Graph) -> Float[Tensor, " B"]:
        """Of the edges along the order; that of a Sinkhorn order has no closed form and is left out."""
        of_edge = F.softplus(self.logits) - self.logits * self.logits.sigmoid()
        return (of_edge * before(graph.order) * self._pairs).sum((-2, -1))

    def _hard(self, noise: Float[Tensor, "B 2 N N"]) -> Graph:
        order = assign(self._noisy(noise[:, 0]).detach())
        edges = (self.logits + noise[:, 1] > 0) & before(order) & self._pairs
        return Graph(order, edges, noise)

    def _soft(self, graph: Graph) -> Float[Tensor, "B N N"]:
        assert graph.noise is not None
        gumbel, logistic = graph.noise.unbind(1)
        permutation = sinkhorn(self._noisy(gumbel))
        places = permutation.shape[-1]
        later = torch.ones(places, places, device=permutation.device).triu(1)
        comes_before = permutation @ later @ permutation.transpose(1, 2)
        return (self.logits + logistic).sigmoid() * comes_before * self._pairs

    def _noisy(self, gumbel: Float[Tensor, "B N N"]) -> Float[Tensor, "B N N"]:
        """The dead come last: the first places are closed to them."""
        living = self.alive.sum(-1, keepdim=True)
        early = torch.arange(self.alive.shape[-1], device=living.device) < living
        return (self.position + gumbel).masked_fill(early.unsqueeze(1) & ~self.alive.unsqueeze(-1), ILLEGAL)


def sinkhorn(scores: Float[Tensor, "B N N"]) -> Float[Tensor, "B N N"]:
    """A doubly stochastic matrix near exp(scores), by normalizing columns and rows in turn."""
    for _ in range(NORMALIZATIONS):
        scores = scores - scores.logsumexp(-2, keepdim=True)
        scores = scores - scores.logsumexp(-1, keepdim=True)
    return scores.exp()


def assign(scores: Float[Tensor, "B N N"]) -> Int[Tensor, "B N"]:
    """The agents in the order, one to a place, whose scores add up to most. Computed on the host, row by row."""
    orders = [linear_sum_assignment(-row.T)[1] for row in scores.cpu().numpy()]
    return torch.stack([torch.from_numpy(order) for order in orders]).to(scores.device)
