"""Worlds whose episodes begin where random play led."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from worlds import TabularGame, Walk

from envs.core import InputError, Observation, leaves
from envs.kitchen import Kitchen
from envs.restarts import Restarting, from_random_play, restarting
from envs.testing import check_env
from envs.world import RandomActor, TensorEnv
from marl.learning.state_log import record

KITCHEN = {"layout": "cramped_room_small", "horizon": None, "soups": 1, "counter_items": 0}


def reached(world: Any, starts: int = 4000) -> Tensor:
    """Numbers of the game's states in a pool's order."""
    assert len(world.pool) == starts
    return world.pool


def exact_shares(game: TabularGame, steps: int) -> Tensor:
    """Shares of states after 0 to `steps` steps of random play, episodes beginning anew where they end."""
    start = torch.full((game.states,), 1 / (game.states - 1)).double()
    start[-1] = 0
    share, total = start, torch.zeros_like(start)
    for _ in range(steps + 1):
        total = total + share / (steps + 1)
        after = torch.zeros_like(share)
        for state in range(game.states):
            after.index_add_(0, game.successor[state], share[state].expand(9) / 9)
        ended = after[game.ends].sum()
        share = torch.where(game.ends, 0, after) + ended * start
    return total


def test_states_are_as_frequent_as_in_random_play_of_every_length_alike() -> None:
    game = TabularGame()
    world = from_random_play(game, 20_000, 3, seed=0)
    counted = torch.bincount(reached(world, 20_000), minlength=6).double() / 20_000
    assert_close(counted, exact_shares(game, 3), rtol=0, atol=0.012)
    assert not torch.allclose(exact_shares(game, 3), exact_shares(game, 0), rtol=0, atol=0.02)


def test_the_last_step_counts_and_no_step_is_the_worlds_own_start() -> None:
    kitchen = Kitchen(**KITCHEN)  # type: ignore[arg-type]
    still = from_random_play(kitchen, 50, 0, seed=0)
    for kept, first in zip(leaves(still.pool), leaves(kitchen.first()), strict=True):
        assert torch.equal(kept, first.expand_as(kept))

    class Counter(TabularGame):
        def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
            return torch.zeros(num, dtype=torch.int64)

        def transition(self, state: Tensor, action: Tensor, noise: None) -> Any:
            return super().transition(state, action, noise)._replace(state=state + 1, terminated=None)

        def observe(self, state: Tensor) -> Observation:
            return super().observe(state.clamp(max=5))

    assert torch.bincount(from_random_play(Counter(), 3000, 2, seed=0).pool).tolist() == pytest.approx(
        [1000] * 3, abs=90
    )


def test_equal_seeds_give_equal_pools() -> None:
    first, again, other = (from_random_play(TabularGame(), 100, 9, seed).pool for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_only_legal_choices_are_played() -> None:
    class Limited(TabularGame):
        def observe(self, state: Tensor) -> Observation:
            seen = super().observe(state)
            legal = torch.ones(len(state), 2, 3, dtype=torch.bool)
            legal[..., 2] = False
            return Observation(seen.agent, seen.state, seen.alive, legal)

        def transition(self, state: Tensor, action: Tensor, noise: None) -> Any:
            assert int(action.max()) < 2
            return super().transition(state, action, noise)

    from_random_play(Limited(), 200, 5, seed=0)


def test_episodes_begin_in_the_pool_and_go_on_as_in_the_world() -> None:
    kitchen = Kitchen(**KITCHEN)  # type: ignore[arg-type]
    world = from_random_play(kitchen, 300, 30, seed=0)
    env = TensorEnv(world, 64, time_limit=5)
    check_env(lambda: TensorEnv(world, 4, time_limit=7))
    log = record(env, RandomActor(env.spec), 11, seed=2)
    (state, clock, _), (after, _, _), action = log.states(torch.arange(len(log)))
    pool = {row.numpy().tobytes() for row in kitchen.observe(world.pool).state}
    begun = kitchen.observe(state).state[clock == 0]
    assert len(begun) == 3 * 64
    assert {row.numpy().tobytes() for row in begun} <= pool
    assert len({row.numpy().tobytes() for row in begun}) > 40
    for got, expected in zip(leaves(after), leaves(kitchen.transition(state, action, None).state), strict=True):
        assert torch.equal(got, expected)
    assert world.spec == kitchen.spec
    assert world.frame(kitchen.first()).shape == kitchen.frame(kitchen.first()).shape


def test_the_clock_begins_with_the_episode() -> None:
    world = from_random_play(Walk(horizon=5), 50, 4, seed=0)
    env = TensorEnv(world, 20)
    assert bool((env.reset(0).state[:, 0] == 0).all())
    assert env.reset(0).agent.shape == TensorEnv(Walk(horizon=5), 20).reset(0).agent.shape
    for _ in range(4):
        assert not bool(env.step(torch.zeros(20, 2, 2)).truncated.any())

    class Hidden(Walk):
        shows_clock = False

    hidden = from_random_play(Hidden(horizon=5), 5, 2, seed=0)
    assert TensorEnv(hidden, 2).reset(0).agent.shape[-1] == 1


def test_nobody_is_gone_where_an_episode_begins() -> None:
    pool = from_random_play(Walk(), 500, 40, seed=0).pool
    assert bool((pool.abs() <= 2).all())
    assert float(pool.abs().max()) > 1.5


def test_it_is_made_from_a_name_for_configs() -> None:
    world = restarting("envs.kitchen:Kitchen", KITCHEN, starts=20, steps=5, seed=3)
    assert isinstance(world, Restarting)
    expected = from_random_play(Kitchen(**KITCHEN), 20, 5, seed=3)  # type: ignore[arg-type]
    for one, two in zip(leaves(world.pool), leaves(expected.pool), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"starts": 0}, r"starts >= 1 states of play of steps >= 0 steps; got starts=0, steps=100"),
        ({"steps": -1}, r"got starts=10000, steps=-1"),
        ({"steps": True}, r"steps is a whole number; got True"),
        ({"args": {"layuot": "x"}}, r"env\.args\.args\.layuot"),
    ],
)
def test_what_makes_no_pool_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        restarting("envs.kitchen:Kitchen", **settings)


def test_a_pool_is_states_of_one_number() -> None:
    with pytest.raises(InputError, match=r"at least 1; got lengths \[0\]"):
        Restarting(TabularGame(), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match=r"got lengths \[1, 2\]"):
        Restarting(TabularGame(), (torch.zeros(1), torch.zeros(2)))


def test_every_state_of_a_pool_is_a_start() -> None:
    world = Restarting(TabularGame(), torch.tensor([4, 2]))
    starts = world.initial(world.initial_noise(50, torch.Generator().manual_seed(0)))
    assert starts.unique().tolist() == [2, 4]


def test_a_name_of_something_else_than_a_world_is_refused() -> None:
    with pytest.raises(InputError, match=r"must name a World, module:Class; fractions:Fraction gave a Fraction"):
        restarting("fractions:Fraction")
