"""The two encodings of Overcooked-AI that published agents see: 96 features, and 26 planes that lose nothing.

Both are for two cooks, as there. Source: overcooked_ai (MIT), featurize_state and lossless_state_encoding.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from envs.constants import Constants
from envs.core import InputError
from envs.kitchen.rules.codes import Codes
from envs.kitchen.rules.geometry import Geometry, one_hot
from envs.kitchen.rules.layout import FLOOR, Cell
from envs.kitchen.rules.menu import FOODS
from envs.kitchen.rules.state import State

POTS = 2  # described to each cook, nearest first
URGENT = 40  # steps before the horizon
PLANES = 26
MOST_STEPS = 255


def require_two(cooks: int, view: str) -> None:
    """Raise InputError where a view for two cooks is asked for others."""
    if cooks != 2:
        raise InputError(f"The view {view!r} of Overcooked-AI is for 2 cooks; this layout has {cooks}. Use 'features'.")


def counts_of(codes: Codes, code: int) -> list[float]:
    """Onions and tomatoes in a soup, whichever of them the layout has."""
    mixture = dict(zip(codes.menu.ingredients, codes.mixture_of(code)))
    return [float(mixture.get(food, 0)) for food in FOODS]


class OvercookedFeatures:
    """The 96 numbers of `featurize_state`, with its planner's default, which goes to no counter.

    Of each cook: direction; what it holds (onion, soup, dish, tomato); the way (columns right, rows down) to the
    nearest onion, tomato, dish and soup, 0 where it holds one or there is none; the soup's onions and tomatoes; the way
    to the nearest desk and empty counter; of the two nearest pots whether each exists, is empty, full, cooking, ready,
    its onions and tomatoes, the steps left, and the way to it; which of four directions are no floor. Own first, then
    the other's, the way to it, and the own column and row.
    """

    size = 96

    def __init__(self, geometry: Geometry, codes: Codes):
        require_two(len(geometry.layout.starts), "overcooked")
        self.geometry, self.codes = geometry, codes
        poses = range(len(geometry.poses))
        self._tables = Constants(
            (
                torch.tensor([self._direction(pose) for pose in poses]),
                torch.tensor([self._ways(pose) for pose in poses]),
                torch.tensor([self._desk_and_counter(pose) for pose in poses]),
                torch.tensor([self._nearest_pots(pose) for pose in poses]),
                torch.tensor([self._ways_to_pots(pose) for pose in poses]),
                torch.tensor([self._walls(pose) for pose in poses]),
                torch.tensor([[float(cell[1]), float(cell[0])] for cell, _ in geometry.poses]),
                torch.tensor([self._held(code) for code in range(codes.items)]),
                torch.tensor([self._far(code) for code in range(codes.items)]),
                torch.tensor([counts_of(codes, code) for code in range(codes.items)]),
                torch.tensor([*(self._pot(code) for code in range(codes.count)), [0.0] * 8]),
            )
        )

    def __call__(self, state: State) -> Float[Tensor, "E 2 96"]:
        """The view of each cook."""
        look = torch.nn.functional.embedding
        direction, ways, desk, nearest, to_pots, walls, place, held, far, counts, pot = self._tables.on(
            state.pose.device
        )
        # One more slot stands for a pot that does not exist.
        none = torch.full_like(state.pose[:, :1], len(pot) - 1)
        pots = torch.cat([state.things[:, : len(self.geometry.pots)], none], 1)
        pose = state.pose
        about = [look(pose, direction), look(state.held, held)]
        about.append(look(pose, ways) * look(state.held, far))
        about += [look(state.held, counts), look(pose, desk)]
        numbers, offsets = look(pose, nearest.float()).long(), look(pose, to_pots)
        for rank in range(POTS):
            here = pots.gather(1, numbers[..., rank])
            about += [look(here, pot), offsets[..., 2 * rank : 2 * rank + 2]]
        about.append(look(pose, walls))
        one = torch.cat(about, -1)
        at = look(pose, place)
        return torch.cat([one, one.flip(1), at.flip(1) - at, at], -1)

    def _direction(self, pose: int) -> list[float]:
        return one_hot(self.geometry.poses[pose][1], 4)

    def _ways(self, pose: int) -> list[float]:
        """To the nearest onion, tomato and dish dispenser; soups lie on counters, where the planner does not go."""
        return [*self._way(pose, "O"), *self._way(pose, "T"), *self._way(pose, "D"), 0.0, 0.0]

    def _desk_and_counter(self, pose: int) -> list[float]:
        return [*self._way(pose, "S"), 0.0, 0.0]

    def _way(self, pose: int, tile: str) -> list[float]:
        nearest = self.geometry.nearest(pose, self.geometry.layout.cells(tile))
        return self._offset(pose, nearest[0]) if nearest else [0.0, 0.0]

    def _offset(self, pose: int, cell: Cell) -> list[float]:
        row, column = self.geometry.poses[pose][0]
        return [float(cell[1] - column), float(cell[0] - row)]

    def _nearest_pots(self, pose: int) -> list[int]:
        pots = self.geometry.nearest(pose, self.geometry.pots)
        numbers = [self.geometry.slot[pot] for pot in pots[:POTS]]
        return numbers + [len(self.geometry.pots)] * (POTS - len(numbers))

    def _ways_to_pots(self, pose: int) -> list[float]:
        offsets = [self._offset(pose, pot) for pot in self.geometry.nearest(pose, self.geometry.pots)[:POTS]]
        return [number for offset in [*offsets, [0.0, 0.0], [0.0, 0.0]][:POTS] for number in offset]

    def _walls(self, pose: int) -> list[float]:
        cell = self.geometry.poses[pose][0]
        return [float(self.geometry.layout.tile(next_to) != FLOOR) for next_to in self.geometry.layout.around(cell)]

    def _held(self, code: int) -> list[float]:
        return [float(self._is(code, what)) for what in ("onion", "soup", "dish", "tomato")]

    def _far(self, code: int) -> list[float]:
        """0 for the ways to what is held already, else 1."""
        return [float(not self._is(code, what)) for what in ("onion", "tomato", "dish", "soup") for _ in range(2)]

    def _is(self, code: int, what: str) -> bool:
        if what == "dish":
            return code == self.codes.dish
        if what == "soup":
            return self.codes.soup_of(code) is not None
        foods = self.codes.menu.ingredients
        return what in foods and code == self.codes.food(foods.index(what))

    def _pot(self, code: int) -> list[float]:
        """Exists, empty, full, cooking, ready, onions, tomatoes, steps left."""
        pot, menu = self.codes.in_pot(code), self.codes.menu
        if pot is None:
            return [1.0, 1.0, *[0.0] * 6]
        mixture, steps = pot
        ready, on = self.codes.is_ready(code), steps is not None
        full = on or sum(menu.mixtures[mixture]) == menu.capacity
        left = 0 if steps is None else menu.times[mixture] - steps
        return [1.0, 0.0, float(full), float(on and not ready), float(ready), *counts_of(self.codes, code), float(left)]


class Planes:
    """The 26 planes of `lossless_state_encoding`, one a kind of thing, of rows and columns.

    Own place, the other's; own direction, the other's (north, south, east, west); pots, counters, dispensers of onions,
    tomatoes and dishes, desks; onions and tomatoes in pots that are off, then in soups that cook, are ready or plated;
    steps left; soups that are ready; dishes, onions, tomatoes; and 1 everywhere in the last 40 steps.
    """

    def __init__(self, geometry: Geometry, codes: Codes):
        require_two(len(geometry.layout.starts), "planes")
        if max(codes.menu.times) > MOST_STEPS:
            raise InputError(f"Planes are bytes: cook_time is at most {MOST_STEPS}; got {max(codes.menu.times)}.")
        self.geometry, self.codes = geometry, codes
        self.shape = (PLANES, geometry.height, geometry.width)
        self.size = PLANES * geometry.height * geometry.width
        cells = geometry.height * geometry.width
        fixed = torch.zeros(PLANES, cells, dtype=torch.uint8)
        for plane, tile in enumerate("PXOTDS", 10):
            fixed[plane, [self._flat(cell) for cell in geometry.layout.cells(tile)]] = 1
        self._tables = Constants(
            (
                fixed,
                torch.tensor([self._flat(cell) for cell in geometry.slots], dtype=torch.int64),
                torch.tensor([self._flat(cell) for cell, _ in geometry.poses]),
                torch.tensor([self._thing(code) for code in range(codes.count)], dtype=torch.uint8),
            )
        )

    def __call__(self, state: State, steps_left: Int[Tensor, " E"] | None = None) -> UInt8[Tensor, "E 2 26 H W"]:
        """The planes of each cook. steps_left: until the horizon; None leaves the last plane 0."""
        fixed, slots, cells, thing = self._tables.on(state.pose.device)
        rows, at = len(state.pose), cells[state.pose]
        planes = fixed.repeat(rows, 2, 1, 1)
        # Things that lie or cook have nine numbers each, in planes 16 to 24; so has what a cook holds.
        numbers = thing[torch.cat([state.things, state.held], 1)].transpose(1, 2)
        where = torch.cat([slots.expand(rows, -1), at], 1).unsqueeze(1).expand(-1, 9, -1)
        lying = torch.zeros_like(planes[:, 0, 16:25]).scatter(2, where, numbers)
        planes[:, :, 16:25] = lying.unsqueeze(1)
        one, row = torch.ones_like(planes[:, 0, 0, 0]), torch.arange(rows, device=at.device)
        for cook in range(2):
            for rank, of in enumerate((cook, 1 - cook)):
                planes[row, cook, rank, at[:, of]] = one
                planes[row, cook, 2 + 4 * rank + (state.pose[:, of] & 3), at[:, of]] = one
        if steps_left is not None:
            planes[:, :, 25] = (steps_left < URGENT).to(torch.uint8).view(-1, 1, 1)
        return planes.unflatten(-1, self.shape[1:])

    def _flat(self, cell: Cell) -> int:
        return cell[0] * self.geometry.width + cell[1]

    def _thing(self, code: int) -> list[int]:
        """Of what lies, cooks or is held: its numbers in planes 16 to 24."""
        codes, pot = self.codes, self.codes.in_pot(code)
        onions, tomatoes = map(int, counts_of(codes, code))
        foods = [codes.menu.ingredients[code - codes.food(0)]] if codes.is_food(code) else []
        raw = [int(code == codes.dish), int("onion" in foods), int("tomato" in foods)]
        if pot is None:
            return [0, 0, onions, tomatoes, 0, int(codes.soup_of(code) is not None), *raw]
        mixture, steps = pot
        if steps is None:
            return [onions, tomatoes, 0, 0, 0, 0, *raw]
        return [0, 0, onions, tomatoes, codes.menu.times[mixture] - steps, int(codes.is_ready(code)), *raw]
