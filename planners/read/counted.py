"""A critic that counts: values of the play in a log, as far as it was seen. The bar that a learned critic must pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from envs.core import InputError, Observation
from envs.tabular import require_discount
from marl.learning.state_log import StateLog

CHUNK = 65_536  # transitions that are observed at once
TOLERANCE = 1e-10  # of values, relative to the largest
UNSEEN = 1e-6  # by how much a choice that was never seen lowers a value, in the critic's scale


class CountedCritic:
    """Values of the policy that played a log, by counts N of what it visited:

        V(s) = Σ_j N(s, j) / N(s) Q(s, j),    Q(s, j) = r̄(s, j) + γ Σ_s' N(s, j, s') / N(s, j) V(s')

    where j is a joint choice and r̄ the mean reward, also a mean over agents. In Q^G the agents outside G choose as they
    did beside a^G, by visits. Nothing follows a termination; the state after a truncation is one like any other. States
    are told apart by all of `obs.state`, and nothing carries over from one to another: whatever a learned critic knows
    beyond this, it generalizes.

    A choice that was never made in a state is worth slightly less than the least of the prefixes before it that are
    known, whichever of these is the baseline: its advantage is below 0, so that no planner accepts it at a threshold of
    0, and it comes before whatever is known to be worse. A state that was never visited has the value 0.

    discount: γ. weights [K]: what a unit of each reward channel is worth; by default all count 1. scale: the root mean
    square of single agents' advantages, over the log. Raises InputError for a discount outside [0, 1), and for choices
    that are not one whole number an agent.
    """

    needs_behavior = False

    def __init__(self, log: StateLog, discount: float, *, weights: Float[Tensor, " K"] | None = None):
        require_discount(discount)
        self._numbers: dict[bytes, int] = {}  # of states, by the bytes of what is observed
        seen = self._read(log, weights)
        self._choices = int(seen.action.max()) + 1
        self.value = _iterated(seen, len(self._numbers), discount)
        target = seen.reward + discount * seen.goes_on * self.value[seen.following]
        self._pairs = _pairs(seen, target, self._choices)
        self._prefixes: dict[tuple[int, ...], _Prefix] = {}
        self.scale = 1.0
        self.scale = self._deviation()

    def __len__(self) -> int:
        """States that were visited, or led to."""
        return len(self._numbers)

    def values(
        self,
        obs: Observation,
        action: Int[Tensor, "B N 1"],
        given: Bool[Tensor, "B N"],
        behavior: Float[Tensor, "B N A"] | None = None,
    ) -> Float[Tensor, " B"]:
        """Value Q^G of each row. behavior: not needed, as the log tells how often each choice is made."""
        state = np.array([self._numbers.get(key, -1) for key in _keys(obs.state)], dtype=np.int64)
        chosen, present = action.squeeze(-1).cpu().numpy(), (given & obs.alive).cpu().numpy()
        found = np.zeros(len(state))
        for pattern in np.unique(present, axis=0):
            rows = (present == pattern).all(1)
            agents = tuple(pattern.nonzero()[0].tolist())
            found[rows] = self._of_rows(state[rows], chosen[rows], agents)
        return torch.from_numpy(found).to(obs.state.device)

    def _of_rows(
        self, state: Int[np.ndarray, " X"], action: Int[np.ndarray, "X N"], agents: tuple[int, ...]
    ) -> Float[np.ndarray, " X"]:
        """Values of the choices of these agents, one agent after the other; state -1: never seen."""
        first = self._prefix(())
        group = first.find(state)
        least = np.where(group >= 0, first.value[group], 0.0)
        value = least
        for count, agent in enumerate(agents, 1):
            prefix = self._prefix(agents[:count])
            inside = (group >= 0) & (action[:, agent] < self._choices)
            group = prefix.find(np.where(inside, group * self._choices + action[:, agent], -1))
            least = np.where(group >= 0, prefix.least[group], least - UNSEEN * self.scale)
            value = np.where(group >= 0, prefix.value[group], least)
        return value

    def _prefix(self, agents: tuple[int, ...]) -> _Prefix:
        """Every choice of these agents that was seen."""
        if agents not in self._prefixes:
            self._prefixes[agents] = self._count(agents)
        return self._prefixes[agents]

    def _count(self, agents: tuple[int, ...]) -> _Prefix:
        pairs = self._pairs
        before = self._prefix(agents[:-1]) if agents else None
        code = before.group * self._choices + pairs.action[:, agents[-1]] if before else pairs.state
        keys, group = np.unique(code, return_inverse=True)
        value = np.bincount(group, pairs.count * pairs.q) / np.bincount(group, pairs.count)
        least = np.minimum(before.least[keys // self._choices], value) if before else value
        return _Prefix(keys, group, value, least)

    def _deviation(self) -> float:
        """Root mean square of single agents' advantages, over the log; 1 where nobody's choice mattered."""
        first, squares = self._prefix(()), []
        value = first.value[first.group]
        for agent in range(self._pairs.action.shape[1]):
            own = self._prefix((agent,))
            gain = own.value[own.group] - value
            squares.append(np.average(gain**2, weights=self._pairs.count))
        deviation = float(np.sqrt(np.mean(squares)))
        # What is left by rounding is no unit.
        return deviation if deviation > 1e-9 * float(np.abs(self._pairs.q).max()) else 1.0

    def _read(self, log: StateLog, weights: Float[Tensor, " K"] | None) -> _Transitions:
        """A log's transitions, with numbers for states."""
        parts = [self._part(log, places) for places in torch.arange(len(log), device=log.reward.device).split(CHUNK)]
        state, following, action, goes_on = (np.concatenate(column) for column in zip(*parts, strict=True))
        earned = log.reward.double().mean(1)
        weights = torch.ones(earned.shape[-1]) if weights is None else weights
        reward = earned @ weights.to(earned)
        return _Transitions(state, following, action, reward.cpu().numpy(), goes_on)

    def _part(
        self, log: StateLog, places: Int[Tensor, " X"]
    ) -> tuple[Int[np.ndarray, " X"], Int[np.ndarray, " X"], Int[np.ndarray, "X N"], Bool[np.ndarray, " X"]]:
        """States before and after some transitions, by number, what was chosen, and where it went on."""
        before, after, action = log.states(places)
        if action.is_floating_point() or action.shape[-1] != 1:
            raise InputError(
                f"A counted critic counts choices, one whole number an agent, [n,N,1]; this log has {action.dtype} "
                f"{list(action.shape)}."
            )
        obs = log.observe(before)
        terminated, truncated = log.terminated[places], log.truncated[places]
        somebody_stays = (obs.alive & ~terminated & ~truncated).any(1)
        goes_on = somebody_stays | truncated.any(1)
        state, following = self._numbered(obs.state), self._numbered(log.observe(after).state)
        return state, following, action.squeeze(-1).cpu().numpy(), goes_on.cpu().numpy()

    def _numbered(self, state: Float[Tensor, "X S"]) -> Int[np.ndarray, " X"]:
        """Numbers of states, new ones for those not met before."""
        numbers = self._numbers
        return np.array([numbers.setdefault(key, len(numbers)) for key in _keys(state)], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Transitions:
    """n transitions between numbered states. goes_on: false where nothing follows."""

    state: Int[np.ndarray, " n"]
    following: Int[np.ndarray, " n"]
    action: Int[np.ndarray, "n N"]
    reward: Float[np.ndarray, " n"]
    goes_on: Bool[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The m pairs of a state and a joint choice that were visited, how often, and Q of each."""

    state: Int[np.ndarray, " m"]
    action: Int[np.ndarray, "m N"]
    count: Int[np.ndarray, " m"]
    q: Float[np.ndarray, " m"]


@dataclass(frozen=True, eq=False)
class _Prefix:
    """The g prefixes of one length that were visited, their values, and the least value of their own prefixes.

    keys, in order: the number of the prefix before · choices + the last choice; the state's number of an empty prefix.
    group: to which of them each pair belongs.
    """

    keys: Int[np.ndarray, " g"]
    group: Int[np.ndarray, " m"]
    value: Float[np.ndarray, " g"]
    least: Float[np.ndarray, " g"]

    def find(self, keys: Int[np.ndarray, " X"]) -> Int[np.ndarray, " X"]:
        """Numbers of prefixes; -1 of those that were never visited."""
        place = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[place] == keys, place, -1)


def _iterated(seen: _Transitions, states: int, discount: float) -> Float[np.ndarray, " states"]:
    """Values V of numbered states, iterated until they stay; 0 of those that were led to and never left."""
    visits = np.bincount(seen.state, minlength=states).clip(min=1)
    earned = np.bincount(seen.state, seen.reward, minlength=states) / visits
    share = seen.goes_on / visits[seen.state]
    onward = csr_array((share, (seen.state, seen.following)), shape=(states, states))
    value = np.zeros(states)
    while True:
        better = earned + discount * (onward @ value)
        change, largest = np.abs(better - value).max(), np.abs(better).max()
        value = better
        if change <= TOLERANCE * (1 - discount) * largest:
            return value


def _pairs(seen: _Transitions, target: Float[np.ndarray, " n"], choices: int) -> _Pairs:
    """Counts and mean targets of every pair that was visited."""
    group = seen.state
    for chosen in seen.action.T:  # numbered anew after each agent, so that many agents fit into 64 bits
        group = np.unique(group * choices + chosen, return_inverse=True)[1]
    _, first, count = np.unique(group, return_index=True, return_counts=True)
    q = np.bincount(group, target) / count
    return _Pairs(seen.state[first], seen.action[first].astype(np.int64), count, q)


def _keys(state: Float[Tensor, "X S"]) -> list[bytes]:
    """Bytes by which states are told apart."""
    rows = (state + 0.0).cpu().numpy()  # -0 and 0 are one number
    return [row.tobytes() for row in rows]
