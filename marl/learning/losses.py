"""Losses as pure functions, one value an entry; `mean_weights` turns sums over them into means by policy."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

RELATIVE_FLOOR = 1e-6  # some roundings of 32 bits: a deviation of this share of the numbers' size is none


def clipped_surrogate(
    log_prob: Float[Tensor, "*B M"], old_log_prob: Float[Tensor, "*B M"], advantage: Float[Tensor, "*B M"], clip: float
) -> Float[Tensor, "*B M"]:
    """PPO's objective for each decision, to be maximized: min(r A, clip(r, 1-ε, 1+ε) A) with r = π/π_old.

    Source: Schulman et al., 2017 (arXiv 1707.06347), equation 7.
    """
    ratio = (log_prob - old_log_prob).exp()
    return torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def squared_error(value: Float[Tensor, "*B N K"], target: Float[Tensor, "*B N K"]) -> Float[Tensor, "*B N"]:
    """Half the squared error of the values, summed over channels."""
    return 0.5 * (value - target).square().sum(-1)


def mean_weights(mask: Bool[Tensor, "*B X"], policies: int) -> Float[Tensor, "*B X"]:
    """Weights that make a sum a mean over each policy's masked-in entries; rows are policy-major on the first axis."""
    weight = mask.to(torch.float32)
    total = weight.reshape(policies, -1).sum(1).clamp(min=1)
    return weight / total.repeat_interleave(len(mask) // policies).view(-1, *[1] * (mask.dim() - 1))


def normalize_by_policy(x: Float[Tensor, "B M"], mask: Bool[Tensor, "B M"], policies: int) -> Float[Tensor, "B M"]:
    """Zero mean and unit deviation over each policy's masked-in entries; 0 elsewhere, and where nothing varies.

    Free of units: c x gives what x gives, to the last bit for powers of two c. A deviation that is rounding next to
    the largest entry is none.
    """
    rows, weight, inside = (y.reshape(policies, -1) for y in (x, mean_weights(mask, policies), mask.to(x.dtype)))
    mean = (rows * weight).sum(1, keepdim=True)
    centered = (rows - mean) * inside
    variance = (centered.square() * weight).sum(1, keepdim=True)
    largest = (rows * inside).abs().amax(1, keepdim=True)
    return divide_where_it_varies(centered, variance.sqrt(), largest).view_as(x)


def divide_where_it_varies(
    x: Float[Tensor, "*B"], deviation: Float[Tensor, "*#B"], size: Float[Tensor, "*#B"]
) -> Float[Tensor, "*B"]:
    """x / deviation; 0 where the deviation is rounding next to numbers of this size."""
    return x / deviation.masked_fill(deviation <= RELATIVE_FLOOR * size, torch.inf)
