"""What every swarm must satisfy: rows do not touch one another."""

from __future__ import annotations

from typing import Any

import torch

from envs.core import Streams, tree_map
from envs.world import RandomActor, World
from tests.envs.small_environments import leaves


def assert_rows_alone_equal_rows_in_a_batch(world: World[Any], rows: int = 4) -> None:
    """Play two steps with all rows at once and with each row alone, under the same noise."""
    generator = torch.Generator().manual_seed(0)
    start, steps = world.initial_noise(rows, generator), [world.noise(rows, generator) for _ in range(2)]
    actor, streams = RandomActor(world.spec), Streams([1])

    def play(row: slice, actions: list[torch.Tensor]) -> tuple[Any, ...]:
        state = world.initial(tree_map(lambda leaf: leaf[row], start))
        found: list[Any] = [state]
        for noise, action in zip(steps, actions, strict=True):
            state, reward, terminated = world.transition(state, action[row], tree_map(lambda leaf: leaf[row], noise))
            assert terminated is None
            found += [state, reward, world.observe(state)]
        return tuple(found)

    everywhere = world.observe(world.initial(start))
    actions = [actor.act(everywhere, None, streams)[0].action for _ in range(2)]
    together = play(slice(None), actions)
    for i in range(rows):
        row = slice(i, i + 1)
        alone = play(row, actions)
        for all_rows, one in zip(leaves(together), leaves(alone), strict=True):
            torch.testing.assert_close(all_rows[row], one)
