"""Weighings turn the advantages of K channels and N agents into one number for each decider."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from marl.batch import Outcome


@runtime_checkable
class Weighing(Protocol):
    """(advantage [B,N,K], alive [B,N], outcome) -> [B,N]."""

    def __call__(
        self, advantage: Float[Tensor, "B N K"], alive: Bool[Tensor, "B N"], outcome: Outcome | None
    ) -> Float[Tensor, "B N"]:
        """One advantage for each agent."""


def own(advantage: Float[Tensor, "B N K"], alive: Bool[Tensor, "B N"], outcome: Outcome | None) -> Float[Tensor, "B N"]:
    """Each agent's own advantage, its channels added."""
    return advantage.sum(-1)


def team(
    advantage: Float[Tensor, "B N K"], alive: Bool[Tensor, "B N"], outcome: Outcome | None
) -> Float[Tensor, "B N"]:
    """The mean over the living team, its channels added: every agent answers for all."""
    living = alive.to(advantage.dtype)
    total = (advantage.sum(-1) * living).sum(-1, keepdim=True) / living.sum(-1, keepdim=True).clamp(min=1)
    return total.expand_as(living)


def by_decider(
    advantage: Float[Tensor, "B N"], alive: Bool[Tensor, "B N"], members: Bool[Tensor, "M N"] | None
) -> tuple[Float[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Each decider's advantage, the mean over the living agents it decides for, and whether it has any.

    members None: every agent decides for itself (M = N).
    """
    if members is None:
        return advantage, alive
    living = alive.to(advantage.dtype)
    count = living @ members.T.to(advantage.dtype)
    return (advantage * living) @ members.T.to(advantage.dtype) / count.clamp(min=1), count > 0
