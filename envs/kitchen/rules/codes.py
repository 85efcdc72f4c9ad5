"""What happens where a cook interacts, as one table for all cells, and what heat does to a pot.

Everything that lies somewhere or is held has a code. A cook holds one of the first `items` codes, and so does a
counter; a pot is empty (0) or has one of the codes after them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from envs.core import InputError
from envs.kitchen.rules.menu import Menu, Mixture

NOTHING = 0
MOST = 500_000  # interactions in a table


class Ahead(IntEnum):
    """Kind of thing that a cook interacts with. NONE: it does not interact, or faces floor."""

    NONE = 0
    COUNTER = 1
    POT = 2
    DISHES = 3
    DESK = 4
    FOOD = 5  # the dispenser of the first ingredient; the others follow


class Event(IntEnum):
    """Effect of an interaction."""

    NONE = 0
    TOOK = 1  # from a counter or a dispenser
    PUT = 2  # on a counter
    ADDED = 3  # an ingredient to a pot
    STARTED = 4  # a pot
    PLATED = 5  # a soup
    SERVED = 6  # a soup, which may be one that nobody ordered


@dataclass(frozen=True)
class Codes:
    """Codes of things. For ingredient i and mixture m of the menu: food i, a dish, m in a dish, m in a pot that is cold
    or has been cooking for t steps."""

    menu: Menu

    @cached_property
    def dish(self) -> int:
        """A clean dish."""
        return 1 + len(self.menu.ingredients)

    @cached_property
    def items(self) -> int:
        """Number of things that can be held, nothing among them."""
        return self.dish + 1 + len(self.menu.mixtures)

    @cached_property
    def pots(self) -> list[tuple[int, int | None]]:
        """(mixture, steps cooked) of each code from `items` on; None steps: cold; as many as it takes: ready."""
        found: list[tuple[int, int | None]] = []
        for mixture, time in enumerate(self.menu.times):
            found.append((mixture, None))
            found += [(mixture, step) for step in range(time + 1)]
        return found

    @cached_property
    def _numbers(self) -> dict[tuple[int, int | None], int]:
        return {pot: self.items + place for place, pot in enumerate(self.pots)}

    @cached_property
    def count(self) -> int:
        """Number of codes."""
        return self.items + len(self.pots)

    def food(self, ingredient: int) -> int:
        """One piece of an ingredient."""
        return 1 + ingredient

    def soup(self, mixture: int) -> int:
        """A soup in a dish."""
        return self.dish + 1 + mixture

    def pot(self, mixture: int, steps: int | None) -> int:
        """A pot with a mixture that is cold (None), or has cooked for so many steps."""
        return self._numbers[mixture, steps]

    def is_food(self, code: int) -> bool:
        """One piece of some ingredient."""
        return 0 < code < self.dish

    def soup_of(self, code: int) -> int | None:
        """The mixture of a soup in a dish; None for anything else."""
        return code - self.dish - 1 if self.dish < code < self.items else None

    def in_pot(self, code: int) -> tuple[int, int | None] | None:
        """(mixture, steps cooked) of a pot; None for an empty one."""
        return self.pots[code - self.items] if code >= self.items else None

    def mixture_of(self, code: int) -> Mixture:
        """Amount of each ingredient in a dish or pot of soup; nothing otherwise."""
        pot = self.in_pot(code)
        mixture = self.soup_of(code) if pot is None else pot[0]
        return (0,) * len(self.menu.ingredients) if mixture is None else self.menu.mixtures[mixture]

    def is_ready(self, code: int) -> bool:
        """A pot whose soup can be plated."""
        pot = self.in_pot(code)
        return pot is not None and pot[1] == self.menu.times[pot[0]]

    def is_cold(self, code: int) -> bool:
        """A pot that holds something and does not cook."""
        pot = self.in_pot(code)
        return pot is not None and pot[1] is None


class Outcome(NamedTuple):
    """Contents of the cook's hands and of what is ahead after an interaction, and its effect.

    served: 1 + the mixture that was served, or 0.
    """

    held: int
    there: int
    event: Event = Event.NONE
    served: int = 0


def interact(codes: Codes, ahead: int, held: int, there: int, *, starts_itself: bool) -> Outcome:
    """One cook's interaction with what is ahead, where `there` is what lies or cooks in it.

    starts_itself: a pot starts to cook when it is full ("old dynamics"), and at no cook's touch.
    """
    unchanged = Outcome(held, there)
    if ahead == Ahead.COUNTER:
        if held and not there:
            return Outcome(NOTHING, held, Event.PUT)
        return Outcome(there, NOTHING, Event.TOOK) if there and not held else unchanged
    if ahead == Ahead.POT:
        return _at_a_pot(codes, held, there, starts_itself=starts_itself)
    if ahead == Ahead.DISHES and not held:
        return Outcome(codes.dish, there, Event.TOOK)
    if ahead >= Ahead.FOOD and not held:
        return Outcome(codes.food(ahead - Ahead.FOOD), there, Event.TOOK)
    mixture = codes.soup_of(held)
    if ahead == Ahead.DESK and mixture is not None:
        return Outcome(NOTHING, there, Event.SERVED, 1 + mixture)
    return unchanged


def _at_a_pot(codes: Codes, held: int, there: int, *, starts_itself: bool) -> Outcome:
    pot = codes.in_pot(there)
    if not held and codes.is_cold(there) and not starts_itself:
        assert pot is not None
        return Outcome(held, codes.pot(pot[0], 0), Event.STARTED)
    if held == codes.dish and codes.is_ready(there):
        assert pot is not None
        return Outcome(codes.soup(pot[0]), NOTHING, Event.PLATED)
    if codes.is_food(held) and (pot is None or codes.is_cold(there)):
        more = list(codes.mixture_of(there))
        more[held - codes.food(0)] += 1
        if sum(more) <= codes.menu.capacity:
            return Outcome(NOTHING, codes.pot(codes.menu.mixtures.index(tuple(more)), None), Event.ADDED)
    return Outcome(held, there)


def heat(codes: Codes, there: int, *, starts_itself: bool) -> int:
    """Code of a pot after a step: one that cooks does so for one step more."""
    pot = codes.in_pot(there)
    if pot is None:
        return there
    mixture, steps = pot
    if steps is None:
        full = sum(codes.menu.mixtures[mixture]) == codes.menu.capacity
        return codes.pot(mixture, 1) if starts_itself and full else there
    return codes.pot(mixture, min(steps + 1, codes.menu.times[mixture]))


class Rules(NamedTuple):
    """Tables. The entry of an interaction is (ahead · items + held) · codes + there."""

    held: Int[Tensor, " entries"]
    there: Int[Tensor, " entries"]
    event: Int[Tensor, " entries"]
    served: Int[Tensor, " entries"]
    heat: Int[Tensor, " codes"]


class Entry(NamedTuple):
    """An interaction: what is ahead, held and there, and its outcome."""

    ahead: int
    held: int
    there: int
    outcome: Outcome


@lru_cache(maxsize=64)
def every_interaction(codes: Codes, starts_itself: bool) -> tuple[Entry, ...]:
    """All interactions, in the order of the tables. Raises InputError where they are too many."""
    kinds = Ahead.FOOD + len(codes.menu.ingredients)
    size = kinds * codes.items * codes.count
    if size > MOST:
        raise InputError(
            f"This kitchen has {size:,} cases of what is held and lies ahead, and {MOST:,} are the most; lower "
            "capacity or cook_time."
        )
    cases = itertools.product(range(kinds), range(codes.items), range(codes.count))
    return tuple(Entry(*case, interact(codes, *case, starts_itself=starts_itself)) for case in cases)


def build_rules(codes: Codes, *, starts_itself: bool) -> Rules:
    """The tables of a menu."""
    outcomes = [entry.outcome for entry in every_interaction(codes, starts_itself)]
    held, there, event, served = (torch.tensor(column) for column in zip(*outcomes))
    heated = [heat(codes, code, starts_itself=starts_itself) for code in range(codes.count)]
    return Rules(held, there, event, served, torch.tensor(heated))
