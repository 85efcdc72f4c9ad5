"""Layouts as text, and what is said of those that are no kitchen."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from envs.core import InputError
from envs.kitchen import Kitchen, layout_names
from envs.kitchen.rules.layout import read_layout

SMALL = """
XXPXX
O1 2D
XXSXX
"""


def test_a_text_is_a_layout() -> None:
    layout = read_layout(SMALL)
    assert layout.starts == ((1, 1), (1, 3))
    assert layout.cells(" ") == [(1, 1), (1, 2), (1, 3)]
    assert [layout.tile(cell) for cell in ((0, 2), (1, 0), (1, 4), (2, 2))] == list("PODS")
    assert layout.regions == [{(1, 1), (1, 2), (1, 3)}] * 2


@pytest.mark.parametrize("name", layout_names())
def test_every_layout_that_comes_along_is_a_kitchen(name: str) -> None:
    kitchen = Kitchen(name)
    assert len(kitchen.spec.agents) in (2, 4)
    assert kitchen.geometry.counters, "something can lie down"


def test_cooks_in_two_rooms_share_counters() -> None:
    layout = read_layout("forced_coordination")
    first, second = layout.regions
    assert not first & second
    assert len(layout.teams()) == 1
    assert len(layout.teams(over="")) == 2


BAD = {
    "no pot": ("XXXXX\nO1 2D\nXXSXX", r"no pot: write P.*counter at row 0, column 1"),
    "no dish": ("XXPXX\nO1 2X\nXXSXX", r"no dish dispenser: write D"),
    "no desk": ("XXPXX\nO1 2D\nXXXXX", r"no serving desk: write S"),
    "no food": ("XXPXX\nX1 2D\nXXSXX", r"no dispenser of food: write O or T"),
    "unreachable": ("XXPXXX\nO1 2DX\nXXSXXO", r"onion dispenser at row 2, column 5.*nearest.*row 1, column 4"),
    "ragged": ("XXPXX\nO1 2DX\nXXSXX", r"Row 1 .* has 6 tiles and row 0 has 5: from column 5"),
    "short row": ("XXPXX\nO1 2\nXXSXX", r"Row 1 .* has 4 tiles"),
    "lower case": ("XXpXX\nO1 2D\nXXSXX", r"Unknown tile 'p' at row 0, column 2.*Did you mean 'P'"),
    "zero for O": ("XXPXX\n01 2D\nXXSXX", r"'0' at row 1, column 0.*Did you mean 'O'"),
    "no cook": ("XXPXX\nO   D\nXXSXX", r"cooks none; expected two to 4.*Write 1 .* row 1, column 1"),
    "one cook": ("XXPXX\nO1  D\nXXSXX", r"cooks 1; expected two.*Write 2 where.*row 1, column 2"),
    "twice": ("XXPXX\nO1 1D\nXXSXX", r"Cook 1 starts twice.*row 1, column 1 and at row 1, column 3"),
    "a gap": ("XXPXX\nO1 3D\nXXSXX", r"cooks 1, 3; expected.*Write 2"),
    "five": ("XXPXXXX\nO12345D\nXXSXXXX", r"Unknown tile '5'"),
    "open": ("XXPXX\nO1 2 \nXXSXX", r"open at row 1, column 4"),
    "cook in the wall": ("XXPX1\nO  2D\nXXSXX", r"open at row 0, column 4"),
    "cut off": ("XPXXSXX\nO1XX2DX\nXXXXXXX", r"Nobody can cook and serve.*row 1, column 1 reaches onion"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_kitchen_is_refused_with_its_place(case: str) -> None:
    text, message = BAD[case]
    with pytest.raises(InputError, match=message):
        Kitchen(text)


OPTIONS = {
    "layout": ({"layout": "cramped_rom"}, "Did you mean cramped_room"),
    "onions": ({"recipe": {"orders": [""]}}, "at least one ingredient"),
    "no order": ({"recipe": {"orders": []}}, "orders is empty"),
    "cook time 0": ({"recipe": {"cook_time": 0}}, "at least 1; got cook_time=0"),
    "half a step": ({"recipe": {"cook_time": 1.5}}, "whole number"),
    "too much": ({"recipe": {"orders": ["onion onion onion onion"]}}, "no pot can hold it.*capacity=4"),
    "capacity 0": ({"recipe": {"capacity": 0}}, "at least 1 ingredient"),
    "no tomatoes": ({"recipe": {"orders": ["tomato onion"]}}, "no tomato dispenser.*write T.*row 0, column 1"),
    "a typo": ({"recipe": {"orders": ["onin"]}}, "Unknown ingredient 'onin'.*Did you mean onion"),
    "twice": ({"recipe": {"orders": ["onion", "onion"]}}, "stands twice"),
    "bonus": ({"recipe": {"bonus": ["onion"]}}, "none of the orders"),
    "by ingredient": ({"recipe": {"value": {"tomato": 3}}}, "one number for each of onion"),
    "by order": ({"recipe": {"value": [1, 2]}}, "needs 1 numbers"),
    "key": ({"recipe": {"order": ["onion"]}}, "env.args.recipe.order.*Did you mean env.args.recipe.orders"),
    "radius": ({"radius": 0}, "radius is a whole number of at least 1"),
    "radius of planes": ({"radius": 2, "view": "planes"}, "narrows the view 'features'"),
    "view": ({"view": "feature"}, "Did you mean 'features'"),
    "starts": ({"starts": "rand"}, "Did you mean 'random'"),
    "horizon": ({"horizon": 0}, "horizon is a whole number"),
    "soups": ({"soups": 0}, "soups is a whole number"),
    "counters": ({"counter_items": -1}, "counter_items is a whole number"),
    "shaping": ({"shaping": {"poting": 1}}, "Did you mean 'potting'"),
    "four cooks": ({"layout": "four_cooks", "view": "overcooked"}, "for 2 cooks; this layout has 4"),
    "four cooks' planes": ({"layout": "four_cooks", "view": "planes"}, "for 2 cooks; this layout has 4"),
    "worthless": ({"recipe": {"value": 0}}, "worth more than 0"),
    "worth nan": ({"recipe": {"value": float("nan")}}, "worth more than 0"),
    "cook time inf": ({"recipe": {"cook_time": float("inf")}}, "whole number of steps"),
    "shaping inf": ({"shaping": {"dish": float("inf")}}, "finite number"),
    "small orders start no pot": ({"old_dynamics": True, "recipe": {"orders": ["onion"]}}, "only when it is full"),
    "nothing can be passed": ({"layout": "forced_coordination", "counter_items": 0}, "counter_items=0 nobody can"),
    "a food in another room": (
        {"layout": "XXPXXXXXX\nO1 DXX2 T\nXXSXXXXXX", "recipe": {"orders": ["tomato"]}},
        "Nobody can cook tomato",
    ),
    "too large": ({"recipe": {"capacity": 60, "cook_time": 300}}, "are the most; lower capacity"),
    "planes of long cooking": ({"view": "planes", "recipe": {"cook_time": 300}}, "at most 255"),
    "no board": ({"recipe": {"orders": ["onion", "onion onion"], "one_an_episode": True}}, "recipe board.*write R"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_make_no_kitchen_are_refused(case: str) -> None:
    options, message = OPTIONS[case]
    with pytest.raises(InputError, match=message):
        Kitchen(**options)  # type: ignore[arg-type]


# Of other types than annotated: in a program of its own, for here annotations are checked first.
TYPES: dict[str, tuple[dict[str, Any], str]] = {
    "horizon as text": ({"horizon": "400"}, "whole number of at least 1, or null for none; got horizon='400'"),
    "half a soup": ({"soups": 1.5}, "whole number"),
    "dynamics as text": ({"old_dynamics": "no"}, "true or false; got 'no'"),
    "one order as text": ({"recipe": {"orders": "onion onion"}}, "list of texts"),
    "orders of numbers": ({"recipe": {"orders": [3]}}, "list of texts"),
    "capacity as text": ({"recipe": {"capacity": "3"}}, "capacity is a whole number"),
    "value as text": ({"recipe": {"value": "20"}}, "value is a number"),
    "recipe as list": ({"recipe": ["onion"]}, "section of keys"),
    "rows as list": ({"layout": ["XX", "XX"]}, "A layout is a name, or text"),
    "true for 1": ({"radius": True}, "whole number"),
}
PROGRAM = """
import json, sys
from envs.core import InputError
from envs.kitchen import Kitchen
for options in json.load(sys.stdin):
    try:
        Kitchen(**options)
        print("accepted")
    except InputError as error:
        print(str(error))
