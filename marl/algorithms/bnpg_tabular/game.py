"""Cooperative Markov games small enough to write down: tables of transitions and rewards, in float64."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import InputError
from envs.games import CoordinationGame, MatrixGame


@dataclass(frozen=True)
class TabularGame:
    """A fully observed game of one team, S states and A joint actions.

    choices: of each agent; joint actions are numbered with the last agent's choice running fastest.
    transition: P(s' | s, a), with one row for all states where the next state depends on the action alone. What a row
    lacks to 1 is the probability that the episode ends.
    reward: of taking a in s. start: μ(s). discount: γ, below 1.

    Raises InputError for tables that do not fit together, and for probabilities that are none.
    """

    choices: tuple[int, ...]
    transition: Float[Tensor, "#S A S"]
    reward: Float[Tensor, "S A"]
    start: Float[Tensor, " S"]
    discount: float

    def __post_init__(self) -> None:
        states, actions = self.reward.shape
        if actions != math.prod(self.choices) or min(self.choices, default=0) < 1:
            raise InputError(
                f"A reward table has a column for each joint action: agents with {list(self.choices)} choices have "
                f"{math.prod(self.choices)}; got {actions}."
            )
        if self.transition.shape not in ((states, actions, states), (1, actions, states)):
            raise InputError(
                f"A transition table of {states} states and {actions} joint actions has shape "
                f"{[states, actions, states]}, or {[1, actions, states]} where the next state depends on the action "
                f"alone; got {list(self.transition.shape)}."
            )
        if any(table.dtype != torch.float64 for table in (self.transition, self.reward, self.start)):
            raise InputError("The tables of a game are of float64, so that values are exact; call .double() on them.")
        if not bool(self.reward.isfinite().all()):
            raise InputError("Rewards are finite numbers; some of these are not.")
        if bool((self.transition < 0).any()) or not bool((self.transition.sum(-1) <= 1 + 1e-9).all()):
            raise InputError("Transition probabilities are not negative and add up to 1 at most for each (s, a).")
        if self.start.shape != (states,) or bool((self.start < 0).any()) or abs(float(self.start.sum()) - 1) > 1e-9:
            raise InputError(f"The start is a probability for each of the {states} states, together 1.")
        if not 0 <= self.discount < 1:
            raise InputError(f"A discount lies in [0, 1); got {self.discount}.")

    @property
    def states(self) -> int:
        """S."""
        return len(self.start)

    def to(self, device: torch.device) -> TabularGame:
        """The same game on a device."""
        tables = {name: getattr(self, name).to(device) for name in ("transition", "reward", "start")}
        return replace(self, **tables)

    def with_uniform_start(self) -> TabularGame:
        """The same game, every state being equally likely at the start."""
        return replace(self, start=torch.full_like(self.start, 1 / self.states))


@singledispatch
def tabulate(world: Any, discount: float) -> TabularGame:
    """The tables of a world, with rewards discounted by γ a step. Raises InputError for a world without any."""
    raise InputError(
        f"Tables are known of envs.games:CoordinationGame and of matrix games such as envs.games:climbing; got a "
        f"{type(world).__name__}. For a game of your own let env.world name a function that returns a "
        "marl.algorithms.bnpg_tabular:TabularGame."
    )


@tabulate.register
def _own_tables(world: TabularGame, discount: float) -> TabularGame:
    if world.discount != discount:
        raise InputError(f"This game's tables come with discount={world.discount}; set the same, not {discount}.")
    return world


@tabulate.register
def _one_shot(world: MatrixGame, discount: float) -> TabularGame:
    """One state, and no step after the first."""
    payoff = world.payoff.flatten()
    return TabularGame(
        choices=tuple(world.payoff.shape),
        transition=payoff.new_zeros(1, len(payoff), 1),
        reward=payoff.unsqueeze(0),
        start=payoff.new_ones(1),
        discount=discount,
    )


@tabulate.register
def _coordination(world: CoordinationGame, discount: float) -> TabularGame:
    """States and joint actions are all strings of N bits; a reward depends on the state alone, a transition on a."""
    if world.spec.horizon is not None:
        raise InputError(
            "The tables are those of an endless, discounted game: a state does not hold the clock. Set "
            f"env.args.horizon=null; got {world.spec.horizon}."
        )
    agents = len(world.spec.agents)
    strings = torch.tensor(list(itertools.product((0.0, 1.0), repeat=agents)), dtype=torch.float64)
    ones, flips = strings.sum(-1), torch.cdist(strings, strings, p=0)
    reward = world.team_reward(ones).double()
    return TabularGame(
        choices=(2,) * agents,
        transition=(world.flip**flips * (1 - world.flip) ** (agents - flips)).unsqueeze(0),
        reward=reward.unsqueeze(-1).expand(-1, len(strings)),
        start=world.starts_at_zero ** (agents - ones) * (1 - world.starts_at_zero) ** ones,
        discount=discount,
    )
