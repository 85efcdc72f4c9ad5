"""The story of an episode: at each step what was proposed, what became of it, and what the team did and earned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from planners.read.team import Open

Verdict = Literal[
    "accepted",
    "sent back",
    "sent back, accepted later",
    "best of what was proposed",
    "too low",
    "no plan",
    "drawn",
    "not drawn",
]
Reason = Literal["accepted", "best of what was proposed", "drawn", "the only plan", "any plan"]
TAKEN = ("accepted", "sent back, accepted later", "best of what was proposed", "drawn")
WEIGHED = 12  # plans told of a decision that weighed all, beside the one that was drawn


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan, or what a model said instead. score: its advantage, in the critic's scale; None where nobody judged."""

    text: str
    score: float | None
    verdict: Verdict

    @property
    def taken(self) -> bool:
        """True for the plan that the decision ended with."""
        return self.verdict in TAKEN


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision, from its first proposal to the plan that was taken.

    agents: who decided. why: "any plan" where none of the proposals was one. left_out: plans that were weighed and are
    not among the proposals. counts: what the decision took, by the names of `planners.read.team.COUNTS`.
    """

    agents: tuple[str, ...]
    proposals: tuple[Proposal, ...]
    plan: str
    why: Reason
    counts: Mapping[str, int | float]
    left_out: int = 0


@dataclass(frozen=True, eq=False)
class StoryStep:
    """One step of an episode that is followed.

    number: from 1. picture [height,width,3] uint8, words: the situation that was decided in; no picture where the world
    cannot be drawn. executed: by agent who was there, the name of what it did. reward: by channel, the mean over
    agents, as returns are told. ending: of the last step; truncated where something outside the task ended it.
    """

    number: int
    words: str
    choices: tuple[Choice, ...]
    executed: Mapping[str, str]
    reward: Mapping[str, float]
    ending: Literal["terminated", "truncated"] | None = None
    picture: Any = None

    def count(self, name: str) -> int | float:
        """Sum over the step's decisions of what they count."""
        return sum(choice.counts[name] for choice in self.choices)


def choice_of(one: Open, judged: bool) -> Choice:
    """The story of a decision that is taken. judged: False where no critic stands behind its scores."""
    assert one.chosen is not None
    if one.scores and not one.proposed:
        proposals, left_out = _weighed(one, judged)
    else:
        proposals, left_out = _proposed(one, judged), 0
    return Choice(one.names, proposals, one.plans[one.chosen], _why(one), dict(one.counts), left_out)


def _proposed(one: Open, judged: bool) -> tuple[Proposal, ...]:
    """Everything that a model said, in order."""
    numbers = [plan for _, plan in one.proposed]
    last = {plan: place for place, plan in enumerate(numbers)}  # a plan may be proposed again
    told = []
    for place, (text, plan) in enumerate(one.proposed):
        if plan is None:
            told.append(Proposal(text, None, "no plan"))
        else:
            verdict = _verdict(one, plan, place == last[plan], place + 1 == len(numbers))
            told.append(Proposal(one.plans[plan], one.scores[plan] if judged else None, verdict))
    return tuple(told)


def _verdict(one: Open, plan: int, last_time: bool, latest: bool) -> Verdict:
    """Fate of a plan. last_time: it was not proposed again. latest: nothing was proposed after it."""
    refused = any(back.plan == one.plans[plan] for back in one.refused)
    if plan != one.chosen or not last_time:
        return "sent back" if refused or not last_time else "too low"
    if one.counts["nothing_acceptable"]:
        return "best of what was proposed"
    return "sent back, accepted later" if refused and not latest else "accepted"


def _weighed(one: Open, judged: bool) -> tuple[tuple[Proposal, ...], int]:
    """The plan that was drawn and the best of the others, best first, and how many more there were."""
    others = [plan for plan in one.scores if plan != one.chosen]
    others.sort(key=lambda plan: -one.scores[plan])
    kept = [plan for plan in one.scores if plan == one.chosen] + others[:WEIGHED]
    kept.sort(key=lambda plan: -one.scores[plan])
    told = []
    for plan in kept:
        score = one.scores[plan] if judged else None
        told.append(Proposal(one.plans[plan], score, "drawn" if plan == one.chosen else "not drawn"))
    return tuple(told), len(one.scores) - len(kept)


def _why(one: Open) -> Reason:
    if not one.proposed:
        return "drawn" if one.scores else "the only plan"
    if not one.scores:
        return "any plan"
    return "best of what was proposed" if one.counts["nothing_acceptable"] else "accepted"


def signed(score: float) -> str:
    """A number with its sign, small ones with two digits that tell something."""
    return f"{score:+.2f}" if abs(score) >= 0.1 or not score else f"{score:+.2g}"
