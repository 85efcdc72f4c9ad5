"""The world that docs/planning.md shows as a task of one's own, for tests of those who plan in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from envs.world import Transition

PAGE = (Path(__file__).parents[1] / "docs" / "planning.md").read_text()


def meeting() -> Any:
    """The class that the page defines: eight steps, two walkers."""
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Meeting" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["Meeting"]


class Parting(meeting()):  # type: ignore[misc]
    """A meeting that ends when both have met, or stand at the ends."""

    def transition(self, state: Tensor, action: Tensor, noise: Any) -> Transition:
        then = super().transition(state, action, noise)
        distance = (then.state[:, 0] - then.state[:, 1]).abs()
        over = (distance == 0) | (distance == 4)
        return then._replace(terminated=over.unsqueeze(-1).expand(-1, 2))
