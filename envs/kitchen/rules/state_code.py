"""A kitchen's state as real numbers that critics learn from, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from envs.constants import Constants
from envs.core import InputError
from envs.kitchen.rules.codes import Codes
from envs.kitchen.rules.geometry import Geometry, one_hot, rows_of
from envs.kitchen.rules.state import State


class CodeTables(NamedTuple):
    """Numbers for each pose, thing held or lying, and pot; an order is a row of the identity matrix."""

    pose: Float[Tensor, "poses 6"]
    item: Float[Tensor, "items I"]
    pot: Float[Tensor, "codes O"]
    order: Float[Tensor, "orders orders"]


def item_numbers(codes: Codes, code: int) -> list[float]:
    """Of a thing: each ingredient raw, a clean dish, and each ingredient's share of what a soup can hold."""
    foods = len(codes.menu.ingredients)
    raw = one_hot(code - codes.food(0), foods) if codes.is_food(code) else [0.0] * foods
    mixture = codes.mixture_of(code) if codes.soup_of(code) is not None else (0,) * foods
    return [*raw, float(code == codes.dish), *(n / codes.menu.capacity for n in mixture)]


def pot_numbers(codes: Codes, code: int) -> list[float]:
    """Of a pot: each ingredient's share of what it can hold, whether it is on, the share of its cooking that is done,
    and whether it is ready."""
    pot = codes.in_pot(code)
    if pot is None:
        return [0.0] * (len(codes.menu.ingredients) + 3)
    mixture, steps = pot
    counts = [n / codes.menu.capacity for n in codes.menu.mixtures[mixture]]
    time = codes.menu.times[mixture]
    return [*counts, float(steps is not None), (steps or 0) / time, float(steps == time)]


class StateCode:
    """A code that loses nothing: row, column and direction of each cook and what it holds; every pot; every counter
    that can be reached; the order, where there are several; the soups served, where a task counts them."""

    def __init__(self, geometry: Geometry, codes: Codes, soups: int | None):
        self.cooks, self.soups = len(geometry.layout.starts), soups
        self.pots, self.counters = len(geometry.pots), len(geometry.counters)
        scale = max(geometry.height, geometry.width)
        poses = [[cell[0] / scale, cell[1] / scale, *one_hot(way, 4)] for cell, way in geometry.poses]
        self._tables = Constants(
            CodeTables(
                torch.tensor(poses),
                torch.tensor([item_numbers(codes, code) for code in range(codes.items)]),
                torch.tensor([pot_numbers(codes, code) for code in range(codes.count)]),
                torch.eye(len(codes.menu.values)),
            )
        )
        tables = self._tables.on(torch.device("cpu"))
        self.several = len(codes.menu.values) > 1
        # An empty pot has code 0, as an empty hand has; codes of things that are held are no pot's.
        self._pot_codes = torch.tensor([0, *range(codes.items, codes.count)])
        self._widths = [self.cooks * 6, (self.cooks + self.counters) * tables.item.shape[1]]
        self._widths += [self.pots * tables.pot.shape[1]]
        self._widths += [len(codes.menu.values)] * self.several + [1] * (soups is not None)
        self.size = sum(self._widths)

    def encode(self, state: State) -> Float[Tensor, "E S"]:
        """The code of each kitchen."""
        tables = self._tables.on(state.pose.device)
        things = torch.cat([state.held, state.things[:, self.pots :]], 1)
        parts = [rows_of(tables.pose, state.pose), rows_of(tables.item, things)]
        parts.append(rows_of(tables.pot, state.things[:, : self.pots]))
        if self.several:
            parts.append(tables.order[state.order])
        if self.soups is not None:
            parts.append((state.served / self.soups).unsqueeze(-1))
        return torch.cat(parts, -1)

    def decode(self, code: Float[Tensor, "E S"]) -> State:
        """The kitchens of codes; the exact inverse of `encode`. Raises InputError for what is no kitchen's code."""
        if code.dim() != 2 or code.shape[-1] != self.size:
            raise InputError(f"A kitchen's state has {self.size} numbers; got {list(code.shape)}.")
        tables, parts = self._tables.on(code.device), list(code.split(self._widths, -1))
        pose = rows_in(parts.pop(0), tables.pose)
        things = rows_in(parts.pop(0), tables.item)
        pot_codes = self._pot_codes.to(code.device)
        pots = pot_codes[rows_in(parts.pop(0), tables.pot[pot_codes])]
        nothing = torch.zeros_like(pose[:, 0])
        order = rows_in(parts.pop(0), tables.order)[:, 0] if self.several else nothing
        served = (parts.pop(0)[:, 0] * self.soups).round().long() if self.soups is not None else nothing
        state = State(pose, things[:, : self.cooks], torch.cat([pots, things[:, self.cooks :]], 1), order, served)
        if not torch.equal(self.encode(state), code):
            raise InputError("This is no state of this kitchen; give `obs.state` as the environment gave it.")
        return state


def rows_in(parts: Float[Tensor, "E numbers"], table: Float[Tensor, "rows width"]) -> Int[Tensor, "E n"]:
    """Of each part, the number of the row of the table that it is. Raises InputError where it is none."""
    same = (parts.unflatten(-1, (-1, 1, table.shape[1])) == table).all(-1)
    if not bool(same.any(-1).all()):
        row = int((~same.any(-1).all(-1)).nonzero()[0])
        raise InputError(f"Row {row} is no state of this kitchen; give `obs.state` as the environment gave it.")
    return same.int().argmax(-1)
