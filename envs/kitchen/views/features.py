"""A cook's own view of the kitchen, in few numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from envs.constants import Constants
from envs.kitchen.rules.codes import Codes
from envs.kitchen.rules.geometry import Geometry, one_hot, rows_of
from envs.kitchen.rules.layout import TILES, Cell
from envs.kitchen.rules.state import State
from envs.kitchen.rules.state_code import item_numbers, pot_numbers, rows_in
from envs.kitchen.words.language import Scene

KINDS = "".join(TILES)


class FeatureTables(NamedTuple):
    """By pose: `own` is what a cook sees of itself and of what never changes, `way` the direction it faces, `cell` its
    place, `slot` what is ahead, `faces` 1 for a counter, and `sees` which slots (and at last the board) are near.
    thing: by code, of what is held, ahead or on a counter. others: by cook, the others in order."""

    own: Float[Tensor, "poses F"]
    way: Float[Tensor, "poses 4"]
    cell: Int[Tensor, "poses 2"]
    slot: Int[Tensor, " poses"]
    faces: Float[Tensor, "poses 1"]
    sees: Bool[Tensor, "poses slots+1"]
    thing: Float[Tensor, "codes I"]
    pot: Float[Tensor, "codes O"]
    order: Float[Tensor, "orders orders"]
    others: Int[Tensor, "N N-1"]


class Features:
    """View of each cook.

    Of itself: row, column, direction, the kind of tile ahead, the way (rows down, columns right) to the nearest
    dispenser of each kind and desk and to every pot, what it holds, and what lies ahead. Then of each other cook the
    way to it, its direction and what it holds; then every pot, and every counter that can be reached. With `radius`,
    what is more than so many rows or columns away is not seen: its numbers are 0, and one more number for each cook,
    pot and counter says whether it is. Where one of several orders is drawn an episode, who sees a recipe board sees
    it.
    """

    def __init__(self, geometry: Geometry, codes: Codes, radius: int | None):
        self.geometry, self.codes, self.radius = geometry, codes, radius
        self.cooks, self.pots = len(geometry.layout.starts), len(geometry.pots)
        self.several = len(codes.menu.values) > 1
        self._scale = max(geometry.height, geometry.width)
        self._tables = Constants(self._build_tables())
        tables = self._tables.on(torch.device("cpu"))
        item, seen = tables.thing.shape[1], int(radius is not None)
        self._widths = [tables.own.shape[1], item, item, *[2 + 4 + item + seen] * (self.cooks - 1)]
        self._widths += [self.pots * (tables.pot.shape[1] + seen), len(geometry.counters) * (item + seen)]
        self._widths += [len(codes.menu.values)] * self.several
        self.size = sum(self._widths)

    def __call__(self, state: State) -> Float[Tensor, "E N D"]:
        """The view of each cook."""
        tables = self._tables.on(state.pose.device)
        cooks = state.pose.shape[1]
        held = torch.nn.functional.embedding(state.held, tables.thing)
        slot = torch.nn.functional.embedding(state.pose, tables.slot.unsqueeze(1)).squeeze(-1)
        faces = torch.nn.functional.embedding(state.pose, tables.faces)
        ahead = torch.nn.functional.embedding(state.things.gather(1, slot), tables.thing) * faces
        parts = [torch.nn.functional.embedding(state.pose, tables.own), held, ahead]
        cell = torch.nn.functional.embedding(state.pose, tables.cell)
        body = torch.cat([torch.nn.functional.embedding(state.pose, tables.way), held], -1)
        for number in range(cooks - 1):
            other = tables.others[:, number]
            apart = cell[:, other] - cell
            about = torch.cat([apart / self._scale, body[:, other]], -1)
            parts.append(about if self.radius is None else _if_seen(about, (apart.abs() <= self.radius).all(-1, True)))
        parts += self._things(state, tables)
        return torch.cat(parts, -1)

    def scene(self, view: Float[Tensor, " D"], cook: int) -> Scene:
        """Scene that a view of this cook's shows: the inverse of `__call__`, but for what is out of sight."""
        tables = self._tables.on(torch.device("cpu"))
        own, held, _, *rest = view.cpu().split(self._widths)
        pose = _row_in(own, tables.own)
        poses: list[int | None] = [None] * self.cooks
        hands: list[int | None] = [None] * self.cooks
        poses[cook], hands[cook] = pose, _row_in(held, tables.thing)
        for other in tables.others[cook].tolist():
            about = rest.pop(0)
            if self.radius is None or float(about[-1]):
                apart = (about[:2] * self._scale).round().long()
                row, column = (tables.cell[pose] + apart).tolist()
                poses[other] = 4 * self.geometry.floor_number[row, column] + int(about[2:6].argmax())
                hands[other] = _row_in(about[6 : 6 + tables.thing.shape[1]], tables.thing)
        pots, counters, *order = rest
        things = [self._in_sight(part, tables.pot) for part in pots.view(self.pots, -1)]
        if self.geometry.counters:
            things += [self._in_sight(part, tables.thing) for part in counters.view(len(self.geometry.counters), -1)]
        hidden = bool(order) and not float(order[0].sum())
        number = None if hidden else int(order[0].argmax()) if order else 0
        return Scene(poses, hands, things, number, served=None)

    def _in_sight(self, part: Float[Tensor, " X"], table: Float[Tensor, "codes Y"]) -> int | None:
        """The code of a pot or of what lies on a counter, where it is seen."""
        if self.radius is None:
            return _row_in(part, table)
        return _row_in(part[:-1], table) if float(part[-1]) else None

    def _things(self, state: State, tables: FeatureTables) -> list[Float[Tensor, "E N X"]]:
        pots = rows_of(tables.pot, state.things[:, : self.pots])
        counters = rows_of(tables.thing, state.things[:, self.pots :])
        cooks = state.pose.shape[1]
        shown = [pots, counters] + [tables.order[state.order]] * self.several
        everywhere = [part.unsqueeze(1).expand(-1, cooks, -1) for part in shown]
        if self.radius is None:
            return everywhere
        seen = tables.sees[state.pose].unsqueeze(-1)
        slots = seen.shape[2] - 1
        parts = [
            _if_seen(everywhere[0].unflatten(-1, (self.pots, -1)), seen[:, :, : self.pots]).flatten(2),
            _if_seen(everywhere[1].unflatten(-1, (slots - self.pots, -1)), seen[:, :, self.pots : slots]).flatten(2),
        ]
        if self.several:
            parts.append(everywhere[2] * seen[:, :, slots])
        return parts

    def _build_tables(self) -> FeatureTables:
        geometry, codes, poses = self.geometry, self.codes, range(len(self.geometry.poses))
        cooks = range(self.cooks)
        boards = geometry.layout.cells("R")
        return FeatureTables(
            own=torch.tensor([self._own(pose) for pose in poses]),
            way=torch.tensor([one_hot(way, 4) for _, way in geometry.poses]),
            cell=torch.tensor([cell for cell, _ in geometry.poses]),
            slot=torch.tensor([geometry.slot.get(cell, 0) for cell in geometry.faced]),
            faces=torch.tensor([[float(cell in geometry.counters)] for cell in geometry.faced]),
            sees=torch.tensor(
                [
                    [*(self._sees(cell, slot) for slot in geometry.slots), any(self._sees(cell, b) for b in boards)]
                    for cell, _ in geometry.poses
                ]
            ),
            thing=torch.tensor([item_numbers(codes, code) for code in range(codes.count)]),
            pot=torch.tensor([pot_numbers(codes, code) for code in range(codes.count)]),
            order=torch.eye(len(codes.menu.values)),
            others=torch.tensor([[*range(i + 1, self.cooks), *range(i)] for i in cooks]),
        )

    def _own(self, pose: int) -> list[float]:
        """Of a cook in this pose: all that depends on nothing else."""
        geometry, scale = self.geometry, self._scale
        (row, column), way = geometry.poses[pose]
        numbers = [row / scale, column / scale, *one_hot(way, 4)]
        numbers += one_hot(KINDS.index(geometry.layout.tile(geometry.faced[pose])), len(KINDS))
        places = [geometry.nearest(pose, geometry.layout.cells(kind))[:1] for kind in "OTDS"]
        places += [[pot] for pot in geometry.pots]
        for kind, place in zip(["O", "T", "D", "S", *"P" * self.pots], places):
            if geometry.layout.cells(kind):
                down, right = (place[0][0] - row, place[0][1] - column) if place else (0, 0)
                numbers += [down / scale, right / scale]
        return numbers

    def _sees(self, own: Cell, cell: Cell) -> bool:
        radius = self.radius
        return radius is None or max(abs(own[0] - cell[0]), abs(own[1] - cell[1])) <= radius


def _row_in(part: Float[Tensor, " X"], table: Float[Tensor, "rows X"]) -> int:
    return int(rows_in(part.unsqueeze(0), table))


def _if_seen(numbers: Float[Tensor, "*B X"], seen: Bool[Tensor, "*B 1"]) -> Float[Tensor, "*B X+1"]:
    """The numbers where they are seen, else 0; then whether they are."""
    return torch.cat([numbers * seen, seen.to(numbers.dtype)], -1)
