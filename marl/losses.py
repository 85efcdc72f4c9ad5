"""Losses as pure functions. Each gives one value a policy, [P]; the learner sums."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_surrogate(
    log_prob: Float[Tensor, "*B M"], old_log_prob: Float[Tensor, "*B M"], advantage: Float[Tensor, "*B M"], clip: float
) -> Float[Tensor, "*B M"]:
    """PPO's objective for each decision, to be maximized: min(r A, clip(r, 1-ε, 1+ε) A) with r = π/π_old.

    Source: Schulman et al., 2017 (arXiv 1707.06347), equation 7.
    """
    ratio = (log_prob - old_log_prob).exp()
    return torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def squared_error(
    value: Float[Tensor, "*B N K"], target: Float[Tensor, "*B N K"]
) -> Float[Tensor, "*B N"]:
    """Half the squared error of the values, summed over channels."""
    return 0.5 * (value - target).square().sum(-1)


def mean_by_policy(x: Float[Tensor, "*B X"], weight: Float[Tensor, "*B X"], policies: int) -> Float[Tensor, " P"]:
    """Weighted mean over each policy's rows; weights of 0 leave slots out. 0 where nothing has weight."""
    x, weight = (x * weight).reshape(policies, -1), weight.reshape(policies, -1)
    return x.sum(1) / weight.sum(1).clamp(min=torch.finfo(x.dtype).tiny)


def normalize_by_policy(
    x: Float[Tensor, "B M"], mask: Bool[Tensor, "B M"], policies: int
) -> Float[Tensor, "B M"]:
    """Zero mean and unit deviation over each policy's masked-in entries; 0 elsewhere."""
    weight = mask.to(x.dtype)
    rows = (policies, -1)
    centered = (x.view(rows) - mean_by_policy(x, weight, policies).unsqueeze(1)) * weight.view(rows)
    deviation = mean_by_policy(centered.square(), weight.view(rows), policies).sqrt()
    return (centered / (deviation.unsqueeze(1) + 1e-8)).view_as(x)
