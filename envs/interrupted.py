"""A world that silently begins anew in the middle of an episode: who plans from memory alone is not told."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from envs.core import InputError, Observation, Tree, tree_where
from envs.world import Transition, World


class Counted(NamedTuple):
    """A world's state and the steps of the episode that led to it."""

    state: Any
    steps: Int[Tensor, " E"]


class Interrupted(World[Counted]):
    """A world whose state is a fresh start again after so many steps of an episode, which goes on.

    Nothing tells the agents, whose clock and limit of time run on. What theory knows of the world (`World.known`) is
    not known of this. Source: the robustness test of Zhang et al., ACL Findings 2025 (arXiv 2405.14314, table 1).
    Raises InputError for a number of steps below 1.
    """

    def __init__(self, world: World[Any], after: int):
        if after < 1:
            raise InputError(f"A world begins anew after a number of steps, at least 1; got {after!r}.")
        self.world, self.after = world, after
        self.spec, self.shows_clock = world.spec, world.shows_clock

    def initial_noise(self, num: int, generator: torch.Generator) -> Tree:
        """The world's."""
        return self.world.initial_noise(num, generator)

    def initial(self, noise: Tree) -> Counted:
        """The world's, after no step."""
        state = self.world.initial(noise)
        first = self.world.observe(state).alive
        return Counted(state, torch.zeros(len(first), dtype=torch.int64, device=first.device))

    def noise(self, num: int, generator: torch.Generator) -> Tree:
        """The world's, and those of a fresh start."""
        return self.world.noise(num, generator), self.world.initial_noise(num, generator)

    def transition(self, state: Counted, action: Tensor, noise: Tree) -> Transition:
        """The world's, whose outcome is a fresh start where it is time, unless the episode ended."""
        physics, start = noise
        after = self.world.transition(state.state, action, physics)
        steps = state.steps + 1
        fresh = tree_where(steps == self.after, self.world.initial(start), after.state)
        return after._replace(state=Counted(fresh, steps))

    def observe(self, state: Counted) -> Observation:
        """The world's."""
        return self.world.observe(state.state)

    def frame(self, state: Counted) -> Any:
        """The world's picture."""
        return self.world.frame(state.state)
