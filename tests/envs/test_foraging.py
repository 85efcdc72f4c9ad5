"""Foraging agrees with recordings of lbforaging 2.0.0 (tests/fixtures/record_foraging.py), and its rules by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.core import InputError
from envs.foraging import Field, Foraging
from envs.world import TensorEnv

RECORDED = np.load(Path(__file__).parent.parent / "fixtures" / "foraging.npz")
TASKS = ["Foraging-8x8-2p-2f-coop-v3", "Foraging-10x10-3p-3f-v3", "Foraging-2s-9x9-4p-4f-coop-v3", "crowded"]


def recorded(task: str) -> tuple[Foraging, dict[str, Any]]:
    """The world and what was recorded of it."""
    names = ("settings", "field", "players", "action", "obs", "reward", "over")
    played = {name: RECORDED[f"{task}/{name}"] for name in names}
    size, agents, foods, cooperative, sight, penalty = played.pop("settings").tolist()
    world = Foraging(int(size), int(agents), int(foods), bool(cooperative), sight=int(sight), penalty=penalty)
    return world, played


def field_of(levels: Any, players: Any, foods: int) -> Field:
    """One row from a grid of food levels and (row, column, level) of each player."""
    grid, players = torch.as_tensor(np.array(levels)).long(), torch.as_tensor(np.array(players)).long()
    food = grid.nonzero()
    food_level = grid[tuple(food.T)]
    gone = foods - len(food)
    return Field(
        torch.cat([food, torch.zeros(gone, 2, dtype=torch.int64)]).unsqueeze(0),
        torch.cat([food_level, torch.zeros(gone, dtype=torch.int64)]).unsqueeze(0),
        players[None, :, :2],
        players[None, :, 2],
        food_level.sum().view(1),
    )


@pytest.mark.parametrize("task", TASKS)
def test_recorded_episodes_are_replayed_to_the_last_number(task: str) -> None:
    world, played = recorded(task)
    assert world.spec.horizon == 50
    views, steps, ends = iter(played["obs"]), 0, set()
    for levels, players in zip(played["field"], played["players"], strict=True):
        state = field_of(levels, players, world.foods)
        assert world.observe(state).agent[0].tolist() == next(views).tolist()
        for clock in range(1, 51):
            action = torch.tensor(played["action"][steps], dtype=torch.int64).view(1, -1, 1)
            state, reward, terminated = world.transition(state, action, None)
            assert terminated is not None
            over = bool(terminated.all()) or clock == world.spec.horizon
            assert bool(terminated.all()) == bool(terminated.any())
            assert torch.equal(reward[0, :, 0], torch.tensor(played["reward"][steps], dtype=torch.float32))
            assert world.observe(state).agent[0].tolist() == next(views).tolist()
            assert over == bool(played["over"][steps])
            steps += 1
            if over:
                ends.add(clock == 50)
                break
    assert next(views, None) is None
    assert steps == len(played["action"])
    assert ends == {True, False} or task != TASKS[0], "both ends were recorded: food gone, time over"


def test_the_recordings_show_every_rule() -> None:
    failed, shared, taken = 0, 0, set()
    for task in TASKS:
        _, played = recorded(task)
        failed += int((played["reward"] < 0).sum())
        taken |= set((played["reward"] > 0).sum(-1).tolist())
        agents = played["players"].shape[1]
        place = played["obs"][:, :, -3 * agents :].reshape(-1, agents, agents, 3)[:, 0, :, :2]
        here = (place == place[:, :1]).all(-1) & (place[:, :1] >= 0).all(-1)
        shared += int((here.sum(-1) > 1).sum())
    assert failed > 50, "some were too weak"
    assert taken >= {0, 1, 2}, "food taken alone and together"
    assert shared > 10, "cells were shared"


def test_rows_are_stepped_together_as_they_are_alone() -> None:
    world = Foraging(6, 4, 3, sight=2, penalty=0.25)
    generator = torch.Generator().manual_seed(0)
    state = world.initial(world.initial_noise(64, generator))
    action = torch.randint(6, (64, 4, 1), generator=generator)
    together = world.transition(state, action, None)
    for row in range(64):
        alone = world.transition(Field(*(leaf[row : row + 1] for leaf in state)), action[row : row + 1], None)
        assert torch.equal(alone.reward[0], together.reward[row])
        assert torch.equal(world.observe(alone.state).agent[0], world.observe(together.state).agent[row])


def assert_same_shares(ours: Any, theirs: Any) -> None:
    """Within five standard errors of the difference, in every cell; impossible cells are impossible for both."""
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    assert torch.equal(ours > 0, theirs > 0)
    p, q = ours / ours.sum(), theirs / theirs.sum()
    error = ((p * (1 - p)) / ours.sum() + (q * (1 - q)) / theirs.sum()).sqrt()
    assert ((p - q).abs() <= 5 * error).all()


def test_fields_begin_as_those_of_the_package() -> None:
    world, rows = Foraging(8, 3, 2, cooperative=False), 100_000
    state = world.initial(world.initial_noise(rows, torch.Generator().manual_seed(0)))
    spawns = {name: RECORDED[f"spawns/{name}"] for name in ("forager", "food", "apart", "level")}
    assert (state.food_level > 0).all()
    assert torch.equal(state.total, state.food_level.sum(-1))

    def count(pairs: Tensor, like: Any) -> Tensor:
        flat = pairs.reshape(-1, 2) @ torch.tensor([like.shape[1], 1])
        return torch.bincount(flat, minlength=like.size).view(like.shape)

    assert_same_shares(count(state.place, spawns["forager"]), spawns["forager"])
    assert_same_shares(count(state.food, spawns["food"]), spawns["food"])
    assert_same_shares(count((state.food[:, 0] - state.food[:, 1]).abs(), spawns["apart"]), spawns["apart"])
    strength = state.level.sum(-1, keepdim=True).expand(-1, 2)
    assert_same_shares(count(torch.stack([strength, state.food_level], -1), spawns["level"]), spawns["level"])


@pytest.mark.parametrize(("size", "agents", "foods"), [(8, 2, 2), (5, 6, 2), (3, 2, 1), (12, 5, 6)])
def test_nothing_is_put_on_top_of_anything(size: int, agents: int, foods: int) -> None:
    world = Foraging(size, agents, foods)
    state = world.initial(world.initial_noise(2000, torch.Generator().manual_seed(0)))
    cells = torch.cat([state.place, state.food], 1) @ torch.tensor([size + 1, 1])
    exists = torch.cat([state.level, state.food_level], 1) > 0
    same = (cells.unsqueeze(1) == cells.unsqueeze(2)) & exists.unsqueeze(1) & exists.unsqueeze(2)
    assert torch.equal(same, torch.diag_embed(exists))
    lies = state.food[state.food_level > 0]
    assert ((lies >= 1) & (lies <= size - 2)).all()
    assert (state.level.min(), state.level.max()) == (1, 2)
    order = (state.food @ torch.tensor([size + 1, 1])).diff(dim=-1)
    assert (order[state.food_level[:, 1:] > 0] > 0).all(), "in reading order"


def test_cooperative_food_needs_the_three_weakest() -> None:
    world = Foraging(8, 4, 2, highest_level=5)
    state = world.initial(world.initial_noise(500, torch.Generator().manual_seed(0)))
    weakest = state.level.sort(-1).values[:, :3].sum(-1, keepdim=True)
    assert torch.equal(state.food_level, weakest.expand(-1, 2))


def test_food_without_a_place_is_left_out_and_an_empty_field_ends_at_once() -> None:
    world = Foraging(3, 8, 1)
    state = world.initial(world.initial_noise(1000, torch.Generator().manual_seed(0)))
    crowded = (state.place == 1).all(-1).any(-1)
    assert crowded.float().mean().item() == pytest.approx(8 / 9, abs=0.04)
    assert torch.equal(state.food_level[:, 0] == 0, crowded)
    out = world.transition(state, torch.zeros(1000, 8, 1, dtype=torch.int64), None)
    assert torch.equal(out.terminated[:, 0], crowded)
    assert (out.reward == 0).all()
    assert world.observe(state).agent[crowded][:, :, :3].unique(dim=0).tolist() == [[[-1, -1, 0]] * 8]


GRID = [[0] * 5, [0] * 5, [0, 0, 3, 0, 0], [0] * 5, [0] * 5]


def moved(players: list[tuple[int, int, int]], choices: list[int], **settings: Any) -> tuple[Any, Any, bool]:
    """Places and rewards after a step on `GRID`, and whether the food is gone."""
    world = Foraging(5, len(players), 1, **settings)
    action = torch.tensor(choices).view(1, -1, 1)
    state, reward, terminated = world.transition(field_of(GRID, players, 1), action, None)
    assert terminated is not None
    return [tuple(p) for p in state.place[0].tolist()], reward[0, :, 0].tolist(), bool(terminated.all())


def test_the_food_is_shared_by_level_and_the_whole_field_is_worth_one() -> None:
    assert moved([(1, 2, 1), (2, 1, 2)], [5, 5]) == (
        [(1, 2), (2, 1)],
        [pytest.approx(1 / 3), pytest.approx(2 / 3)],
        True,
    )
    assert moved([(1, 2, 1), (2, 1, 2)], [5, 0])[1:] == ([0, 0], False)
    assert moved([(1, 2, 1), (1, 1, 2)], [5, 5])[1:] == ([0, 0], False), "a neighbor of a neighbor does not help"
    assert moved([(1, 2, 1), (1, 1, 2)], [5, 5], penalty=0.5)[1:] == ([-0.5, 0], False)
    assert moved([(1, 2, 1), (2, 1, 3)], [0, 5])[1:] == ([0, 1], True)


def test_those_who_would_meet_stay_and_a_blocked_way_out_is_no_defense() -> None:
    assert moved([(0, 0, 1), (0, 2, 1)], [4, 3])[0] == [(0, 0), (0, 2)]
    assert moved([(0, 0, 1), (0, 1, 1)], [4, 0])[0] == [(0, 0), (0, 1)]
    assert moved([(0, 0, 1), (0, 1, 1)], [4, 3])[0] == [(0, 1), (0, 0)], "they may change places"
    assert moved([(0, 0, 1), (0, 1, 1)], [4, 2])[0] == [(0, 1), (1, 1)]
    assert moved([(1, 2, 1), (0, 0, 1)], [2, 1])[0] == [(1, 2), (0, 0)], "food and border bar the way"
    assert moved([(0, 0, 1), (0, 1, 1), (0, 3, 1)], [4, 4, 3])[0] == [(0, 1), (0, 1), (0, 3)]


def test_the_critic_sees_everything() -> None:
    world = Foraging(5, 2, 2, sight=1)
    state = field_of(GRID, [(0, 0, 1), (4, 4, 2)], 2)
    obs = world.observe(state)
    assert obs.state.tolist() == [[2, 2, 3, -1, -1, 0, 0, 0, 1, 4, 4, 2, 3]]
    assert obs.agent.tolist() == [[[-1, -1, 0] * 2 + [0, 0, 1, -1, -1, 0], [-1, -1, 0] * 2 + [1, 1, 2, -1, -1, 0]]]
    env = TensorEnv(world, 1)
    assert (env.spec.observation_size, env.spec.state_size) == (12, 14), "only the critic sees the clock"


def test_the_picture_shows_the_field() -> None:
    world = Foraging(5, 2, 1)
    with_food, without = (world.frame(field_of(grid, [(0, 0, 1), (4, 4, 2)], 1)) for grid in (GRID, np.zeros((5, 5))))
    assert with_food.shape == (400, 400, 3)
    assert (with_food != without).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 2},
        {"agents": 0},
        {"foods": 0},
        {"sight": 0},
        {"highest_level": 0},
        {"horizon": 0},
        {"size": 3, "agents": 9},
    ],
)
def test_impossible_fields_are_input_errors(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match="got"):
        Foraging(**settings)  # type: ignore[arg-type]
