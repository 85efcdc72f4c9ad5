"""Mean-field features: a swarm of any size as a vector of fixed size, in memory linear in the number of agents.

Each class is a function of points [E,N,d] to features [E,F], the same for any order of the agents, with F = `size`.
A world takes any such object, or the name of one (see `swarm_features`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from envs.constants import Constants
from envs.core import InputError
from envs.swarm.spec import require_positive

POINTS_PER_DIMENSION = 7
# Agents are embedded in blocks of this many, which bounds the memory of kernels at control points.
BLOCK = 65_536


@runtime_checkable
class Features(Protocol):
    """Description of a swarm's points [E,N,d] for a critic, [E,F]; F does not depend on N."""

    @property
    def size(self) -> int:
        """F."""

    def __call__(self, points: Float[Tensor, "E N d"]) -> Float[Tensor, "E F"]:
        """The features of each row's swarm."""


class Moments:
    """The mean, the variance (with 1/N) and, up to `order`, further central moments of each dimension.

    F = order · dimensions, moment by moment. Raises InputError for fewer than one dimension or order.
    """

    def __init__(self, dimensions: int = 1, order: int = 2):
        if dimensions < 1 or order < 1:
            raise InputError(f"Moments need dimensions >= 1 and order >= 1; got {dimensions} and {order}.")
        self.dimensions, self.order = dimensions, order
        self.size = order * dimensions

    def __call__(self, points: Float[Tensor, "E N d"]) -> Float[Tensor, "E F"]:
        """The moments of each row's swarm."""
        _require_dimensions(points, self.dimensions)
        mean = points.mean(1)
        deviation = points - mean.unsqueeze(1)
        higher = [deviation.pow(k).mean(1) for k in range(2, self.order + 1)]
        return torch.cat([mean, *higher], -1)


class Histogram:
    """The share of agents in each cell of a grid: equal bins between low and high in each dimension.

    Who is outside counts in the nearest cell. F is the product of the bins, the last dimension running fastest. Counts
    are exact in any order, up to 2^24 agents; they pass on no gradient. A NaN among a row's points shows as NaN.
    Raises InputError for an empty range or no bins, or where low, high and bins disagree in length.
    """

    def __init__(self, low: Sequence[float] = (-1.0,), high: Sequence[float] = (1.0,), bins: int | Sequence[int] = 7):
        _require_box(low, high)
        counts = [bins] * len(low) if isinstance(bins, int) else list(bins)
        if len(counts) != len(low) or min(counts) < 1:
            raise InputError(f"A histogram needs at least one bin in each of its {len(low)} dimensions; got {bins}.")
        self.size = math.prod(counts)
        strides = [math.prod(counts[k + 1 :]) for k in range(len(counts))]
        grid = [low, [n / (end - start) for n, start, end in zip(counts, low, high)], [n - 1 for n in counts], strides]
        self._grid = Constants(torch.tensor(grid, dtype=torch.float32))

    def __call__(self, points: Float[Tensor, "E N d"]) -> Float[Tensor, "E F"]:
        """The shares of each row's swarm."""
        low, per_unit, last, stride = self._grid.on(points.device).to(points.dtype)
        _require_dimensions(points, len(low))
        bins = ((points.detach() - low) * per_unit).floor().clamp(last.new_zeros(()), last)
        cell = (bins * stride).sum(-1)
        lost = cell.isnan()
        shares = frequencies(cell.masked_fill(lost, 0).long(), self.size, points.dtype)
        return shares.masked_fill(lost.any(1, keepdim=True), torch.nan)


