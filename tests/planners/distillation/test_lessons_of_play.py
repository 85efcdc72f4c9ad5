"""Lessons in improved plans: what the planner would be asked, with the closed form for an answer."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from first_meeting import FirstMeeting
from torch import Tensor

from envs.core import Observation
from envs.world import TensorEnv
from marl.training.run import Run
from planners.baselines import uniform_prior
from planners.distillation.config import Config
from planners.distillation.lessons import improved_lessons, improvement, lessons_of_play
from planners.language.backends.scripted import Scripted
from planners.language.base import Query
from planners.planning.recipe import world_of
from planners.read.advantages import filtered, reweighed
from planners.read.reweigh import Improve, ReweighConfig, ReweighingPlanner
from planners.tiny.lessons import Lesson

WORLD = FirstMeeting()
PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
WORTH = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)


class ByChoice:
    """A critic to which an agent's own choice is worth 0, 1 or 4."""

    scale = 1.0
    needs_behavior = False

    def values(self, obs: Observation, action: Tensor, given: Tensor, behavior: Any = None) -> Tensor:
        return (WORTH[action[..., 0]] * given).sum(-1)


def model() -> Scripted:
    def log_prob(query: Query, text: str) -> float:
        return sum(math.log(PRIOR[WORLD.choices.index(line.split(": ")[-1])]) for line in text.split("\n"))

    return Scripted(lambda query, number: "", "test", log_prob)


def played(improve: Improve | None = None, envs: int = 3, steps: int = 2, **config: Any) -> list[Lesson]:
    settings = ReweighConfig(plans="steps", beta=2.0, **config)
    planner = ReweighingPlanner(WORLD, model(), ByChoice(), settings, improve)
    return lessons_of_play(planner, TensorEnv(WORLD, envs, time_limit=5), steps, seed=0)


def gain() -> Tensor:
    return WORTH - PRIOR @ WORTH


@pytest.mark.parametrize(
    ("improve", "policy"),
    [
        (None, reweighed(PRIOR, gain(), 2.0)),
        (partial(filtered, threshold=0.0), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)),
        (partial(filtered, threshold=-0.5), torch.tensor([0.0, 0.6, 0.4], dtype=torch.float64)),
    ],
)
def test_each_decision_is_a_lesson_in_the_improved_policy(improve: Improve | None, policy: Tensor) -> None:
    lessons = played(improve)
    assert len(lessons) == 3 * 2 * 2
    for lesson in lessons:
        assert lesson.choices == WORLD.choices
        assert lesson.odds == pytest.approx(policy.numpy())
        assert lesson.odds.sum() == pytest.approx(1)


def test_prompts_are_those_of_play_with_what_was_decided_before() -> None:
    lessons = played(partial(filtered, threshold=0.0), envs=1, steps=1)
    first, second = (lesson.messages[-1].content for lesson in lessons)
    assert first.startswith("Ann is at 0.\nBob is at 2.")
    assert "Decided already" not in first
    assert "Decided already: ann: right." in second


def test_all_agents_at_once_are_taught_joint_plans() -> None:
    (lesson,) = played(mode="joint", envs=1, steps=1)
    together = (PRIOR.view(3, 1) * PRIOR).flatten()
    worth = (WORTH.view(3, 1) + WORTH).flatten()
    assert lesson.choices[1] == "ann: left\nbob: stay"
    assert lesson.odds == pytest.approx(reweighed(together, worth - together @ worth, 2.0).numpy())


def test_play_goes_by_what_is_taught() -> None:
    lessons = played(partial(filtered, threshold=0.0), envs=1, steps=3)
    # Both go right: Ann meets Bob at the wall in the second step, and they begin anew in the third.
    assert [lesson.messages[-1].content.split("\n")[0] for lesson in lessons[::2]] == [
        "Ann is at 0.",
        "Ann is at 1.",
        "Ann is at 0.",
    ]


def test_the_config_says_how_plans_are_improved() -> None:
    raw = {"recipe": "planners.distillation.recipe", "env": {"world": "first_meeting:FirstMeeting"}}
    prior, advantage = PRIOR, gain()
    by_beta = Config.model_validate({**raw, "planner": {"beta": 0.5}})
    assert torch.equal(improvement(by_beta)(prior, advantage), reweighed(prior, advantage, 0.5))
    by_threshold = Config.model_validate(
        {**raw, "planner": {"threshold": -0.5}, "distillation": {"target": "filtered"}}
    )
    assert improvement(by_threshold)(prior, advantage).tolist() == pytest.approx([0, 0.6, 0.4])


def test_equal_seeds_give_equal_lessons() -> None:
    first, second = played(envs=8), played(envs=8)
    assert [lesson.messages for lesson in first] == [lesson.messages for lesson in second]
    assert all(np.array_equal(one.odds, other.odds) for one, other in zip(first, second, strict=True))


def test_lessons_begin_where_play_does_and_after_random_play(tmp_path: Path) -> None:
    def begun(from_start: float) -> list[str]:
        asked = {"from_start": from_start, "num_envs": 16, "steps": 1}
        env = {"world": "first_meeting:FirstMeeting"}
        raw = {"recipe": "planners.distillation.recipe", "device": "cpu", "env": env, "distillation": asked}
        config = Config.model_validate(raw)
        run = Run.create(tmp_path / str(from_start), config)
        lessons = improved_lessons(config, run, WORLD, model(), ByChoice(), " 1")
        return ["\n".join(lesson.messages[-1].content.split("\n")[:2]) for lesson in lessons[::2]]

    start = "Ann is at 0.\nBob is at 2."
    assert begun(1.0) == [start] * 16
    half = begun(0.5)
    assert (len(half), half[:8]) == (16, [start] * 8)
    assert len(set(half[8:])) > 1


def test_lessons_anywhere_begin_where_the_critics_log_does(tmp_path: Path) -> None:
    def begun(folder: str, args: dict[str, str]) -> set[str]:
        raw = {
            "recipe": "planners.distillation.recipe",
            "device": "cpu",
            "env": {"world": "worded_meetings:Meeting"},
            "critic": {"log": {"args": args, "start_steps": 0}},
            "distillation": {"from_start": 0.0, "num_envs": 16, "steps": 1},
        }
        config = Config.model_validate(raw)
        world = world_of(config)
        planner_run = Run.create(tmp_path / folder, config)
        lessons = improved_lessons(config, planner_run, world, uniform_prior(), ByChoice(), " 1")
        return {lesson.messages[-1].content.split("Decided")[0] for lesson in lessons[::2]}

    assert len(begun("apart", {})) == 1
    assert len(begun("anywhere", {"starts": "anywhere"})) > 4
