"""Joint distributions over what all agents do, with a log-probability for each decider."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs.core import Continuous, Decision, Streams

# Added to what is illegal: large enough that its probability is exactly 0, finite so that no gradient is ever NaN.
ILLEGAL = -1e9
LOG_ROOT_TAU = 0.5 * math.log(2 * math.pi)


# Fewer choices than a processor's vector holds, in more numbers than an actor's step has: there the library is slow.
FEW_CHOICES, MANY_NUMBERS = 8, 4096


def log_softmax(logits: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
    """Log-probabilities of each row's choices."""
    if _fast_in_library(logits):
        return logits.log_softmax(-1)
    logits = _below_zero(logits)
    return logits - logits.exp().sum(-1, keepdim=True).log()


def softmax(logits: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
    """Probabilities of each row's choices."""
    if _fast_in_library(logits):
        return logits.softmax(-1)
    weight = _below_zero(logits).exp()
    return weight / weight.sum(-1, keepdim=True)


def _fast_in_library(logits: Float[Tensor, "*B A"]) -> bool:
    return logits.shape[-1] >= FEW_CHOICES or logits.numel() < MANY_NUMBERS or not logits.is_cpu


def _below_zero(logits: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
    """The same logits with 0 for each row's largest, so that no exponential overflows."""
    # Probabilities do not depend on the shift, so neither do gradients.
    return logits - logits.detach().amax(-1, keepdim=True)


@runtime_checkable
class JointDistribution(Protocol):
    """Joint distribution over all agents' actions in each row, as a joint policy gives it."""

    def sample(self, streams: Streams) -> Decision:
        """Draw a decision, with its log-probabilities."""

    def mode(self) -> Decision:
        """The most probable decision."""

    def log_prob(self, decision: Decision) -> Float[Tensor, "*B M"]:
        """Log-probability of each decider's choice."""

    def entropy(self, decision: Decision) -> Float[Tensor, "*B M"]:
        """Entropy of each decider's choice given what it saw of `decision`."""

    def kl(self, other: Any, decision: Decision | None = None) -> Float[Tensor, "*B M"]:
        """KL(self || other) of each decider's choice, given what it saw of `decision`.

        Its mean over decisions drawn from self, summed over deciders, is the divergence of the joint distributions.
        Deciders who see nothing of one another need no decision. Raises TypeError where there is no closed form.
        """

    def price(self, decision: Decision) -> Float[Tensor, "*B M"] | None:
        """Cost to each decider besides, as of a sampled graph's edges; None where nobody pays."""

    def log_probs(self) -> Float[Tensor, "*B N A"]:
        """Of every choice of independent agents with finite choices; other distributions raise."""


def require_same_kind(one: object, other: object) -> None:
    """Raises TypeError for distributions of different kinds, between which a divergence has no closed form."""
    if type(one) is not type(other):
        raise TypeError(f"kl compares distributions of one kind; got {type(one).__name__} and {type(other).__name__}.")


class IndependentCategorical:
    """Agents choose alone among finitely many; components of one action are independent too.

    logits [*B,N,A] hold the components side by side, `choices` says how many belong to each. Illegal choices have
    probability 0 and never enter an entropy.
    """

    def __init__(
        self, logits: Float[Tensor, "*B N A"], choices: tuple[int, ...], legal: Bool[Tensor, "*B N A"] | None = None
    ):
        self.choices = choices
        allowed = logits if legal is None else logits.masked_fill(~legal, ILLEGAL)
        self._components = [log_softmax(part) for part in self._split(allowed)]
        self._shape = allowed.shape

    def sample(self, streams: Streams) -> Decision:
        """Draw a decision."""
        return self.choose(streams.exponential(self._shape))

    def choose(self, noise: Float[Tensor, "*B N A"]) -> Decision:
        """Draw by racing exponential clocks: argmax p/q with noise q ~ Exp(1) has distribution p."""
        clocks = self._split(noise)
        return self._with_log_prob([(p.exp() / q).argmax(-1, keepdim=True) for p, q in zip(self._components, clocks)])

    def mode(self) -> Decision:
        """Each component's most probable choice."""
        return self._with_log_prob([part.argmax(-1, keepdim=True) for part in self._components])

    def log_prob(self, decision: Decision) -> Float[Tensor, "*B N"]:
        """Summed over components."""
        return self._log_prob([decision.action] if len(self.choices) == 1 else list(decision.action.split(1, -1)))

    def entropy(self, decision: Decision) -> Float[Tensor, "*B N"]:
        """Summed over components; independent agents saw nothing of the decision."""
        parts = [-torch.linalg.vecdot(part.exp(), part) for part in self._components]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def price(self, decision: Decision) -> None:
        """Independent agents pay nothing."""

    def log_probs(self) -> Float[Tensor, "*B N A"]:
        """Of every choice, components side by side."""
        return self._components[0] if len(self._components) == 1 else torch.cat(self._components, -1)

    def kl(self, other: IndependentCategorical, decision: Decision | None = None) -> Float[Tensor, "*B N"]:
        """KL(self || other) of each agent's choice, summed over components; both allow the same choices."""
        require_same_kind(self, other)
        p, q = self.log_probs(), other.log_probs()
        return (p.exp() * (p - q)).sum(-1)

    def _split(self, x: Float[Tensor, "*B N A"]) -> Sequence[Tensor]:
        return [x] if len(self.choices) == 1 else x.split(self.choices, -1)

    def _log_prob(self, picks: list[Tensor]) -> Tensor:
        parts = [part.gather(-1, pick).squeeze(-1) for part, pick in zip(self._components, picks)]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def _with_log_prob(self, picks: list[Tensor]) -> Decision:
        return Decision(picks[0] if len(picks) == 1 else torch.cat(picks, -1), log_prob=self._log_prob(picks))


class ActionUnits(NamedTuple):
    """The units of each agent's real actions: the middle and half-range of a bounded component, 0 and 1 of others.

    present is 0 for components that an agent does not have, or cannot move.
    """

    middle: Float[Tensor, "N A"]
    scale: Float[Tensor, "N A"]
    present: Float[Tensor, "N A"]

    @classmethod
    def of(cls, spaces: Sequence[Continuous], device: torch.device | str = "cpu") -> ActionUnits:
        """Of agents with these action spaces, padded to the largest."""
        size = max(space.size for space in spaces)
        rows = torch.tensor([[[0.0, 1.0, 0.0]] * size] * len(spaces))
        for agent, space in enumerate(spaces):
            for component, (low, high) in enumerate(zip(space.low, space.high)):
                units = ((high + low) / 2, (high - low) / 2) if space.bounded[component] else (0.0, 1.0)
                free = low < high
                rows[agent, component] = torch.tensor([*units, 1.0] if free else [low, 1.0, 0.0])
        return cls(*rows.to(device).unbind(-1))


class IndependentGaussian:
    """Agents draw real actions alone: a diagonal normal distribution, mean and log_std [*B,N,A] in the actions' units.

    Environments clip to their bounds; the log-probability is that of the unclipped draw. legal: the components that
    count, None for all that the agents have.
    """

    def __init__(
        self,
        mean: Float[Tensor, "*B N A"],
        log_std: Float[Tensor, "*B N A"],
        units: ActionUnits,
        legal: Bool[Tensor, "*B N A"] | None = None,
    ):
        self._mean = torch.addcmul(units.middle, units.scale, mean)
        self._std = units.scale * log_std.exp()
        # log(σ sqrt(2π)), of which the logarithm of the density and the entropy are made.
        self._log_norm = log_std + (units.scale.log() + LOG_ROOT_TAU)
        self._present = units.present if legal is None else units.present * legal

    def sample(self, streams: Streams) -> Decision:
        """Draw a decision."""
        return self.choose(streams.normal(self._mean.shape))

    def choose(self, noise: Float[Tensor, "*B N A"]) -> Decision:
        """Draw by location and scale, noise ~ N(0, 1)."""
        return self._with_log_prob(torch.addcmul(self._mean, self._std, noise))

    def mode(self) -> Decision:
        """The mean."""
        return self._with_log_prob(self._mean)

    def log_prob(self, decision: Decision) -> Float[Tensor, "*B N"]:
        """-z²/2 - log(σ sqrt(2π)) with z = (a - μ)/σ, summed over components."""
        z = (decision.action - self._mean) / self._std
        return -self._sum(torch.addcmul(self._log_norm, z, z, value=0.5))

    def entropy(self, decision: Decision) -> Float[Tensor, "*B N"]:
        """log(σ sqrt(2π)) + 1/2, summed over components."""
        return self._sum(self._log_norm + 0.5)

    def price(self, decision: Decision) -> None:
        """Independent agents pay nothing."""

    def log_probs(self) -> Float[Tensor, "*B N A"]:
        """Real actions cannot be listed."""
        raise TypeError("log_probs lists the choices of discrete actions; these actions are continuous: use log_prob.")

    def kl(self, other: IndependentGaussian, decision: Decision | None = None) -> Float[Tensor, "*B N"]:
        """log(σ'/σ) + ((σ/σ')² + z² - 1)/2 with z = (μ - μ')/σ', summed over components."""
        require_same_kind(self, other)
        wider, z = self._log_norm - other._log_norm, (self._mean - other._mean) / other._std
        # Of distributions that are nearly equal, 1 would take most digits away.
        return self._sum((torch.expm1(2 * wider) + z.square()) / 2 - wider)

    def _sum(self, x: Float[Tensor, "*B N A"]) -> Float[Tensor, "*B N"]:
        return (x * self._present).sum(-1)

    def _with_log_prob(self, action: Tensor) -> Decision:
        decision = Decision(action)
        return Decision(action, log_prob=self.log_prob(decision))
