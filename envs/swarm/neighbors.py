"""The mean of the vectors of all agents nearby, seen from each agent: three methods behind one interface.

    dense   every pair at once, [E,N,N]: exact, the fastest up to some hundred agents; any device
    tree    scipy's KD-tree over the agents and the copies that are in sight: exact, memory linear in N; CPU only
    grid    agents are counted in cells, the counts convolved with the disc by FFT: O(N + G log G) for G cells, any
            device; the disc is smoothed and its center and its neighbors are moved to the middle of their cells, so it
            is exact only in the limit of cells that are small against the radius
    auto    dense up to 512 agents; then tree up to 4,096 on a CPU; then grid

The methods differ in one more respect: where two copies of one agent are in sight, which takes a radius above half a
side, or, on the projective plane, a place within the radius of a corner, dense and tree see the nearest copy only, the
grid sees both.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import InputError
from envs.swarm.grid import GridNeighbors, cells_for
from envs.swarm.manifolds import Manifold
from envs.swarm.spec import one_of, require_positive
from envs.swarm.sums import Sums
from envs.swarm.tree import TreeNeighbors

METHODS = ("auto", "dense", "tree", "grid")
DENSE_AGENTS = 512
TREE_AGENTS = 4096


@runtime_checkable
class Neighbors(Protocol):
    """Neighborhoods of agents at fixed places; serves any number of vectors that they carry."""

    def sums(self, vectors: Float[Tensor, "E N 2"]) -> Sums:
        """For each agent, the sum of the vectors in its neighborhood, and how many these are, itself included."""


class Neighborhood:
    """The agents within `radius` of each agent on a manifold.

    Vectors of neighbors seen across a flipped edge are transported by that flip. Differentiable in the vectors, not in
    the positions. cells: the grid's cells along a side; None takes 256, doubled until the radius spans 8.
    Raises InputError for a radius or cells that are not above 0, an unknown method, and a grid that is too coarse.
    """

    def __init__(self, manifold: Manifold, radius: float, method: str = "auto", cells: int | None = None):
        require_positive(radius=radius)
        one_of("neighbors", method, METHODS)
        self.manifold, self.radius, self.method = manifold, float(radius), method
        self._cells = cells_for(manifold, radius, cells) if method in ("auto", "grid") else None
        if method == "grid" and self._cells is None:
            raise InputError(
                f"A grid suits a radius that spans some of its cells and lies within the square; got radius={radius} "
                f"on a square of side {manifold.size} with cells={cells}. Choose neighbors=tree or other cells."
            )

    def method_for(self, agents: int, device: torch.device) -> str:
        """Method for so many agents on `device`: the one chosen, or what `auto` stands for."""
        if self.method != "auto":
            return self.method
        on_cpu = device.type == "cpu"
        if agents <= DENSE_AGENTS or (self._cells is None and not on_cpu):
            return "dense"
        return "tree" if self._cells is None or (on_cpu and agents <= TREE_AGENTS) else "grid"

    def around(self, position: Float[Tensor, "E N 2"]) -> Neighbors:
        """Neighborhoods of agents at these places in the square. Raises InputError for a tree off the CPU."""
        method = self.method_for(position.shape[1], position.device)
        position = position.detach()
        if method == "dense":
            return DenseNeighbors(self.manifold, self.radius, position)
        if method == "tree":
            return TreeNeighbors(self.manifold, self.radius, position)
        assert self._cells is not None
        return GridNeighbors(self.manifold, self.radius, position, self._cells)


class _Mask(NamedTuple):
    """Pairs who see each other with these signs: 1, the others 0."""

    near: Float[Tensor, "E N N"]
    signs: tuple[float, float]


class DenseNeighbors:
    """Every pair at once."""

    def __init__(self, manifold: Manifold, radius: float, position: Float[Tensor, "E N 2"]):
        x, y = position.unbind(-1)
        views = list(manifold.views(x.unsqueeze(2), y.unsqueeze(2), x.unsqueeze(1), y.unsqueeze(1)))
        squares = [view.x.square_().addcmul_(view.y, view.y) for view in views]
        if radius < manifold.unambiguous_radius:
            near = [square.le_(radius**2) for square in squares]
        else:
            near = _nearest_only(squares, radius**2)
        self._masks = [_Mask(n, view.signs) for n, view in zip(near, views, strict=True)]

    def sums(self, vectors: Float[Tensor, "E N 2"]) -> Sums:
        """Matrix products, one for each way of being mirrored."""
        x, y = vectors.unbind(-1)
        one = torch.ones_like(x)
        seen = []
        for near, signs in self._masks:
            columns = torch.stack([x * signs[0], y * signs[1], one], 1)
            # From the left: products with three columns on the right take several times as long.
            seen.append(columns @ near.transpose(1, 2))
        total = seen[0] if len(seen) == 1 else torch.stack(seen).sum(0)
        return Sums(total[:, :2].transpose(1, 2), total[:, 2])


def _nearest_only(squares: list[Tensor], limit: float) -> list[Tensor]:
    """For each view, 1 where its squared distance is the least of all and within the limit; ties go to the first."""
    shortest = torch.stack(squares).amin(0).clamp(max=limit)
    taken, masks = torch.zeros_like(shortest, dtype=torch.bool), []
    for square in squares:
        near = (square <= shortest) & ~taken
        taken |= near
        masks.append(near.to(square.dtype))
    return masks
