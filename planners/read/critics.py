"""Critics of plans: values of prefixes of joint decisions, learned or exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from envs.core import InputError, Observation
from envs.tabular import Digits, Table
from planners.read.advantages import prefix_value


@runtime_checkable
class PlanCritic(Protocol):
    """Values of prefixes of joint decisions, as one number a row.

    scale: the unit in which advantages are told and thresholds are given, above 0.
    """

    scale: float

    def values(self, obs: Observation, action: Int[Tensor, "B N 1"], given: Bool[Tensor, "B N"]) -> Float[Tensor, " B"]:
        """Value Q^G of each row, where the choices of the agents G are given; of none, V."""


class ExactCritic:
    """Values of a policy in a world that is a table: the truth that a learned critic is measured against.

    state_of: the world's states of what is observed. digits: what tells them apart. policy [S,A,…,A]: joint
    probabilities of whoever proposes. Values are of the world's table, discounted.
    """

    def __init__(
        self,
        table: Table,
        policy: Float[Tensor, "*joint"],
        discount: float,
        *,
        state_of: Callable[[Tensor], Any],
        digits: Callable[[Any], Digits],
    ):
        self.table, self.policy = table, policy.double()
        self.state_of, self.digits = state_of, digits
        value = table.evaluate(self.policy.flatten(1), discount)
        q = table.reward + discount * torch.cat([value, value.new_zeros(1)])[table.successor]
        self.q = q.view(policy.shape)
        self.scale = float(self._advantages_of_one().square().mean().sqrt()) or 1.0
        self._keys, self._places = digits(table.states).keys().sort()
        self._prefixes: dict[tuple[bool, ...], Float[Tensor, "*prefix"]] = {}

    def values(self, obs: Observation, action: Int[Tensor, "B N 1"], given: Bool[Tensor, "B N"]) -> Float[Tensor, " B"]:
        """Value Q^G of each row. Raises InputError for a state that play from the table's start never reaches."""
        place = self.places(obs)
        found = torch.zeros(len(place), dtype=torch.float64)
        for pattern in given.unique(dim=0):
            rows = (given == pattern).all(-1)
            values = self._prefix(tuple(pattern.tolist()))
            known = [torch.where(here, action[rows, agent, 0], 0) for agent, here in enumerate(pattern)]
            found[rows] = values[(place[rows], *known)]
        return found

    def places(self, obs: Observation) -> Int[Tensor, " B"]:
        """Numbers of the table's states that are observed."""
        keys = self.digits(self.state_of(obs.state)).keys()
        at = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
        if not torch.equal(self._keys[at], keys):
            raise InputError(
                "An exact critic knows the states that play reaches from the table's start, and this is none of them: "
                "let episodes begin there, in the world whose table it is."
            )
        return self._places[at]

    def _prefix(self, given: tuple[bool, ...]) -> Float[Tensor, "*prefix"]:
        """Values of one prefix in all states, [S,A or 1,…]."""
        if given not in self._prefixes:
            agents = [agent for agent, here in enumerate(given) if here]
            self._prefixes[given] = prefix_value(self.q, self.policy, len(given), agents)
        return self._prefixes[given]

    def _advantages_of_one(self) -> Float[Tensor, "*prefix"]:
        """Advantages of the first agent's choices."""
        agents = self.table.agents
        first = prefix_value(self.q, self.policy, agents, [0])
        return first - prefix_value(self.q, self.policy, agents, [])
