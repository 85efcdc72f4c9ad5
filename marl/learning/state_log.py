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
from marl.learning.returns import gae

SMALL = (torch.uint8, torch.int8, torch.int16, torch.int32)


class StateLog:
    """n logged joint decisions, each with the state before and after it.

    observe: what a critic sees of states. state, following: trees [n,…]; whole numbers are kept in as few bytes as hold
    them, and widened again when they are drawn. action [n,N,A], reward [n,N,K], terminated [n,N].
    """

    def __init__(
        self,
        observe: Callable[[Any], Observation],
        state: Tree,
        action: Num[Tensor, "n N A"],
        reward: Float[Tensor, "n N K"],
        following: Tree,
        terminated: Bool[Tensor, "n N"],
    ):
        if not len(action):
            raise InputError("A log needs at least one transition; it has none.")
        self.observe = observe
        self._like = tree_map(lambda leaf: leaf[:0], (state, action))
        self._kept = tree_map(_narrow, (state, following, action))
        self.reward, self.terminated = reward, terminated

    def __len__(self) -> int:
        return len(self.reward)

    def take(self, rows: Int[Tensor, " B"], policies: int) -> Batch:
        """Those with these numbers, policy-major, as a batch of single steps."""
        state, following, action = self.states(rows)
        reward, terminated = take_rows((self.reward, self.terminated), rows)
        return Batch(
            policies=policies,
            steps=1,
            segment=1,
            obs=self.observe(state),
            final_obs=self.observe(following),
            decision=Decision(action),
            memory=None,
            reward=reward,
            terminated=terminated,
            truncated=torch.zeros_like(terminated),
            ended=terminated.all(-1),
        )

    def states(self, rows: Int[Tensor, " B"]) -> tuple[Tree, Tree, Num[Tensor, "B N A"]]:
        """States before and after those with these numbers, and what was chosen."""
        state, action = self._like
        return tree_map(lambda like, kept: kept.to(like.dtype), (state, state, action), take_rows(self._kept, rows))

    def bytes(self) -> int:
        """Memory that the log takes."""
        sizes: list[int] = []
        tree_map(lambda leaf: sizes.append(leaf.nbytes), (self._kept, self.reward, self.terminated))
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
def record(
    env: TensorEnv, actor: Actor, steps: int, seed: int, *, discount: Float[Tensor, " K"] | None = None
) -> StateLog:
    """Log of an actor that plays `steps` steps in each row of an environment, T·E transitions, time first.

    With a discount, rewards become returns, r_t + γ r_{t+1} + … up to the episode's end, or to where the log ends, and
    everything terminates: Monte Carlo targets, as Zhang et al. (arXiv 2405.14314, algorithm 1) regress on.
    """
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
    joined = tree_map(lambda *leaves: torch.stack(leaves), *taken)
    state, action, reward, following, terminated, truncated = joined
    if discount is not None:
        nothing, alive = torch.zeros_like(reward), state[2]
        reward = gae(reward, nothing, nothing, terminated, truncated, alive, discount, 1.0)
        terminated = torch.ones_like(terminated)
    flat = tree_map(lambda leaf: leaf.flatten(0, 1), (state, action, reward, following, terminated))

    def observe(kept: tuple[Any, Int[Tensor, " B"], Bool[Tensor, "B N"]]) -> Observation:
        world_state, clock, present = kept
        seen = env.observe(world_state, clock)
        return Observation(seen.agent, seen.state, present, seen.legal)

    return StateLog(observe, *flat)
