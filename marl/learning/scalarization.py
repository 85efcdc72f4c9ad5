"""Weighings turn the advantages of K channels and N agents into one number for each decider."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs.core import Continuous, Discrete, Observation
from marl.learning.batch import Outcome


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
    advantage: Float[Tensor, "B N"],
    alive: Bool[Tensor, "B N"],
    choosing: Bool[Tensor, "B N"],
    members: Bool[Tensor, "M N"] | None,
) -> tuple[Float[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Each decider's advantage, the mean over the living agents it decides for, and whether any of them has a choice.

    members None: every agent decides for itself (M = N).
    """
    if members is None:
        return advantage, choosing
    living, owner = alive.to(advantage.dtype), members.T.to(advantage.dtype)
    count = (living @ owner).clamp(min=1)
    return (advantage * living) @ owner / count, choosing.to(advantage.dtype) @ owner > 0


def choosing(obs: Observation, space: Discrete | Continuous) -> Bool[Tensor, "B N"]:
    """Who is alive and has more than one thing to do. The others decide nothing, so no loss may hear of them."""
    if obs.legal is None:
        return obs.alive
    if isinstance(space, Continuous):
        return obs.alive & obs.legal.any(-1)
    several = [part.sum(-1) > 1 for part in obs.legal.split(space.choices, -1)]
    return obs.alive & torch.stack(several).any(0)
