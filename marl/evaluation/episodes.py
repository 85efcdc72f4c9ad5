"""Play episodes and say how they went, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import Actor, Decision, InputError, Observation, Step, Streams, VectorEnv
from marl.evaluation.seats import Seats
from marl.output.report import Metric
from marl.training.run import stage_seed

CHUNK = 32  # steps between two looks at who has ended, where a look makes a GPU wait


@dataclass(frozen=True)
class Episodes:
    """Returns [n,K], means over N agents, and lengths [n] of whole episodes, equally many of each row, row by row.

    discounted [n,K]: the same with each channel's discount, where one is known. late [n]: the mean reward a step over
    the last half of the horizon, channels added, where all episodes get there. counts: what the decisions of each
    episode took, [n] by name.
    """

    returns: np.ndarray
    lengths: np.ndarray
    agents: int
    rows: int = 1
    discounted: np.ndarray | None = None
    late: np.ndarray | None = None
    counts: Mapping[str, np.ndarray] = field(default_factory=dict)

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
        if self.discounted is not None:
            found["discounted_return_per_agent"] = Metric.mean(self.discounted.sum(-1))
        if len(channels) > 1:
            for k, channel in enumerate(channels):
                found[f"return_per_agent/{channel}"] = Metric.mean(self.returns[:, k])
                if self.discounted is not None:
                    found[f"discounted_return_per_agent/{channel}"] = Metric.mean(self.discounted[:, k])
        found |= {f"count/{name}": Metric.mean(count) for name, count in self.counts.items()}
        return {prefix + name: metric for name, metric in found.items()}

    def above(self, other: Episodes) -> Metric:
        """The mean return per agent less that of other episodes, with the 95 % interval of the difference.

        Where both were played in equally many rows and episodes from one seed, episodes are paired: a row's first have
        the same start, later ones as far as the environment draws them so. Pairs that have nothing in common make the
        interval no narrower than `Metric.difference` does, and bias nothing.
        """
        if (self.rows, len(self.returns)) == (other.rows, len(other.returns)):
            return Metric.mean(self.per_agent - other.per_agent)
        return Metric.difference(Metric.mean(self.per_agent), Metric.mean(other.per_agent))


def play(
    env: VectorEnv,
    actor: Actor,
    episodes: int,
    seed: int,
    patience: int = 100_000,
    discount: Float[Tensor, " K"] | None = None,
) -> Episodes:
    """Play at least `episodes` whole episodes, the same number in every row, so that short ones are not favored.

    See `play_policies`, of which this is the case of one policy.
    """
    return play_policies(env, actor, episodes, [seed], patience, discount)[0]


def play_policies(
    env: VectorEnv,
    actor: Actor,
    episodes: int,
    seeds: Sequence[int],
    patience: int = 100_000,
    discount: Float[Tensor, " K"] | None = None,
) -> list[Episodes]:
    """Play P policies at once, rows policy-major, at least `episodes` whole episodes each; a seed for each of them.

    Every row plays the same number. A row that has finished is not decided for any more (`Seats`), so that the random
    numbers of the others are no longer those that they would have beside it: the same for the same seed, and the same
    in distribution. Nothing is kept of a step but what the team earned, so that memory is that of one step, however
    large the swarm. Raises InputError where no episode ends within `patience` steps, for an actor that is none, and for
    a decision that is not allowed (`Referee`).
    """
    policies = len(seeds)
    _require_some(env, episodes, policies, discount)
    obs = env.reset(list(seeds) if policies > 1 else seeds[0])
    seats = Seats(env, actor, Streams([stage_seed(seed, "actions") for seed in seeds], env.device))
    score, book = Score(env, discount), Book(env.num_envs, math.ceil(episodes * policies / env.num_envs))
    quiet, chunk = 0, 1
    while True:
        trail = []
        for _ in range(chunk):
            with torch.inference_mode():
                decision = seats.act(obs)
                step = env.step(decision.action)
                seats.after(step)
                trail.append((step.ended, score.add(step, decision)))
            obs = step.obs
        seats.referee.settle()
        finished, news = book.enter(*(torch.stack(column).cpu().numpy() for column in zip(*trail)))
        if book.full:
            return score.episodes(book.rows, policies)
        quiet, chunk = 0 if news else quiet + chunk, steps_between_looks(env.device, decision)
        if quiet > patience:
            raise InputError(
                f"Some environments did not end an episode within {patience:,} steps, so there is no return to report. "
                "Give the environment an end, for a native world env.time_limit; or wait longer, with "
                "evaluation.patience."
            )
        if finished:
            seats.keep(torch.from_numpy(book.playing).to(env.device))


def steps_between_looks(device: torch.device, decision: Decision) -> int:
    """Steps until the next look at who has ended; one where a look is free, or decisions count what they take."""
    return 1 if device.type == "cpu" or decision.counts else CHUNK


def _require_some(env: VectorEnv, episodes: int, policies: int, discount: Tensor | None) -> None:
    """Raise InputError unless there are episodes, seeds that share the rows, and a discount for each channel."""
    if episodes < 1:
        raise InputError(f"Expected at least one episode to play; got episodes={episodes}.")
    if policies < 1 or env.num_envs % policies:
        raise InputError(
            f"Expected a seed for each policy, and as many rows for each; got {policies} seeds for {env.num_envs} rows."
        )
    channels = env.spec.channels
    if discount is not None and tuple(discount.shape) != (len(channels),):
        raise InputError(
            f"Expected a discount for each reward channel, [{len(channels)}] for {', '.join(channels)}; got "
            f"{list(discount.shape)}."
        )


class Score:
    """Sums over each row's present episode, [E,C].

    They are age, late reward, reward and discounted reward by channel, and what decisions count."""

    def __init__(self, env: VectorEnv, discount: Float[Tensor, " K"] | None):
        self.spec = env.spec
        self.discount = None if discount is None else discount.to(env.device, torch.float64)
        self.half = env.spec.horizon // 2 if env.spec.horizon else math.inf
        self.names: list[str] | None = None  # of what decisions count
        self.sums = torch.zeros(env.num_envs, 0, dtype=torch.float64, device=env.device)

    def add(self, step: Step, decision: Decision) -> Float[Tensor, "E C"]:
        """One more step; gives the sums with it. Rows that ended begin anew."""
        counts = decision.counts or {}
        if self.names is None:
            self.names = list(counts)
            self.sums = self.sums.new_zeros(len(self.sums), 2 + 2 * len(self.spec.channels) + len(counts))
        if set(counts) != set(self.names):
            raise InputError(
                f"A decision counts the same things at every step: {self.names} at first; got {list(counts)}."
            )
        reward = step.reward.sum(1, dtype=torch.float64)
        age = self.sums[:, :1]
        late = reward.sum(-1, keepdim=True) * (age + 1 > self.half)
        faded = reward if self.discount is None else reward * self.discount**age
        counted = [counts[name].to(reward).unsqueeze(-1) for name in self.names]
        sums = self.sums + torch.cat([torch.ones_like(age), late, reward, faded, *counted], -1)
        self.sums = sums.masked_fill(step.ended.unsqueeze(-1), 0)
        return sums

    def episodes(self, rows: list[list[np.ndarray]], policies: int) -> list[Episodes]:
        """The episodes of each policy, from the sums [C] at the end of each episode of each row."""
        size = len(rows) // policies
        return [self._of_one(rows[p * size : (p + 1) * size]) for p in range(policies)]

    def _of_one(self, rows: list[list[np.ndarray]]) -> Episodes:
        agents, channels = len(self.spec.agents), len(self.spec.channels)
        table = np.stack([sums for row in rows for sums in row])
        ages, late, earned, faded, counts = np.split(table, np.cumsum([1, 1, channels, channels]), 1)
        steps = ages[:, 0] - self.half
        return Episodes(
            returns=earned / agents,
            lengths=ages[:, 0],
            agents=agents,
            rows=len(rows),
            discounted=None if self.discount is None else faded / agents,
            late=late[:, 0] / agents / steps if bool((steps > 0).all()) else None,
            counts=dict(zip(self.names or [], counts.T, strict=True)),
        )


class Book:
    """The sums at the end of each row's first `quota` episodes, and which rows have not played all of theirs."""

    def __init__(self, rows: int, quota: int):
        self.quota = quota
        self.rows: list[list[np.ndarray]] = [[] for _ in range(rows)]
        self.playing = np.ones(rows, dtype=bool)

    @property
    def full(self) -> bool:
        """True where every row has played all of its episodes."""
        return not self.playing.any()

    def enter(self, ended: np.ndarray, sums: np.ndarray) -> tuple[bool, bool]:
        """Take down steps [T,E] and [T,E,C]; says whether a row has finished with them, and whether one was news."""
        finished = news = False
        for t, row in np.argwhere(ended & self.playing).tolist():
            entries = self.rows[row]
            if len(entries) == self.quota:
                continue
            entries.append(sums[t, row].copy())
            news = True
            if len(entries) == self.quota:
                self.playing[row], finished = False, True
        return finished, news


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
    obs = env.reset(seed)
    seats = Seats(env, actor, Streams([stage_seed(seed, "actions")], env.device))
    while True:
        with torch.inference_mode():
            seen = picture()
            decision = seats.act(obs)
            step = env.step(decision.action)
            seats.after(step)
        yield Moment(obs, seen, decision, step)
        obs = step.obs
