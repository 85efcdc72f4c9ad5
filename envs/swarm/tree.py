"""Neighborhoods through scipy's KD-tree: exact, with memory linear in the number of agents."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from envs.core import ConcordError, InputError
from envs.swarm.manifolds import Manifold
from envs.swarm.sums import Sums

PAIRS_AT_ONCE = 2**20


class TreeNeighbors:
    """One tree holds the agents of all rows, side by side, and those copies of them that an agent can see.

    Pairs are never stored all at once: they are found again, a block of agents at a time, for every sum. Raises
    InputError off the CPU, and ConcordError for places that are no numbers.
    """

    def __init__(self, manifold: Manifold, radius: float, position: Float[Tensor, "E N 2"]):
        from scipy.spatial import KDTree

        if position.device.type != "cpu":
            raise InputError(
                f"neighbors=tree runs on the CPU only; the positions are on {position.device}. Choose grid or dense."
            )
        if not bool(position.isfinite().all()):
            raise ConcordError(
                "The place of an agent became NaN or infinite. Usual causes: constants of the world of huge size, or "
                "actions that are not finite because learning diverged (lower learner.learning_rate)."
            )
        self.manifold, self.radius = manifold, radius
        self._position = position.flatten(0, 1)
        rows, agents, _ = position.shape
        # A gap of more than the radius between rows: nobody sees another row.
        shift = torch.arange(rows).repeat_interleave(agents).double() * (manifold.size + 4 * radius)
        self._shift = torch.stack([shift, torch.zeros_like(shift)], -1)
        self._observers = (self._position + self._shift).numpy()
        self._copies, self._source, self._signs = self._all_copies()
        self._tree = KDTree(self._copies.numpy(), balanced_tree=False)

    def sums(self, vectors: Float[Tensor, "E N 2"]) -> Sums:
        """Added up pair by pair."""
        counted = torch.cat([vectors, torch.ones_like(vectors[..., :1])], -1).flatten(0, 1)
        total = torch.zeros_like(counted)
        for observer, copy in self._pairs():
            total = total.index_add(0, observer, counted[self._source[copy]] * self._signs[copy].to(counted.dtype))
        total = total.view(*vectors.shape[:2], 3)
        return Sums(total[..., :2], total[..., 2])

    def _all_copies(self) -> tuple[Float[Tensor, "copies 2"], Int[Tensor, " copies"], Float[Tensor, "copies 3"]]:
        """Agents and their copies within the radius of the square; whose copy each is; its signs, and 1."""
        size, places, sources, signs = self.manifold.size, [], [], []
        for i, j in itertools.product((-1, 0, 1), repeat=2):
            mirrored = self.manifold.tile(i, j)
            if mirrored is None:
                continue
            sign = torch.tensor([-1.0 if flip else 1.0 for flip in mirrored]).double()
            offset = torch.tensor([i + mirrored[0], j + mirrored[1]]).double() * size
            place = self._position * sign + offset
            seen = ((place >= -self.radius) & (place <= size + self.radius)).all(-1).nonzero().squeeze(-1)
            places.append((place + self._shift)[seen])
            sources.append(seen)
            signs.append(torch.cat([sign, torch.ones(1)]).expand(len(seen), 3))
        return torch.cat(places), torch.cat(sources), torch.cat(signs)

    def _pairs(self) -> Iterator[tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]]:
        """(agent, copy that it sees), in blocks."""
        from scipy.spatial import KDTree

        for start, stop in self._blocks():
            block = KDTree(self._observers[start:stop], balanced_tree=False)
            pairs: Any = block.sparse_distance_matrix(self._tree, self.radius, output_type="ndarray")
            observer = torch.from_numpy(pairs["i"].astype(np.int64)) + start
            yield self._nearest(observer, torch.from_numpy(pairs["j"].astype(np.int64)))

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Stretches of agents who see about PAIRS_AT_ONCE copies together, at least one agent each."""
        agents = len(self._observers)
        if agents * len(self._copies) <= PAIRS_AT_ONCE:
            yield 0, agents
            return
        seen = self._tree.query_ball_point(self._observers, self.radius, return_length=True)
        block = np.cumsum(seen) // PAIRS_AT_ONCE
        edges = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), agents]
        yield from itertools.pairwise(edges)

    def _nearest(
        self, observer: Int[Tensor, " pairs"], copy: Int[Tensor, " pairs"]
    ) -> tuple[Int[Tensor, " seen"], Int[Tensor, " seen"]]:
        """Of the copies of one agent, the nearest only."""
        if self.radius < self.manifold.unambiguous_radius:
            return observer, copy
        origin = self._position[observer].double()
        way, _ = self.manifold.displacement(origin, self._position[self._source[copy]].double())
        to_copy = self._copies[copy] - self._shift[observer] - origin
        same = ((to_copy - way).abs() < 1e-6 * self.manifold.size).all(-1)
        return observer[same], copy[same]
