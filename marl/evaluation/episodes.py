"""Play episodes and say how they went, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from envs.core import Actor, Decision, InputError, Observation, Step, Streams, VectorEnv, tree_map, tree_where
from marl.output.report import Metric
from marl.training.run import stage_seed

CHUNK = 32  # steps between two looks at who has ended, where a look makes a GPU wait


class Episodes:
    """Returns [n,K], means over N agents, and lengths [n] of whole episodes.

    late [n]: the mean reward a step over the last half of the horizon, channels added, where all episodes get there.
    """

    def __init__(self, returns: np.ndarray, lengths: np.ndarray, agents: int, late: np.ndarray | None = None):
        self.returns, self.lengths, self.agents, self.late = returns, lengths, agents, late

    @property
    def per_agent(self) -> np.ndarray:
        """Mean over agents of each episode's return, channels added, [n]."""
        return self.returns.sum(-1)

    def metrics(self, channels: Sequence[str], prefix: str = "") -> dict[str, Metric]:
        """Named means with intervals: both returns, each channel's where there are several, and the length."""
        found = {
            "return_per_agent": Metric.mean(self.per_agent),
            "return_team": Metric.mean(self.agents * self.per_agent),
            "episode_length": Metric.mean(self.lengths),
        }
        if self.late is not None:
            found["late_reward_per_agent"] = Metric.mean(self.late)
        if len(channels) > 1:
            for k, channel in enumerate(channels):
                found[f"return_per_agent/{channel}"] = Metric.mean(self.returns[:, k])
        return {prefix + name: metric for name, metric in found.items()}


def play(env: VectorEnv, actor: Actor, episodes: int, seed: int, patience: int = 100_000) -> Episodes:
    """Play at least `episodes` whole episodes, the same number in every row, so that short ones are not favored.

    Nothing is kept of a step but what the team earned, so that memory is that of one step, however large the swarm.
    Raises InputError where no episode ends within `patience` steps.
    """
    quota = math.ceil(episodes / env.num_envs)
    moments = watch(env, actor, seed, lambda: None)
    earned = torch.zeros(env.num_envs, len(env.spec.channels), dtype=torch.float64, device=env.device)
    late = earned.sum(-1)
    age, half = torch.zeros_like(late), env.spec.horizon // 2 if env.spec.horizon else math.inf
    returns: list[list[np.ndarray]] = [[] for _ in range(env.num_envs)]
    lengths: list[list[float]] = [[] for _ in range(env.num_envs)]
    lates: list[list[float]] = [[] for _ in range(env.num_envs)]
    quiet, chunk = 0, 1 if env.device.type == "cpu" else CHUNK
    while min(map(len, returns)) < quota:
        trail = []
        for _ in range(chunk):
            step = next(moments).step
            reward = step.reward.sum(1, dtype=torch.float64)
            earned, age = earned + reward, age + 1
            late = late + reward.sum(-1) * (age > half)
            trail.append((step.ended, earned, late, age))
            earned = earned.masked_fill(step.ended.unsqueeze(-1), 0)
            late, age = late.masked_fill(step.ended, 0), age.masked_fill(step.ended, 0)
        ended, total, at_last, length = (torch.stack(column).cpu().numpy() for column in zip(*trail))
        ends = np.argwhere(ended).tolist()
        quiet = 0 if any(len(returns[row]) < quota for _, row in ends) else quiet + chunk
        if quiet > patience:
            raise InputError(
                f"Some environments did not end an episode within {patience:,} steps, so there is no return to report. "
                "Give the environment an end, for a native world env.time_limit; or wait longer, with "
                "evaluation.patience."
            )
        for t, row in ends:
            if len(returns[row]) < quota:
                returns[row].append(total[t, row])
                lengths[row].append(float(length[t, row]))
                lates[row].append(float(at_last[t, row]))
    agents = len(env.spec.agents)
    per_agent, ages, last = (np.stack([x for row in rows for x in row]) for rows in (returns, lengths, lates))
    steps = ages - half
    return Episodes(per_agent / agents, ages, agents, last / agents / steps if bool((steps > 0).all()) else None)


def film(env: Any, actor: Actor, episodes: int, seed: int, longest: int = 1000) -> list[np.ndarray]:
    """Pictures [height,width,3] of the first row over some episodes; the end of each is held for a moment.

    `env` has a `frame()`. Raises InputError where it cannot be drawn.
    """
    frames: list[np.ndarray] = []
    ended = 0
    for moment in watch(env, actor, seed, env.frame):
        frames.append(moment.picture)
        if bool(moment.step.ended[0]):
            ended += 1
            frames += [frames[-1]] * 8
        if ended == episodes or len(frames) >= longest:
            break
    return frames


class Moment(NamedTuple):
    """One step of a team: what it saw, a picture of that, what it decided, and what that led to."""

    obs: Observation
    picture: Any
    decision: Decision
    step: Step


def watch(env: VectorEnv, actor: Actor, seed: int, picture: Callable[[], Any]) -> Iterator[Moment]:
    """Steps without end, the same ones for the same seed; `picture` is asked before each."""
    streams = Streams([stage_seed(seed, "actions")], env.device)
    obs, memory = env.reset(seed), actor.initial_memory(env.num_envs)
    while True:
        with torch.inference_mode():
            seen = picture()
            decision, memory = actor.act(obs, memory, streams)
            step = env.step(decision.action)
            if memory is not None:
                memory = tree_where(step.ended, tree_map(torch.zeros_like, memory), memory)
        yield Moment(obs, seen, decision, step)
        obs = step.obs
