"""Small deterministic worlds as tables: every state that can be reached, and exact values of play in them.

Axes: S states, J joint choices, N agents, A choices of one agent. Joint choices are numbered with the last agent's
varying fastest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from envs.core import Discrete, InputError, leaves, tree_map
from envs.world import World

CHUNK = 2**18  # transitions that are computed at once
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Digits:
    """Numbers that tell states apart: column c of `columns` is one of 0, ..., sizes[c] - 1."""

    columns: Int[Tensor, "E c"]
    sizes: tuple[int, ...]

    def keys(self) -> Int[Tensor, " E"]:
        """One number for each state."""
        key = torch.zeros_like(self.columns[:, 0])
        for column, size in zip(self.columns.unbind(1), self.sizes):
            key = key * size + column
        return key


@runtime_checkable
class HasTable(Protocol):
    """A world that can list its states."""

    def table(self, **options: Any) -> Table:
        """Every state that can be reached from the start, with options of `tabulate`."""


@runtime_checkable
class HasProbabilities(Protocol):
    """An actor that remembers nothing and says how probable each choice is in a state."""

    def probabilities(self, state: Any) -> Float[Tensor, "E N A"]:
        """The probability of each choice of each agent."""


@dataclass(frozen=True)
class Table:
    """A deterministic game: every state that can be reached from the first, where play leads, and what it earns.

    states: a tree of tensors [S, ...], in the order in which breadth-first search met them; row 0 is where play starts.
    steps: from there. successor: S where the game is over. reward: of the whole team, of one channel.
    """

    states: Any
    steps: Int[Tensor, " S"]
    successor: Int[Tensor, "S J"]
    reward: Float[Tensor, "S J"]
    choices: int
    agents: int

    def __len__(self) -> int:
        return len(self.successor)

    def values(self, discount: float) -> Float[Tensor, " S"]:
        """The best discounted return from each state: V(s) = max_a r(s, a) + γ V(s'), float64, exact to 1e-12."""
        require_discount(discount)
        return self._solve(lambda value: self._backup(value, discount).amax(1), discount)

    def most(self, steps: int) -> Float[Tensor, " S"]:
        """The best undiscounted return of so many steps, or of fewer where the game is over sooner."""
        value = self._zero()
        for _ in range(steps):
            value = self._backup(value, 1.0).amax(1)
        return value

    def steps_to(self, amount: float, limit: int = 10_000) -> int:
        """The fewest steps, at least one, after which so much can have been earned from the start.

        Raises InputError beyond `limit` steps.
        """
        value = self._zero()
        for step in range(1, limit + 1):
            value = self._backup(value, 1.0).amax(1)
            if float(value[0]) >= amount - 1e-6 * max(1.0, abs(amount)):  # rewards are float32
                return step
        raise InputError(f"{amount:g} cannot be earned within {limit} steps from the start; the most is {value[0]:g}.")

    def shortest(self) -> Float[Tensor, " S"]:
        """The fewest steps from each state until something is earned; infinite where nothing can be."""
        earns = self.reward > 0
        left = torch.full((len(self),), math.inf, dtype=torch.float64)
        while True:
            then = torch.cat([left, left.new_full((1,), math.inf)])[self.successor]
            better = torch.where(earns, 1.0, 1.0 + then).amin(1)
            if torch.equal(better, left):
                return left
            left = better

    def plan(self) -> list[tuple[int, ...]]:
        """Joint choices from the start that earn something in the fewest steps. Raises InputError where none do."""
        earns = (self.reward > 0).any(1)
        if not bool(earns.any()):
            raise InputError("Nothing can be earned from the start.")
        state = int(torch.where(earns, self.steps, len(self)).argmin())
        joint = [int(self.reward[state].argmax())]
        # Work backwards: some state of the layer before leads to each state.
        while state:
            before = (self.steps == self.steps[state] - 1).nonzero().squeeze(1)
            leads = (self.successor[before] == state).nonzero()[0]
            state = int(before[leads[0]])
            joint.append(int(leads[1]))
        return [self.choices_of(j) for j in reversed(joint)]

    def choices_of(self, joint: int) -> tuple[int, ...]:
        """Each agent's choice in a joint one."""
        return tuple(joint // self.choices ** (self.agents - 1 - agent) % self.choices for agent in range(self.agents))

    def joint(self, policy: Float[Tensor, "S N A"]) -> Float[Tensor, "S J"]:
        """Probabilities of joint choices where agents choose independently."""
        joint = policy[:, 0]
        for agent in range(1, self.agents):
            joint = (joint.unsqueeze(-1) * policy[:, agent].unsqueeze(-2)).flatten(1)
        return joint

    def evaluate(self, policy: Float[Tensor, "S J"], discount: float) -> Float[Tensor, " S"]:
        """The discounted return of a policy from each state: V = r + γ P V, to 1e-12 of the largest."""
        require_discount(discount)
        moves, reward = self._chain(policy)

        def backup(value: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
            return reward + discount * torch.from_numpy(moves @ value.numpy())

        return self._solve(backup, discount)

    def within(self, policy: Float[Tensor, "S J"], steps: int) -> Float[Tensor, " S"]:
        """The expected undiscounted return of a policy within so many steps, from each state."""
        for value in self._by_steps(policy, steps):
            latest = value  # all of them at once would take much memory
        return latest

    def by_steps(self, policy: Float[Tensor, "S J"], steps: int) -> Float[Tensor, " lengths"]:
        """The same from the first state alone, within 0, 1, … steps."""
        return torch.stack([value[0] for value in self._by_steps(policy, steps)])

    def _by_steps(self, policy: Float[Tensor, "S J"], steps: int) -> Iterator[Float[Tensor, " S"]]:
        if steps < 0:
            raise InputError(f"A return is of 0 steps or more; got {steps}.")
        moves, reward = self._chain(policy)
        value = self._zero()
        yield value
        for _ in range(steps):
            value = reward + torch.from_numpy(moves @ value.numpy())
            yield value

    def best_response(
        self, partners: Float[Tensor, "S N A"], agent: int, steps: int
    ) -> tuple[Float[Tensor, " S"], Int[Tensor, "S steps"]]:
        """The best return of the team in so many steps if one agent chooses it beside fixed partners, and its choices.

        partners: probabilities of everybody's choices; those of `agent` do not count. Choices [s, t]: with t + 1 steps
        left. Raises InputError for what are no probabilities, and for less than a step.
        """
        shape = (len(self), self.agents, self.choices)
        others = [i for i in range(self.agents) if i != agent]
        if tuple(partners.shape) != shape or not 0 <= agent < self.agents or steps < 1:
            raise InputError(
                f"A best response needs probabilities {list(shape)}, an agent below {self.agents} and at least 1 step; "
                f"got {list(partners.shape)}, agent {agent}, {steps} steps."
            )
        _require_probabilities(partners[:, others])
        free = partners.clone().double()
        free[:, int(agent)] = 1.0
        weight = self.joint(free)
        value, choices = self._zero(), []
        for _ in range(steps):
            of_joint = weight * self._backup(value, 1.0)
            by_agent = of_joint.view(len(self), *(self.choices,) * self.agents)
            by_choice = by_agent.sum([1 + other for other in others]) if others else by_agent
            value, choice = by_choice.max(1)
            choices.append(choice)
        return value, torch.stack(choices, 1)

    def _backup(self, value: Float[Tensor, " S"], discount: float) -> Float[Tensor, "S J"]:
        """r + γ V(s') of each joint choice; what is over is worth 0."""
        return self.reward + discount * torch.cat([value, value.new_zeros(1)])[self.successor]

    def _chain(self, policy: Float[Tensor, "S J"]) -> tuple[Any, Float[Tensor, " S"]]:
        """Probabilities [S,S] of where a policy leads (a sparse matrix), and what it earns in a step."""
        from scipy.sparse import csr_matrix

        if policy.shape != self.successor.shape:
            raise InputError(
                f"A policy has a probability for each of {list(self.successor.shape)} states and joint choices; got "
                f"{list(policy.shape)}. `joint` makes them of probabilities of each agent's choices."
            )
        _require_probabilities(policy)
        probability = policy.double()
        goes_on = (self.successor < len(self)) & (probability > 0)
        states, joint = goes_on.nonzero(as_tuple=True)
        entries = (probability[states, joint].numpy(), (states.numpy(), self.successor[states, joint].numpy()))
        return csr_matrix(entries, shape=(len(self), len(self))), (probability * self.reward).sum(1)

    def _zero(self) -> Float[Tensor, " S"]:
        return torch.zeros(len(self), dtype=torch.float64)

    def _solve(
        self, backup: Callable[[Float[Tensor, " S"]], Float[Tensor, " S"]], discount: float
    ) -> Float[Tensor, " S"]:
        """The fixed point of a contraction by `discount`."""
        value = self._zero()
        while True:
            better = backup(value)
            change = float((better - value).abs().max())
            value = better
            if change <= 1e-12 * (1 - discount) * max(1.0, float(value.abs().max())):
                return value


def tabulate(
    world: World[Any],
    first: Any,
    digits: Callable[[Any], Digits],
    *,
    channel: int = 0,
    most: int = 5_000_000,
    follow: Callable[[int], None] = lambda states: None,
) -> Table:
    """The table of a deterministic world with discrete choices, by breadth-first search from one state.

    first: a state of one row. digits: what tells states apart. channel: of the reward, averaged over agents. `follow`
    is told now and then how many states were found. Raises InputError where choices are no single discrete ones, digits
    too many for 64 bits, or states more than `most`.
    """
    joint = _joint_choices(world)
    _require_keys(digits(first))
    known = digits(first).keys()
    layers, steps, successors, rewards = [first], [torch.zeros(1, dtype=torch.int64)], [], []
    while len(_leaf(layers[-1])):
        states, keys, reward = _expand(world, layers[-1], joint, digits, channel)
        successors.append(keys)
        rewards.append(reward)
        flat = keys.flatten()
        fresh, place = _first_of_each(flat)
        new = ~_among(fresh, known) & (fresh >= 0)
        fresh, place = fresh[new], place[new]
        known = torch.cat([known, fresh]).sort().values
        if len(known) > most:
            raise InputError(f"More than {most:,} states can be reached; limit the counters, or the soups.")
        follow(len(known))
        layers.append(_rows(states, place))
        steps.append(torch.full((len(place),), len(layers) - 1))
    states = tree_map(lambda *leaves: torch.cat(leaves), *layers)
    return Table(
        states,
        torch.cat(steps),
        _places(torch.cat(successors), digits(states).keys()),
        torch.cat(rewards),
        int(joint.max()) + 1,
        joint.shape[1],
    )


def fewest_steps(
    world: World[Any],
    first: Any,
    digits: Callable[[Any], Digits],
    *,
    limit: int,
    bound: Callable[[Any], Int[Tensor, " E"]] | None = None,
    channel: int = 0,
    follow: Callable[[int], None] = lambda states: None,
) -> list[tuple[int, ...]]:
    """Joint choices from one state that earn something in the fewest steps, by breadth-first search.

    For worlds with too many states for a table: only the last layer is kept. bound: a number of steps that each state
    needs at least; states that could not earn anything within `limit` steps are left out, which loses no solution.
    Raises InputError where there is none within `limit`.
    """
    joint = _joint_choices(world)
    _require_keys(digits(first))
    states, known = first, digits(first).keys()
    origins: list[Tensor] = []
    for step in range(1, limit + 1):
        reached, keys, reward = _expand(world, states, joint, digits, channel)
        earned = (reward > 0).flatten().nonzero().squeeze(1)
        if len(earned):
            return _back(origins, int(earned[0]), joint)
        fresh, place = _first_of_each(keys.flatten())
        new = ~_among(fresh, known) & (fresh >= 0)
        if bound is not None:
            new &= step + bound(_rows(reached, place)) <= limit
        known = torch.cat([known, fresh[new]]).sort().values
        place = place[new]
        origins.append(place)
        follow(len(known))
        if not len(place):
            break
        states = _rows(reached, place)
    raise InputError(f"Nothing can be earned within {limit} steps.")


def _require_keys(digits: Digits) -> None:
    """Raise InputError where one number of 64 bits cannot tell the states apart."""
    if math.prod(digits.sizes) > LARGEST:
        raise InputError(
            f"States of this world take {math.log2(math.prod(digits.sizes)):.0f} bits to tell apart, and 63 are at "
            "hand; take a smaller one."
        )


def _back(origins: list[Tensor], last: int, joint: Int[Tensor, "J N 1"]) -> list[tuple[int, ...]]:
    """Work backwards from the last transition; `origins` say which transition led to each state of a layer."""
    plan = [last]
    for places in reversed(origins):
        plan.append(int(places[plan[-1] // len(joint)]))
    return [tuple(joint[place % len(joint), :, 0].tolist()) for place in reversed(plan)]


def _joint_choices(world: World[Any]) -> Int[Tensor, "J N 1"]:
    """Every joint choice. Raises InputError unless each agent makes one discrete choice."""
    space, agents = world.spec.action, len(world.spec.agents)
    if not isinstance(space, Discrete) or space.size != 1 or world.spec.legal is not None:
        raise InputError(
            f"Only worlds whose agents all make one discrete choice of equally many can be searched; got "
            f"{list(world.spec.actions)}."
        )
    if world.spec.horizon is not None:
        raise InputError(
            f"A world that ends after {world.spec.horizon} steps is another at each of them; make it with horizon=None,"
            " and say how many steps count where you ask for a value."
        )
    return torch.cartesian_prod(*[torch.arange(space.choices[0])] * agents).view(-1, agents, 1)


def _require_probabilities(odds: Float[Tensor, "*B A"]) -> None:
    """Raise InputError for numbers that are no probabilities over the last axis."""
    total, least = odds.double().sum(-1), float(odds.amin()) if odds.numel() else 0.0
    if least < 0 or bool(((total - 1).abs() > 1e-5).any()) or bool(total.isnan().any()):
        raise InputError(
            f"Probabilities are at least 0 and sum to 1 over the last axis; the least is {least:g}, the sums are from "
            f"{total.min():g} to {total.max():g}."
        )


def require_discount(discount: float) -> None:
    """Raise InputError for a discount with which returns need not be finite."""
    if not 0 <= discount < 1:
        raise InputError(f"A discount is at least 0 and below 1; got {discount}.")


def _expand(
    world: World[Any],
    states: Any,
    joint: Int[Tensor, "J N 1"],
    digits: Callable[[Any], Digits],
    channel: int,
) -> tuple[Any, Int[Tensor, "E J"], Float[Tensor, "E J"]]:
    """Successors of states by every joint choice (a tree [E·J, ...]), their keys (-1: over), and the rewards."""
    count = len(joint)
    reached, keys, rewards = [], [], []
    for chosen in torch.arange(len(_leaf(states))).split(max(1, CHUNK // count)):
        part, rows = _rows(states, chosen), len(chosen)
        result = world.transition(
            tree_map(lambda leaf: leaf.repeat_interleave(count, 0), part), joint.repeat(rows, 1, 1), None
        )
        key = digits(result.state).keys()
        if result.terminated is not None:
            if bool((result.terminated.any(-1) != result.terminated.all(-1)).any()):
                raise InputError("Agents leave this world one by one; only one that ends for all at once has a table.")
            key = key.masked_fill(result.terminated.all(-1), -1)
        reached.append(result.state)
        keys.append(key.view(rows, count))
        rewards.append(result.reward[..., channel].double().mean(-1).view(rows, count))
    return tree_map(lambda *leaves: torch.cat(leaves), *reached), torch.cat(keys), torch.cat(rewards)


def _rows(states: Any, places: Int[Tensor, " X"]) -> Any:
    return tree_map(lambda leaf: leaf[places], states)


def _leaf(states: Any) -> Tensor:
    return leaves(states)[0]


def _first_of_each(keys: Int[Tensor, " X"]) -> tuple[Int[Tensor, " U"], Int[Tensor, " U"]]:
    """The different keys in order, and a place of each."""
    ordered, place = keys.sort()
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first], place[first]


def _among(keys: Int[Tensor, " X"], known: Int[Tensor, " Y"]) -> Bool[Tensor, " X"]:
    """Keys that are among known ones, which are in order."""
    place = torch.searchsorted(known, keys).clamp(max=len(known) - 1)
    return known[place] == keys


def _places(keys: Int[Tensor, "S J"], known: Int[Tensor, " S"]) -> Int[Tensor, "S J"]:
    """The place of each key among those of the states; S for what is over."""
    ordered, place = known.sort()
    found = place[torch.searchsorted(ordered, keys.clamp(min=0)).clamp(max=len(known) - 1)]
    return torch.where(keys < 0, len(known), found)
