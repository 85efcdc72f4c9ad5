"""Play episodes and say how they went, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from envs.core import Actor, Decision, InputError, Observation, Step, Streams, VectorEnv, tree_map, tree_where
from marl.report import Metric
from marl.run import stage_seed
from marl.sources import EpisodeTracker, rollout

CHUNK = 32


class Episodes:
    """Returns [n,N,K] and lengths [n] of whole episodes."""

    def __init__(self, returns: np.ndarray, lengths: np.ndarray):
        self.returns, self.lengths = returns, lengths

    @property
    def per_agent(self) -> np.ndarray:
        """Mean over agents of each episode's return, channels added, [n]."""
        return self.returns.sum(-1).mean(-1)

    def metrics(self, channels: Sequence[str], prefix: str = "") -> dict[str, Metric]:
        """Named means with intervals: both returns, each channel's where there are several, and the length."""
        found = {
            "return_per_agent": Metric.mean(self.per_agent),
            "return_team": Metric.mean(self.returns.sum(-1).sum(-1)),
            "episode_length": Metric.mean(self.lengths),
        }
        if len(channels) > 1:
            for k, channel in enumerate(channels):
                found[f"return_per_agent/{channel}"] = Metric.mean(self.returns[..., k].mean(-1))
        return {prefix + name: metric for name, metric in found.items()}


def play(env: VectorEnv, actor: Actor, episodes: int, seed: int, patience: int = 100_000) -> Episodes:
    """Play at least `episodes` whole episodes, the same number in every row, so that short ones are not favored.

    Raises InputError where none ends within `patience` steps.
    """
    quota = math.ceil(episodes / env.num_envs)
    streams = Streams([stage_seed(seed, "actions")], env.device)  # not the numbers that the world draws
    obs, memory = env.reset(seed), actor.initial_memory(env.num_envs)
    tracker = EpisodeTracker(torch.ones(len(env.spec.channels), device=env.device))
    totals: list[list[np.ndarray]] = [[] for _ in range(env.num_envs)]
    lengths: list[list[float]] = [[] for _ in range(env.num_envs)]
    quiet = 0
    while min(map(len, totals)) < quota:
        batch, obs, memory = rollout(env, actor, obs, memory, streams, CHUNK)
        total, _, length = tracker.observe(batch)
        ends = batch.over_time(batch.ended).flatten(1, 2).nonzero().tolist()
        quiet = 0 if any(len(totals[row]) < quota for _, row in ends) else quiet + CHUNK
        if quiet > patience:
            raise InputError(
                f"Some environments did not end an episode within {patience:,} steps, so there is no return to report. "
                "Give the environment an end, for a native world env.time_limit; or wait longer, with "
                "evaluation.patience."
            )
        for t, row in ends:
            if len(totals[row]) < quota:
                totals[row].append(total[t, row].cpu().numpy())
                lengths[row].append(float(length[t, row]))
    returns = np.stack([episode for row in totals for episode in row]).astype(np.float64)
    return Episodes(returns, np.array([length for row in lengths for length in row]))


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
