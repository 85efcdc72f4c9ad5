"""A row's episode in words: what was thought, done and earned at its latest steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from planners.read.prompts import quoted
from planners.read.team import Open
from planners.read.thoughts import read_thought

THOUGHT = 240  # characters of a thought in later prompts


@dataclass
class Noted:
    """One step. done: what each decision was. earned: by channel, the mean over agents; None where nobody told."""

    number: int
    done: tuple[str, ...]
    earned: Mapping[str, float] | None = None

    def line(self) -> str:
        """The step in one line."""
        earned = "" if self.earned is None else f" {_earned(self.earned)}"
        return f"Step {self.number}. {' '.join(self.done)}{earned}"


@dataclass
class Diary:
    """An episode so far.

    steps: its latest. count: of all steps. earned: by channel, all of it that was told. seed: of its latest decision.
    """

    steps: deque[Noted]
    count: int = 0
    earned: dict[str, int | float] = field(default_factory=dict)
    seed: int = 0

    def note(self, decisions: Sequence[Open]) -> None:
        """One more step, of which these were the decisions."""
        self.count, self.seed = self.count + 1, decisions[0].seed
        self.steps.append(Noted(self.count, tuple(_told(one) for one in decisions)))

    def hear(self, earned: Mapping[str, float]) -> None:
        """Note of the latest step's earnings."""
        for channel, reward in earned.items():
            self.earned[channel] = self.earned.get(channel, 0.0) + reward
        if self.steps:
            self.steps[-1].earned = earned

    def lines(self) -> list[str]:
        """The latest steps, a line each."""
        return [noted.line() for noted in self.steps]

    def outcome(self) -> str:
        """Sentences that tell the episode's length and earnings."""
        earned = f" {_earned(self.earned)}" if self.earned else ""
        return f"The episode took {self.count} steps.{earned}"


def _told(one: Open) -> str:
    """A decision, and the thought that stood before its plan."""
    assert one.chosen is not None
    plan = one.plans[one.chosen].replace("\n", "; ")
    said = f"{one.names[0]}: {plan}" if len(one.own) == 1 and plan in one.own[0] else plan
    text, number = one.proposed[-1] if one.proposed else ("", None)
    thought = quoted(read_thought(text, len(one.names)).thought, THOUGHT) if number is not None else ""
    return f"{said} (thought: {thought})." if thought else f"{said}."


def _earned(earned: Mapping[str, float]) -> str:
    parts = [f"{channel} {reward:.3g}" for channel, reward in earned.items()]
    return f"Earned: {', '.join(parts)}."
