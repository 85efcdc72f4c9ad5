"""Critics of plans: values of prefixes of joint decisions, learned or exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from envs.core import InputError, Observation, tree_map
from envs.tabular import Digits, Table
from marl.learning.batch import Batch
from marl.learning.regression import Regression, behavior_of
from planners.read.advantages import prefix_value


@runtime_checkable
class PlanCritic(Protocol):
    """Values of prefixes of joint decisions, as one number a row.

    scale: the unit in which advantages are told and thresholds are given, above 0. needs_behavior: whether it must be
    told the model's probabilities of each agent's choices, which then costs a query that scores, at each decision.
    """

    scale: float
    needs_behavior: bool

    def values(
        self,
        obs: Observation,
        action: Int[Tensor, "B N 1"],
        given: Bool[Tensor, "B N"],
        behavior: Float[Tensor, "B N A"] | None = None,
    ) -> Float[Tensor, " B"]:
        """Value Q^G of each row, where the choices of the agents G are given; of none, V.

        behavior: probabilities of the choices of the agents G, each given those before it; None unless they are needed.
        """


class ExactCritic:
    """Values of a policy in a world that is a table: the truth that a learned critic is measured against.

    state_of: the world's states of what is observed. digits: what tells them apart. policy [S,A,…,A]: joint
    probabilities of whoever proposes. Values are of the world's table, discounted.
    """

    needs_behavior = False

    def __init__(
        self,
        table: Table,
        policy: Float[Tensor, "*joint"],
        discount: float,
        *,
        state_of: Callable[[Tensor], Any],
        digits: Callable[[Any], Digits],
    ):
        shape = (len(table), *(table.choices,) * table.agents)
        if tuple(policy.shape) != shape:
            raise InputError(
                f"An exact critic needs the joint probabilities of every agent's choices, {list(shape)}; got "
                f"{list(policy.shape)}."
            )
        self.table, self.policy = table, policy.double()
        self.state_of, self.digits = state_of, digits
        value = table.evaluate(self.policy.flatten(1), discount)
        q = table.reward + discount * torch.cat([value, value.new_zeros(1)])[table.successor]
        self.q = q.view(policy.shape)
        self.scale = self._deviation()
        self._keys, self._places = digits(table.states).keys().sort()
        self._prefixes: dict[tuple[bool, ...], Float[Tensor, "*prefix"]] = {}

    def values(
        self,
        obs: Observation,
        action: Int[Tensor, "B N 1"],
        given: Bool[Tensor, "B N"],
        behavior: Float[Tensor, "B N A"] | None = None,
    ) -> Float[Tensor, " B"]:
        """Value Q^G of each row. Raises InputError for a state that play from the table's start never reaches.

        behavior: not needed, as the policy is known everywhere.
        """
        place, action, given = self.places(obs), action.cpu(), given.cpu()
        found = torch.zeros(len(place), dtype=torch.float64)
        for pattern in given.unique(dim=0):
            rows = (given == pattern).all(-1)
            values = self._prefix(tuple(pattern.tolist()))
            known = [torch.where(here, action[rows, agent, 0], 0) for agent, here in enumerate(pattern)]
            found[rows] = values[(place[rows], *known)]
        return found

    def places(self, obs: Observation) -> Int[Tensor, " B"]:
        """Numbers of the table's states that are observed, on the CPU like the table."""
        keys = self.digits(self.state_of(obs.state.cpu())).keys()
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

    def _deviation(self) -> float:
        """Root mean square of single agents' advantages, as the policy chooses, over all states."""
        agents = range(self.table.agents)
        value = prefix_value(self.q, self.policy, len(agents), [])
        squares = [(prefix_value(self.q, self.policy, len(agents), [agent]) - value).square() for agent in agents]
        mean = sum(float((self.policy * square).sum()) for square in squares) / len(agents) / len(self.table)
        # Where nobody's choice matters, what is left is rounding, and no unit.
        return math.sqrt(mean) if math.sqrt(mean) > 1e-9 * float(self.q.abs().max()) else 1.0


class LearnedCritic:
    """A critic fitted by `Regression`, as a planner asks it: one number a row, by weights of channels.

        Q^G = mean over members - pessimism · their deviation

    learner: fitted; of an ensemble, all members judge. weights [K]: what a unit of each channel is worth; by default
    all count 1. batch: logged rows from which the scale is taken, the root mean square of a single agent's advantage:
    by itself, or after the agents before it where the critic needs behavior. scale: given instead of a batch, where it
    was taken before. Raises InputError for neither or both.
    """

    def __init__(
        self,
        learner: Regression,
        batch: Batch | None = None,
        *,
        weights: Float[Tensor, " K"] | None = None,
        pessimism: float = 0.0,
        scale: float | None = None,
    ):
        self.learner, self.pessimism = learner, pessimism
        self.needs_behavior = learner.critic.needs_behavior
        self.weights = torch.ones(learner.critic.channels) if weights is None else weights
        if (batch is None) == (scale is None):
            raise InputError("A learned critic takes its scale from a batch of logged rows, or as a number: give one.")
        self.scale = scale or 1.0
        if batch is not None:
            self.scale = self._deviation(batch) or 1.0

    @torch.no_grad()
    def values(
        self,
        obs: Observation,
        action: Int[Tensor, "B N 1"],
        given: Bool[Tensor, "B N"],
        behavior: Float[Tensor, "B N A"] | None = None,
    ) -> Float[Tensor, " B"]:
        """Value Q^G of each row, a mean over agents."""
        members = self.learner.policies
        asked = (obs, action, given & obs.alive, behavior)
        repeated = tree_map(lambda leaf: torch.cat([leaf] * members), asked)
        by_member = self.learner.values(*repeated).mean(1) @ self.weights.to(obs.state)
        by_member = by_member.view(members, -1)
        if members == 1 or not self.pessimism:
            return by_member.mean(0)
        return by_member.mean(0) - self.pessimism * by_member.std(0)

    def _deviation(self, batch: Batch) -> float:
        """Root mean square of single agents' advantages in a batch."""
        agents = torch.arange(batch.obs.alive.shape[1], device=batch.obs.alive.device)
        behavior = behavior_of(batch) if self.needs_behavior else None

        def value(given: Bool[Tensor, " N"]) -> Float[Tensor, " B"]:
            return self.values(batch.obs, batch.decision.action, given.expand_as(batch.obs.alive), behavior)

        squares = []
        for agent in agents:
            before = agents < (agent if self.needs_behavior else 0)
            gain = value(before | (agents == agent)) - value(before)
            squares.append(gain.square().mean())
        return float(torch.stack(squares).mean().sqrt())
