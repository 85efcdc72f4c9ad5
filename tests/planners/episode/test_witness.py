"""A witness tells one of the episodes that are counted, and changes nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from documented_meetings import Parting, meeting
from torch import Tensor

from envs.core import InputError, Observation, Streams
from envs.kitchen import Kitchen
from envs.world import RandomActor, TensorEnv, Transition
from marl.evaluation.episodes import Episodes, play, play_policies
from planners.baselines import uniform_prior
from planners.episode.story import StoryStep
from planners.episode.witness import Witness, _ending, require_players
from planners.read.planner import PlannerConfig, ReadPlanner

MOVES = {"left": -1, "stay": 0, "right": 1}


class FirstAgent:
    """Right is what ann's critic likes, and whatever bob does."""

    scale = 1.0
    needs_behavior = False

    def values(self, obs: Observation, action: Tensor, given: Tensor, behavior: Any = None) -> Tensor:
        return (action[:, 0, 0] * given[:, 0]).double()


def planner_of(world: Any, critic: Any = None, **config: Any) -> ReadPlanner:
    return ReadPlanner(world, uniform_prior(), critic, PlannerConfig(**config))


def same(one: Episodes, other: Episodes) -> bool:
    return (
        np.array_equal(one.returns, other.returns)
        and np.array_equal(one.lengths, other.lengths)
        and all(np.array_equal(one.counts[name], other.counts[name]) for name in one.counts)
    )


def require_one_episode(steps: list[StoryStep]) -> None:
    """Words of each step follow from those before and from what was executed; only the last ends."""
    places = [list(map(int, re.findall(r" at (\d)", step.words))) for step in steps]
    for step, now, then in zip(steps, places, places[1:]):
        moved = [place + MOVES[move] for place, move in zip(now, step.executed.values(), strict=True)]
        assert np.clip(moved, 0, 4).tolist() == then
        assert [choice.plan for choice in step.choices] == list(step.executed.values())
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert [step.ending is not None for step in steps] == [False] * (len(steps) - 1) + [True]


@pytest.mark.parametrize(("rows", "episodes"), [(1, 1), (7, 7), (5, 10)])
@pytest.mark.parametrize("world", [meeting(), Parting])
def test_the_story_is_of_the_first_episode_that_is_counted(world: Any, rows: int, episodes: int) -> None:
    planner = planner_of(world(), FirstAgent(), rounds=2)
    longer = 0
    for seed in range(3):
        witness = Witness(TensorEnv(world(), rows), planner)
        played = play(witness, planner, episodes, seed)
        steps = witness.steps
        require_one_episode(steps)
        assert len(steps) == played.lengths[0]
        assert sum(step.reward["meeting"] for step in steps) == pytest.approx(played.returns[0, 0])
        for name, counted in played.counts.items():
            assert sum(step.count(name) for step in steps) == counted[0]
        assert same(played, play(TensorEnv(world(), rows), planner, episodes, seed))
        longer += int(played.lengths[0] > played.lengths.reshape(rows, -1).sum(1).min())
    assert longer or rows == 1 or world is not Parting, "no other row was done before the first one"


def test_the_first_of_several_policies_is_followed() -> None:
    world = Parting()
    planner = planner_of(world)
    witness = Witness(TensorEnv(world, 8), planner)
    first, _ = play_policies(witness, planner, 8, [3, 4])
    require_one_episode(witness.steps)
    assert len(witness.steps) == first.lengths[0]


def test_a_story_begins_with_a_reset_and_never_with_a_state() -> None:
    world = meeting()()
    planner = planner_of(world)
    told: list[StoryStep] = []
    witness = Witness(TensorEnv(world, 2), planner, tell=told.append)
    play(witness, planner, 6, seed=1)
    before = witness.steps
    assert told == before
    assert len(before) == 8
    play(witness, planner, 2, seed=1)
    assert [step.words for step in witness.steps] == [step.words for step in before]
    assert told == before + witness.steps
    state = witness.state_dict()
    assert set(state) == set(witness.env.state_dict())
    obs = witness.load_state_dict(state)
    planner.act(obs, None, Streams([0]))
    witness.step(torch.ones(2, 2, 1, dtype=torch.int64))
    assert witness.steps == []
    witness.close()


