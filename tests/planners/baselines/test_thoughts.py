"""Thoughts and plans in what a model writes."""

from __future__ import annotations

import pytest

from planners.read.thoughts import read_thought


@pytest.mark.parametrize(
    ("text", "thought", "plan"),
    [
        ("Thought: The pot is near.\nPlan: north", "The pot is near.", "north"),
        ("The pot is near.\nSo I go.\n\nplan:\nnorth\n", "The pot is near.\nSo I go.", "north"),
        ("**Thought:** near\n**Plan:** north", "near", "** north"),
        ("Thought: near.\nAction: north\nObservation: done\nPlan: south", "near.", "north"),
        ("Plan: north", "", "north"),
        ("I think so.\nnorth", "I think so.", "north"),
        ("north", "", "north"),
        ("Plan:\n```\nnorth\n```", "", "north"),
        ("My plan: go north\nPlan: south", "My plan: go north", "south"),
        ("", "", ""),
        ("Plan:", "", ""),
    ],
)
def test_a_plan_is_what_follows_its_mark(text: str, thought: str, plan: str) -> None:
    told = read_thought(text, 1)
    assert (told.thought, told.plan.strip()) == (thought, plan)


def test_a_plan_of_several_agents_has_as_many_lines() -> None:
    lines = "ann: left\nbob: right"
    assert read_thought(f"Thought: away.\nPlan:\n{lines}\nbob: stay", 2).plan == lines
    assert read_thought(f"Plan: {lines}", 2).plan.strip() == lines
    assert read_thought(f"Away.\n{lines}", 2) == ("Away.", lines)
