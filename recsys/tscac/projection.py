"""What a policy is tied to, and the projection of its closed-form optimum on what a network can say."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import InputError, Observation
from marl.learning.batch import Batch
from marl.learning.offline_actor_critic import Estimated
from marl.models.distributions import ILLEGAL
from marl.models.policies import JointActor
from recsys.tscac.closed_form import product, tied


@runtime_checkable
class Anchor(Protocol):
    """Log-probabilities to stay close to, up to a constant in every row; rows are policy-major."""

    def __call__(self, obs: Observation) -> Float[Tensor, "B N A"]:
        """Of every action."""


class Uniform:
    """Whatever is legal, all alike: what is tied to it maximizes its values and its entropy."""

    def __init__(self, actions: int):
        self.actions = actions

    def __call__(self, obs: Observation) -> Float[Tensor, "B N A"]:
        """0 for what is legal."""
        alike = obs.agent.new_zeros(*obs.agent.shape[:2], self.actions)
        return alike if obs.legal is None else alike.masked_fill(~obs.legal, ILLEGAL)


class Product:
    """Σ_i w_i log π_i of m policies that were learned before, for each seed those of that seed.

    policies: S·m of them side by side, seed-major. shares: w [m], which sum to 1.
    """

    def __init__(self, policies: JointActor, shares: Float[Tensor, " m"], seeds: int = 1):
        if bool((shares < 0).any()) or not torch.isclose(shares.sum(), shares.new_ones(())):
            raise InputError(f"Shares of a product are at least 0 and sum to 1; got {shares.tolist()}.")
        self.policies, self.shares, self.seeds = policies, shares, seeds

    @torch.no_grad()
    def __call__(self, obs: Observation) -> Float[Tensor, "B N A"]:
        """One forward pass: each seed's rows go to each of its m policies."""
        distribution, _ = self.policies(self._for_each(obs), None)
        log_probs = distribution.log_probs().unflatten(0, (self.seeds, len(self.shares), -1))
        return product(log_probs.transpose(0, 1), self.shares).flatten(0, 1)

    def _for_each(self, obs: Observation) -> Observation:
        """The rows once for each of a seed's m policies."""

        def repeated(x: Tensor) -> Tensor:
            by_seed = x.unflatten(0, (self.seeds, 1, -1))
            return by_seed.expand(-1, len(self.shares), *by_seed.shape[2:]).flatten(0, 2)

        legal = None if obs.legal is None else repeated(obs.legal)
        return Observation(repeated(obs.agent), repeated(obs.state), repeated(obs.alive), legal)


def imitate(batch: Batch, rows: Estimated) -> Float[Tensor, "B N"]:
    """The objective of a policy that shall choose as the log does: log π of the logged action."""
    return rows.log_probs.gather(-1, batch.decision.action).squeeze(-1)


class Projected:
    """The objective of a policy that shall be the closed-form optimum π* ∝ exp(anchor + q/Λ) of its own critic.

    Σ_a π*(a|s) log π(a|s), whose gradient is that of -KL(π* || π), with exact sums over all actions. temperature: Λ of
    each of P policies. (Cai et al., WWW 2023, arXiv 2302.01680, whose stage two weighs logged actions instead, as one
    must where a catalog cannot be summed over.)
    """

    def __init__(self, anchor: Anchor, temperature: Float[Tensor, " P"]):
        if not bool((temperature > 0).all()):
            raise InputError(f"A temperature Λ is above 0; got {temperature.tolist()}.")
        self.anchor, self.temperature = anchor, temperature

    def __call__(self, batch: Batch, rows: Estimated) -> Float[Tensor, "B N"]:
        """The cross entropy's negative, row by row."""
        optimum = self.optimum(batch.obs, rows.q)
        return torch.linalg.vecdot(optimum, rows.log_probs)

    @torch.no_grad()
    def optimum(self, obs: Observation, q: Float[Tensor, "B N A"]) -> Float[Tensor, "B N A"]:
        """π* of each row, from what each action is worth."""
        scale = self.temperature.to(q).repeat_interleave(len(q) // len(self.temperature)).view(-1, 1, 1)
        return tied(self.anchor(obs), q, scale).log_probs.exp()
