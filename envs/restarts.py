"""Worlds whose episodes begin in many states, of which play from the world's own start reaches few in short time."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from envs.core import InputError, Observation, Streams, Tree, leaves, tree_map, tree_where
from envs.nested import inner_world
from envs.world import RandomActor, TensorEnv, Transition, World


class Restarting(World[Any]):
    """A world whose episodes begin in states of a pool, all alike; else it is the world itself, in `world`.

    pool: a tree of the world's states, [starts,…]. Planners in words, tables and critics take `world`, whose
    observations these are. A clock, where the task has a horizon, begins at 0 wherever the episode does. What theory
    knows of the world's own start (`World.known`) is not known of these. Raises InputError for an empty pool.
    """

    def __init__(self, world: World[Any], pool: Tree):
        self.world, self.pool = world, pool
        self.spec, self.shows_clock = world.spec, world.shows_clock
        sizes = {len(leaf) for leaf in leaves(pool)}
        if len(sizes) != 1 or 0 in sizes:
            raise InputError(
                f"A pool of starts is a tree of states, all of one length, at least 1; got lengths {sorted(sizes)}."
            )
        (self.starts,) = sizes
        self._pools: dict[torch.device, Tree] = {}

    def initial_noise(self, num: int, generator: torch.Generator) -> Int[Tensor, " E"]:
        """Numbers of states in the pool, all alike."""
        return torch.randint(self.starts, (num,), generator=generator, device=generator.device)

    def initial(self, noise: Int[Tensor, " E"]) -> Any:
        """The states of the pool with these numbers."""
        device = noise.device
        if device not in self._pools:
            self._pools[device] = tree_map(lambda leaf: leaf.to(device), self.pool)
        return tree_map(lambda leaf: leaf.index_select(0, noise), self._pools[device])

    def noise(self, num: int, generator: torch.Generator) -> Tree:
        """The world's."""
        return self.world.noise(num, generator)

    def transition(self, state: Any, action: Tensor, noise: Tree) -> Transition:
        """The world's."""
        return self.world.transition(state, action, noise)

    def observe(self, state: Any) -> Observation:
        """The world's."""
        return self.world.observe(state)

    def frame(self, state: Any) -> Any:
        """The world's picture."""
        return self.world.frame(state)


@torch.no_grad()
def from_random_play(world: World[Any], starts: int, steps: int, seed: int) -> Restarting:
    """The world with a pool of `starts` states of random play from its own start.

    Agents choose among what is legal, all alike; each state is that after 0 to `steps` steps, a number drawn for it, in
    play that begins anew where its episode ends. Equal seeds give equal pools. Where agents leave one by one, which no
    state tells, it is the last state before that in which all were there. Raises InputError for numbers out of range.
    """
    if starts < 1 or steps < 0:
        raise InputError(f"A pool has starts >= 1 states of play of steps >= 0 steps; got {starts=}, {steps=}.")
    chance = torch.Generator().manual_seed(seed)
    # The world's random numbers and the agents' are independent, or what is chance would seem to follow from choices.
    worlds, agents = torch.randint(2**31, (2,), generator=chance).tolist()
    length = torch.randint(steps + 1, (starts,), generator=chance)
    env, actor, streams = TensorEnv(world, starts), RandomActor(world.spec), Streams([agents])
    obs = env.reset(worlds)
    pool = env.rows.state
    for step in range(1, steps + 1):
        decision, _ = actor.act(obs, None, streams)
        obs = env.step(decision.action).obs
        takes = (step <= length) & env.rows.present.all(-1)
        pool = tree_where(takes, env.rows.state, pool)
    return Restarting(world, pool)


def restarting(world: Any, args: Any = None, *, starts: int = 10_000, steps: int = 100, seed: int = 0) -> World[Any]:
    """A world, module:Class with these arguments, whose episodes begin where random play led: see `from_random_play`.

    With steps=0 it begins where it ever does: `evaluation.args.steps=0`.
    """
    numbers = {"starts": starts, "steps": steps, "seed": seed}
    for name, number in numbers.items():
        if type(number) is not int:
            raise InputError(f"{name} is a whole number; got {number!r}.")
    return from_random_play(inner_world(world, args), **numbers)
