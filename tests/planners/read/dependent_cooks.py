"""Two cooks of whom the second follows the first, by probabilities that are known."""

from __future__ import annotations

import math

import torch

from envs.kitchen import Kitchen
from planners.language.base import Query

KITCHEN = Kitchen("cramped_room_small", horizon=None, soups=1, counter_items=0)
STEPS = KITCHEN.choices
FIRST = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], dtype=torch.float64)
SECOND = (torch.eye(6, dtype=torch.float64) + 0.1 * torch.arange(1, 7)).softmax(-1)  # by the first one's choice


def log_prob(query: Query, text: str) -> float:
    """Of one cook's step, given the other's; of lines of both, of their product."""
    asked = query.messages[-1].content
    if asked.endswith("do they do?"):
        one, two = (STEPS.index(line.split(": ")[1]) for line in text.split("\n"))
        return math.log(FIRST[one] * SECOND[one, two])
    if "Decided already: cook_0: " not in asked:
        return math.log(FIRST[STEPS.index(text)])
    decided = asked.split("Decided already: cook_0: ")[1].split(".")[0]
    return math.log(SECOND[STEPS.index(decided), STEPS.index(text)])
