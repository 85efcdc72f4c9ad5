"""Speed of planning: kitchens that are planned in together, against one at a time (`concord bench planning`)."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from envs.kitchen import Kitchen
from envs.world import TensorEnv
from marl.bench.timing import Effort, Findings, Work, over_rounds, speeds, take_turns
from marl.config.schema import EnvConfig
from marl.evaluation.episodes import play
from marl.output.report import Metric
from planners.baselines import uniform_prior
from planners.language.backends.local import Local
from planners.planning.tabulated import joint_policy
from planners.read.critics import ExactCritic
from planners.read.planner import PlannerConfig, ReadPlanner
from planners.tiny.config import TinyConfig
from planners.tiny.find import find_or_train

TOGETHER = 256
ARGS: dict[str, Any] = {"layout": "cramped_room_small", "horizon": None, "soups": 1, "counter_items": 0}
STEPS = 4  # of an episode here: what is timed is planning, which is alike in all steps
PLANNER = PlannerConfig(plans="steps", tell=False, max_tokens=16)


def planning(effort: Effort) -> Findings:
    """Proposals of the small model, scored and sent back, in 256 kitchens together and in one at a time."""
    kitchen = Kitchen(**ARGS)
    table = kitchen.table()
    random_play = joint_policy(kitchen, table, uniform_prior(), PLANNER)
    critic = ExactCritic(table, random_play, 0.97, state_of=kitchen.state_of, digits=kitchen.digits)
    env = EnvConfig(world="envs.kitchen:Kitchen", args=ARGS)
    model = Local(str(find_or_train(TinyConfig(), env, "steps")), batch=TOGETHER)
    planner = ReadPlanner(kitchen, model, critic, PLANNER)
    rates = take_turns({str(num): plans(planner, kitchen, num) for num in (1, TOGETHER)}, effort)
    loops = rates.pop("calibrate")
    found: dict[str, Metric] = {}
    for num, proposals in rates.items():
        found |= speeds(f"planning/{num}", proposals, loops)
    return Findings(found | {"planning/together_over_alone": over_rounds(rates[str(TOGETHER)] / rates["1"])})


def plans(planner: ReadPlanner, kitchen: Kitchen, num_envs: int) -> Work:
    """Proposals in so many kitchens together, in other episodes each time."""
    seeds = itertools.count()

    def work() -> int:
        with torch.inference_mode():
            episodes = play(TensorEnv(kitchen, num_envs, time_limit=STEPS), planner, num_envs, next(seeds))
        return int(episodes.counts["proposals"].sum())

    return work
