"""An episode on the console: a line a step, in which a model's text is words alone."""

from __future__ import annotations

import pytest

from planners.episode.live import line_of, print_step
from planners.episode.story import Choice, Proposal, Reason, StoryStep
from planners.read.team import COUNTS


def step_of(*proposals: Proposal, plan: str = "north", why: Reason = "accepted", left_out: int = 0) -> StoryStep:
    choice = Choice(("cook_0",), proposals, plan, why, dict.fromkeys(COUNTS, 0), left_out)
    return StoryStep(7, "Here.", (choice,), {"cook_0": plan}, {"soup": 20.0, "shaping": 0.0}, "terminated")


def test_a_line_tells_proposals_what_was_executed_and_what_it_earned() -> None:
    back, taken = Proposal("interact", -0.12, "sent back"), Proposal("north", 0.31, "accepted")
    told = "interact -0.12 sent back, north +0.31 accepted → cook_0 north, soup +20, terminated"
    assert line_of(step_of(back, taken)) == f"  7  cook_0 {told}"
    assert line_of(step_of(back, back, back, back, taken)).startswith(
        "  7  cook_0 (2 more), interact -0.12 sent back, "
    )


def test_plans_that_nobody_proposed_or_that_were_drawn_show_once() -> None:
    assert line_of(step_of(why="the only plan")).startswith("  7  cook_0 north, the only plan → cook_0 north")
    nothing = Proposal("?", None, "no plan")
    assert line_of(step_of(nothing, why="any plan")).startswith("  7  cook_0 ? no plan, north, any plan →")
    rest = [Proposal(str(n), 0.2, "not drawn") for n in range(12)]
    drawn = step_of(*rest, Proposal("north", 0.1, "drawn"), why="drawn", left_out=3)
    assert line_of(drawn).startswith("  7  cook_0 (15 more), north +0.10 drawn →")
    best = Proposal("north", -0.2, "best of what was proposed")
    assert line_of(step_of(best, why="best of what was proposed")).startswith(
        "  7  cook_0 north -0.20 best of what was proposed →"
    )


def test_what_a_model_writes_is_neither_markup_nor_commands_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "[red]hi[/red] [/] :smile: \x1b]0;title\x07\x1b[31m\r\n\u202eback [link=x]" + "y" * 100_000
    print_step(step_of(Proposal(evil, None, "no plan"), why="any plan", plan="go [bold]"))
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    assert len(shown) < 300
    assert ":smile:" in shown
    assert not set("[]\x1b\x07\r\u202e") & set(shown)
    assert "red hi" in shown
