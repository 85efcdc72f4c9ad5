"""A thought and a plan, taken apart."""

from __future__ import annotations

import re
from typing import NamedTuple

PLAN = re.compile(r"^[^\w\n]*(?:plan|action)[^\w\n]*:", re.IGNORECASE | re.MULTILINE)
THOUGHT = re.compile(r"^[^\w\n]*thought[^\w\n]*:[*_\s]*", re.IGNORECASE | re.MULTILINE)


class Thought(NamedTuple):
    """Text of a model in two parts: its reasons, and its plan."""

    thought: str
    plan: str


def read_thought(text: str, lines: int) -> Thought:
    """A text's thought and its plan of so many lines.

    The plan are the lines after the first mark "Plan:" (or "Action:"); what is written after them, such as steps that
    the model imagines, does not count. Without a mark, the last lines are the plan.
    """
    mark = PLAN.search(text)
    if mark is None:
        told = _lines(text)
        before, plan = told[:-lines], told[-lines:]
        return Thought(_unmarked("\n".join(before)), "\n".join(plan))
    after = _lines(text[mark.end() :])
    return Thought(_unmarked(text[: mark.start()]), "\n".join(after[:lines]))


def _lines(text: str) -> list[str]:
    """Lines in which something stands, without fences."""
    return [line for line in text.splitlines() if re.search(r"\w", line) and not line.strip().startswith("```")]


def _unmarked(text: str) -> str:
    return THOUGHT.sub("", text, count=1).strip()
