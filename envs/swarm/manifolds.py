"""Flat surfaces made of one square: its edges are walls, or glued to one another with or without a flip.

A point that leaves the square across an edge comes back, and its heading with it, transported by the same isometry g of
the plane. These isometries tile the plane with copies of the square. The copy in tile (i, j), counted in sides from the
square itself, is mirrored in one axis for every crossing of an edge that flips that axis:

    surface      crossing a vertical edge (i odd)    crossing a horizontal edge (j odd)
    box          wall                                wall
    torus        nothing                             nothing
    moebius      mirrors y                           wall
    klein        nothing                             mirrors x
    projective   mirrors y                           mirrors x

A wall mirrors its own axis: what hits it is reflected. The projective plane that is made so has two cone points, the
two pairs of opposite corners, where a circle measures half a turn; everywhere else all five are flat.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from envs.swarm.spec import one_of, require_positive
from envs.swarm.sums import beside

WALL, GLUED, FLIPPED = "wall", "glued", "flipped"
# The vertical edges, which x crosses, and the horizontal ones, which y crosses.
EDGES = {
    "box": (WALL, WALL),
    "torus": (GLUED, GLUED),
    "moebius": (FLIPPED, WALL),
    "klein": (GLUED, FLIPPED),
    "projective": (FLIPPED, FLIPPED),
}


class View(NamedTuple):
    """Displacements to copies of other points, and the signs by which the copies' vectors are multiplied."""

    x: Tensor
    y: Tensor
    signs: tuple[float, float]


class Manifold:
    """A square [0, size]² whose edges are glued as `name` says (box, torus, moebius, klein, projective).

    orientable: whether a heading has a meaning without a place, so that those of the whole swarm may be averaged.
    unambiguous_radius: within any smaller distance of a point there is at most one copy of each other point.
    Raises InputError for an unknown name and a size that is not above 0.
    """

    def __init__(self, name: str = "torus", size: float = 1.0):
        one_of("manifold", name, EDGES)
        require_positive(size=size)
        self.name, self.size, self.edges = name, float(size), EDGES[name]
        self.orientable = FLIPPED not in self.edges
        radii = {"box": math.inf, "projective": 0.0}
        self.unambiguous_radius = radii.get(name, size / 2)

    def wrap(
        self, position: Float[Tensor, "*B 2"], heading: Float[Tensor, " *B"]
    ) -> tuple[Float[Tensor, "*B 2"], Float[Tensor, " *B"]]:
        """The point of the square that a point of the plane stands for, and its heading (an angle) there.

        Points of the closed square stay as they are, so that wrapping twice is wrapping once.
        """
        inside = (position >= 0) & (position <= self.size)
        tile = torch.where(inside, 0, (position / self.size).floor())
        position = (position - tile * self.size).clamp(0, self.size)
        if self.edges == (GLUED, GLUED):
            return position, heading
        odd_x, odd_y = (tile.remainder(2) == 1).unbind(-1)
        mirror_x, mirror_y = self._mirrored(odd_x, odd_y)
        mirrored = beside(mirror_x, mirror_y)
        heading = torch.where(mirror_x, math.pi - heading, heading)
        heading = torch.where(mirror_y, -heading, heading)
        return torch.where(mirrored, self.size - position, position), heading

    def displacement(
        self, origin: Float[Tensor, "*B 2"], target: Float[Tensor, "*B 2"]
    ) -> tuple[Float[Tensor, "*B 2"], Float[Tensor, "*B 2"]]:
        """The shortest way from points of the square to others, and the signs that carry vectors back along it.

        The shortest of the ways to the copies in the square itself and the 8 tiles around it; none farther is shorter.
        A vector v at the target is `signs * v` in the frame of the origin.
        """
        views = list(self.views(*origin.unbind(-1), *target.unbind(-1)))
        ways = torch.stack([torch.stack([view.x, view.y], -1) for view in views])
        signs = torch.stack([torch.stack([torch.full_like(view.x, s) for s in view.signs], -1) for view in views])
        nearest = ways.square().sum(-1).argmin(0).expand(2, *ways.shape[1:-1]).movedim(0, -1).unsqueeze(0)
        return ways.gather(0, nearest).squeeze(0), signs.gather(0, nearest).squeeze(0)

    def distance(self, origin: Float[Tensor, "*B 2"], target: Float[Tensor, "*B 2"]) -> Float[Tensor, " *B"]:
        """The length of the shortest way."""
        return torch.linalg.vector_norm(self.displacement(origin, target)[0], dim=-1)

    def views(self, x: Tensor, y: Tensor, to_x: Tensor, to_y: Tensor) -> Iterator[View]:
        """For each way of being mirrored, the displacement to the nearest copy that is mirrored so.

        Copies with the same signs differ by whole translations, so the nearest in x and the nearest in y are found
        apart: at most 4 views stand for the 9 tiles. x, y, to_x, to_y broadcast; coordinates lie in [0, size].
        """
        parities = [(False, True) if edge == FLIPPED else (False,) for edge in self.edges]
        for odd_x, odd_y in itertools.product(*parities):
            mirror_x, mirror_y = self._glide(odd_x, odd_y)
            dx = self._nearest(0, odd_x, (self.size - to_x if mirror_x else to_x) - x)
            dy = self._nearest(1, odd_y, (self.size - to_y if mirror_y else to_y) - y)
            yield View(dx, dy, (-1.0 if mirror_x else 1.0, -1.0 if mirror_y else 1.0))

    def tile(self, i: int, j: int) -> tuple[bool, bool] | None:
        """Mirroring in x and in y of the copy in tile (i, j); None where a wall keeps it out of sight."""
        if (i and self.edges[0] == WALL) or (j and self.edges[1] == WALL):
            return None
        return self._glide(bool(i % 2), bool(j % 2))

    def _glide(self, odd_x: bool, odd_y: bool) -> tuple[bool, bool]:
        """Mirroring of x and of y after crossings of flipped edges an odd number of times."""
        return odd_y and self.edges[1] == FLIPPED, odd_x and self.edges[0] == FLIPPED

    def _mirrored(self, odd_x: Tensor, odd_y: Tensor) -> tuple[Tensor, Tensor]:
        """Mirroring of x and of y, with what walls reflect."""
        never = torch.zeros_like(odd_x)
        mirror_x = odd_y if self.edges[1] == FLIPPED else never
        mirror_y = odd_x if self.edges[0] == FLIPPED else never
        return (
            mirror_x ^ odd_x if self.edges[0] == WALL else mirror_x,
            mirror_y ^ odd_y if self.edges[1] == WALL else mirror_y,
        )

    def _nearest(self, axis: int, odd: bool, way: Tensor) -> Tensor:
        """`way`, within one side either way, moved by the number of sides that makes it shortest; odd if it must be.

        Writes to `way`.
        """
        if odd:
            return way.sub_(torch.copysign(way.new_full((), self.size), way))
        if self.edges[axis] == GLUED:
            turns = way.round() if self.size == 1 else (way / self.size).round_().mul_(self.size)
            return way.sub_(turns)
        return way
