"""Means of what a stage logs between two rows of metrics.csv."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import InputError
from marl.learning.batch import Outcome

OUTCOME_FIELDS = ("discounted", "total", "length", "episodes")


class Tally:
    """Means of what was logged since the last reading, kept on the device."""

    def __init__(self, policies: int):
        self.policies = policies
        self._clear()

    def _clear(self) -> None:
        self._terms: list[dict[str, Tensor]] = []
        self._outcomes: list[Outcome] = []

    def add(self, terms: dict[str, Tensor], outcome: Outcome | None) -> None:
        """One update's terms, and how its episodes went."""
        self._terms.append(terms)
        if outcome is not None:
            self._outcomes.append(outcome)

    def state_dict(self) -> dict[str, Any]:
        """All that was not read yet, update by update."""
        names = self._terms[0] if self._terms else ()
        fields = OUTCOME_FIELDS if self._outcomes else ()
        return {
            "terms": {name: self._stack_terms(name) for name in names},
            "outcomes": {name: self._stack_outcomes(name) for name in fields},
            "channels": list(self._channels()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        terms, outcomes = state["terms"], state["outcomes"]
        channels = tuple(state.get("channels", ()))  # earlier versions knew none
        self._terms = [dict(zip(terms, values)) for values in zip(*terms.values(), strict=True)]
        by_update = zip(*outcomes.values(), strict=True)
        self._outcomes = [Outcome(**dict(zip(outcomes, values)), channels=channels) for values in by_update]

    def read(self) -> tuple[list[dict[str, float]], dict[str, Float[Tensor, "P H W"]]]:
        """A row for each policy, in which returns are missing where no episode ended; and the pictures.

        Raises InputError for a term that has no value for each policy.
        """
        columns = self._mean_outcomes() | self._mean_terms()
        self._clear()
        table: dict[str, list[float]] = {}
        pictures: dict[str, Tensor] = {}
        for name, x in columns.items():
            if x.dim() > 1:
                pictures[name] = x.expand(self.policies, -1, -1).cpu()
            else:
                table[name] = x.expand(self.policies).tolist()
        rows = [{name: values[p] for name, values in table.items()} for p in range(self.policies)]
        return rows, pictures

    def _mean_outcomes(self) -> dict[str, Float[Tensor, " P"]]:
        """Means over all episodes that ended; of several channels the sum of those known, and each by its name."""
        if not self._outcomes:
            return {}
        weight = self._stack_outcomes("episodes")
        count = weight.sum(0)

        def mean(name: str) -> Tensor:
            x = self._stack_outcomes(name)
            further = [1] * (x.dim() - 2)
            return (x * weight.view(*weight.shape, *further)).sum(0) / count.view(-1, *further)

        total, discounted = mean("total"), mean("discounted")
        per_agent = _sum_of_known(total)  # [P,N]
        means = {
            "return_per_agent": per_agent.mean(-1),
            "return_team": per_agent.sum(-1),
            "discounted_return_per_agent": _sum_of_known(discounted),
            "episode_length": mean("length"),
            "episodes": count,
        }
        if len(self._channels()) > 1:
            for k, channel in enumerate(self._channels()):
                means[f"return_per_agent/{channel}"] = total[..., k].mean(-1)
                means[f"discounted_return_per_agent/{channel}"] = discounted[:, k]
        return means

    def _channels(self) -> tuple[str, ...]:
        return self._outcomes[-1].channels if self._outcomes else ()

    def _mean_terms(self) -> dict[str, Tensor]:
        """Means over the updates: [P], [1] where all policies share it, or a picture [P,H,W]."""
        means = {name: self._stack_terms(name).mean(0) for name in self._terms[0]}
        for name, x in means.items():
            if x.dim() and len(x) not in (1, self.policies):
                raise InputError(
                    f"The learner logs {name} with {len(x)} values, and {self.policies} policies are trained. Give "
                    "one value for each policy, or one that all share."
                )
        return means

    def _stack_terms(self, name: str) -> Tensor:
        return torch.stack([terms[name] for terms in self._terms])

    def _stack_outcomes(self, name: str) -> Tensor:
        return torch.stack([getattr(outcome, name) for outcome in self._outcomes])


def _sum_of_known(returns: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """The sum over the channels that are known; NaN where none is."""
    known = ~returns.isnan()
    total = torch.where(known, returns, 0.0).sum(-1)
    return torch.where(known.any(-1), total, math.nan)
