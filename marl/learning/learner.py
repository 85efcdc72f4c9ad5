"""Learners own losses and optimizers. `update` improves a policy from one batch; all a learner knows is saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import InputError
from marl.learning.batch import Batch, Outcome, with_reward


@runtime_checkable
class Learner(Protocol):
    """Improves something from batches."""

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Learn; gives what to log, each [P]; or [P,H,W] in [0, 1], which TensorBoard shows as a picture."""

    def relabel(self, batch: Batch) -> Batch:
        """The batch as the learners that follow in a `Chain` shall see it."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly, as a tree of tensors and JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""


class Chain:
    """Learners that learn from the same batches, one after the other; each sees what those before have relabeled."""

    def __init__(self, learners: Sequence[Learner]):
        self.learners = learners
        self.outcome: Outcome | None = None

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """All that they log. `outcome` is then what the last one may say of the episodes; see `with_reward`."""
        terms: dict[str, Tensor] = {}
        for part in self.learners:
            terms |= part.update(batch)
            batch = _relabeled(part, batch)
        self.outcome = batch.outcome
        return terms

    def relabel(self, batch: Batch) -> Batch:
        """The batch as the last one leaves it."""
        for learner in self.learners:
            batch = _relabeled(learner, batch)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The first learner's state beside the others', so that a policy is found in one place."""
        first, *others = self.learners
        return {**first.state_dict(), "following": [learner.state_dict() for learner in others]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        first, *others = self.learners
        first.load_state_dict(state)
        for learner, saved in zip(others, state["following"], strict=True):
            learner.load_state_dict(saved)


def outcome_of(learner: Learner, batch: Batch) -> Outcome | None:
    """The outcome of a batch that the learner has just learned from, without the channels that it has relabeled."""
    return learner.outcome if isinstance(learner, Chain) else batch.outcome


def _relabeled(learner: Learner, batch: Batch) -> Batch:
    """The batch as a learner relabels it; whatever its `relabel` forgot, no outcome tells of rewards that are gone."""
    relabeled = learner.relabel(batch)
    if relabeled.reward is batch.reward or relabeled.outcome is not batch.outcome:
        return relabeled
    return with_reward(replace(relabeled, reward=batch.reward), relabeled.reward)


def on_the_way(first: float, last: float | None, progress: float) -> float:
    """The number a share `progress` of the way from first to last; first where there is nowhere to go."""
    return first if last is None else first + (last - first) * progress


def per_channel(discount: float | Sequence[float], channels: int) -> Float[Tensor, " K"]:
    """One discount for each reward channel. Raises InputError for a wrong number of them or one outside [0, 1]."""
    values = [discount] * channels if isinstance(discount, float | int) else list(discount)
    if len(values) != channels or not all(0 <= v <= 1 for v in values):
        raise InputError(
            f"learner.discount must be one number in [0, 1], or {channels} of them (one for each reward channel); "
            f"got {discount}."
        )
    return torch.tensor(values)
