"""Learners own losses and optimizers. `update` improves a policy from one batch; all a learner knows is saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import InputError, Tree
from marl.learning.batch import Batch, Outcome, with_reward

X = TypeVar("X", float, Tensor)


@runtime_checkable
class Stateful(Protocol):
    """Something whose state is a tree: dicts and lists of tensors and JSON values, or one of these alone."""

    def state_dict(self) -> Any:
        """Everything needed to continue exactly."""

    def load_state_dict(self, state: Any) -> Any:
        """Continue exactly where `state` was taken."""


class Learner(ABC):
    """Improves something from batches.

    A subclass defines `update`, and in `parts` what it knows; its state follows from the parts.
    """

    @abstractmethod
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Learn; gives what to log, each [P]; or [P,H,W] in [0, 1], which TensorBoard shows as a picture."""

    @abstractmethod
    def parts(self) -> Mapping[str, Stateful | None]:
        """All that must be saved to continue exactly, by name; None for a part that this learner goes without."""

    def relabel(self, batch: Batch) -> Batch:
        """The batch as the learners that follow in a `Chain` shall see it: by default as it is."""
        return batch

    def outcome(self, batch: Batch) -> Outcome | None:
        """The outcome of a batch that was just learned from, without channels that were relabeled on the way."""
        return batch.outcome

    def state_dict(self) -> dict[str, Any]:
        """The state of each part, by name; that of None is empty."""
        return {name: {} if part is None else part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        for name, part in self.parts().items():
            if part is not None:
                part.load_state_dict(state[name])


@final
class Kept:
    """One value that a learner keeps between updates: a tree of tensors and JSON values."""

    def __init__(self, value: Tree):
        self.value = value

    def state_dict(self) -> Tree:
        """The value."""
        return self.value

    def load_state_dict(self, state: Tree) -> None:
        """The inverse."""
        self.value = state


@final
class Progress:
    """The place in training, counted in updates: one clock for whatever changes along the way.

    updates: how many there will be. done: how many have begun, the one under way included.
    """

    def __init__(self, updates: int):
        self.updates, self.done = updates, 0

    def advance(self) -> None:
        """Another update begins."""
        self.done += 1

    @property
    def share(self) -> float:
        """The share of the way from the first update, 0, to the last, 1."""
        before = max(0, self.done - 1)
        return min(1.0, before / max(1, self.updates - 1))

    @property
    def spent(self) -> float:
        """The share of all updates that will be done after the one under way."""
        return self.done / self.updates

    def along(self, first: X, last: X | None) -> X:
        """The number, or tensor, on the straight line from first to last; first where there is nowhere to go."""
        return first if last is None else first + (last - first) * self.share

    def state_dict(self) -> int:
        """The updates done."""
        return self.done

    def load_state_dict(self, state: int) -> None:
        """The inverse."""
        self.done = int(state)


@final
class Chain(Learner):
    """Learners that learn from the same batches, one after the other; each sees what those before have relabeled.

    Each has a name, under which its state is saved.
    """

    def __init__(self, learners: Mapping[str, Learner]):
        self.learners = dict(learners)
        self._outcome: Outcome | None = None

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """All that they log."""
        terms: dict[str, Tensor] = {}
        for part in self.learners.values():
            terms |= part.update(batch)
            batch = _relabeled(part, batch)
        self._outcome = batch.outcome
        return terms

    def relabel(self, batch: Batch) -> Batch:
        """The batch as the last one leaves it."""
        for learner in self.learners.values():
            batch = _relabeled(learner, batch)
        return batch

    def outcome(self, batch: Batch) -> Outcome | None:
        """Outcome of the episodes as the last learner may still report it; see `with_reward`."""
        return self._outcome

    def parts(self) -> dict[str, Stateful | None]:
        """The learners."""
        return {**self.learners}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken, also by an earlier version, which knew the learners by number."""
        if "following" in state:
            first = {name: part for name, part in state.items() if name != "following"}
            state = dict(zip(self.learners, (first, *state["following"]), strict=True))
        super().load_state_dict(state)


def _relabeled(learner: Learner, batch: Batch) -> Batch:
    """The batch as a learner relabels it; whatever its `relabel` forgot, no outcome tells of rewards that are gone."""
    relabeled = learner.relabel(batch)
    if relabeled.reward is batch.reward or relabeled.outcome is not batch.outcome:
        return relabeled
    return with_reward(replace(relabeled, reward=batch.reward), relabeled.reward)


def find_part(state: Mapping[str, Any], name: str) -> Any:
    """The saved state of the part with this name, in a learner's state or in that of a learner in a `Chain`.

    Raises InputError where there is none, or more than one.
    """
    if name in state:
        return state[name]
    holders = [key for key, part in state.items() if isinstance(part, Mapping) and name in part]
    if len(holders) != 1:
        there = f"is in each of {', '.join(holders)}" if holders else f"is not among {', '.join(state)}"
        raise InputError(f"A saved learner must hold one part {name!r}; it {there}.")
    return state[holders[0]][name]


def per_channel(discount: float | Sequence[float], channels: int) -> Float[Tensor, " K"]:
    """One discount for each reward channel. Raises InputError for a wrong number of them or one outside [0, 1]."""
    values = [discount] * channels if isinstance(discount, float | int) else list(discount)
    if len(values) != channels or not all(0 <= v <= 1 for v in values):
        raise InputError(
            f"learner.discount must be one number in [0, 1], or {channels} of them (one for each reward channel); "
            f"got {discount}."
        )
    return torch.tensor(values)
