"""The exact policy of a model in every state, against its own scores and the frequencies of its play."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.testing import assert_close
from walkers import log_prob, say, walker
from worded_meetings import Meeting

from envs.core import InputError, Streams, tree_map
from envs.kitchen import Kitchen
from planners.language.backends.scripted import Scripted
from planners.language.base import Query, Scores
from planners.planning.tabulated import HasDigits, decided_at_once, joint_policy
from planners.read.behavior import Behavior
from planners.read.phrases import Phrasebook
from planners.read.prompts import ask_all, ask_one, joint_plan
from planners.read.team import TeamConfig

MEETING = Meeting()
TABLE = MEETING.table()
CASES = [(mode, plans) for mode in ("sequential", "joint") for plans in ("steps", "all")]


class Counting(Scripted):
    """Keeps what it is asked to score."""

    def __init__(self) -> None:
        super().__init__(say, "test", log_prob)
        self.asked: list[Query] = []

    def score(self, queries: Sequence[Query]) -> Iterator[tuple[int, Scores]]:
        self.asked += queries
        return super().score(queries)


def by_hand(state: int, config: TeamConfig) -> Tensor:
    """Joint probabilities [3,3] in a state, from the model's log-probabilities of whole texts."""
    (here,) = Phrasebook(MEETING, config.plans).of(MEETING.observe(TABLE.states[state : state + 1]))
    names, policy = MEETING.spec.agents, torch.zeros(3, 3, dtype=torch.float64)
    for i, one in enumerate(here.plans[0]):
        for j, two in enumerate(here.plans[1]):
            if config.mode == "joint":
                plans = tuple(joint_plan(names, (a, b)) for a in here.plans[0] for b in here.plans[1])
                odds = log_prob(Query(ask_all(names, here.words, here.plans), plans), joint_plan(names, (one, two)))
            else:
                first = Query(ask_one(names, "ann", here.words, here.plans[0], []), here.plans[0])
                second = Query(ask_one(names, "bob", here.words, here.plans[1], [f"ann: {one}"]), here.plans[1])
                odds = log_prob(first, one) + log_prob(second, two)
            policy[here.actions[0][i], here.actions[1][j]] += math.exp(odds)
    return policy


@pytest.mark.parametrize(("mode", "plans"), CASES)
def test_it_is_what_the_model_says_in_each_state(mode: Any, plans: Any) -> None:
    config = TeamConfig(mode=mode, plans=plans)
    policy = joint_policy(MEETING, TABLE, walker(), config)
    assert policy.shape == (len(TABLE), 3, 3)
    assert_close(policy.sum((1, 2)), torch.ones(len(TABLE), dtype=torch.float64))
    for state in (0, 7, 19):
        assert_close(policy[state], by_hand(state, config))


@pytest.mark.parametrize(("mode", "plans"), CASES)
def test_play_is_as_frequent_as_it_says(mode: Any, plans: Any) -> None:
    config = TeamConfig(mode=mode, plans=plans)
    policy = joint_policy(MEETING, TABLE, walker(), config)
    actor = Behavior(MEETING, walker(), config)
    for state in (0, 11):
        obs = MEETING.observe(TABLE.states[state].expand(5000, 2))
        action = actor.act(obs, None, Streams([state]))[0].action.squeeze(-1)
        counted = torch.bincount(action[:, 0] * 3 + action[:, 1], minlength=9)
        assert chisquare(counted.numpy(), 5000 * policy[state].flatten().numpy()).pvalue > 0.001


def test_at_temperature_0_one_plan_is_certain() -> None:
    policy = joint_policy(MEETING, TABLE, walker(), TeamConfig(plans="steps", temperature=0))
    assert policy.unique().tolist() == [0, 1]


def test_states_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TeamConfig(plans="steps")
    whole = joint_policy(MEETING, TABLE, walker(), config)
    monkeypatch.setattr("planners.planning.tabulated.CHUNK", 7)
    assert torch.equal(joint_policy(MEETING, TABLE, walker(), config), whole)


@pytest.mark.parametrize(("mode", "plans"), CASES)
def test_some_states_are_as_they_are_among_all(mode: Any, plans: Any) -> None:
    config, places = TeamConfig(mode=mode, plans=plans), torch.tensor([19, 0, 7])
    some = joint_policy(MEETING, TABLE, walker(), config, places)
    assert_close(some, joint_policy(MEETING, TABLE, walker(), config)[places])


@pytest.mark.parametrize("mode", ["sequential", "joint"])
def test_nobody_is_asked_who_has_a_single_plan(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world, model = Meeting(), Counting()
    both = mode == "joint"
    monkeypatch.setattr(world, "plans", lambda obs, row: [["left"] if both else list(world.choices), ["stay"]])
    policy = joint_policy(world, TABLE, model, TeamConfig(mode=mode))
    assert len(model.asked) == (0 if both else len(TABLE))
    assert_close(policy[:, :, 1].sum(1), torch.ones(len(TABLE), dtype=torch.float64))


def test_its_queries_are_those_of_play_so_that_a_cache_has_them() -> None:
    for mode, plans in CASES:
        mine, theirs = Counting(), Counting()
        config = TeamConfig(mode=mode, plans=plans)  # type: ignore[arg-type]
        joint_policy(MEETING, TABLE, mine, config)
        obs = MEETING.observe(tree_map(lambda leaf: leaf.repeat(30, 1), TABLE.states))
        Behavior(MEETING, theirs, config).act(obs, None, Streams([0]))
        assert set(theirs.asked) <= set(mine.asked)


def test_a_model_that_cannot_score_is_refused() -> None:
    with pytest.raises(InputError, match=r"exact policy .* take critic\.log\.play=random"):
        joint_policy(MEETING, TABLE, walker(None), TeamConfig(plans="steps"))


def test_worlds_with_tables_say_what_tells_their_states_apart() -> None:
    assert isinstance(MEETING, HasDigits)
    assert isinstance(Kitchen("cramped_room_small", horizon=None, soups=1, counter_items=0), HasDigits)


class ByLine(Scripted):
    """Writes a line after the other, each a token."""

    def score(self, queries: Sequence[Query]) -> Iterator[tuple[int, Scores]]:
        for place, query in enumerate(queries):
            lines = [choice.split("\n") for choice in query.choices]
            known = {line: number for number, line in enumerate(sorted({line for each in lines for line in each}))}
            tokens = tuple((*(known[line] for line in each), -1) for each in lines)
            yield place, Scores(tokens, tuple((0.0,) * len(path) for path in tokens), 1, 0.0)


def test_a_plan_of_several_tokens_is_not_decided_at_once() -> None:
    by_line = ByLine(say, "by line", log_prob)
    for mode, model, wanted in (
        ("sequential", by_line, True),
        ("joint", by_line, False),
        ("joint", walker(), True),
    ):
        assert decided_at_once(MEETING, TABLE, model, TeamConfig(mode=mode, plans="steps")) is wanted
