"""Errands: what a cook sets out to do at one place, and its next step there by the shortest way around the others."""

from __future__ import annotations

from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from envs.constants import Constants
from envs.kitchen.rules.codes import NOTHING, Ahead, Codes, Event
from envs.kitchen.rules.geometry import WAYS, Geometry
from envs.kitchen.rules.layout import Cell
from envs.kitchen.rules.state import State
from envs.kitchen.rules.tables import Tables, ahead_of, entries_of

FAR = 2**20  # more steps than any way has
STAY, INTERACT = len(WAYS), len(WAYS) + 1


class Verb(IntEnum):
    """Deed at the end of an errand; beside `WAIT`, the event of the interaction there."""

    WAIT = Event.NONE
    TAKE = Event.TOOK
    PUT = Event.PUT
    ADD = Event.ADDED
    START = Event.STARTED
    PLATE = Event.PLATED
    SERVE = Event.SERVED


VERBS = {
    Ahead.COUNTER: (Verb.TAKE, Verb.PUT),
    Ahead.POT: (Verb.ADD, Verb.START, Verb.PLATE),
    Ahead.DISHES: (Verb.TAKE,),
    Ahead.DESK: (Verb.SERVE,),
}


class Errand(NamedTuple):
    """A verb and the cell that it concerns; waiting concerns none."""

    verb: Verb
    cell: Cell | None


class Steer(NamedTuple):
    """The next step of each cook's errand.

    choice: stay where there is nothing to do. open: the errand can be done as things are, and there is a way. last:
    this step does it.
    """

    choice: Int[Tensor, "E N"]
    open: Bool[Tensor, "E N"]
    last: Bool[Tensor, "E N"]


class ErrandTables(NamedTuple):
    """By errand: its verb, where the entries of the rules begin at its cell, that cell's slot, and the number of the
    cell among those that can be used. faces: by such a cell, the poses that face it; the first is no cell and faced by
    all. after: by pose, those after each direction. enters: the floor cell that is entered so, or -1."""

    verb: Int[Tensor, " errands"]
    ahead: Int[Tensor, " errands"]
    slot: Int[Tensor, " errands"]
    cell: Int[Tensor, " errands"]
    faces: Bool[Tensor, "cells poses"]
    after: Int[Tensor, "poses 4"]
    enters: Int[Tensor, "poses 4"]


