"""A kitchen as a picture: tiles, what lies and cooks on them, and the cooks with what they hold."""

from __future__ import annotations

from typing import Any

from envs.kitchen.rules.codes import Codes
from envs.kitchen.rules.geometry import Geometry, beside
from envs.kitchen.rules.layout import Cell
from envs.kitchen.rules.state import State

COUNTER, FLOOR = "#c9a77c", "#f3ece0"
TILES = {"P": "#5f6368", "S": "#8fbf8f", "R": "#b9a8d8", " ": FLOOR}
NAMES = {"S": "serve", "R": "menu"}
FOODS = {"onion": "#e8c34a", "tomato": "#d2452d"}
COOKS = ("#2b6cb0", "#2f855a", "#b83280", "#dd6b20")
SIDE = 400  # pixels
FINER = 2  # drawn so many times as large, for smooth edges

Place = tuple[int | float, int | float]  # row, column


class Canvas:
    """Shapes in units of cells. Pillow draws a frame in a few milliseconds, matplotlib in a hundred."""

    def __init__(self, height: int, width: int):
        from PIL import Image, ImageDraw

        self.unit = FINER * SIDE // max(height, width)
        self._image = Image.new("RGB", (FINER * SIDE, FINER * SIDE), "white")
        self._draw = ImageDraw.Draw(self._image)
        self._top = (FINER * SIDE - self.unit * height) // 2
        self._left = (FINER * SIDE - self.unit * width) // 2

    def tile(self, cell: Cell, color: str) -> None:
        """A cell's square."""
        x, y = self._left + cell[1] * self.unit, self._top + cell[0] * self.unit
        self._draw.rectangle((x, y, x + self.unit, y + self.unit), fill=color, outline="white", width=FINER)

    def disc(self, at: Place, radius: float, color: str) -> None:
        """A disc around a place."""
        self._draw.ellipse(self._box(at, radius), fill=color, outline="black", width=FINER)

    def arc(self, at: Place, radius: float, share: int | float, color: str) -> None:
        """Part of a ring, from the top clockwise."""
        self._draw.arc(self._box(at, radius), -90, -90 + 360 * share, fill=color, width=self.unit // 12)

    def text(self, at: Place, text: str, color: str = "black") -> None:
        """A text in the middle of a place."""
        x, y = self._point(at)
        self._draw.text((x, y), text, fill=color, anchor="mm", font_size=self.unit // 5)

    def pixels(self) -> Any:
        """The drawing, [400,400,3] uint8."""
        import numpy as np

        return np.asarray(self._image.resize((SIDE, SIDE)))

    def _point(self, at: Place) -> tuple[float, float]:
        return self._left + (at[1] + 0.5) * self.unit, self._top + (at[0] + 0.5) * self.unit

    def _box(self, at: Place, radius: float) -> tuple[float, float, float, float]:
        x, y = self._point(at)
        reach = radius * self.unit
        return x - reach, y - reach, x + reach, y + reach


def draw(geometry: Geometry, codes: Codes, state: State) -> Any:
    """The picture of one row, [400,400,3] uint8."""
    canvas = Canvas(geometry.height, geometry.width)
    for row, tiles in enumerate(geometry.layout.rows):
        for column, tile in enumerate(tiles):
            _draw_tile(canvas, codes, (row, column), tile)
    for cell, code in zip(geometry.slots, state.things[0].tolist()):
        if cell in geometry.pots:
            _draw_pot(canvas, codes, cell, code)
        else:
            _draw_thing(canvas, codes, cell, code, 0.3)
    for cook, (pose, held) in enumerate(zip(state.pose[0].tolist(), state.held[0].tolist())):
        cell, way = geometry.poses[pose]
        _draw_cook(canvas, codes, cook, cell, way, held)
    return canvas.pixels()


def _draw_tile(canvas: Canvas, codes: Codes, cell: Cell, tile: str) -> None:
    canvas.tile(cell, TILES.get(tile, COUNTER))
    row, column = cell
    if tile == "D":
        _draw_thing(canvas, codes, cell, codes.dish, 0.34)
    elif tile in "OT":
        for across, down in ((-0.18, 0.12), (0.18, 0.12), (0.0, -0.14)):
            canvas.disc((row + down, column + across), 0.18, FOODS["onion" if tile == "O" else "tomato"])
    elif tile in NAMES:
        canvas.text(cell, NAMES[tile])


def _draw_pot(canvas: Canvas, codes: Codes, cell: Cell, code: int) -> None:
    """The pot, what is in it, and as an arc how far the soup is; a full ring when it is ready."""
    canvas.disc(cell, 0.42, "#2d2f31")
    pot = codes.in_pot(code)
    if pot is None:
        return
    mixture, steps = pot
    _draw_soup(canvas, codes, cell, code, 0.3)
    if steps is not None:
        share = steps / codes.menu.times[mixture]
        canvas.arc(cell, 0.45, share, "#38a169" if share == 1 else "#ed8936")


def _draw_soup(canvas: Canvas, codes: Codes, at: Place, code: int, radius: float) -> None:
    counts = zip(codes.menu.ingredients, codes.mixture_of(code))
    foods = [food for food, number in counts for _ in range(number)]
    size = radius / max(3, len(foods))
    for place, food in enumerate(foods):
        across = (2 * place - len(foods) + 1) * size
        canvas.disc((at[0], at[1] + across), size, FOODS[food])


def _draw_thing(canvas: Canvas, codes: Codes, at: Place, code: int, radius: float) -> None:
    """A thing on a counter or in a hand."""
    if codes.is_food(code):
        canvas.disc(at, 0.7 * radius, FOODS[codes.menu.ingredients[code - codes.food(0)]])
    elif code:
        canvas.disc(at, radius, "white")
        _draw_soup(canvas, codes, at, code, radius)


def _draw_cook(canvas: Canvas, codes: Codes, cook: int, cell: Cell, way: int, held: int) -> None:
    """A disc with its number, a nose where it faces, and what it holds before it."""
    row, column = cell
    ahead = beside(cell, way)
    down, right = ahead[0] - row, ahead[1] - column
    canvas.disc((row + 0.33 * down, column + 0.33 * right), 0.1, COOKS[cook])
    canvas.disc(cell, 0.3, COOKS[cook])
    canvas.text((row - 0.15 * down, column - 0.15 * right), str(cook), "white")
    _draw_thing(canvas, codes, (row + 0.24 * down, column + 0.24 * right), held, 0.17)
