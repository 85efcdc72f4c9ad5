"""Speed of the kitchen: 4096 rows of cramped room, as physics alone, with planes, and as an environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from envs.foraging import Foraging
from envs.kitchen import Kitchen
from envs.kitchen.views.overcooked import Planes
from envs.world import TensorEnv
from marl.bench.timing import Effort, Findings, Work, over_rounds, speeds, take_turns
from marl.output.report import Metric

ROWS = 4096
STEPS = 10  # at a time


def kitchen(effort: Effort) -> Findings:
    """Transitions, transitions with 26 planes in bytes, and TensorEnv.step with features beside that of foraging."""
    world, forest = Kitchen(), TensorEnv(Foraging(), ROWS)
    planes = Planes(world.geometry, world.codes)
    env = TensorEnv(world, ROWS)
    for each in (env, forest):
        each.reset(0)
    cases = {
        "transition": play_physics(world, lambda state: None),
        "planes": play_physics(world, planes),
        "step": play_random(env),
        "foraging": play_random(forest),
    }
    rates = take_turns(cases, effort)
    loops = rates.pop("calibrate")
    found: dict[str, Metric] = {}
    for case, steps in rates.items():
        found |= speeds(f"kitchen/{case}_{ROWS}", steps, loops)
    return Findings(found | {"kitchen/step_over_foraging": over_rounds(rates["step"] / rates["foraging"])})


def play_physics(world: Kitchen, see: Callable[[Any], Any]) -> Work:
    """Transitions of random choices, always from the same states, which are anywhere."""
    generator = torch.Generator().manual_seed(0)
    anywhere = Kitchen(starts="random")
    start = anywhere.initial(anywhere.initial_noise(ROWS, generator))
    actions = torch.randint(6, (STEPS, ROWS, 2, 1), generator=generator)

    def work() -> int:
        state = start
        with torch.inference_mode():
            for action in actions:
                state = world.transition(state, action, None).state
                see(state)
        return STEPS * ROWS

    return work


def play_random(env: TensorEnv) -> Work:
    """Steps of random choices, with restarts wherever an episode ends."""
    actions = torch.randint(6, (STEPS, env.num_envs, 2, 1), generator=torch.Generator().manual_seed(0))

    def work() -> int:
        with torch.inference_mode():
            for action in actions:
                env.step(action)
        return STEPS * env.num_envs

    return work
