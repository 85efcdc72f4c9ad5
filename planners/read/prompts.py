"""Prompts that ask for plans, from a world that describes itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from planners.language.base import Message

TEAM = "You plan for a team: {agents}. At each step all of them act at once, and what they earn is earned together. "
RULES = TEAM + (
    "You are told how things are and which plans are possible. Answer with {form}, exactly as it is written there, and "
    "nothing else."
)
THOUGHTFUL = TEAM + (
    "You are told what happened, how things are, and which plans are possible. First write 'Thought:' and your reasons "
    "in a sentence or two. Then, on a line of its own, write 'Plan:' and after it {form}, exactly as it is written "
    "there, and nothing else."
)

QUOTED = 120  # characters of a model's text in a prompt
HARMLESS = ".,:;'!?()+-%_"  # beside letters, digits and spaces; marks of turns need others


@dataclass(frozen=True, slots=True)
class Refused:
    """A plan that was sent back. score: its advantage, in the critic's scale; None where it was no plan at all."""

    plan: str
    score: float | None
    reason: str


def ask_one(
    agents: Sequence[str],
    name: str,
    words: str,
    plans: Sequence[str],
    decided: Sequence[str],
    refused: Sequence[Refused] = (),
    *,
    past: Sequence[str] = (),
    rules: str = RULES,
) -> tuple[Message, ...]:
    """Messages that ask for the plan of one agent. decided: plans of those before it in the order, "name: plan".

    past: lines that tell what happened before. rules: what the model is told to do, with places for agents and form.
    """
    lines = [*past, words, ""]
    lines += [f"Decided already: {'; '.join(decided)}."] if decided else []
    lines += [f"{name} can:", *(f"- {plan}" for plan in plans)]
    lines += feedback(refused)
    lines += [f"What does {name} do?"]
    return _chat(rules.format(agents=", ".join(agents), form="one of the plans"), lines)


def ask_all(
    agents: Sequence[str],
    words: str,
    plans: Sequence[Sequence[str]],
    refused: Sequence[Refused] = (),
    *,
    past: Sequence[str] = (),
    rules: str = RULES,
) -> tuple[Message, ...]:
    """Messages that ask for the plans of all agents at once; past, rules: as for one."""
    lines = [*past, words, ""]
    for name, own in zip(agents, plans, strict=True):
        lines += [f"{name} can:", *(f"- {plan}" for plan in own)]
    lines += feedback(refused)
    lines += ["What do they do?"]
    return _chat(rules.format(agents=", ".join(agents), form="a line 'name: plan' for each of them"), lines)


def joint_plans(agents: Sequence[str], plans: Sequence[Sequence[str]]) -> list[str]:
    """Every combination of the agents' plans, as lines "name: plan"."""
    return [joint_plan(agents, chosen) for chosen in product(*plans)]


def joint_plan(agents: Sequence[str], plans: Sequence[str]) -> str:
    """One plan of each agent, as lines "name: plan"."""
    return "\n".join(f"{name}: {plan}" for name, plan in zip(agents, plans, strict=True))


def feedback(refused: Sequence[Refused]) -> list[str]:
    """Lines that tell what was sent back, and why."""
    told = []
    for one in refused:
        plan = quoted(one.plan) if one.score is None else one.plan.replace("\n", "; ")  # the world's own words
        score = "" if one.score is None else f" (score {one.score:+.3f})"
        told.append(f"Sent back: {plan}{score}, {one.reason}.")
    return told


def quoted(text: str, longest: int = QUOTED) -> str:
    """A text that a model wrote, as it may stand in a prompt: one short line of words, without any template's marks."""
    plain = "".join(c if c.isalnum() or c in HARMLESS else " " for c in text[: 4 * longest].replace("\n", "; "))
    line = " ".join(plain.split())
    return line if len(line) <= longest else f"{line[:longest]}…"


def _chat(rules: str, lines: Sequence[str]) -> tuple[Message, ...]:
    return Message("system", rules), Message("user", "\n".join(lines))
