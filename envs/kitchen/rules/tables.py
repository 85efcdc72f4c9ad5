"""Tensors of a kitchen that no step changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from envs.kitchen.rules.codes import Ahead, Codes, Event, Rules, build_rules
from envs.kitchen.rules.geometry import Geometry
from envs.kitchen.rules.layout import DISPENSERS, Cell

AHEAD = {"X": Ahead.COUNTER, "P": Ahead.POT, "D": Ahead.DISHES, "S": Ahead.DESK}


class Tables(NamedTuple):
    """By pose: where the entries of `rules` begin for what is ahead, its slot (0 where it has none), and the pose after
    each of six choices of a cook alone. By code: pots whose soup calls for a dish. worth: of 1 + a mixture, by order.
    earned: shaping of each entry, beside that for a dish."""

    ahead: Int[Tensor, " poses"]
    slot: Int[Tensor, " poses"]
    step: Int[Tensor, " poses*6"]
    calls: Bool[Tensor, " codes"]
    worth: Float[Tensor, "orders mixtures+1"]
    earned: Float[Tensor, " entries"]
    rules: Rules


def build_tables(
    geometry: Geometry, codes: Codes, shaping: Mapping[str, int | float], *, starts_itself: bool
) -> Tables:
    """The tables of a kitchen. shaping: what adding to a pot ("potting") and plating a soup ("plating") earns."""
    rules = build_rules(codes, starts_itself=starts_itself)
    return Tables(
        ahead=torch.tensor([ahead_of(geometry, codes, cell) * entries_of(codes) for cell in geometry.faced]),
        slot=torch.tensor([geometry.slot.get(cell, 0) for cell in geometry.faced]),
        step=torch.tensor([step for pose in range(len(geometry.poses)) for step in _steps(geometry, pose)]),
        calls=torch.tensor([_calls_for_a_dish(codes, code) for code in range(codes.count)]),
        worth=torch.tensor([[0.0, *row] for row in codes.menu.values]),
        earned=shaping["potting"] * (rules.event == Event.ADDED) + shaping["plating"] * (rules.event == Event.PLATED),
        rules=rules,
    )


def entries_of(codes: Codes) -> int:
    """Entries of the tables of rules for each kind of thing ahead."""
    return codes.items * codes.count


def ahead_of(geometry: Geometry, codes: Codes, cell: Cell) -> int:
    """Kind of thing that a cell is to a cook who faces it."""
    tile = geometry.layout.tile(cell)
    if tile in DISPENSERS:
        return Ahead.FOOD + codes.menu.ingredients.index(DISPENSERS[tile])
    return AHEAD.get(tile, Ahead.NONE)


def _steps(geometry: Geometry, pose: int) -> list[int]:
    """Pose after north, south, east, west, stay and interact."""
    return [*(geometry.after(pose, way) for way in range(4)), pose, pose]


def _calls_for_a_dish(codes: Codes, code: int) -> bool:
    """Pots that cook, are ready, or have room left. A full one that is off does not count, as in Overcooked-AI."""
    pot = codes.in_pot(code)
    if pot is None:
        return False
    return pot[1] is not None or sum(codes.menu.mixtures[pot[0]]) < codes.menu.capacity
