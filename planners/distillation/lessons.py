"""Lessons in what a critic makes of a model's plans: the improved policy, in the situations of its own play."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import torch

from envs.core import Streams
from envs.world import TensorEnv, World
from marl.output.console import console
from marl.training.run import Run, stage_seed
from planners.distillation.config import Config
from planners.language.base import LanguageModel
from planners.planning.critic import started_anywhere
from planners.read.advantages import filtered, reweighed
from planners.read.critics import PlanCritic
from planners.read.reweigh import Improve, ReweighingPlanner
from planners.tiny.lessons import Lesson


def improvement(config: Config) -> Improve:
    """The improved policy of the config, from μ and A: μ exp(A/β) / Z, or μ 1[A > threshold] / Z."""
    if config.distillation.target == "filtered":
        return partial(filtered, threshold=config.planner.threshold)
    return partial(reweighed, temperature=config.planner.beta)


def improved_lessons(
    config: Config, run: Run, world: World[Any], model: LanguageModel, critic: PlanCritic, suffix: str
) -> list[Lesson]:
    """Every decision of the improved policy's play, from where play begins and after random play, as a lesson.

    The lesson is the whole policy there, π(·|s) ∝ μ exp(A/β) or the like, not the one plan that was drawn of it: one
    step of policy iteration with a learned critic, projected onto what the model can say (Peng et al., 2019, arXiv
    1910.00177, whose samples are weighed by exp(A/β) where here the policy is known whole). What a planner finds out
    becomes what the model says, as in arXiv 2606.08596.
    """
    planner = ReweighingPlanner(world, model, critic, config.planner, improvement(config))
    asked = config.distillation
    seed = run.stage_seeds("play" + suffix)[0]
    at_start = round(asked.from_start * asked.num_envs)
    lessons: list[Lesson] = []
    with console.status("playing the improved plans"):
        if at_start:
            lessons += lessons_of_play(planner, _envs(config, world, at_start), asked.steps, seed)
        if at_start < asked.num_envs:
            env = _envs(config, started_anywhere(config, world, seed), asked.num_envs - at_start)
            lessons += lessons_of_play(planner, env, asked.steps, seed)
    return lessons


def _envs(config: Config, world: World[Any], count: int) -> TensorEnv:
    return TensorEnv(world, count, time_limit=config.env.time_limit)


@torch.no_grad()
def lessons_of_play(planner: ReweighingPlanner, env: TensorEnv, steps: int, seed: int) -> list[Lesson]:
    """Prompts of so many steps of play, each with the probabilities by which its plan was drawn."""
    lessons: list[Lesson] = []
    streams = Streams([stage_seed(seed, "actions")])
    with closing(env):
        obs = env.reset(seed)
        for _ in range(steps):
            decision, _ = planner.act(obs, None, streams)
            lessons += _told(planner)
            obs = env.step(decision.action).obs
    return lessons


def _told(planner: ReweighingPlanner) -> Iterator[Lesson]:
    """Lessons of the latest decisions; none of those with a single plan, where nothing was asked."""
    for decisions in planner.latest:
        for one in decisions:
            if one.policy is not None:
                yield Lesson(planner.messages(one), one.plans, one.policy.numpy())