"""


def test_options_of_another_type_are_refused() -> None:
    given = json.dumps([options for options, _ in TYPES.values()])
    answer = subprocess.run([sys.executable, "-c", PROGRAM], input=given, capture_output=True, text=True, check=True)
    for line, (_, message) in zip(answer.stdout.splitlines(), TYPES.values(), strict=True):
        assert re.search(message, line), line


def test_rooms_that_share_a_pot_are_one_kitchen() -> None:
    kitchen = Kitchen("XXXXX\nO1P2D\nXXXSX", recipe={"capacity": 1, "cook_time": 1}, horizon=None)
    assert len(kitchen.fewest_steps(8)) == 8


def test_a_horizon_that_is_just_long_enough_is_not_warned_of() -> None:
    text = "XOXXXXXX\nX1   P X\nX    2 S\nXXXXXDXX"
    assert len(Kitchen(text, recipe={"capacity": 1, "cook_time": 5}, horizon=None).fewest_steps(12)) == 12
    Kitchen(text, recipe={"capacity": 1, "cook_time": 5}, horizon=12)


def test_more_steps_than_the_horizon_has_are_told() -> None:
    with pytest.warns(UserWarning, match="at least 26 steps.*horizon of 20"):
        Kitchen("cramped_room", horizon=20)
