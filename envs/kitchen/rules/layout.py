"""Kitchens written as text: tiles, where the cooks start, and what can be wrong with them."""

from __future__ import annotations

import difflib
import textwrap
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from envs.core import InputError

TILES = {
    "X": "counter",
    "P": "pot",
    "O": "onion dispenser",
    "T": "tomato dispenser",
    "D": "dish dispenser",
    "S": "serving desk",
    "R": "recipe board",
    " ": "floor",
}
DISPENSERS = {"O": "onion", "T": "tomato"}
COOKS = "1234"
FLOOR = " "
# What each direction adds to (row, column): north, south, east, west.
DIRECTIONS = ((-1, 0), (1, 0), (0, 1), (0, -1))
FOLDER = Path(__file__).parents[1] / "layouts"
LEGEND = ", ".join(f"{tile!r} {name}" for tile, name in TILES.items())

Cell = tuple[int, int]  # row, column


def at(cell: Cell) -> str:
    """A cell in words."""
    return f"row {cell[0]}, column {cell[1]}"


@dataclass(frozen=True)
class Layout:
    """A kitchen's tiles, without its cooks.

    rows: one string a row. starts: the cell of each cook. recipe: arguments of `build_menu` that belong to it.
    """

    name: str
    rows: tuple[str, ...]
    starts: tuple[Cell, ...]
    recipe: dict[str, Any] = field(default_factory=dict)

    def tile(self, cell: Cell) -> str:
        """The tile of a cell."""
        return self.rows[cell[0]][cell[1]]

    def cells(self, tiles: str) -> list[Cell]:
        """The cells of these tiles, in reading order."""
        return [(r, c) for r, row in enumerate(self.rows) for c, tile in enumerate(row) if tile in tiles]

    def around(self, cell: Cell) -> list[Cell]:
        """The cells next to a cell inside the kitchen: north, south, east, west."""
        beside = [(cell[0] + down, cell[1] + right) for down, right in DIRECTIONS]
        return [(r, c) for r, c in beside if 0 <= r < len(self.rows) and 0 <= c < len(self.rows[0])]

    @cached_property
    def regions(self) -> list[set[Cell]]:
        """By cook, the floor that it can reach on foot."""
        return [self._floor_from(start) for start in self.starts]

    @cached_property
    def within_reach(self) -> set[Cell]:
        """The cells that are next to floor on which some cook can stand."""
        return {cell for region in self.regions for floor in region for cell in self.around(floor)} - set(
            self.cells(FLOOR)
        )

    def teams(self, over: str = "XP") -> list[set[Cell]]:
        """Cells within reach of each group of cooks who pass things on: in one room, or over tiles of these kinds."""
        teams: list[set[Cell]] = []
        for region in self.regions:
            reach = {cell for floor in region for cell in self.around(floor)}
            shares = [team for team in teams if any(self.tile(cell) in over + FLOOR for cell in team & reach)]
            teams = [team for team in teams if team not in shares]
            teams.append(reach.union(*shares))
        return teams

    def can_cook(self, foods: str, over: str = "XP") -> bool:
        """Some group of cooks has a pot, dishes, a desk and the dispensers of these foods within reach."""
        wanted = set(foods + "PDS")
        return any(wanted <= {self.tile(cell) for cell in team} for team in self.teams(over))

    def _floor_from(self, start: Cell) -> set[Cell]:
        reached, new = {start}, [start]
        while new:
            beside = [cell for cell in self.around(new.pop()) if self.tile(cell) == FLOOR and cell not in reached]
            reached.update(beside)
            new.extend(beside)
        return reached


def read_layout(layout: str) -> Layout:
    """A layout by its name, or written as text of one line a row. Raises InputError for one that is no kitchen."""
    if not isinstance(layout, str):
        raise InputError(f"A layout is a name, or text of one line a row; got {type(layout).__name__} {layout!r}.")
    if "\n" in layout.strip("\n"):
        return parse_layout(layout.replace("\r\n", "\n"), "the layout")
    names = layout_names()
    if layout not in names:
        near = difflib.get_close_matches(layout, names, 1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(names)}."
        raise InputError(
            f"There is no layout {layout!r}. {hint} A layout of your own is text of one line a row, with {LEGEND}, and "
            "a digit where each cook starts."
        )
    described = yaml.safe_load((FOLDER / f"{layout}.yaml").read_text())
    return parse_layout(described.pop("grid"), layout, described)


