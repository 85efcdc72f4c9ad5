"""A world that silently begins anew in mid-episode."""

from __future__ import annotations

import pytest
import torch

from envs.core import InputError, leaves
from envs.games import CopyGame
from envs.interrupted import Interrupted
from envs.kitchen import Kitchen
from envs.world import TensorEnv


def step_all(env: TensorEnv, steps: int) -> list:
    chance = torch.Generator().manual_seed(0)
    return [env.step(torch.randint(6, (env.num_envs, 2, 1), generator=chance)) for _ in range(steps)]


def test_after_so_many_steps_it_is_a_start_again_and_the_episode_goes_on():
    kitchen = Kitchen("cramped_room_small", horizon=None)
    env = TensorEnv(Interrupted(kitchen, 3), 8, time_limit=5)
    start = env.reset(0)
    states = step_all(env, 5)
    assert not torch.equal(states[1].obs.state, start.state)
    assert torch.equal(states[2].obs.state, start.state)
    assert not any(step.terminated.any() or step.truncated.any() for step in states[:4])
    assert states[4].truncated.all()


def test_until_then_it_is_the_world():
    kitchen = Kitchen("cramped_room_small", horizon=None)
    one, other = TensorEnv(Interrupted(kitchen, 4), 8), TensorEnv(kitchen, 8)
    one.reset(0), other.reset(0)
    for mine, theirs in zip(step_all(one, 3), step_all(other, 3), strict=True):
        assert torch.equal(mine.obs.state, theirs.obs.state)
        assert torch.equal(mine.reward, theirs.reward)


def test_it_happens_once_an_episode():
    kitchen = Kitchen("cramped_room_small", horizon=None)
    env = TensorEnv(Interrupted(kitchen, 2), 64)
    start = env.reset(0)
    again = [bool((step.obs.state == start.state).all()) for step in step_all(env, 6)]
    assert again[1]
    assert not any(again[3:])


def test_a_fresh_start_is_another_one_where_starts_differ():
    kitchen = Kitchen("cramped_room", horizon=None, starts="random")
    env = TensorEnv(Interrupted(kitchen, 1), 64)
    start = env.reset(0)
    (step,) = step_all(env, 1)
    assert (step.obs.state != start.state).any(-1).float().mean() > 0.9


def test_an_episode_that_ended_is_over():
    env = TensorEnv(Interrupted(CopyGame(), 1), 4)
    env.reset(0)
    step = env.step(torch.zeros(4, 2, 1, dtype=torch.int64))
    assert step.terminated.all()
    assert all(len(leaf) == 4 for leaf in leaves(env.rows.state))


@pytest.mark.parametrize("after", [0, -1])
def test_refuses_a_number_that_is_none(after):
    with pytest.raises(InputError, match="at least 1"):
        Interrupted(CopyGame(), after)
