"""The units in which values are learned."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from marl.learning.losses import RELATIVE_FLOOR, divide_where_it_varies


class ValueScale(nn.Module):
    """Running mean and deviation of value targets, by policy and channel, so that critics learn in units of one.

    Averages every batch so far while there are fewer than 1/rate, then the recent ones. Free of units: targets times c
    give the scale times c, from the first batch on, exactly for powers of two. Where targets have not varied yet, the
    unit is 0: every value is their mean. Source of the idea: van Hasselt et al., NeurIPS 2016 (arXiv 1602.07714),
    without the output correction.
    """

    def __init__(self, policies: int, channels: int, device: torch.device, rate: float = 0.01):
        super().__init__()
        self.rate = rate
        self.mean: Tensor
        self.variance: Tensor
        self.batches: Tensor
        self.register_buffer("mean", torch.zeros(policies, channels, device=device))
        self.register_buffer("variance", torch.zeros(policies, channels, device=device))
        self.register_buffer("batches", torch.zeros(policies, 1, device=device))

    def update(self, target: Float[Tensor, "B N K"], alive: Bool[Tensor, "B N"]) -> None:
        """Learn from the targets of agents who are alive; a policy without any changes nothing."""
        policies, channels = self.mean.shape
        x, weight = target.view(policies, -1, channels), alive.view(policies, -1, 1).to(target.dtype)
        count = weight.sum(1)
        seen = (count > 0).to(target.dtype)
        self.batches = self.batches + seen
        step = seen * (1 / self.batches.clamp(min=1)).clamp(min=self.rate)
        total = count.clamp(min=1)
        # Deviations around the batch's own mean: the difference of two squares would lose a small one near a huge mean.
        mean = (x * weight).sum(1) / total
        variance = ((x - mean.unsqueeze(1)).square() * weight).sum(1) / total
        shift = mean - self.mean
        self.mean = self.mean + step * shift
        self.variance = self.variance + step * (variance - self.variance + (1 - step) * shift.square())

    def restore(self, value: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """From the critic's units to returns."""
        mean, deviation = self.mean[:, None, None], self._deviation()
        unit = deviation.masked_fill(deviation <= RELATIVE_FLOOR * mean.abs(), 0)
        by_policy = value.unflatten(0, (len(self.mean), -1))
        return (by_policy * unit + mean).flatten(0, 1)

    def apply_to(self, target: Float[Tensor, "B N K"]) -> Float[Tensor, "B N K"]:
        """From returns to the critic's units."""
        mean = self.mean[:, None, None]
        centered = target.unflatten(0, (len(self.mean), -1)) - mean
        return divide_where_it_varies(centered, self._deviation(), mean.abs()).flatten(0, 1)

    def _deviation(self) -> Float[Tensor, "P 1 1 K"]:
        return self.variance.sqrt()[:, None, None]
