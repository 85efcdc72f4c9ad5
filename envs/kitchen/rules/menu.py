"""Soups: what is in them, how long they cook, and what an order of one is worth."""

from __future__ import annotations

import difflib
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.core import InputError
from envs.kitchen.rules.layout import DISPENSERS, Layout, cut_off, for_instance

VALUE = 20.0  # of a soup for which no number is given
COOK_TIME = 20  # steps, likewise
FOODS = tuple(DISPENSERS.values())

Mixture = tuple[int, ...]  # how many of each ingredient
Amount = int | float | Mapping[str, int | float] | Sequence[int | float]  # of every soup, by ingredient, or by order


@dataclass(frozen=True)
class Menu:
    """Everything that can be in a pot, and the orders.

    ingredients: those that the layout has. mixtures: what a pot can hold, fewest ingredients first; of each, `times` is
    how many steps it cooks, and values[o] what it is worth under order o: 0 where nobody ordered it. orders: the
    mixtures that were ordered, all of them at once (values has one row) or one of them an episode (a row for each).
    """

    ingredients: tuple[str, ...]
    capacity: int
    mixtures: tuple[Mixture, ...]
    times: tuple[int, ...]
    orders: tuple[Mixture, ...]
    values: tuple[tuple[int | float, ...], ...]

    def name(self, mixture: Mixture) -> str:
        """A mixture in words: "2 onions and 1 tomato"."""
        parts = [f"{n} {food}{_plural(food, n)}" for n, food in zip(mixture, self.ingredients) if n]
        return " and ".join(parts)


def build_menu(
    layout: Layout,
    orders: Sequence[str] | None = None,
    bonus: Sequence[str] = (),
    capacity: int = 3,
    value: Amount = 20.0,
    cook_time: Amount = 20,
    one_an_episode: bool = False,
) -> Menu:
    """The menu of a layout.

    orders: names of ingredients with blanks between, "onion onion tomato"; None orders as many of the layout's first
    ingredient as a pot holds. bonus: those of the orders that are worth twice as much. value, cook_time: one number for
    all, one for each ingredient, or one for each order. Raises InputError for what no cook could ever serve.
    """
    _require_types(orders, bonus, capacity, one_an_episode)
    if capacity < 1:
        raise InputError(f"A pot holds at least 1 ingredient; got capacity={capacity}.")
    ingredients = tuple(food for tile, food in DISPENSERS.items() if layout.cells(tile))
    mixtures = tuple(
        mixture
        for size in range(1, capacity + 1)
        for mixture in sorted(itertools.product(range(size + 1), repeat=len(ingredients)), reverse=True)
        if sum(mixture) == size
    )
    if orders is not None and not orders:
        raise InputError("orders is empty, so that no soup would be worth anything; leave it out, or order a soup.")
    names = orders if orders is not None else [" ".join([ingredients[0]] * capacity)]
    ordered = [_mixture(name, ingredients, capacity, layout) for name in names]
    _require_cooks_for(ordered, ingredients, layout)
    doubled = [_mixture(name, ingredients, capacity, layout) for name in bonus]
    for name, mixture in zip(bonus, doubled):
        if mixture not in ordered:
            raise InputError(f"bonus has {name!r}, which is none of the orders {list(names)}; add it to them.")
    if len(set(ordered)) < len(ordered):
        raise InputError(f"An order stands twice in {list(names)}; name each soup once.")
    if one_an_episode and not layout.cells("R"):
        raise InputError(
            f"one_an_episode draws an order that cooks read from a recipe board, and {layout.name} has none: write R "
            f"into the layout{for_instance(layout)}."
        )
    times = _amounts("cook_time", cook_time, ingredients, ordered, mixtures, COOK_TIME)
    if not all(1 <= time < math.inf and time == int(time) for time in times):
        raise InputError(f"A soup cooks for a whole number of steps, at least 1; got cook_time={cook_time!r}.")
    worth = _amounts("value", value, ingredients, ordered, mixtures, VALUE)
    if not all(0 < v < math.inf for m, v in zip(mixtures, worth) if m in ordered):
        raise InputError(f"A soup that is ordered is worth more than 0; got value={value!r}.")
    rows = [[order] for order in ordered] if one_an_episode else [ordered]
    values = tuple(
        tuple(v * (1 + (m in doubled)) if m in row else 0.0 for m, v in zip(mixtures, worth)) for row in rows
    )
    return Menu(ingredients, capacity, mixtures, tuple(map(int, times)), tuple(ordered), values)


