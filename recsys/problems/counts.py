"""A decision process as it is known from logs: counted transitions and rewards, and how far values may be off."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from recsys.problems.decision_process import DecisionProcess


@dataclass(frozen=True)
class Counts:
    """Counts of P logs: states that followed, and rewards of 0 or 1, of each state and action.

    source: the process that was logged, of which the start and the discount are known.
    """

    following: Float[Tensor, "P S A S"]
    earned: Float[Tensor, "P S A K"]
    source: DecisionProcess

    @cached_property
    def tried(self) -> Float[Tensor, "P S A"]:
        """Transitions of each pair."""
        return self.following.sum(-1)

    @cached_property
    def process(self) -> DecisionProcess:
        """The process of shares and means; a pair that was never tried stays where it is and earns nothing."""
        tried = self.tried.unsqueeze(-1)
        stays = torch.eye(tried.shape[1], dtype=tried.dtype).unsqueeze(1)
        transition = torch.where(tried > 0, self.following / tried.clamp(min=1), stays)
        return DecisionProcess(transition, self.earned / tried.clamp(min=1), self.source.start, self.source.discount)

    def standard_error(self, policy: Float[Tensor, "P S A"]) -> Float[Tensor, "P K"]:
        """Of the returns of policies that do not depend on these logs; endless where they do what was never tried.

        The variance is Σ d(s,a)² (Var r + γ² Var V(s')) / n(s,a), d the policy's discounted visits, to first order,
        with rewards and successors that are independent. (Mannor, Simester, Sun and Tsitsiklis, Management Science
        2007.)
        """
        process = self.process
        value = process.value(policy)
        mean = torch.einsum("psat,ptk->psak", process.transition, value)
        square = torch.einsum("psat,ptk->psak", process.transition, value.square())
        spread = process.reward * (1 - process.reward) + process.discount**2 * (square - mean.square()).clamp(min=0.0)
        visits = (process.visits(policy).unsqueeze(-1) * policy).unsqueeze(-1)
        tried = self.tried.unsqueeze(-1)
        variance = torch.where(tried > 0, visits.square() * spread / tried.clamp(min=1), 0.0).sum((1, 2))
        untried = ((tried == 0) & (visits > 0)).any(1).any(1)
        return torch.where(untried, torch.inf, variance.sqrt())
