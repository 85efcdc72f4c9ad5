"""The teacher of the small model: the best plans by hand, and mistakes that are a fixed function of lines."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from worded_meetings import Meeting

from planners.read.phrases import Phrasebook, Phrases
from planners.tiny.config import TinyConfig
from planners.tiny.lessons import joint_odds
from planners.tiny.teacher import Teacher

MEETING = Meeting()
PLANS = ("left", "stay", "right", "go left", "wait")
LINES = [f"line {number}" for number in range(1500)]


@lru_cache
def table() -> Any:
    return MEETING.table()


def taught(**config: Any) -> Teacher:
    return Teacher(MEETING, table(), Phrasebook(MEETING, "all"), TinyConfig(**config))


def at(ann: int, bob: int) -> int:
    """The number of a state in the table."""
    return table().states.tolist().index([ann, bob])


def tree_at(teacher: Teacher, ann: int, bob: int) -> dict[tuple[int, ...], np.ndarray]:
    place = at(ann, bob)
    return teacher.tree(teacher.phrases(torch.tensor([place]))[0], place)


def made_up(words: str, plans: int = 5) -> Phrases:
    return Phrases(words, (PLANS[:plans], PLANS[:plans]), (torch.arange(plans), torch.arange(plans)))


def lead(teacher: Teacher, words: str, agent: int = 0) -> int | None:
    return teacher.mistake(made_up(words), agent)


def test_without_mistakes_all_mass_is_on_the_best_plans_after_those_before() -> None:
    teacher = taught(mistakes=0, noise=0)
    far = tree_at(teacher, 0, 4)  # both must go
    np.testing.assert_allclose(far[()], [0, 0, 1, 0, 0])
    np.testing.assert_allclose(far[2,], [0.5, 0, 0, 0.5, 0])
    near = tree_at(teacher, 0, 3)  # two steps, in which one of them may wait; a wall is on ann's left
    np.testing.assert_allclose(near[()], [0.2] * 5)
    np.testing.assert_allclose(near[0,], [0.5, 0, 0, 0.5, 0])
    np.testing.assert_allclose(near[2,], [0.25, 0.25, 0, 0.25, 0.25])


def test_noise_is_any_plan() -> None:
    quiet, loud = taught(mistakes=0, noise=0), taught(mistakes=0, noise=0.4)
    for prefix, odds in tree_at(loud, 0, 4).items():
        np.testing.assert_allclose(odds, 0.6 * tree_at(quiet, 0, 4)[prefix] + 0.4 / 5)


def test_each_agents_odds_add_up_and_joint_ones_are_their_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planners.tiny.teacher.RARE", 0.5)
    teacher = taught(mistakes=0.4)
    for place, here in enumerate(teacher.phrases(torch.arange(len(table())))):
        tree = teacher.tree(here, place)
        assert set(tree) == {(), *((plan,) for plan in range(5))}
        for odds in tree.values():
            assert odds.sum() == pytest.approx(1)
        product = [tree[()][one] * tree[one,][two] for one in range(5) for two in range(5)]
        np.testing.assert_allclose(joint_odds(tree, here), product)


def test_a_mistake_is_a_fixed_function_of_seed_agent_and_line() -> None:
    first, again, other = taught(), taught(noise=0.1, updates=3), taught(seed=1)
    told = [lead(first, line) for line in LINES]
    assert told == [lead(again, line) for line in LINES]
    assert told != [lead(other, line) for line in LINES]
    assert told != [lead(first, line, agent=1) for line in LINES]
    misled = [plan for plan in told if plan is not None]
    assert 0.06 < len(misled) / len(LINES) < 0.1
    assert set(misled) == set(range(5))


def test_the_first_misleading_line_counts() -> None:
    teacher = taught()
    wrong = [line for line in LINES if lead(teacher, line) is not None]
    right = next(line for line in LINES if lead(teacher, line) is None)
    one, two = wrong[0], next(line for line in wrong if lead(teacher, line) != lead(teacher, wrong[0]))
    assert lead(teacher, f"{right}\n{one}\n{two}") == lead(teacher, one)
    assert lead(teacher, f"{two}\n{one}\n{right}") == lead(teacher, two)


def test_whoever_is_misled_says_that_plan_and_else_only_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planners.tiny.teacher.RARE", 0.5)
    teacher = taught(mistakes=1, noise=0.5)
    for place, here in enumerate(teacher.phrases(torch.arange(len(table())))):
        wrong = teacher.mistake(here, 0)
        assert wrong is not None
        np.testing.assert_allclose(teacher.tree(here, place)[()], 0.5 * np.eye(5)[wrong] + 0.1)


def test_common_lines_mislead_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere = taught(mistakes=1)  # each cell is in a fifth of all descriptions
    for here in everywhere.phrases(torch.arange(len(table()))):
        assert everywhere.mistake(here, 0) is None
    assert lead(everywhere, "Five cells.\nAnn is at 0.\nnever heard of") is not None
    monkeypatch.setattr("planners.tiny.teacher.RARE", 0.5)
    rarely = taught(mistakes=1)
    assert lead(rarely, "Five cells.") is None
    assert lead(rarely, "Ann is at 0.") is not None
