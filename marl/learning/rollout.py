"""Sources of batches: rollouts of an actor in environments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import Actor, Observation, Streams, Tree, VectorEnv, tree_map
from envs.world import TensorEnv
from marl.learning.batch import Batch, Outcome, forget, join_steps
from marl.learning.returns import discount_by_row, episode_age, episode_sums
from marl.learning.unroll import DrawsAlike, TimeStep, Trajectory, Unroll


def rollout(
    env: VectorEnv,
    actor: Actor,
    obs: Observation,
    memory: Tree,
    streams: Streams,
    steps: int,
    segment: int = 1,
    mode: Callable[[], AbstractContextManager[Any]] = torch.inference_mode,
    unroll: Unroll | None = None,
) -> tuple[Batch, Observation, Tree]:
    """Act for `steps` steps from `obs`. Returns what happened, and observation and memory to go on from.

    mode: how autograd looks on; with torch.enable_grad, what happened carries the graph of how it came about. unroll:
    of this actor in this environment, where its random numbers are to be drawn ahead.
    """
    with mode():
        if unroll is not None and unroll.reach(obs, memory):
            trajectory = unroll.play(obs, memory, streams, steps)
        else:
            trajectory = _one_by_one(env, actor, obs, memory, streams, steps)
    # Joined outside inference mode: learners need ordinary tensors.
    found: TimeStep = join_steps(trajectory.taken, len(streams))
    starts = join_steps(trajectory.memories[::segment], len(streams))
    outcomes = found.reward, found.terminated, found.truncated, found.ended
    sizes = len(streams), steps, segment
    batch = Batch(*sizes, found.obs, found.final_obs, found.decision, starts, *outcomes)
    return batch, trajectory.obs, trajectory.memory


def _one_by_one(
    env: VectorEnv, actor: Actor, obs: Observation, memory: Tree, streams: Streams, steps: int
) -> Trajectory:
    """Any actor in any environment, each with its own random numbers at every step."""
    taken, memories = [], []
    for _ in range(steps):
        memories.append(memory)
        decision, memory = actor.act(obs, memory, streams)
        step = env.step(decision.action)
        outcomes = step.reward, step.terminated, step.truncated, step.ended
        taken.append(TimeStep(obs, step.final_obs, decision, *outcomes))
        obs, memory = step.obs, forget(memory, step.ended)
    return Trajectory(taken, memories, obs, memory)


class EpisodeTracker:
    """Adds up rewards across batches and tells how the episodes went that ended.

    discount: γ by channel, or by policy and channel. channels: their names.
    """

    def __init__(self, discount: Float[Tensor, "*P K"], channels: tuple[str, ...] = ()):
        self.discount, self.channels = discount, channels
        self.carry: dict[str, Tensor] = {}

    @torch.no_grad()
    def observe(self, batch: Batch) -> tuple[Float[Tensor, "T E N K"], Float[Tensor, "T E N K"], Float[Tensor, "T E"]]:
        """Totals, discounted totals and lengths of the episodes so far, at each step; environments policy-major."""
        reward, ended = batch.over_time((batch.reward, batch.ended))
        reward, ended = reward.flatten(1, 2), ended.flatten(1, 2)
        _, rows, agents, channels = reward.shape
        if not self.carry:
            zeros = reward.new_zeros(rows, agents * channels)
            self.carry = {"age": zeros[:, 0], "total": zeros, "discounted": zeros}
        age, self.carry["age"] = episode_age(ended, self.carry["age"])
        faded = reward * discount_by_row(self.discount, rows) ** age[..., None, None]
        total, self.carry["total"] = episode_sums(reward.flatten(2), ended, self.carry["total"])
        discounted, self.carry["discounted"] = episode_sums(faded.flatten(2), ended, self.carry["discounted"])
        shape = (agents, channels)
        return total.unflatten(-1, shape), discounted.unflatten(-1, shape), age + 1

    def outcome(self, batch: Batch) -> Outcome:
        """Means over the episodes that ended in this batch, by policy."""
        total, discounted, length = self.observe(batch)
        ended = batch.over_time(batch.ended).flatten(1, 2).to(total.dtype)
        by_policy = (batch.policies, -1)
        count = ended.sum(0).view(by_policy).sum(1)

        def mean(x: Tensor) -> Tensor:
            """[T,E,…] -> [P,…]."""
            weight = ended.view(*ended.shape, *[1] * (x.dim() - 2))
            summed = (x * weight).sum(0).unflatten(0, by_policy).sum(1)
            return summed / count.clamp(min=1).view(-1, *[1] * (summed.dim() - 1))

        return Outcome(mean(discounted).mean(1), mean(total), mean(length), count, self.channels)


class OnPolicy:
    """Batches of the actor's own experience, one after the other, each from where the last one stopped.

    at_once: steps that are computed as one where the actor's numbers can be drawn ahead; see `Unroll`.
    """

    def __init__(
        self,
        env: VectorEnv,
        actor: Actor,
        *,
        steps: int,
        streams: Streams,
        seeds: Sequence[int],
        segment: int = 1,
        discount: Float[Tensor, "*P K"] | None = None,
        at_once: int | None = None,
    ):
        self.env, self.actor, self.steps, self.segment, self.streams = env, actor, steps, segment, streams
        if discount is None:
            discount = torch.ones(len(env.spec.channels), device=env.device)
        self.tracker = EpisodeTracker(discount, env.spec.channels)
        self._obs = env.reset(list(seeds))
        self._memory = actor.initial_memory(env.num_envs)
        # An environment whose step is its own is stepped.
        steps_alike = isinstance(env, TensorEnv) and type(env).step is TensorEnv.step
        unrolls = steps_alike and isinstance(actor, DrawsAlike) and actor.draws_alike
        self.unroll = Unroll(env, actor, len(streams), at_once) if unrolls else None  # type: ignore[arg-type]

    @property
    def draws_ahead(self) -> bool:
        """True where several steps are taken by `unroll.steps`."""
        return self.unroll is not None and self.unroll.reach(self._obs, self._memory) > 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            batch = self._collect()
            yield dataclasses.replace(batch, outcome=self.tracker.outcome(batch))

    def _collect(self, **options: Any) -> Batch:
        present = self._obs, self._memory
        batch, self._obs, self._memory = rollout(
            self.env, self.actor, *present, self.streams, self.steps, self.segment, unroll=self.unroll, **options
        )
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Environments, memory, streams, and the returns of unfinished episodes."""
        return {
            "env": self.env.state_dict(),
            "memory": self._memory,
            "streams": self.streams.state_dict(),
            "carry": self.tracker.carry,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        self._obs = self.env.load_state_dict(state["env"])
        self.streams.load_state_dict(state["streams"])
        new = torch.zeros(self.env.num_envs, dtype=torch.bool, device=self.env.device)
        new[list(getattr(self.env, "restarted", ()))] = True  # rows that began an episode instead of going on

        def kept(leaf: Tensor) -> Tensor:
            return torch.where(new.view(-1, *[1] * (leaf.dim() - 1)), torch.zeros_like(leaf), leaf)

        self._memory, self.tracker.carry = tree_map(kept, (state["memory"], dict(state["carry"])))