class KernelEmbedding:
    """The kernel mean embedding at control points x_b: o_b = (1/N) Σ_i exp(-|x_b - x_i|² / (2 s²)), F of them.

    control_points [F,d] are numbers or, for d = 1, a flat list; bandwidth is s. Differentiable in the agents' points.
    Source: the kernel representation of mean fields in Cui, Hauck, Fabian and Koeppl, ICLR 2024. Raises InputError for
    a bandwidth that is not above 0 and for control points that are no such table.
    """

    def __init__(self, control_points: Tensor | Sequence[float] | Sequence[Sequence[float]], bandwidth: float):
        require_positive(bandwidth=bandwidth)
        try:
            at = torch.as_tensor(control_points, dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"Control points are a table of numbers, one row each; got {control_points}.") from error
        at = at.unsqueeze(-1) if at.dim() == 1 else at
        if at.dim() != 2 or not at.numel() or not bool(at.isfinite().all()):
            raise InputError(
                f"Control points are finite numbers, [points, dimensions]; got {'x'.join(map(str, at.shape))}."
            )
        self.control_points, self.bandwidth = at, bandwidth
        self.size = len(at)
        self._at = Constants(at)

    def __call__(self, points: Float[Tensor, "E N d"]) -> Float[Tensor, "E F"]:
        """The embedding of each row's swarm."""
        _require_dimensions(points, self.control_points.shape[1])
        blocks = [self._near(block).sum(1) for block in points.split(BLOCK, 1)]
        return torch.stack(blocks).sum(0) / points.shape[1]

    def _near(self, points: Float[Tensor, "E n d"]) -> Float[Tensor, "E n F"]:
        """exp(-|x_b - x|² / (2 s²)), by dimension: [E,n,F,d] would be larger than needed."""
        at = self._at.on(points.device).to(points.dtype)
        square = sum((x.unsqueeze(-1) - b).square() for x, b in zip(points.unbind(-1), at.unbind(-1)))
        assert isinstance(square, Tensor)
        return torch.exp(square * (-0.5 / self.bandwidth**2))


def grid_points(low: Sequence[float], high: Sequence[float], per_dimension: int) -> Float[Tensor, "F d"]:
    """The points of a regular grid on a box, its corners included; the last dimension runs fastest."""
    _require_box(low, high)
    if per_dimension < 2:
        raise InputError(f"A grid has at least 2 points a dimension; got {per_dimension}.")
    axes = [torch.linspace(start, end, per_dimension).tolist() for start, end in zip(low, high)]
    return torch.tensor(list(itertools.product(*axes)))


def swarm_features(features: Features | str, low: Sequence[float], high: Sequence[float]) -> Features:
    """The features of a swarm that lives around a box, by name or as they are given.

    moments: mean and variance of each dimension. histogram: 7 bins in each. kernel: 7 control points in each, with the
    longest distance between two neighbors as the bandwidth. Raises InputError for another name, and for features that
    do not fit the swarm's dimensions.
    """
    if isinstance(features, str):
        return _named(features, low, high)
    try:
        described = features(torch.zeros(1, 2, len(low)))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"Features are a function of points [E,N,{len(low)}] to [E,F]; these cannot be applied: {error}"
        ) from error
    if tuple(described.shape) != (1, features.size):
        raise InputError(
            f"Features of points [1,2,{len(low)}] must be [1,size], [1,{features.size}]; got {list(described.shape)}."
        )
    return features


def frequencies(index: Int[Tensor, "E N"], size: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "E size"]:
    """The share of a row's N entries that are 0, 1, …, size - 1."""
    counts = torch.zeros(len(index), size, dtype=dtype, device=index.device)
    ones = counts.new_ones(()).expand(index.shape)
    return counts.scatter_add_(1, index, ones) / index.shape[1]


def _named(name: str, low: Sequence[float], high: Sequence[float]) -> Features:
    if name == "moments":
        return Moments(len(low))
    if name == "histogram":
        return Histogram(low, high, POINTS_PER_DIMENSION)
    if name == "kernel":
        spacing = max(end - start for start, end in zip(low, high)) / (POINTS_PER_DIMENSION - 1)
        return KernelEmbedding(grid_points(low, high, POINTS_PER_DIMENSION), spacing)
    raise InputError(f"features are 'moments', 'histogram' or 'kernel', or an object of your own; got {name!r}.")


def _require_box(low: Sequence[float], high: Sequence[float]) -> None:
    if not low or len(low) != len(high) or not all(0 < end - start < math.inf for start, end in zip(low, high)):
        raise InputError(f"A box needs low < high, finite, in each dimension; got low={low} and high={high}.")


def _require_dimensions(points: Tensor, dimensions: int) -> None:
    if points.shape[-1] != dimensions:
        raise InputError(
            f"These features are made for points of {dimensions} dimensions; got {points.shape[-1]}. Make them anew."
        )
