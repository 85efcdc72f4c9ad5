"""States of kitchens for tests."""

from __future__ import annotations

from typing import Any

import torch

from envs.kitchen import Kitchen, State


def drawn(kitchen: Kitchen, rows: int, seed: int = 0) -> State:
    """Any legal states."""
    return kitchen.initial(kitchen.initial_noise(rows, torch.Generator().manual_seed(seed)))


def named(kitchen: Kitchen, **changes: Any) -> State:
    """The layout's start with changed fields: pose by (cell, direction), held by cook, things by cell, order."""
    rows = kitchen.initial_noise(1, torch.Generator().manual_seed(0))
    state = kitchen.initial(rows)
    for cook, (cell, way) in enumerate(changes.get("pose", ())):
        state.pose[0, cook] = 4 * kitchen.geometry.floor_number[cell] + way
    for cook, code in enumerate(changes.get("held", ())):
        state.held[0, cook] = code
    for cell, code in changes.get("things", {}).items():
        state.things[0, kitchen.geometry.slot[cell]] = code
    return state._replace(order=torch.tensor([changes.get("order", 0)]))
