"""Lessons of the small model: prompts as planners write them, and odds of what may be said."""

from __future__ import annotations

import re
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from worded_meetings import Meeting

from envs.core import Observation, Streams
from planners.language.backends.scripted import Scripted
from planners.language.base import Message, Query
from planners.read.phrases import Phrasebook
from planners.read.planner import PlannerConfig, ReadPlanner
from planners.tiny.config import TinyConfig
from planners.tiny.lessons import LIMIT, Lesson, Lessons
from planners.tiny.teacher import Teacher

MEETING = Meeting()
TABLE = MEETING.table()
PLANS = ("left", "stay", "right", "go left", "wait")
SCORE = re.compile(r"score [+-]\d+\.\d{3}")


class Refuses:
    """A critic to which nothing is good."""

    scale = 1.0
    needs_behavior = False

    def values(self, obs: Observation, action: Tensor, given: Tensor, behavior: Any = None) -> Tensor:
        return -given.double().sum(-1)


def lessons(count: int, seed: int = 0, **config: Any) -> list[Lesson]:
    teacher = Teacher(MEETING, TABLE, Phrasebook(MEETING, "all"), TinyConfig(**config))
    return list(islice(iter(Lessons(teacher, seed)), count))


def sent_back(lesson: Lesson) -> list[str]:
    return re.findall(r"Sent back: (.*?) \(score", lesson.messages[-1].content)


def without_scores(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(Message(each.role, SCORE.sub("score", each.content)) for each in messages)


def asked_by_a_planner(mode: str, critic: Any = None) -> set[tuple[Message, ...]]:
    """Prompts in all states, after all that may be said or, with a critic, sent back before."""
    asked: set[tuple[Message, ...]] = set()
    for plan in range(5):

        def say(query: Query, number: int, plan: int = plan) -> str:
            asked.add(without_scores(query.messages))
            return query.choices[plan % len(query.choices)]

        config = PlannerConfig(mode=mode, rounds=2, repeats=True)
        planner = ReadPlanner(MEETING, Scripted(say, "test"), critic, config)
        planner.act(MEETING.observe(TABLE.states), None, Streams([0]))
    return asked


def met_by_a_planner(lesson: Lesson) -> bool:
    """True for what the planner above meets: one of the first five plans, the same for both walkers."""
    decided = re.findall(r"Decided already: ann: (.*?)\.", lesson.messages[-1].content)
    first = [plan.replace("\n", "; ") for plan in lesson.choices[:5]]
    return sent_back(lesson)[0] in first and decided in ([], sent_back(lesson))


@pytest.mark.parametrize("critic", [None, Refuses()], ids=["first", "sent back once"])
def test_prompts_are_those_of_planners_letter_by_letter(critic: Any) -> None:
    asked = asked_by_a_planner("sequential", critic) | asked_by_a_planner("joint", critic)
    wanted = 0 if critic is None else 1
    alike = [lesson for lesson in lessons(900, noise=1) if len(sent_back(lesson)) == wanted]
    if critic is not None:
        alike = [lesson for lesson in alike if met_by_a_planner(lesson)]
    assert {lesson.messages[-1].content.split()[-2] for lesson in alike} == {"ann", "bob", "they"}
    for lesson in alike:
        assert without_scores(lesson.messages) in asked


def test_each_situation_has_a_lesson_for_each_agent_and_one_for_all() -> None:
    taught = lessons(30)
    questions = [lesson.messages[-1].content.rsplit("\n", 1)[1] for lesson in taught]
    assert questions == ["What does ann do?", "What does bob do?", "What do they do?"] * 10
    assert [len(lesson.choices) for lesson in taught] == [5, 5, 25] * 10
    for lesson in taught:
        assert lesson.odds.sum() == pytest.approx(1)


def test_bob_is_told_what_ann_was_taught_to_say() -> None:
    taught = lessons(300, mistakes=0, noise=0)
    for ann, bob in zip(taught[::3], taught[1::3]):
        (decided,) = re.findall(r"Decided already: ann: (.*?)\.", bob.messages[-1].content)
        likely = {plan for plan, odds in zip(ann.choices, ann.odds) if odds > 0} | set(sent_back(ann))
        assert decided in likely


def test_what_was_sent_back_is_said_no_more() -> None:
    taught = lessons(900)
    told = 0
    for lesson in taught:
        back = [plan.replace("; ", "\n") for plan in sent_back(lesson)]
        told += bool(back)
        assert len(set(back)) == len(back) <= 3
        for plan in back:
            assert lesson.odds[lesson.choices.index(plan)] == 0
        assert lesson.odds.sum() == pytest.approx(1)
    assert 0.23 < told / len(taught) < 0.37


def test_nothing_is_sent_back_where_nothing_would_be_left() -> None:
    for lesson in lessons(300, mistakes=1, noise=0):
        assert np.count_nonzero(lesson.odds) > 0


def test_equal_seeds_give_equal_lessons() -> None:
    def plain(seed: int) -> list[Any]:
        return [(each.messages, each.choices, each.odds.tolist()) for each in lessons(120, seed)]

    first = plain(0)
    assert first == plain(0)
    assert first != plain(1)


def test_large_teams_have_no_lessons_for_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planners.tiny.lessons.MOST_TOGETHER", 24)
    assert {len(lesson.choices) for lesson in lessons(300)} == {5}


def test_games_go_on_as_played_and_begin_anew_when_they_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planners.tiny.lessons.ROWS", 64)
    taught = lessons(3 * 64 * 5, mistakes=0, noise=0)
    words = [lesson.messages[-1].content for lesson in taught[::3]]
    shown = [tuple(int(place) for place in re.findall(r"is at (\d)", text)) for text in words]
    assert set(shown) == {tuple(place) for place in TABLE.states.tolist()}
    gaps = [abs(ann - bob) for ann, bob in shown]
    far = [(before, after) for before, after in zip(gaps, gaps[64:]) if before > 2]  # not over after a step
    nearer = sum(after < before for before, after in far)
    assert 0.9 * len(far) < nearer < len(far)  # a few are old, and begin anew


def test_a_game_that_begins_anew_is_as_young_as_any_other() -> None:
    teacher = Teacher(MEETING, TABLE, Phrasebook(MEETING, "all"), TinyConfig())
    age = np.array([LIMIT - 1, 0])
    stay = torch.ones(2, 2, dtype=torch.int64)
    Lessons(teacher, 0)._next(torch.zeros(2, dtype=torch.int64), stay, age)
    assert age.tolist() == [0, 1]