def _require_types(orders: Any, bonus: Any, capacity: Any, one_an_episode: Any) -> None:
    for name, listed in (("orders", orders or ()), ("bonus", bonus)):
        if isinstance(listed, str) or not isinstance(listed, Sequence) or not all(isinstance(o, str) for o in listed):
            raise InputError(f"{name} is a list of texts such as ['onion onion onion']; got {listed!r}.")
    if isinstance(capacity, bool) or not isinstance(capacity, int):
        raise InputError(f"capacity is a whole number; got {capacity!r}.")
    if not isinstance(one_an_episode, bool):
        raise InputError(f"one_an_episode is true or false; got {one_an_episode!r}.")


def _require_cooks_for(ordered: list[Mixture], ingredients: tuple[str, ...], layout: Layout) -> None:
    """Raise InputError unless some group of cooks has all that each order takes."""
    tiles = {name: tile for tile, name in DISPENSERS.items()}
    for mixture in ordered:
        foods = [food for food, number in zip(ingredients, mixture) if number]
        if not layout.can_cook("".join(tiles[food] for food in foods)):
            raise InputError(f"Nobody can cook {' and '.join(foods)} in {layout.name}: {cut_off(layout)}")


def _mixture(order: str, ingredients: tuple[str, ...], capacity: int, layout: Layout) -> Mixture:
    foods = order.replace(",", " ").split()
    for food in foods:
        if food in ingredients:
            continue
        near = difflib.get_close_matches(food, ingredients, 1)
        if food in FOODS:
            tile = next(tile for tile, name in DISPENSERS.items() if name == food)
            raise InputError(
                f"The order {order!r} needs {food}, and {layout.name} has no {food} dispenser. Order what it has "
                f"({', '.join(ingredients)}), or write {tile} into the layout{for_instance(layout)}."
            )
        hint = f"Did you mean {near[0]}?" if near else f"Ingredients: {', '.join(ingredients)}."
        raise InputError(f"Unknown ingredient {food!r} in the order {order!r}. {hint}")
    if not foods:
        raise InputError("An order has at least one ingredient, such as 'onion onion onion'; got an empty one.")
    if len(foods) > capacity:
        raise InputError(
            f"The order {order!r} has {len(foods)} ingredients and a pot holds {capacity}: no pot can hold it. Order "
            f"fewer, or set capacity={len(foods)}."
        )
    counts = Counter(foods)
    return tuple(counts[food] for food in ingredients)


def _amounts(
    key: str,
    amount: Amount,
    ingredients: tuple[str, ...],
    ordered: list[Mixture],
    mixtures: tuple[Mixture, ...],
    otherwise: int | float,
) -> list[int | float]:
    """One number for each mixture."""
    numbers = list(amount.values()) if isinstance(amount, Mapping) else amount
    numbers = numbers if isinstance(numbers, Sequence) else [numbers]
    if isinstance(numbers, str) or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise InputError(
            f"{key} is a number, numbers by ingredient such as {{onion: {otherwise:g}}}, or a list by order; got "
            f"{amount!r}."
        )
    if isinstance(amount, Mapping):
        if set(amount) != set(ingredients):
            raise InputError(
                f"{key} by ingredient needs one number for each of {', '.join(ingredients)}; got {dict(amount)}."
            )
        each = [amount[food] for food in ingredients]
        return [sum(n * of for n, of in zip(mixture, each)) for mixture in mixtures]
    if isinstance(amount, Sequence):
        if len(amount) != len(ordered):
            raise InputError(f"{key} by order needs {len(ordered)} numbers, one for each order; got {list(amount)}.")
        by_order = dict(zip(ordered, amount))
        return [by_order.get(mixture, otherwise) for mixture in mixtures]
    return [amount] * len(mixtures)


def _plural(food: str, number: int) -> str:
    if number == 1:
        return ""
    return "es" if food.endswith("o") else "s"
