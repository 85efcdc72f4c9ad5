"""An episode on the console while it is played: a line a step."""

from __future__ import annotations

from marl.output.console import console
from planners.episode.story import Choice, Proposal, StoryStep, signed
from planners.read.prompts import quoted

LATEST = 3  # proposals of a decision on a line


def print_step(step: StoryStep) -> None:
    """Print a step of the episode that a `Witness` follows, as its `tell`."""
    console.print(line_of(step), markup=False, emoji=False)


def line_of(step: StoryStep) -> str:
    """One step on one line, in which a model's text is words alone.

    1  cook_0 interact -0.12 sent back, north +0.31 accepted; cook_1 stay, the only plan → cook_0 north, cook_1 stay
    """
    decided = "; ".join(_choice(choice) for choice in step.choices)
    executed = ", ".join(f"{quoted(agent)} {quoted(plan)}" for agent, plan in step.executed.items())
    earned = "".join(f", {quoted(name)} {reward:+.3g}" for name, reward in step.reward.items() if reward)
    ending = f", {step.ending}" if step.ending else ""
    return f"{step.number:3d}  {decided} → {executed}{earned}{ending}"


def _choice(choice: Choice) -> str:
    who = ", ".join(quoted(agent) for agent in choice.agents)
    shown = choice.proposals[-LATEST:]
    if choice.why == "drawn":
        shown = tuple(one for one in choice.proposals if one.taken)
    earlier = len(choice.proposals) - len(shown) + choice.left_out
    told = [f"({earlier} more)"] if earlier else []
    told += [_proposal(one) for one in shown]
    if not any(one.taken for one in shown):
        told += [f"{quoted(choice.plan)}, {choice.why}"]
    return f"{who} {', '.join(told)}"


def _proposal(one: Proposal) -> str:
    score = "" if one.score is None else f" {signed(one.score)}"
    return f"{quoted(one.text)}{score} {one.verdict}"
