"""Where episodes start: as the layout says, or anywhere."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from envs.constants import Constants
from envs.kitchen.rules.codes import Codes
from envs.kitchen.rules.geometry import Geometry
from envs.kitchen.rules.state import State


class StartTables(NamedTuple):
    """standing: poses of the layout's start. open: floor that each cook can reach. items, pots: codes of what can be
    held, nothing among them, and be in a pot, between two steps. lying: probability that at most so many counters have
    something on them."""

    standing: Int[Tensor, " N"]
    open: Bool[Tensor, "N floor"]
    items: Int[Tensor, " items"]
    pots: Int[Tensor, " pots"]
    lying: Float[Tensor, " C+1"]


class Starts:
    """First states. anywhere: every legal state is as likely as any other, else the layout's start.

    Legal is what could be between two steps: each cook on floor that it can reach on foot from its start, no two on one
    cell, anything in each hand and pot, and anything on the counters, on at most `counter_items` of them. Where pots
    start by themselves, only full ones cook, and all soups are of full pots.
    """

    def __init__(
        self, geometry: Geometry, codes: Codes, *, anywhere: bool, counter_items: int | None, starts_itself: bool
    ):
        self.anywhere = anywhere
        self.cooks, self.slots = len(geometry.layout.starts), len(geometry.slots)
        self.counters, self.floor = len(geometry.counters), len(geometry.floor)
        self.orders = len(codes.menu.values)
        items = [item for item in range(codes.items) if _is_legal_item(codes, item, starts_itself)]
        pots = [0, *(pot for pot in range(codes.items, codes.count) if _is_legal_pot(codes, pot, starts_itself))]
        self.items = len(items)
        most = self.counters if counter_items is None else min(counter_items, self.counters)
        ways = [math.comb(self.counters, n) * (self.items - 1) ** n if n <= most else 0 for n in range(most + 1)]
        lying = [sum(ways[: n + 1]) / sum(ways) for n in range(most + 1)]
        self._tables = Constants(
            StartTables(
                torch.tensor([4 * geometry.floor_number[cell] for cell in geometry.layout.starts]),
                torch.tensor([[cell in region for cell in geometry.floor] for region in geometry.layout.regions]),
                torch.tensor(items),
                torch.tensor(pots),
                torch.tensor(lying, dtype=torch.float64),
            )
        )

    @property
    def draws(self) -> int:
        """Number of uniform numbers that a start takes."""
        if not self.anywhere:
            return int(self.orders > 1)
        return int(self.orders > 1) + self.cooks * (self.floor + 2) + self.slots + self.counters + 1

    def first(self, luck: Float[Tensor, "E draws"]) -> State:
        """First states from uniform numbers in [0, 1)."""
        tables = self._tables.on(luck.device)
        rows = len(luck)
        nothing = torch.zeros(rows, dtype=torch.int64, device=luck.device)
        order = _up_to(luck[:, 0], self.orders) if self.orders > 1 else nothing
        if not self.anywhere:
            pose = tables.standing.expand(rows, -1).clone()
            things = nothing.unsqueeze(1).repeat(1, self.slots)
            return State(pose, torch.zeros_like(pose), things, order, nothing)
        cells, ways, hands, pots, counters, ranks, many = luck[:, int(self.orders > 1) :].split(
            [
                self.cooks * self.floor,
                self.cooks,
                self.cooks,
                self.slots - self.counters,
                self.counters,
                self.counters,
                1,
            ],
            -1,
        )
        pose = 4 * self._cells(cells.unflatten(-1, (self.cooks, -1)), tables.open) + _up_to(ways, 4)
        in_pots = tables.pots[_up_to(pots, len(tables.pots))]
        number = torch.searchsorted(tables.lying, many.double(), right=True).clamp(max=len(tables.lying) - 1)
        taken = ranks.argsort(-1).argsort(-1) < number
        on_counters = torch.where(taken, tables.items[1 + _up_to(counters, self.items - 1)], 0)
        return State(
            pose, tables.items[_up_to(hands, self.items)], torch.cat([in_pots, on_counters], 1), order, nothing
        )

    def _cells(self, luck: Float[Tensor, "E N floor"], reach: Bool[Tensor, "N floor"]) -> Int[Tensor, "E N"]:
        """A place on the floor for one cook after the other, uniform over those that are still free to it."""
        free, chosen = torch.ones_like(luck[:, 0], dtype=torch.bool), []
        for cook in range(self.cooks):
            cell = luck[:, cook].masked_fill(~(free & reach[cook]), -1.0).argmax(-1)
            chosen.append(cell)
            free = free.scatter(1, cell.unsqueeze(1), False)
        return torch.stack(chosen, -1)


def _is_legal_item(codes: Codes, item: int, starts_itself: bool) -> bool:
    return not starts_itself or codes.soup_of(item) is None or _is_full(codes, item)


def _is_legal_pot(codes: Codes, pot: int, starts_itself: bool) -> bool:
    in_pot = codes.in_pot(pot)
    assert in_pot is not None
    if not starts_itself:
        return in_pot[1] != 0  # the step in which it starts heats it
    return in_pot[1] not in (0, None) if _is_full(codes, pot) else in_pot[1] is None


def _is_full(codes: Codes, code: int) -> bool:
    return sum(codes.mixture_of(code)) == codes.menu.capacity


def _up_to(luck: Float[Tensor, "*B"], count: int) -> Int[Tensor, "*B"]:
    """A uniform choice among 0, ..., count - 1."""
    return (luck * count).long().clamp(max=count - 1)