def layout_names() -> list[str]:
    """The names of the layouts that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def parse_layout(text: str, name: str, recipe: dict[str, Any] | None = None) -> Layout:
    """The layout of a text. Raises InputError, with row and column, for one that is no kitchen."""
    grid = textwrap.dedent(text).strip("\n").split("\n")
    _require_rectangle(grid, name)
    _require_tiles(grid, name)
    _require_closed(grid, name)
    starts = _starts(grid, name)
    rows = tuple("".join(FLOOR if tile in COOKS else tile for tile in row) for row in grid)
    layout = Layout(name, rows, starts, recipe or {})
    for kinds, what in (("P", "pot"), ("D", "dish dispenser"), ("S", "serving desk"), ("OT", "dispenser of food")):
        _require_some(layout, kinds, what)
    _require_within_reach(layout)
    return layout


def _require_rectangle(grid: list[str], name: str) -> None:
    width = len(grid[0])
    for number, row in enumerate(grid):
        if len(row) != width:
            raise InputError(
                f"Row {number} of {name} has {len(row)} tiles and row 0 has {width}: from column "
                f"{min(len(row), width)} on they differ. Write every row to its end; a kitchen is a rectangle."
            )


def _require_tiles(grid: list[str], name: str) -> None:
    for r, row in enumerate(grid):
        for c, tile in enumerate(row):
            if tile not in TILES and tile not in COOKS:
                likely = {"0": "O", "_": " ", ".": " ", "#": "X", "W": "X"}.get(tile, tile.upper())
                hint = f"Did you mean {likely!r}? " if likely in TILES else ""
                raise InputError(
                    f"Unknown tile {tile!r} at {at((r, c))} of {name}. {hint}Tiles: {LEGEND}, and 1 to {COOKS[-1]} for "
                    "where the cooks start."
                )


def _require_closed(grid: list[str], name: str) -> None:
    last = len(grid) - 1, len(grid[0]) - 1
    for r, row in enumerate(grid):
        for c, tile in enumerate(row):
            if (r in (0, last[0]) or c in (0, last[1])) and (tile == FLOOR or tile in COOKS):
                raise InputError(
                    f"The border of {name} is open at {at((r, c))}: {tile!r} is floor, and a cook would walk out. "
                    "Put a counter, 'X', there."
                )


def _starts(grid: list[str], name: str) -> tuple[Cell, ...]:
    found: dict[str, Cell] = {}
    for r, row in enumerate(grid):
        for c, tile in enumerate(row):
            if tile in COOKS:
                if tile in found:
                    raise InputError(
                        f"Cook {tile} starts twice in {name}, at {at(found[tile])} and at {at((r, c))}. Cooks are "
                        f"numbered from 1; is the second cook {len(found) + 1}?"
                    )
                found[tile] = (r, c)
    wanted = COOKS[: len(found)]
    if len(found) < 2 or "".join(sorted(found)) != wanted:
        floor = [(r, c) for r, row in enumerate(grid) for c, tile in enumerate(row) if tile == FLOOR]
        missing = next(cook for cook in COOKS if cook not in found)
        where = f", for instance at {at(floor[0])}" if floor else ""
        raise InputError(
            f"{name} has the cooks {', '.join(sorted(found)) or 'none'}; expected two to {len(COOKS)}, numbered from 1."
            f" Write {missing} where the missing one starts{where}."
        )
    return tuple(found[cook] for cook in wanted)


def _require_some(layout: Layout, kinds: str, what: str) -> None:
    if layout.cells(kinds):
        return
    raise InputError(f"{layout.name} has no {what}: write {' or '.join(kinds)} for one{for_instance(layout)}.")


def for_instance(layout: Layout) -> str:
    """A counter that can be reached, as the place where something else could be."""
    places = [cell for cell in layout.cells("X") if cell in layout.within_reach]
    return f", for instance in place of the counter at {at(places[0])}" if places else ""


def _require_within_reach(layout: Layout) -> None:
    """Everything but counters can be used, and some group of cooks has all that a soup takes."""
    for cell in layout.cells("".join(TILES).replace("X", "").replace(FLOOR, "")):
        if cell not in layout.within_reach:
            near = min(layout.within_reach, key=lambda other: (_distance(cell, other), other))
            raise InputError(
                f"Nobody can reach the {TILES[layout.tile(cell)]} at {at(cell)} of {layout.name}: no cook can stand "
                f"next to it. The nearest cell that can be reached is at {at(near)}."
            )
    if not any(layout.can_cook(food) for food in DISPENSERS):
        raise InputError(f"Nobody can cook and serve in {layout.name}: {cut_off(layout)}")


def cut_off(layout: Layout) -> str:
    """Sentence on what each cook reaches, where they cannot pass on what a soup takes."""
    lists = []
    for start, region in zip(layout.starts, layout.regions):
        reach = {layout.tile(cell) for floor in region for cell in layout.around(floor)}
        names = [TILES[tile] for tile in "OTDPS" if tile in reach]
        lists.append(f"the cook at {at(start)} reaches {', '.join(names) or 'counters only'}")
    return "; ".join(lists) + ". Let them share a counter, or open a wall."


def _distance(one: Cell, other: Cell) -> int:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])
