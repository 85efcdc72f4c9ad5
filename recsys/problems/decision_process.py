"""Decision processes in tables, without a horizon: exact values, visits and best policies, P of them at once.

S states, A actions, K signals, one discount γ < 1 for all. Policies are π(a | s), [P,S,A].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDS = 100_000  # of value iteration, which ends when nothing moves any more
STILL = 1e-13  # relative to the largest value


@dataclass(frozen=True)
class DecisionProcess:
    """Transition P(s'|s,a), mean reward r(s,a) of each signal, and the states that episodes start in.

    A process that was estimated P times has P transitions and rewards; one that is known has a single one.
    """

    transition: Float[Tensor, "*P S A S"]
    reward: Float[Tensor, "*P S A K"]
    start: Float[Tensor, " S"]
    discount: float

    def value(self, policy: Float[Tensor, "*P S A"]) -> Float[Tensor, "*P S K"]:
        """V = (I - γ P_π)^-1 r_π."""
        reward = (policy.unsqueeze(-1) * self.reward).sum(-2)
        return torch.linalg.solve(self._resolvent(policy), reward)

    def q(self, value: Float[Tensor, "*P S K"]) -> Float[Tensor, "*P S A K"]:
        """Q(s,a) = r(s,a) + γ Σ_s' P(s'|s,a) V(s')."""
        return self.reward + self.discount * torch.einsum("...sat,...tk->...sak", self.transition, value)

    def advantage(self, policy: Float[Tensor, "*P S A"]) -> tuple[Float[Tensor, "*P S A K"], Float[Tensor, "*P K"]]:
        """A = Q - V, and the return of each signal from the start."""
        value = self.value(policy)
        return self.q(value) - value.unsqueeze(-2), self.from_start(value)

    def returns(self, policy: Float[Tensor, "*P S A"]) -> Float[Tensor, "*P K"]:
        """Expected discounted sum of each signal."""
        return self.from_start(self.value(policy))

    def from_start(self, value: Float[Tensor, "*P S K"]) -> Float[Tensor, "*P K"]:
        """Mean value of the states that episodes start in."""
        return torch.einsum("s,...sk->...k", self.start, value)

    def visits(self, policy: Float[Tensor, "*P S A"]) -> Float[Tensor, "*P S"]:
        """d(s) = Σ_t γ^t P(s_t = s), which sums to 1 / (1 - γ)."""
        resolvent = self._resolvent(policy)
        return torch.linalg.solve(resolvent.mT, self.start.expand(resolvent.shape[:-1]))

    def soft_optimal(
        self, weights: Float[Tensor, "M K"], temperature: float
    ) -> tuple[Float[Tensor, "M S A"], Float[Tensor, " M"]]:
        """M policies π ∝ exp(Q/τ), each of its own weighted sum of signals, and what the soft value is at the start.

        V(s) = τ log (1/A) Σ_a exp(Q(s,a)/τ); a temperature of 0 is the best policy and its value.
        """
        reward = torch.einsum("sak,mk->msa", self.reward, weights)
        value = torch.zeros(reward.shape[:-1], dtype=reward.dtype)
        for _ in range(ROUNDS):
            q = reward + self.discount * torch.einsum("sat,mt->msa", self.transition, value)
            latest = soft_max(q, temperature)
            moved = (latest - value).abs().max()
            value = latest
            if moved <= STILL * value.abs().max().clamp(min=1.0):
                break
        below = q < q.max(-1, keepdim=True).values
        logits = q / temperature if temperature > 0 else torch.zeros_like(q).masked_fill(below, -torch.inf)
        return logits.softmax(-1), value @ self.start

    def _resolvent(self, policy: Float[Tensor, "*P S A"]) -> Float[Tensor, "*P S S"]:
        following = torch.einsum("...sa,...sat->...st", policy, self.transition)
        return torch.eye(policy.shape[-2], dtype=policy.dtype) - self.discount * following


def soft_max(q: Float[Tensor, "*S A"], temperature: float) -> Float[Tensor, "*S"]:
    """τ log mean exp(Q/τ) over actions, the largest Q where τ = 0."""
    if temperature == 0:
        return q.max(-1).values
    return temperature * (torch.logsumexp(q / temperature, -1) - math.log(q.shape[-1]))