def test_whoever_else_plays_has_no_witness() -> None:
    world = meeting()()
    planner = planner_of(world)
    env = TensorEnv(world, 2)
    with pytest.raises(InputError, match="which has not been asked before this step"):
        play(Witness(env, planner), RandomActor(env.spec), 2, seed=0)
    play(env, planner, 2, seed=0)
    with pytest.raises(InputError, match="which has not been asked before this step"):
        play(Witness(env, planner), RandomActor(env.spec), 2, seed=0)
    with pytest.raises(InputError, match=r"follows a VectorEnv, such as TensorEnv\(world, 50\); got Meeting"):
        require_players(world, planner)
    with pytest.raises(InputError, match=r"tells the decisions of the planner that plays.*got RandomActor"):
        require_players(env, RandomActor(env.spec))


def test_pictures_are_of_what_was_decided_in_where_the_world_can_be_drawn() -> None:
    kitchen = Kitchen("cramped_room_small", horizon=None)
    planner = planner_of(kitchen, plans="steps")
    witness = Witness(TensorEnv(kitchen, 2, time_limit=4), planner)
    play(witness, planner, 2, seed=0)
    assert [step.picture.shape for step in witness.steps] == [(400, 400, 3)] * 4
    assert (witness.steps[0].picture == kitchen.frame(kitchen.first())).all()
    assert [step.ending for step in witness.steps] == [None, None, None, "truncated"]
    assert set(witness.steps[0].reward) == {"soup", "shaping"}
    assert witness.frame().shape == (400, 400, 3)
    unseen = Witness(TensorEnv(kitchen, 2, time_limit=4), planner, pictures=False)
    play(unseen, planner, 2, seed=0)
    assert [step.picture for step in unseen.steps] == [None] * 4
    assert [step.words for step in unseen.steps] == [step.words for step in witness.steps]


def test_a_world_without_pictures_or_names_is_told_in_words_and_numbers() -> None:
    class Nameless(meeting()):  # type: ignore[misc]
        choices = 3

        def plans(self, obs: Observation, row: int) -> list[list[str]]:
            return [["left", "right"]] * 2

        def parse(self, text: str, obs: Observation, row: int) -> Any:
            return meeting()().parse(text, obs, row)

    world = Nameless()
    planner = planner_of(world)
    witness = Witness(TensorEnv(world, 1), planner)
    play(witness, planner, 1, seed=0)
    assert [step.picture for step in witness.steps] == [None] * 8
    number = {"left": "choice 0", "right": "choice 2"}
    for step in witness.steps:
        assert list(step.executed.values()) == [number[choice.plan] for choice in step.choices]
    with pytest.raises(InputError, match="Nameless has no picture"):
        witness.frame()


def test_whoever_has_left_executes_nothing() -> None:
    class Leaving(meeting()):  # type: ignore[misc]
        """Ann leaves after the first step."""

        def parse(self, text: str, obs: Observation, row: int) -> Any:
            return super().parse(text if "ann: " in text else f"{text}\nann: stay", obs, row)

        def transition(self, state: Tensor, action: Tensor, noise: Any) -> Transition:
            then = super().transition(state, action, noise)
            return then._replace(terminated=torch.tensor([True, False]).expand(len(state), -1))

    world = Leaving()
    planner = planner_of(world)
    witness = Witness(TensorEnv(world, 1), planner)
    play(witness, planner, 1, seed=0)
    assert [list(step.executed) for step in witness.steps] == [["ann", "bob"]] + [["bob"]] * 7
    assert [len(step.choices) for step in witness.steps] == [2] + [1] * 7
    assert witness.steps[-1].ending == "terminated"


def test_only_the_rows_own_end_counts() -> None:
    env = TensorEnv(Parting(), 2)
    env.reset(0)
    step = env.step(torch.ones(2, 2, 1, dtype=torch.int64))
    over = torch.tensor([[True, True], [False, False]])
    ended = torch.ones(2, dtype=torch.bool)
    assert _ending(replace(step, ended=ended, terminated=over, truncated=~over)) == "terminated"
    assert _ending(replace(step, ended=ended, terminated=~over, truncated=over)) == "truncated"
