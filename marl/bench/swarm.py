"""Speed of swarms: Vicsek's with a rule that all follow, from 16 swarms of 200 agents to one of a million."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from envs.core import Streams
from envs.swarm import Vicsek
from envs.world import TensorEnv
from marl.algorithms.mean_field.policy import MeanRule, SwarmPolicy, SwarmPolicyConfig
from marl.bench.timing import Effort, Findings, Work, machine_is_idle, over_rounds, speeds, take_turns
from marl.bench.training import peak_memory
from marl.learning.unroll import AT_ONCE, Unroll
from marl.output.report import Metric

SWARMS, AGENTS = 16, 200
MILLION = 1_000_000
STEPS = 10  # at a time
THREADS = 2  # of torch, for the million
SMALL, SIZES = 5_000, (MILLION, 4 * MILLION)  # whose memory is compared; the smallest has a grid too


def swarm(effort: Effort) -> Findings:
    """Vicsek's swarm under a 7-point rule: steps of 16 x 200 agents; milliseconds and memory of a million.

    cpu_milliseconds are one thread's; milliseconds on the clock, with two, are told on an idle machine only.
    """
    play = Play(SWARMS, AGENTS)
    rates = take_turns({"steps": play.steps, "physics": play.physics}, effort)
    loops = rates.pop("calibrate")
    found = speeds(f"swarm/steps_{SWARMS}x{AGENTS}", rates["steps"], loops)
    found |= speeds(f"swarm/physics_{SWARMS}x{AGENTS}", rates["physics"], loops)
    large = Play(1, MILLION)
    missing = {}
    for name, work in (("grid", large.neighborhood), ("step", large.step)):
        found[f"swarm/{name}_{MILLION}/cpu_milliseconds"] = milliseconds(work, effort, time.process_time)
        with threads(THREADS):
            wall = milliseconds(work, effort, time.perf_counter)
        if machine_is_idle():
            found[f"swarm/{name}_{MILLION}/milliseconds"] = wall
        else:
            missing[f"swarm/{name}_{MILLION}/milliseconds"] = _BUSY
    return Findings(found | memory(), missing)


def swarm_compiled(effort: Effort) -> Findings:
    """Compiled steps of 16 x 200 agents with their rule, and of the world alone beside eager ones."""
    play, following = Play(SWARMS, AGENTS), Play(SWARMS, AGENTS)
    for each in (play, following):
        each.steps()  # at its first step an environment looks at what its world gives: other code than all later steps
    compiled = torch.compile(play.env.advance, fullgraph=True, dynamic=False)
    cases = {"compiled": play.advances(compiled), "eager": play.advances(play.env.advance)}
    rates = take_turns({"steps": following.unrolled(), **cases}, effort)
    loops = rates.pop("calibrate")
    found: dict[str, Metric] = {}
    for case, steps in rates.items():
        found |= speeds(f"swarm-compiled/{case}_{SWARMS}x{AGENTS}", steps, loops)
    return Findings(found | {"swarm-compiled/ratio_to_eager": over_rounds(rates["compiled"] / rates["eager"])})


_BUSY = "two threads did not get two whole cores, so times on the clock say nothing; try again when nothing else runs."


class Play:
    """Swarms of Vicsek's that follow a trained kind of rule, 7 points along the relative angle that each agent sees."""

    def __init__(self, swarms: int, agents: int):
        self.world = Vicsek(agents, horizon=100, sees="angle")
        self.env = TensorEnv(self.world, swarms)
        policy = SwarmPolicy(self.env.spec, SwarmPolicyConfig(), Streams([0]))
        self.actor, self.streams = MeanRule(policy), Streams([1])
        self.obs = self.env.reset(0)
        self.count = swarms
        generator = torch.Generator().manual_seed(2)
        self.state = self.world.initial(self.world.initial_noise(swarms, generator))
        self._noise = self.world.noise(swarms, generator)
        self._turn = torch.zeros(swarms, agents, 1)

    @torch.inference_mode()
    def step(self) -> None:
        """Act with all agents by the rule, take the world's step with its noise, and observe what follows."""
        decision, _ = self.actor.act(self.obs, None, self.streams)
        self.obs = self.env.step(decision.action).obs

    def steps(self) -> int:
        """Some of these; how many swarm-steps that was."""
        for _ in range(STEPS):
            self.step()
        return STEPS * self.count

    @torch.inference_mode()
    def physics(self) -> int:
        """Transitions and observations alone, always from the same start."""
        state = self.state
        for _ in range(STEPS):
            state = self.world.transition(state, self._turn, self._noise).state
            self.world.observe(state)
        return STEPS * self.count

    def unrolled(self) -> Work:
        """Steps as training takes them with compile=true: several in one function, from random numbers drawn ahead."""
        unroll = Unroll(self.env, self.actor, 1, AT_ONCE)
        compiled = torch.compile(unroll.steps, fullgraph=True, dynamic=False)
        setattr(unroll, "steps", compiled)  # noqa: B010 - a method's place is taken

        def work() -> int:
            with torch.inference_mode():
                self.obs = unroll.play(self.obs, None, self.streams, 2 * AT_ONCE).obs
            return 2 * AT_ONCE * self.count

        return work

    def advances(self, advance: Callable[..., Any]) -> Work:
        """Steps by `advance`, the environment's own or what was made of it; always from the same start."""
        start, acted = self.env.rows, self.obs.alive

        def work() -> int:
            rows = start
            with torch.inference_mode():
                for _ in range(STEPS):
                    rows, *_ = advance(rows, acted, self._turn, self._noise)
            return STEPS * self.count

        return work

    @torch.inference_mode()
    def neighborhood(self) -> None:
        """Sum over each agent's neighborhood, at the start."""
        self.world.neighborhood.around(self.state.position).sums(self.state.own)


def milliseconds(work: Callable[[], None], effort: Effort, clock: Callable[[], float]) -> Metric:
    """Of `clock`, once in each round after one to warm up."""
    work()
    spent = []
    for _ in range(effort.rounds):
        start = clock()
        work()
        spent.append(1000 * (clock() - start))
    return over_rounds(np.array(spent))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within, torch has this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def memory(sizes: tuple[int, int] = SIZES) -> dict[str, Metric]:
    """Peak memory of a process that plays, in bytes an agent beyond that of a small swarm; large against middle.

    Every tensor is given memory of its own there and hands it back, so the peak is what lives at once. On a heap that
    is kept it varies by a quarter from one process to the next, whatever the number of agents.
    """
    small, *peaks = (_peak_of(agents) for agents in (SMALL, *sizes))
    each = [(peak - small) * 2**20 / (agents - SMALL) for peak, agents in zip(peaks, sizes)]
    found = {f"swarm/bytes_per_agent_{agents}": Metric.exact(size) for agents, size in zip(sizes, each)}
    return found | {"swarm/memory_ratio": Metric.exact(each[1] / each[0])}


def _peak_of(agents: int) -> float:
    program = f"import marl.bench.swarm as b; b.play_alone({agents})"
    alone = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=alone)
    return float(json.loads(done.stdout.splitlines()[-1]))


def play_alone(agents: int) -> None:
    """Take a few steps in a fresh process, then print its peak memory in MB, on a line of its own."""
    torch.set_num_threads(1)
    play = Play(1, agents)
    for _ in range(3):
        play.step()
    print(json.dumps(peak_memory()))
