"""Batches to learn from: frozen dataclasses of tensors, rows ordered policy-major, then time, then environment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from envs.core import Decision, InputError, Observation, Streams, Tree, tree_map, tree_where
from marl.learning.returns import gae

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Means over the episodes that ended in this batch, by policy.

    discounted: mean return by channel, each with its own discount; the mean over agents. total: the undiscounted return
    of each agent, [P,N,K]. length: mean steps. All are 0 where `episodes` is 0. Returns of a channel whose reward was
    relabeled since are NaN: nobody has added those up. channels: the names of the K channels.
    """

    discounted: Float[Tensor, "P K"]
    total: Float[Tensor, "P N K"]
    length: Float[Tensor, " P"]
    episodes: Float[Tensor, " P"]
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """T steps of E environments for P policies, flattened to B = P·T·E/P rows.

    final_obs is the true successor of each row (bootstrap from it). memory is what the actor remembered at the start of
    each segment of `segment` steps, [P·(T/segment)·E/P, …], or None. reward is raw: values, advantages and their
    scalarization are the learner's, after any relabeling.
    """

    policies: int
    steps: int
    segment: int
    obs: Observation
    final_obs: Observation
    decision: Decision
    memory: Tree
    reward: Float[Tensor, "B N K"]
    terminated: Bool[Tensor, "B N"]
    truncated: Bool[Tensor, "B N"]
    ended: Bool[Tensor, " B"]
    outcome: Outcome | None = None

    @property
    def rows(self) -> int:
        """E/P, the environments of each policy."""
        return len(self.ended) // (self.policies * self.steps)

    def over_time(self, tree: T) -> T:
        """A tree with rows [B, …] as [T, P, E/P, …]."""
        shape = (self.policies, self.steps, self.rows)
        return tree_map(lambda x: x.unflatten(0, shape).transpose(0, 1), tree)


def with_reward(batch: Batch, reward: Float[Tensor, "B N K"]) -> Batch:
    """The batch with other rewards. Its outcome says nothing, NaN, of the channels that differ."""
    if batch.outcome is None or reward is batch.reward:
        return replace(batch, reward=reward)
    if reward.shape != batch.reward.shape:
        return replace(batch, reward=reward, outcome=None)
    relabeled = (reward != batch.reward).flatten(0, 1).any(0)  # [K]
    outcome = replace(
        batch.outcome,
        discounted=batch.outcome.discounted.masked_fill(relabeled, math.nan),
        total=batch.outcome.total.masked_fill(relabeled, math.nan),
    )
    return replace(batch, reward=reward, outcome=outcome)


def advantages_of(
    batch: Batch,
    value: Float[Tensor, "B N K"],
    next_value: Float[Tensor, "B N K"],
    discount: float | Float[Tensor, " K"] | Float[Tensor, "P K"],
    gae_lambda: float,
) -> Float[Tensor, "B N K"]:
    """Generalized advantage estimates of a batch's rows, from the values of `obs` and of `final_obs`; see `gae`.

    With both values 0 and gae_lambda 1 these are discounted returns. discount: of all rewards, by channel, or by policy
    and channel.
    """
    columns = (batch.reward, value, next_value, batch.terminated, batch.truncated, batch.obs.alive)
    if isinstance(discount, float):
        discount = value.new_full(value.shape[-1:], discount)
    by_time = gae(*batch.over_time(columns), discount, gae_lambda)
    return by_time.transpose(0, 1).flatten(0, 2)


def join_steps(trees: list[T], policies: int) -> T:
    """T trees of rows [E, …] as one tree of rows [P·T·E/P, …]."""

    def join(*leaves: Tensor) -> Tensor:
        return torch.stack(leaves).unflatten(1, (policies, -1)).transpose(0, 1).flatten(0, 2)

    return tree_map(join, *trees)


def forget(memory: Tree, ended: Bool[Tensor, " E"]) -> Tree:
    """Memory without that of the rows that ended."""
    return None if memory is None else tree_where(ended, tree_map(torch.zeros_like, memory), memory)


def segment_rows(order: Int[Tensor, "P C"], batch: Batch) -> tuple[Int[Tensor, "L S"], Int[Tensor, " S"]]:
    """The rows [L, S] of the chosen segments, step by step, and the segments' own numbers [S]; policy-major.

    Segment number c of a policy starts at step L·(c // rows) of environment c % rows.
    """
    policies, length, rows = batch.policies, batch.segment, batch.rows
    start = order // rows * (length * rows) + order % rows
    offset = torch.arange(policies, device=order.device).unsqueeze(1)
    first = (start + offset * (batch.steps * rows)).flatten()
    step = torch.arange(length, device=order.device).unsqueeze(1) * rows
    return first + step, (order + offset * (batch.steps // length * rows)).flatten()


def minibatches(batch: Batch, count: int, streams: Streams) -> Iterator[tuple[Int[Tensor, "L S"], Int[Tensor, " S"]]]:
    """Shuffle each policy's segments and deal them into `count` parts; see `segment_rows` for what is yielded.

    Raises InputError where T is no multiple of the segment or a policy has fewer segments than `count`.
    """
    if batch.steps % batch.segment:
        raise InputError(f"steps must be a multiple of segment; got steps={batch.steps}, segment={batch.segment}.")
    segments = batch.steps // batch.segment * batch.rows
    if segments < count:
        raise InputError(
            f"A batch of {segments} segments cannot be dealt into {count} minibatches; "
            "raise env.num_envs or steps, or lower minibatches."
        )
    order = streams.permutation(segments)
    for part in order.tensor_split(count, dim=1):
        yield segment_rows(part, batch)


def take_rows(tree: T, rows: Int[Tensor, "*R"]) -> T:
    """tree[rows], through the operation that is fastest on a CPU."""
    flat, shape = rows.flatten(), rows.shape
    return tree_map(lambda x: x.index_select(0, flat).unflatten(0, shape), tree)
