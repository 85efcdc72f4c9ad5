"""Pictures of a kitchen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from envs.kitchen import Kitchen
from envs.kitchen.rules.state import State
from envs.world import TensorEnv


@pytest.mark.parametrize("layout", ["cramped_room", "counter_circuit_tomato", "four_cooks"])
def test_a_frame_is_a_picture_of_the_first_row(layout: str) -> None:
    env = TensorEnv(Kitchen(layout, starts="random"), 3)
    env.reset(0)
    picture = env.frame()
    assert picture.shape == (400, 400, 3)
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_whatever_changes_shows() -> None:
    """Each part of the state changes the picture, in its own cell and near it."""
    kitchen = Kitchen("cramped_room", horizon=None)
    state, codes = kitchen.first(), kitchen.codes
    before = kitchen.frame(state).astype(int)
    three = kitchen.menu.mixtures.index((3,))
    changes: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
        "turned": ((2, 1), {"pose": state.pose + torch.tensor([[1, 0]])}),
        "held": ((2, 1), {"held": torch.tensor([[codes.dish, 0]])}),
        "cooking": ((0, 2), {"things": state.things + torch.tensor([[codes.pot(three, 5), 0, 0, 0, 0, 0]])}),
        "ready": ((0, 2), {"things": state.things + torch.tensor([[codes.pot(three, 20), 0, 0, 0, 0, 0]])}),
        "lying": (kitchen.geometry.counters[0], {"things": state.things + torch.tensor([[0, 1, 0, 0, 0, 0]])}),
    }
    seen = []
    for (row, column), change in changes.values():
        after = kitchen.frame(State(**{**state._asdict(), **change})).astype(int)
        seen.append(after.tobytes())
        differs = np.abs(after - before).sum(-1) > 30
        side, top = 80, 40  # five columns over 400 pixels, four rows in the middle
        assert differs.any()
        rows, columns = differs.nonzero()
        assert abs(rows - (top + side * (row + 0.5))).max() <= side
        assert abs(columns - side * (column + 0.5)).max() <= side
    assert len(set(seen)) == len(changes)
