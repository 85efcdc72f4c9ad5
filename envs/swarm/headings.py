"""Directions of a swarm: unit vectors, their order, and how one looks from another."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from envs.swarm.features import Features, Histogram, KernelEmbedding, swarm_features
from envs.swarm.sums import Sums, beside

# The box around the points (x, y, cos φ, sin φ) that features describe: places in sides of the square.
POINTS = ((0.0, 0.0, -1.0, -1.0), (1.0, 1.0, 1.0, 1.0))
# Of the kernel's control points: places along a side, directions, and a width between their distances, 1/3 and .77.
PLACES, DIRECTIONS, BANDWIDTH = 3, 8, 0.4


class HeadingMoments:
    """The mean of the unit vectors of the headings and of twice the headings: (cos φ, sin φ, cos 2φ, sin 2φ).

    Points are (x, y, cos φ, sin φ); the place does not matter.
    """

    size = 4

    def __call__(self, points: Float[Tensor, "E N 4"]) -> Float[Tensor, "E 4"]:
        """The four means."""
        cos, sin = points[..., 2], points[..., 3]
        moments = (cos, sin, cos * cos - sin * sin, 2 * sin * cos)
        return torch.stack([moment.mean(1) for moment in moments], -1)


class Nothing:
    """No features: on a surface that is not orientable a mean of headings would depend on how it is drawn."""

    size = 0

    def __call__(self, points: Float[Tensor, "E N 4"]) -> Float[Tensor, "E 0"]:
        """Nothing."""
        return points.new_zeros(len(points), 0)


def heading_features(features: Features | str | None, orientable: bool) -> Features:
    """Features of the points (x, y, cos φ, sin φ), by name or as they are given.

    None: `HeadingMoments`, or `Nothing` where the surface is not orientable. kernel: control points at 3 x 3 places
    times 8 directions; histogram: 3 x 3 x 4 x 4 bins; moments: mean and variance. These know nothing of glued edges.
    """
    if features is None:
        return HeadingMoments() if orientable else Nothing()
    if features == "kernel":
        turns = [unit(torch.tensor(2 * torch.pi * k / DIRECTIONS)).tolist() for k in range(DIRECTIONS)]
        places = [((2 * k + 1) / (2 * PLACES)) for k in range(PLACES)]
        points = [[x, y, *turn] for x in places for y in places for turn in turns]
        return KernelEmbedding(points, BANDWIDTH)
    if features == "histogram":
        return Histogram(*POINTS, bins=(PLACES, PLACES, 4, 4))
    return swarm_features(features, *POINTS)


def unit(angle: Float[Tensor, "*B"]) -> Float[Tensor, "*B 2"]:
    """(cos, sin)."""
    return beside(angle.cos(), angle.sin())


def wrapped(angle: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """The same direction in [-π, π]."""
    return angle - 2 * torch.pi * (angle / (2 * torch.pi)).round()


def direction(vector: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B 1"]:
    """The angle of each vector in half turns, in [-1, 1]; 0 for a vector of length 0, without a NaN for a gradient."""
    x, y = vector.unbind(-1)
    nowhere = (x == 0) & (y == 0)
    return (torch.atan2(y, x.masked_fill(nowhere, 1.0)) / torch.pi).unsqueeze(-1)


def order(headings: Float[Tensor, "E N 2"]) -> Float[Tensor, " E"]:
    """R = |mean of the unit vectors|: 1 if all point one way, about sqrt(π/(4N)) if they point anywhere."""
    mean = headings.mean(1)
    # A gradient of 0, not NaN, where the vectors cancel exactly.
    return mean.square().sum(-1).clamp(min=1e-20).sqrt()


def relative(mean: Float[Tensor, "E N 2"], own: Float[Tensor, "E N 2"]) -> Float[Tensor, "E N 2"]:
    """Each agent's vector `mean` in the frame of its own heading: |m| (cos a, sin a), a the angle from heading to m."""
    x, y = mean.unbind(-1)
    cos, sin = own.unbind(-1)
    return beside(x * cos + y * sin, y * cos - x * sin)


def local_order(near: Sums, own: Float[Tensor, "E N 2"]) -> Float[Tensor, " E"]:
    """The mean over agents of the mean cosine of the angle to the others nearby, 0 for those without neighbors.

    1 if neighbors point one way, about 0 if they point anywhere. Meaningful on any surface, as vectors are transported.
    """
    return relative(near.without(own).mean(), own)[..., 0].mean(1)
