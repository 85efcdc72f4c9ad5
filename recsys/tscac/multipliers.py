"""Dual ascent beside learning: what constraints are worth, moved by users that the policy does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from marl.learning.batch import Batch
from marl.learning.learner import Kept, Learner, Stateful
from marl.learning.offline_actor_critic import LoggedActorCritic
from recsys.tscac.constraints import Constraint
from recsys.tscac.tables import adapted

RATE, MOST = 1.0, 50.0  # first and largest step, in weights for a shortfall of all that is asked for


class Multipliers(Learner):
    """μ_i <- [μ_i - η_i · margin_i]_+ every so many updates: the weights of constrained channels, each policy's own.

    judge: gives lower bounds of margins [P,m] in units of their thresholds, by off-policy evaluation on other users:
    the critic that a policy is fitted to flatters it where a constraint binds. Steps grow while they go one way and
    shrink when they turn back, each by itself. The first in a `Chain`, before the learner whose weights these are.
    """

    def __init__(
        self,
        learner: LoggedActorCritic,
        constraints: Sequence[Constraint],
        judge: Callable[[], Float[Tensor, "P m"]],
        every: int,
    ):
        self.learner, self.constraints, self.judge, self.every = learner, constraints, judge, every
        nothing = learner.weights.new_zeros(learner.policies, len(constraints))
        self._rate, self._over = Kept(torch.full_like(nothing, RATE)), Kept(nothing.clone())
        self._multiplier, self._updates = Kept(nothing.clone()), Kept(0)
        self._own = learner.weights.clone()  # without multipliers

    @property
    def multiplier(self) -> Float[Tensor, "P m"]:
        """μ, in units of the main goal's weight."""
        held: Any = self._multiplier.value
        return held

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Count, and move where it is time."""
        done: Any = self._updates.value
        self._updates.value = done + 1
        if done and done % self.every == 0:
            self._move(self.judge().to(self.multiplier))
        return {f"multiplier_{one.name}": self.multiplier[:, i] for i, one in enumerate(self.constraints)}

    def parts(self) -> dict[str, Stateful | None]:
        """Multipliers, their steps, the margins before, and the place in training."""
        return {
            "multiplier": self._multiplier,
            "rate": self._rate,
            "over": self._over,
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        super().load_state_dict(state)
        self._apply()

    def _move(self, over: Float[Tensor, "P m"]) -> None:
        before: Any = self._over.value
        rate: Any = self._rate.value
        over = over.clamp(-1.0, 1.0)  # a bound that is endless moves as far as one that is missed altogether
        self._rate.value = adapted(rate, over * before, MOST)
        self._over.value = over
        self._multiplier.value = (self.multiplier - self._rate.value * over).clamp(min=0.0)
        self._apply()

    def _apply(self) -> None:
        weights = self._own.clone()
        for i, one in enumerate(self.constraints):
            weights[:, one.signal] += one.sign * self.multiplier[:, i]
        self.learner.weights = weights
