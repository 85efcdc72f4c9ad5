"""Speed of worlds and adapters: simple_spread as tensors, and mpe2's own behind the adapters."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.core import Streams, VectorEnv
from envs.particles import SimpleSpread
from envs.world import RandomActor, TensorEnv
from marl.bench.timing import Effort, Findings, Work, by_size, machine_is_idle, over_rounds, speeds, take_turns
from marl.learning.unroll import AT_ONCE, Unroll
from marl.training.compiling import Compiled

MPE2_SPREAD = "mpe2.simple_spread_v3:parallel_env"
EPISODE = 25  # steps of an episode of simple_spread


def physics(effort: Effort) -> Findings:
    """SimpleSpread's transition and observation at 16, 256 and 4096 environments."""
    return by_size("physics", effort, (16, 256, 4096), lambda size: play_physics(size, SimpleSpread().transition))


def physics_compiled(effort: Effort) -> Findings:
    """The same physics through torch.compile, after its compilation."""
    compiled = torch.compile(SimpleSpread().transition, dynamic=False)
    return by_size("physics-compiled", effort, (16, 256, 4096), lambda size: play_physics(size, compiled))


def step(effort: Effort) -> Findings:
    """TensorEnv.step with its whole contract, episodes staggered, at 16 and 4096 environments."""
    return by_size("step", effort, (16, 4096), lambda size: play_steps(staggered_env(size)))


def step_compiled(effort: Effort) -> Findings:
    """Steps with random actions and restarts, four compiled as one as in training, at 16 and 256 environments."""
    return by_size("step-compiled", effort, (16, 256), play_compiled)


def play_physics(size: int, transition: Callable[..., Any], device: str = "cpu") -> Work:
    """One episode of `size` environments at a time, always from the same start so that agents stay in the square."""
    world, generator = SimpleSpread(), torch.Generator(device).manual_seed(0)
    start = world.initial(world.initial_noise(size, generator))
    actions = random_actions(size, device)

    def work() -> int:
        state = start
        with torch.inference_mode():
            for action in actions:
                state = transition(state, action, None).state
                world.observe(state)
        return EPISODE * size

    return work


def staggered_env(size: int, device: str = "cpu") -> TensorEnv:
    """Rows whose clocks are spread evenly over an episode, so that 1 in 25 restarts at each step."""
    env = TensorEnv(SimpleSpread(), size, time_limit=EPISODE, device=device)
    env.reset(0)
    state = env.state_dict()
    env.load_state_dict({**state, "clock": torch.arange(size, device=device) % EPISODE})
    return env


def play_steps(env: VectorEnv) -> Work:
    """25 random steps at a time."""
    actions = random_actions(env.num_envs, str(env.device))

    def work() -> int:
        with torch.inference_mode():
            for action in actions:
                env.step(action)
        return EPISODE * env.num_envs

    return work


def play_compiled(size: int) -> Work:
    """100 steps at a time, compiled; the actions are drawn too."""
    env = staggered_env(size)
    unroll = Unroll(env, RandomActor(env.spec), 1, AT_ONCE)
    steps: Any = unroll.steps
    vars(unroll)["steps"] = Compiled(steps)
    streams, obs = Streams([2], env.device), env.detach()

    def work() -> int:
        nonlocal obs
        with torch.inference_mode():
            obs = unroll.play(obs, None, streams, 4 * EPISODE).obs
        return 4 * EPISODE * size

    return work


def random_actions(size: int, device: str = "cpu") -> list[Tensor]:
    """An episode of uniformly random joint actions of three agents, each [E,3,1]."""
    generator = torch.Generator(device).manual_seed(1)
    return list(torch.randint(5, (EPISODE, size, 3, 1), generator=generator, device=device))


def adapter(effort: Effort) -> Findings:
    """The list adapter on mpe2's simple_spread, 16 environments, beside one raw environment and SuperSuit."""
    env = mpe2_env(16, workers=0)
    cases = {"adapter/list": play_steps(env), "adapter/raw": play_raw()}
    peer = "adapter/supersuit"
    if importlib.util.find_spec("supersuit"):
        cases[peer] = play_supersuit(16)
    rates = take_turns(cases, effort)
    env.close()
    loops, missing = rates.pop("calibrate"), {}
    found: dict[str, Metric] = {}
    for case, steps in rates.items():
        found |= speeds(case, steps, loops)
    found["adapter/ratio_to_raw"] = over_rounds(rates["adapter/list"] / rates["adapter/raw"])
    if peer in rates:
        found["adapter/ratio_to_supersuit"] = over_rounds(rates["adapter/list"] / rates[peer])
    else:
        missing["adapter/ratio_to_supersuit"] = 'SuperSuit is not installed; `pip install "concord-rl[bench]"` adds it.'
    return Findings(found, missing)


def workers(effort: Effort) -> Findings:
    """The process adapter with two workers against the list adapter, on the clock; only on an idle machine."""
    name = "workers/ratio_to_list"
    here, apart = mpe2_env(16, workers=0), mpe2_env(16, workers=2)
    cases = {"list": play_steps(here), "workers": play_steps(apart)}
    one_round = dataclasses.replace(effort, rounds=1)
    ratios = []
    try:
        for _ in range(effort.rounds):
            rates = take_turns(cases, one_round, time.monotonic)
            ratios.append(rates["workers"] / rates["list"])
            if not machine_is_idle():
                return Findings({}, {name: _BUSY})
    finally:
        here.close()
        apart.close()
    return Findings({name: over_rounds(np.concatenate(ratios))})


_BUSY = "two processes did not get two whole cores, so wall-clock times say nothing; try again when nothing else runs."


def mpe2_env(size: int, *, workers: int) -> VectorEnv:
    """mpe2's own simple_spread behind the adapter, mid-episode."""
    from envs.pettingzoo import PettingZooEnv  # imports gymnasium, which takes a while

    env = PettingZooEnv(MPE2_SPREAD, size, workers=workers, options={"N": 3, "max_cycles": EPISODE})
    env.reset(0)
    return env


def play_raw() -> Work:
    """One whole episode of one environment of mpe2 at a time."""
    from mpe2 import simple_spread_v3

    env = simple_spread_v3.parallel_env(N=3, max_cycles=EPISODE)
    env.reset(seed=0)
    actions = [dict(zip(env.possible_agents, action.flatten().tolist())) for action in random_actions(1)]

    def work() -> int:
        env.reset()
        for action in actions:
            env.step(action)
        return EPISODE

    return work


def play_supersuit(size: int) -> Work:
    """25 random steps at a time through SuperSuit's vector of `size` environments, in this process."""
    import supersuit
    from mpe2 import simple_spread_v3

    one = supersuit.pettingzoo_env_to_vec_env_v1(simple_spread_v3.parallel_env(N=3, max_cycles=EPISODE))
    env = supersuit.concat_vec_envs_v1(one, size, num_cpus=0, base_class="gymnasium")
    env.reset(seed=0)
    actions = [action.flatten().numpy() for action in random_actions(size)]

    def work() -> int:
        for action in actions:
            env.step(action)
        return EPISODE * size

    return work
