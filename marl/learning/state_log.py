"""Logs of joint play that keep states as the world keeps them, and observe them when they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from envs.core import Actor, Decision, InputError, Observation, Streams, Tree, tree_map
from envs.world import TensorEnv
from marl.learning.batch import Batch, forget, take_rows

SMALL = (torch.uint8, torch.int8, torch.int16, torch.int32)


class StateLog:
    """Logged joint play of E rows, T steps each: n = T·E decisions, time first, with the states before and after.

    observe: what a critic sees of states. state, following: trees [n,…]; whole numbers are kept in as few bytes as hold
    them, and widened again when they are drawn. action [n,N,A], reward [n,N,K], terminated and truncated [n,N].
    """

    def __init__(
        self,
        observe: Callable[[Any], Observation],
        state: Tree,
        action: Num[Tensor, "n N A"],
        reward: Float[Tensor, "n N K"],
        following: Tree,
        terminated: Bool[Tensor, "n N"],
        truncated: Bool[Tensor, "n N"],
        rows: int,
    ):
        if not len(action) or len(action) % rows:
            raise InputError(
                f"A log has at least one step of each of its rows; got {len(action)} transitions of {rows} rows."
            )
        self.observe, self.rows = observe, rows
        self._like = tree_map(lambda leaf: leaf[:0], (state, action))
        self._kept = tree_map(_narrow, (state, following, action))
        self.reward, self.terminated, self.truncated = reward, terminated, truncated

    def __len__(self) -> int:
        return len(self.reward)

    def starts(self, steps: int) -> int:
        """The number of segments of so many steps. Raises InputError where the log has fewer."""
        count = len(self) - (steps - 1) * self.rows
        if count < 1:
            raise InputError(f"The log has {len(self) // self.rows} steps of each row, fewer than steps={steps}.")
        return count

    def take(self, rows: Int[Tensor, " R"], policies: int, steps: int) -> Batch:
        """Segments that begin at these numbers, policy-major, then step by step."""
        by_step = rows.view(policies, 1, -1) + self.rows * torch.arange(steps, device=rows.device).view(-1, 1)
        places = by_step.flatten()
        state, following, action = self.states(places)
        reward, terminated, truncated = take_rows((self.reward, self.terminated, self.truncated), places)
        return Batch(
            policies=policies,
            steps=steps,
            segment=1,
            obs=self.observe(state),
            final_obs=self.observe(following),
            decision=Decision(action),
            memory=None,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            ended=(terminated | truncated).all(-1),
        )

    def states(self, places: Int[Tensor, " B"]) -> tuple[Tree, Tree, Num[Tensor, "B N A"]]:
        """States before and after the decisions with these numbers, and what was chosen."""
        state, action = self._like
        kept = take_rows(self._kept, places)
        return tree_map(lambda like, narrow: narrow.to(like.dtype), (state, state, action), kept)

    def bytes(self) -> int:
        """Memory that the log takes."""
        sizes: list[int] = []
        kept = (self._kept, self.reward, self.terminated, self.truncated)
        tree_map(lambda leaf: sizes.append(leaf.nbytes), kept)
        return sum(sizes)


def _narrow(x: Tensor) -> Tensor:
    """The same whole numbers in the smallest type that holds them; other numbers as they are."""
    if x.is_floating_point() or x.dtype == torch.bool or not x.numel():
        return x
    least, most = int(x.min()), int(x.max())
    for dtype in SMALL:
        bounds = torch.iinfo(dtype)
        if bounds.min <= least and most <= bounds.max:
            return x.to(dtype)
    return x


@torch.inference_mode()
def record(env: TensorEnv, actor: Actor, steps: int, seed: int) -> StateLog:
    """Log of an actor that plays `steps` steps in each row of an environment."""
    obs, streams = env.reset(seed), Streams([seed], env.device)
    memory, taken = actor.initial_memory(env.num_envs), []
    for _ in range(steps):
        rows = env.rows
        decision, memory = actor.act(obs, memory, streams)
        noise = tree_map(lambda leaf: leaf[0], env.draw_ahead(1))
        after, seen, outcomes, _ = env.advance(rows, obs.alive, decision.action, noise.physics)
        reward, terminated, truncated, ended = outcomes
        before = rows.state, rows.clock, obs.alive
        taken.append((before, decision.action, reward, (after.state, after.clock, seen.alive), terminated, truncated))
        rows, obs = env.restart(after, seen, ended, noise.start)
        env.go_on_from(rows, obs)
        memory = forget(memory, ended)
    joined = tree_map(lambda *leaves: torch.cat(leaves), *taken)

    def observe(kept: tuple[Any, Int[Tensor, " B"], Bool[Tensor, "B N"]]) -> Observation:
        world_state, clock, present = kept
        seen = env.observe(world_state, clock)
        return Observation(seen.agent, seen.state, present, seen.legal)

    return StateLog(observe, *joined, rows=env.num_envs)
