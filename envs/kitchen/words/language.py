"""The kitchen in words: a map that can be read back, sentences, and plans as people say them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from envs.core import InputError
from envs.kitchen.rules.codes import Codes
from envs.kitchen.rules.geometry import WAYS, Geometry
from envs.kitchen.rules.layout import FLOOR, TILES, Cell, at
from envs.kitchen.rules.state import State
from envs.kitchen.words.errands import Errand, Verb

ARROWS = "^v><"
LETTERS = {"onion": "o", "tomato": "t"}
LEGEND = (
    "Rows are numbered from the top, columns from the left, both from 0. Tiles: X counter, P pot, O onions, T "
    "tomatoes, D dishes, S serving desk, R recipe board, . floor. A cook is an arrow that shows where it faces, its "
    "number, and what it holds. Things: o onion, t tomato, d clean dish, and a soup as what is in it, such as (ooo). A "
    "pot shows what is in it, then how many steps it has cooked of those that it takes, or ! when the soup is ready. ? "
    "is out of sight."
)


@dataclass(frozen=True)
class Scene:
    """Contents of a description: everything, or what one cook sees. None where something is out of sight.

    poses, held: by cook. things: by slot. order: number of the order, where one of several is drawn an episode. served:
    soups served, which no cook sees.
    """

    poses: Sequence[int | None]
    held: Sequence[int | None]
    things: Sequence[int | None]
    order: int | None = None
    served: int | None = 0


def scene_of(state: State, row: int) -> Scene:
    """Everything, of one row."""
    return Scene(
        state.pose[row].tolist(),
        state.held[row].tolist(),
        state.things[row].tolist(),
        int(state.order[row]),
        int(state.served[row]),
    )


def state_of_scene(scene: Scene, cook: int) -> State:
    """A state of one row in which what this cook does not see is empty, and others out of sight stand in no way."""
    pose = [scene.poses[cook] if p is None else p for p in scene.poses]
    held, things = ([code or 0 for code in codes] for codes in (scene.held, scene.things))
    order, served = torch.tensor([scene.order or 0]), torch.tensor([scene.served or 0])
    return State(torch.tensor([pose]), torch.tensor([held]), torch.tensor([things]), order, served)


class Words:
    """The language of one kitchen."""

    def __init__(self, geometry: Geometry, codes: Codes, soups: int | None):
        self.geometry, self.codes, self.soups = geometry, codes, soups

    def describe(self, scene: Scene, own: int | None = None) -> str:
        """Map, legend and sentences. own: the cook who is told, who sees only part of it."""
        lines = [self.map(scene), "", LEGEND, ""]
        lines += [self._cook(scene, cook, cook == own) for cook in range(len(scene.poses))]
        lines += [self._pot(cell, code) for cell, code in zip(self.geometry.pots, scene.things)]
        lying = zip(self.geometry.counters, scene.things[len(self.geometry.pots) :])
        found = [f"{self.thing(code)} at {at(cell)}" for cell, code in lying if code]
        lines.append(f"On the counters: {'; '.join(found)}." if found else "On the counters: nothing.")
        lines.append(self._orders(scene))
        return "\n".join(lines)

    def map(self, scene: Scene) -> str:
        """The kitchen as rows of tiles with what is on them; `read_map` is its inverse."""
        cooks = {self.geometry.poses[pose][0]: cook for cook, pose in enumerate(scene.poses) if pose is not None}
        rows = []
        for r, tiles in enumerate(self.geometry.layout.rows):
            cells = [self._cell((r, c), tile, cooks, scene) for c, tile in enumerate(tiles)]
            rows.append(cells)
        width = max(len(cell) for row in rows for cell in row)
        extra = []
        if len(self.codes.menu.values) > 1 and scene.order is not None:
            extra.append(f"order: {scene.order}")
        if self.soups is not None and scene.served is not None:
            extra.append(f"served: {scene.served}")
        return "\n".join([" ".join(cell.ljust(width) for cell in row).rstrip() for row in rows] + extra)

    def read_map(self, text: str) -> State:
        """The state of a map, which hides nothing; what follows the map in `describe` is left out.

        Raises InputError for what is no map of this kitchen.
        """
        drawing = str(text).strip("\n").split("\n\n")[0]
        try:
            state = self._state_of(drawing.split("\n"))
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(f"This is no map of this kitchen ({error}); give one as `words` writes it.") from error
        # Whatever was overlooked would be drawn otherwise.
        drawn = self.map(scene_of(state, 0))
        if drawn.split() != drawing.split():
            raise InputError(f"This is no map of this kitchen; the nearest one is\n{drawn}")
        return state

    def _state_of(self, lines: list[str]) -> State:
        poses, held = {}, {}
        things = [0] * len(self.geometry.slots)
        grid, extra = lines[: self.geometry.height], dict(line.split(": ") for line in lines[self.geometry.height :])
        for r, line in enumerate(grid):
            for c, token in enumerate(line.split()):
                if token[0] in ARROWS:
                    cook = int(token[1])
                    poses[cook] = 4 * self.geometry.floor_number[r, c] + ARROWS.index(token[0])
                    held[cook] = self._read(token[2:], in_pot=False)
                elif (r, c) in self.geometry.slot:
                    things[self.geometry.slot[r, c]] = self._read(token[1:], in_pot=token[0] == "P")
        cooks = range(len(self.geometry.layout.starts))
        order, served = int(extra.get("order", 0)), int(extra.get("served", 0))
        if not 0 <= order < len(self.codes.menu.values) or not 0 <= served <= (self.soups or 0):
            raise ValueError(f"order {order}, served {served}")
        return State(
            torch.tensor([[poses[cook] for cook in cooks]]),
            torch.tensor([[held[cook] for cook in cooks]]),
            torch.tensor([things]),
            torch.tensor([order]),
            torch.tensor([served]),
        )

    def thing(self, code: int) -> str:
        """Name of a code, with its article: "an onion", "a soup of 2 onions"."""
        codes = self.codes
        if codes.is_food(code):
            name = codes.menu.ingredients[code - codes.food(0)]
            return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
        mixture = codes.soup_of(code)
        if mixture is not None:
            return f"a soup of {codes.menu.name(codes.menu.mixtures[mixture])}"
        return "a clean dish" if code == codes.dish else "nothing"

    def plan(self, errand: Errand, held: int, there: int) -> str:
        """An errand in words, by who holds something, where something lies or cooks."""
        verb, cell = errand
        if cell is None:
            return "wait"
        place, tile = at(cell), self.geometry.layout.tile(cell)
        if verb == Verb.TAKE and tile == "X":
            return f"take {self.thing(there)} from the counter at {place}"
        if verb == Verb.TAKE:
            name = {"O": "an onion", "T": "a tomato", "D": "a clean dish"}[tile]
            return f"take {name} at {place}"
        if verb == Verb.PUT:
            return f"put down {self.thing(held)} on the counter at {place}"
        if verb == Verb.ADD:
            return f"put {self.thing(held)} in the pot at {place}"
        if verb == Verb.START:
            return f"cook the pot at {place}"
        if verb == Verb.PLATE:
            return f"plate the soup at {place}"
        return f"serve at {place}"

    def _cell(self, cell: Cell, tile: str, cooks: dict[Cell, int], scene: Scene) -> str:
        if cell in cooks:
            cook = cooks[cell]
            pose, held = scene.poses[cook], scene.held[cook]
            assert pose is not None
            return f"{ARROWS[pose % 4]}{cook}{self._sign(held)}"
        if tile == FLOOR:
            return "."
        if cell in self.geometry.slot:
            return tile + self._sign(scene.things[self.geometry.slot[cell]])
        return tile

    def _sign(self, code: int | None) -> str:
        """A thing or a pot's contents in a few letters."""
        codes = self.codes
        if code is None:
            return "?"
        if code == 0:
            return ""
        if codes.is_food(code):
            return LETTERS[codes.menu.ingredients[code - codes.food(0)]]
        if code == codes.dish:
            return "d"
        letters = "".join(
            LETTERS[food] * number for food, number in zip(codes.menu.ingredients, codes.mixture_of(code))
        )
        pot = codes.in_pot(code)
        if pot is None or pot[1] is None:
            return f"({letters})"
        time = codes.menu.times[pot[0]]
        return f"({letters})!" if pot[1] == time else f"({letters}){pot[1]}/{time}"

    def _read(self, sign: str, in_pot: bool) -> int:
        """The code of a sign. Raises ValueError for one that is none."""
        codes, options = self.codes, range(self.codes.count)
        for code in (0, *options[codes.items :]) if in_pot else options[: codes.items]:
            if self._sign(code) == sign:
                return code
        raise ValueError(f"{sign!r} is no thing")

    def _cook(self, scene: Scene, cook: int, own: bool) -> str:
        pose, held = scene.poses[cook], scene.held[cook]
        who = "You are" if own else f"Cook {cook} is"
        name = f" (cook {cook})" if own else ""
        if pose is None or held is None:
            return f"Cook {cook} is out of sight."
        cell, way = self.geometry.poses[pose]
        ahead = TILES[self.geometry.layout.tile(self.geometry.faced[pose])]
        return f"{who} at {at(cell)}{name}, facing {WAYS[way]} ({ahead}), holding {self.thing(held)}."

    def _pot(self, cell: Cell, code: int | None) -> str:
        pot = None if code is None else self.codes.in_pot(code)
        if code is None:
            return f"The pot at {at(cell)} is out of sight."
        if pot is None:
            return f"The pot at {at(cell)} is empty."
        mixture, steps = pot
        name, time = self.codes.menu.name(self.codes.menu.mixtures[mixture]), self.codes.menu.times[mixture]
        if steps is None:
            return f"The pot at {at(cell)} holds {name} and is not cooking."
        if steps == time:
            return f"The pot at {at(cell)} holds {name}; the soup is ready."
        return f"The pot at {at(cell)} holds {name} and cooks; {time - steps} more steps."

    def _orders(self, scene: Scene) -> str:
        menu = self.codes.menu
        if scene.order is None:
            return "Today's order is out of sight."
        values = menu.values[scene.order]
        wanted = [f"{menu.name(m)} ({v:g})" for m, v in zip(menu.mixtures, values) if v > 0]
        text = f"Ordered, and worth: {'; '.join(wanted)}."
        if self.soups is None:
            return text
        return f"{text} To be served: {self.soups}." + ("" if scene.served is None else f" Served: {scene.served}.")


def closest(text: str, plans: list[str]) -> str:
    """The plan that is most like a text, for a hint."""
    near = difflib.get_close_matches(text, plans, 1, 0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def plan_lines(text: str, names: tuple[str, ...]) -> dict[str, str] | str:
    """Each agent's plan from lines "name: plan", or the reason why they are not that."""
    found: dict[str, str] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        match = re.fullmatch(r"[-*\s]*(\w+)\s*[:=]\s*(.+)", line.rstrip(". \t"))
        if match is None:
            return f"Expected lines 'cook_0: plan'; got {line[:80]!r}."
        name = match[1].lower()
        if name not in names:
            return f"There is no {match[1][:80]!r}; the cooks are {', '.join(names)}."
        if name in found:
            return f"{name} has two plans; give it one."
        found[name] = " ".join(match[2].lower().split())
    missing = [name for name in names if name not in found]
    return f"No plan for {', '.join(missing)}; give a line 'name: plan' for each cook." if missing else found