class Errands:
    """The errands of a kitchen, numbered: 0 waits; then every cell that can be used, in reading order, with each thing
    that can be done there."""

    def __init__(self, geometry: Geometry, codes: Codes, tables: Constants[Tables], counter_items: int | None):
        self.geometry, self.codes, self.counter_items = geometry, codes, counter_items
        self._rules = tables
        self.list = [Errand(Verb.WAIT, None)]
        for cell in geometry.layout.cells("XPOTDS"):
            if cell in geometry.layout.within_reach:
                kind = min(ahead_of(geometry, codes, cell), Ahead.FOOD)
                self.list += [Errand(verb, cell) for verb in VERBS.get(Ahead(kind), (Verb.TAKE,))]
        self._tables = Constants(self._build_tables())

    def __len__(self) -> int:
        return len(self.list)

    def open(self, state: State) -> Bool[Tensor, "E N errands"]:
        """The errands that can be done as things are, by cook: what it takes is in hand and in place, and some way
        leads there around the others, if they stay where they are. Waiting always can."""
        return self._doable(state) & (self.steps(state) < FAR)

    def steps(self, state: State) -> Int[Tensor, "E N errands"]:
        """Steps in which each cook's errands are done while the others stay where they are; 0 for waiting, `FAR` or
        more where no way leads there."""
        every = torch.arange(len(self), device=state.pose.device).expand(*state.pose.shape, -1)
        return torch.where(every > 0, 1 + self._options(state, every).amin(-1), 0)

    def steer(self, state: State, errand: Int[Tensor, "E N"]) -> Steer:
        """The next step of each cook towards what it is about."""
        tables = self._tables.on(errand.device)
        steps, way = self._options(state, errand.unsqueeze(-1)).squeeze(2).min(-1)
        is_open = self._doable(state).gather(-1, errand.unsqueeze(-1)).squeeze(-1) & (steps < FAR)
        arrived = tables.faces[tables.cell[errand], state.pose]
        acts = is_open & (errand > 0)
        choice = torch.where(acts, torch.where(arrived, INTERACT, way), STAY)
        return Steer(choice, is_open, acts & arrived)

    def approach(self, state: State, errand: Int[Tensor, "E N"]) -> Int[Tensor, "E N"]:
        """The next step of each cook until it faces the errand's cell, whether or not something can be done there."""
        steps, way = self._options(state, errand.unsqueeze(-1)).squeeze(2).min(-1)
        tables = self._tables.on(errand.device)
        there = tables.faces[tables.cell[errand], state.pose]
        return torch.where((steps < FAR) & ~there, way, STAY)

    def _doable(self, state: State) -> Bool[Tensor, "E N errands"]:
        """Interacting at the errand's cell would do what it says."""
        tables, rules = self._tables.on(state.pose.device), self._rules.on(state.pose.device).rules
        there = state.things[:, tables.slot].unsqueeze(1)
        entry = tables.ahead + state.held.unsqueeze(-1) * self.codes.count + there
        doable = rules.event[entry] == tables.verb
        if self.counter_items is not None:
            lying = (state.things[:, len(self.geometry.pots) :] != NOTHING).sum(-1).view(-1, 1, 1)
            doable = doable & ((tables.verb != Verb.PUT) | (lying < self.counter_items))
        return doable

    def _options(self, state: State, errand: Int[Tensor, "E N g"]) -> Int[Tensor, "E N g 5"]:
        """Steps before the interaction of each errand, if the first goes north, south, east, west, or nowhere."""
        tables = self._tables.on(state.pose.device)
        cell, found = tables.cell[errand], []
        for cook in range(state.pose.shape[1]):
            others = torch.cat([state.pose[:, :cook], state.pose[:, cook + 1 :]], 1) // 4
            own = state.pose[:, cook : cook + 1]
            after = self._after(others, own, tables).squeeze(1)
            poses = torch.cat([after, own], 1).unsqueeze(1)
            if others.shape[1] == 1:
                left = self._ways.on(own.device)[others.unsqueeze(-1), poses, cell[:, cook].unsqueeze(-1)]
            else:
                every = torch.arange(len(tables.after), device=own.device).expand(len(own), -1)
                flood = self._flood(tables.faces, self._after(others, every, tables))
                row = torch.arange(len(own), device=own.device).view(-1, 1, 1)
                left = flood[row, poses, cell[:, cook].unsqueeze(-1)]
            moved = torch.tensor([1, 1, 1, 1, 0], device=own.device)
            found.append(left + moved)
        return torch.stack(found, 1)

    @cached_property
    def _ways(self) -> Constants[Int[Tensor, "floor poses cells"]]:
        """Steps to each cell that can be used, around one cook who stands on a cell of the floor."""
        tables = self._tables.on(torch.device("cpu"))
        standing = torch.arange(len(self.geometry.floor)).unsqueeze(1)
        every = torch.arange(len(tables.after)).expand(len(standing), -1)
        return Constants(self._flood(tables.faces, self._after(standing, every, tables)))

    def _after(
        self, others: Int[Tensor, "E M"], poses: Int[Tensor, "E p"], tables: ErrandTables
    ) -> Int[Tensor, "E p 4"]:
        """Poses after each direction, where the cells on which the others stand are closed."""
        closed = (tables.enters[poses].unsqueeze(-1) == others.view(-1, 1, 1, others.shape[1])).any(-1)
        turned = (poses // 4 * 4).unsqueeze(-1) + torch.arange(4, device=poses.device)
        return torch.where(closed, turned, tables.after[poses])

    def _flood(self, faces: Bool[Tensor, "c poses"], after: Int[Tensor, "E poses 4"]) -> Int[Tensor, "E poses c"]:
        """Steps from each pose to one that faces a cell: 0 there, else one more than from the best pose after it."""
        rows, poses = after.shape[:2]
        left = torch.where(faces.T, 0, FAR).int().repeat(rows, 1)
        first = torch.arange(0, rows * poses, poses, device=after.device).view(-1, 1, 1)
        north, south, east, west = (first + after).view(-1, 4).unbind(1)
        while True:
            nearer = left
            for way in (north, south, east, west):
                nearer = torch.minimum(nearer, left.index_select(0, way) + 1)
            if torch.equal(nearer, left):
                return left.view(rows, poses, -1)
            left = nearer

    def _build_tables(self) -> ErrandTables:
        geometry, codes = self.geometry, self.codes
        kinds = [0 if e.cell is None else ahead_of(geometry, codes, e.cell) for e in self.list]
        cells = list(dict.fromkeys(errand.cell for errand in self.list))
        poses = range(len(geometry.poses))
        after = [[geometry.after(pose, way) for way in range(4)] for pose in poses]
        return ErrandTables(
            verb=torch.tensor([int(errand.verb) for errand in self.list]),
            ahead=torch.tensor([kind * entries_of(codes) for kind in kinds]),
            slot=torch.tensor([0 if e.cell is None else geometry.slot.get(e.cell, 0) for e in self.list]),
            cell=torch.tensor([cells.index(errand.cell) for errand in self.list]),
            faces=torch.tensor([[cell is None or faced == cell for faced in geometry.faced] for cell in cells]),
            after=torch.tensor(after),
            enters=torch.tensor([[then // 4 if then // 4 != p // 4 else -1 for then in after[p]] for p in poses]),
        )
