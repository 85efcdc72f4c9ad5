"""Neighborhoods of many agents through a grid: deposit, convolve with the disc, gather."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from envs.core import InputError
from envs.swarm.manifolds import Manifold
from envs.swarm.sums import Sums, beside

FEWEST_CELLS, MOST_CELLS = 256, 4096
CELLS_IN_RADIUS = 8


def cells_for(manifold: Manifold, radius: float, cells: int | None) -> int | None:
    """Cells along a side: those asked for, or enough for the radius; None if no grid of at most 4,096 does.

    Raises InputError for fewer cells than 1.
    """
    if cells is not None and cells < 1:
        raise InputError(f"A grid has at least 1 cell along a side; got cells={cells}.")
    count = cells or FEWEST_CELLS
    while cells is None and radius * count < CELLS_IN_RADIUS * manifold.size and count < MOST_CELLS:
        count *= 2
    # Ghost cells come from the tiles next to the square, so the disc must not reach beyond them.
    fits = _margin(radius * count / manifold.size) <= count
    return count if fits and radius * count >= manifold.size * (1 if cells else CELLS_IN_RADIUS) else None


class GridNeighbors:
    """Counts of agents and sums of their vectors by cell, and what they add up to within the disc."""

    def __init__(self, manifold: Manifold, radius: float, position: Float[Tensor, "E N 2"], cells: int):
        self.manifold, self.cells = manifold, cells
        self.reach = radius * cells / manifold.size
        self._cell = _cell_of(position, manifold.size, cells)

    def sums(self, vectors: Float[Tensor, "E N 2"]) -> Sums:
        """Each agent sees what the disc around the middle of its cell holds."""
        rows, agents, _ = vectors.shape
        empty = vectors.new_zeros(rows * self.cells**2)
        x, y = (part.flatten() for part in vectors.unbind(-1))
        fields = [empty.index_add(0, self._cell, part) for part in (x, y, x.new_ones(1).expand_as(x))]
        held = torch.stack(fields).view(3, rows, self.cells, self.cells)
        around = self._within_disc(held).flatten(1)
        seen_x, seen_y, count = (field.index_select(0, self._cell).view(rows, agents) for field in around)
        return Sums(beside(seen_x, seen_y), count)

    def _within_disc(self, held: Float[Tensor, "3 E G G"]) -> Float[Tensor, "3 E G G"]:
        """Convolution with the disc; what lies beyond the edges is copied around the square first."""
        margin = _margin(self.reach)
        extended = _with_margin(self.manifold, held, margin)
        length = _fast_length(extended.shape[-1])
        disc = _disc_spectrum(self.reach, length, held.dtype, held.device)
        spectrum = torch.fft.rfft2(extended, s=(length, length)) * disc
        inner = slice(margin, margin + self.cells)
        return torch.fft.irfft2(spectrum, s=(length, length))[..., inner, inner].contiguous()


def _margin(reach: float) -> int:
    """Cells beyond the edge that a disc of a radius of `reach` cells, smoothed, can touch."""
    return math.ceil(reach + 0.5)


def _cell_of(position: Float[Tensor, "E N 2"], size: float, cells: int) -> Int[Tensor, " EN"]:
    """Each agent's cell among those of all rows; y counts whole lines of cells."""
    rows = len(position)
    index = torch.int32 if rows * cells**2 < 2**31 else torch.int64  # half the memory to go through
    x, y = (position * (cells / size)).to(index).clamp_(0, cells - 1).unbind(-1)
    first = torch.arange(rows, dtype=index, device=position.device).unsqueeze(-1) * cells**2
    return (y * cells).add_(x).add_(first).flatten()


def _with_margin(manifold: Manifold, held: Float[Tensor, "3 E G G"], margin: int) -> Float[Tensor, "3 E H H"]:
    """The square with `margin` cells of the tiles around it on every side: H = G + 2 margin."""
    part = {-1: slice(-margin, None), 0: slice(None), 1: slice(margin)}
    lines = []
    for j in (-1, 0, 1):
        line = [_copy(manifold, held, i, j)[..., part[j], part[i]] for i in (-1, 0, 1)]
        lines.append(torch.cat(line, -1))
    return torch.cat(lines, -2)


def _copy(manifold: Manifold, held: Float[Tensor, "3 E G G"], i: int, j: int) -> Float[Tensor, "3 E G G"]:
    """Contents of tile (i, j): the square's cells and vectors mirrored, or nothing behind a wall."""
    mirrored = manifold.tile(i, j)
    if mirrored is None:
        return torch.zeros_like(held)
    x, y, count = held.flip([axis for axis, flip in ((-1, mirrored[0]), (-2, mirrored[1])) if flip])
    return torch.stack([-x if mirrored[0] else x, -y if mirrored[1] else y, count])


@lru_cache(maxsize=16)
def _disc_spectrum(reach: float, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The Fourier transform of a disc of a radius of `reach` cells, centered on cell 0; its rim is one cell soft."""
    with torch.inference_mode(False):  # it is kept, also for those who want gradients
        offset = torch.arange(length, dtype=torch.float64)
        offset = torch.minimum(offset, length - offset)
        distance = torch.hypot(offset, offset.unsqueeze(-1))
        disc = (reach - distance + 0.5).clamp(0, 1)
        return torch.fft.rfft2(disc).real.to(device=device, dtype=dtype)  # the disc is even, so its transform is real


def _fast_length(length: int) -> int:
    """The next length without prime factors above 5, which transforms fast."""
    while _largest_factor(length) > 5:
        length += 1
    return length


@lru_cache(maxsize=256)
def _largest_factor(number: int) -> int:
    for prime in (2, 3, 5):
        while number % prime == 0:
            number //= prime
    return number
