"""Distributions of an agent's action from the raw numbers of a decision rule."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num
from torch import Tensor

from envs.core import Continuous, Discrete, EnvSpec, InputError, Streams
from marl.models.distributions import ActionUnits, IndependentCategorical, IndependentGaussian

AgentDistribution = IndependentCategorical | IndependentGaussian

LEAST_STD = 1e-6  # in the actions' units; a density needs a width
_AT_ONE = math.log(math.e - 1)  # softplus is 1 here


class ActionParameters:
    """Parameters of an agent's action: mean and deviation of each real component, or the logits of each choice.

    They are in the actions' own units, Q numbers side by side, made from raw numbers z by a map whose slope is nowhere
    above 1 half-range: means of bounded components are tanh(z), deviations σ softplus(z/σ + ln(e - 1)), and logits z.
    Raw zeros are the middle of the range with deviation σ = `initial_std`, or equal chances. Deviations thus react to z
    as much as means do, however small they are at first: with softplus(z) alone, exploring rules hardly changes a small
    deviation. Raises InputError for agents who differ.
    """

    def __init__(self, spec: EnvSpec, initial_std: float, device: torch.device):
        for what, found in (("kinds", spec.kind), ("observations", spec.observation_sizes), ("actions", spec.actions)):
            if len(set(found)) > 1:
                raise InputError(
                    f"All agents of a swarm follow one rule, so they must be alike; these have {len(set(found))} "
                    f"different {what}. Train them with marl.algorithms.mappo instead."
                )
        self.space: Discrete | Continuous = spec.actions[0]
        if isinstance(self.space, Discrete):
            self.size, self.slope = sum(self.space.choices), 1.0
            return
        self.size, self._initial_std = 2 * self.space.size, initial_std
        self._units = ActionUnits.of([self.space], device)
        self._bounded = torch.tensor(self.space.bounded, device=device)
        # Parameters are in the actions' own units already.
        zero = torch.zeros_like(self._units.middle)
        self._plain = ActionUnits(zero, zero + 1, self._units.present)
        self.slope = float(self._units.scale.max())

    def of(self, raw: Float[Tensor, "*X Q"]) -> Float[Tensor, "*X Q"]:
        """From raw numbers to parameters."""
        if isinstance(self.space, Discrete):
            return raw
        mean, std = raw.chunk(2, -1)
        middle, scale = self._units.middle[0], self._units.scale[0]
        mean = middle + scale * torch.where(self._bounded, mean.tanh(), mean)
        return torch.cat([mean, scale * self._initial_std * F.softplus(std / self._initial_std + _AT_ONE)], -1)

    def distribution(
        self, parameters: Float[Tensor, "B N Q"], legal: Bool[Tensor, "B N A"] | None
    ) -> AgentDistribution:
        """Of what each agent does."""
        if isinstance(self.space, Discrete):
            return IndependentCategorical(parameters, self.space.choices, legal)
        mean, std = parameters.chunk(2, -1)
        return IndependentGaussian(mean, std.clamp(min=LEAST_STD).log(), self._plain, legal)

    def draw(
        self, parameters: Float[Tensor, "B N Q"], legal: Bool[Tensor, "B N A"] | None, streams: Streams
    ) -> Num[Tensor, "B N A"]:
        """Action of each agent, without its probability, which takes longer than the draw."""
        if isinstance(self.space, Discrete):
            return self.distribution(parameters, legal).sample(streams).action
        mean, std = parameters.chunk(2, -1)
        return torch.addcmul(mean, std.clamp(min=LEAST_STD), streams.normal(mean.shape))
