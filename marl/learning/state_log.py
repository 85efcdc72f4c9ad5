"""Logs of joint play that keep states as the world keeps them, and observe them when they are drawn."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Num, Shaped
from torch import Tensor

from envs.actors import require_actor
from envs.core import Actor, Decision, InputError, Observation, Streams, Tree, tree_map
from envs.world import TensorEnv
from marl.learning.batch import Batch, forget, take_rows
from marl.learning.returns import gae

SMALL = (torch.uint8, torch.int8, torch.int16, torch.int32)


class StateLog:
    """Logged joint play of E rows, T steps each: n = T·E decisions, time first, with the states before and after.

    observe: what a critic sees of states. state, following: trees [n,…]; whole numbers are kept in as few bytes as hold
    them, and widened again when they are drawn. action [n,N,A], reward [n,N,K], terminated and truncated [n,N].
    latent [n,…]: what else was decided, where that is a tensor; kept as it is. Probabilities of choices, [n,N,A] in
    float32, take 4·N·A bytes a decision: 48 for two agents of six choices each.
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
        latent: Shaped[Tensor, "n ..."] | None = None,
    ):
        if not len(action) or len(action) % rows:
            raise InputError(
                f"A log has at least one step of each of its rows; got {len(action)} transitions of {rows} rows."
            )
        self.observe, self.rows = observe, rows
        self._like = tree_map(lambda leaf: leaf[:0], (state, action))
        self._kept = tree_map(_narrow, (state, following, action))
        self.reward, self.terminated, self.truncated = reward, terminated, truncated
        self.latent = latent

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
        happened = (self.reward, self.terminated, self.truncated, self.latent)
        reward, terminated, truncated, latent = take_rows(happened, places)
        return Batch(
            policies=policies,
            steps=steps,
            segment=1,
            obs=self.observe(state),
            final_obs=self.observe(following),
            decision=Decision(action, latent),
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

    def returns(self, discount: Float[Tensor, " K"]) -> StateLog:
        """The log with returns for rewards, r_t + γ r_{t+1} + … to the end of the episode, after which nothing follows.

        Decisions of episodes whose end is not in the log are left out: single steps remain, in no order. Raises
        InputError where no episode ended.
        """
        shape = (-1, self.rows)
        reward, terminated, truncated = (x.unflatten(0, shape) for x in (self.reward, self.terminated, self.truncated))
        nothing, everybody = torch.zeros_like(reward), torch.ones_like(terminated)
        total = gae(reward, nothing, nothing, terminated, truncated, everybody, discount, 1.0)
        ended = (terminated | truncated).all(-1)
        known = ended.flip(0).cumsum(0).flip(0) > 0
        places = known.flatten().nonzero().squeeze(1)
        if not len(places):
            raise InputError("No episode ends in this log, so nothing is known of its returns; record more steps.")
        state, following, action = self.states(places)
        over, reward = torch.ones_like(self.terminated[places]), total.flatten(0, 1)[places]
        latent = take_rows(self.latent, places)
        return StateLog(self.observe, state, action, reward, following, over, ~over, len(places), latent)

    def weighted(self, weights: Float[Tensor, " K"]) -> StateLog:
        """The log with one reward for all channels, by these weights. Raises InputError for another number of them."""
        if weights.shape != self.reward.shape[-1:]:
            raise InputError(f"A weight for each of {self.reward.shape[-1]} reward channels; got {weights.tolist()}.")
        log = copy.copy(self)
        log.reward = (self.reward @ weights.to(self.reward)).unsqueeze(-1)
        return log

    def bytes(self) -> int:
        """Memory that the log takes."""
        sizes: list[int] = []
        kept = (self._kept, self.reward, self.terminated, self.truncated, self.latent)
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
    """Log of an actor that plays `steps` steps in each row of an environment; its latents, where they are tensors."""
    if steps < 1:
        raise InputError(f"A log has at least one step; got steps={steps}.")
    require_actor(actor, "What is recorded")
    # The actor's random numbers are its own: with the world's it would seem to cause what is chance.
    obs, streams = env.reset(seed), Streams([_actors_seed(seed)], env.device)
    memory, taken = actor.initial_memory(env.num_envs), []
    for _ in range(steps):
        rows = env.rows
        decision, memory = actor.act(obs, memory, streams)
        noise = tree_map(lambda leaf: leaf[0], env.draw_ahead(1))
        after, seen, outcomes, _ = env.advance(rows, obs.alive, decision.action, noise.physics)
        reward, terminated, truncated, ended = outcomes
        before, following = (rows.state, rows.clock, obs.alive), (after.state, after.clock, seen.alive)
        latent = decision.latent if isinstance(decision.latent, Tensor) else None
        taken.append(((before, decision.action, reward, following, terminated, truncated), latent))
        rows, obs = env.restart(after, seen, ended, noise.start)
        env.go_on_from(rows, obs)
        memory = forget(memory, ended)
    joined, latent = tree_map(lambda *leaves: torch.cat(leaves), *taken)

    def observe(kept: tuple[Any, Int[Tensor, " B"], Bool[Tensor, "B N"]]) -> Observation:
        world_state, clock, present = kept
        seen = env.observe(world_state, clock)
        return Observation(seen.agent, seen.state, present, seen.legal)

    return StateLog(observe, *joined, rows=env.num_envs, latent=latent)


def _actors_seed(seed: int) -> int:
    """Another seed, a function of this one."""
    return int.from_bytes(hashlib.sha256(f"actor {seed}".encode()).digest()[:6], "big")
