"""The story of a decision: every proposal in order, its score, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.core import Observation, Streams, tree_map
from envs.kitchen import Kitchen
from planners.baselines import uniform_prior
from planners.episode.story import WEIGHED, Choice, choice_of, signed
from planners.language.backends.scripted import Scripted
from planners.language.base import Query
from planners.read.planner import PlannerConfig, ReadPlanner
from planners.read.reweigh import ReweighConfig, ReweighingPlanner
from planners.read.team import TeamPlanner

KITCHEN = Kitchen("cramped_room_small", horizon=None, soups=1, counter_items=0)
STEPS = KITCHEN.choices


class Rising:
    """A step is worth its number."""

    scale = 1.0
    needs_behavior = False

    def values(self, obs: Observation, action: Tensor, given: Tensor, behavior: Any = None) -> Tensor:
        return (action[..., 0] * given).sum(-1).double()


def in_turn(*texts: str) -> Callable[[Query, int], str]:
    """A model that says these texts one after the other, to everybody."""
    return lambda query, number: texts[query.attempt]


def seen(rows: int) -> Observation:
    return KITCHEN.observe(tree_map(lambda leaf: leaf.expand(rows, *leaf.shape[1:]), KITCHEN.first()))


def stories(planner: TeamPlanner, rows: int = 1) -> list[list[Choice]]:
    planner.act(seen(rows), None, Streams([0]))
    return [[choice_of(one, planner.critic is not None) for one in row] for row in planner.latest]


def read(function: Any, critic: Any = None, **config: Any) -> ReadPlanner:
    return ReadPlanner(KITCHEN, Scripted(function, "test"), critic, PlannerConfig(plans="steps", **config))


def told(choice: Choice) -> list[tuple[str, float | None, str]]:
    return [(one.text, one.score, one.verdict) for one in choice.proposals]


def test_each_row_has_its_decisions_in_the_order_of_the_agents_and_whoever_is_gone_has_none() -> None:
    planner = read(in_turn("north"))
    assert planner.latest == []
    obs = seen(3)
    alive = torch.tensor([[True, True], [False, True], [False, False]])
    decision, _ = planner.act(Observation(obs.agent, obs.state, alive), None, Streams([0]))
    assert [[one.names for one in row] for row in planner.latest] == [[("cook_0",), ("cook_1",)], [("cook_1",)], []]
    assert [one.row for row in planner.latest for one in row] == [0, 0, 1]
    assert decision.counts is not None
    counted = [sum(one.counts["queries"] for one in row) for row in planner.latest]
    assert counted == decision.counts["queries"].tolist() == [2, 1, 0]


def test_what_was_no_plan_and_what_was_sent_back_come_before_what_was_accepted() -> None:
    (row,) = stories(read(in_turn("sing\nand dance", "North.", "interact"), Rising()))
    for choice in row:
        assert told(choice) == [
            ("sing\nand dance", None, "no plan"),
            ("north", 0.0, "sent back"),
            ("interact", 5.0, "accepted"),
        ]
        assert (choice.plan, choice.why, choice.left_out) == ("interact", "accepted", 0)
        assert choice.counts["sent_back"] == choice.counts["illegal"] == 1
    assert [choice.agents for choice in row] == [("cook_0",), ("cook_1",)]


def test_when_rounds_run_out_the_best_is_marked_and_the_last_was_too_low() -> None:
    model = in_turn("south", "interact", "east")
    (row,) = stories(read(model, Rising(), rounds=3, threshold=9.0))
    verdicts = [one.verdict for one in row[0].proposals]
    assert verdicts == ["sent back", "best of what was proposed", "too low"]
    assert (row[0].plan, row[0].why) == ("interact", "best of what was proposed")


def test_a_plan_that_is_proposed_again_is_judged_at_its_last_time() -> None:
    model = in_turn("interact", "south", "interact")
    (row,) = stories(read(model, Rising(), rounds=3, threshold=9.0, repeats=True))
    verdicts = [one.verdict for one in row[0].proposals]
    assert verdicts == ["sent back", "sent back", "best of what was proposed"]


def test_what_a_falling_threshold_lets_through_was_sent_back_before() -> None:
    model = in_turn("interact", "north", "south")
    (row,) = stories(read(model, Rising(), threshold=5.5, relax=0.3))
    verdicts = [one.verdict for one in row[0].proposals]
    assert verdicts == ["sent back, accepted later", "sent back"]
    assert (row[0].plan, row[0].why) == ("interact", "accepted")
    (row,) = stories(read(model, Rising(), threshold=5.5, relax=0.6))
    assert [one.verdict for one in row[0].proposals] == ["accepted"]


def test_without_a_critic_nothing_has_a_score() -> None:
    (row,) = stories(read(in_turn("north")))
    assert [told(choice) for choice in row] == [[("north", None, "accepted")]] * 2


def test_where_nothing_legal_was_said_it_is_any_plan() -> None:
    (row,) = stories(read(in_turn("?", ""), Rising(), rounds=2))
    assert told(row[0]) == [("?", None, "no plan"), ("", None, "no plan")]
    assert row[0].why == "any plan"
    assert row[0].plan in STEPS


def test_a_single_plan_is_taken_without_a_proposal() -> None:
    class Forced(Kitchen):
        def plans(self, obs: Observation, row: int) -> list[list[str]]:
            return [["north"], ["stay"]]

    forced = ReadPlanner(Forced(horizon=None), Scripted(in_turn("east"), "test"), Rising(), PlannerConfig())
    forced.act(Forced(horizon=None).observe(KITCHEN.first()), None, Streams([0]))
    choices = [choice_of(one, True) for one in forced.latest[0]]
    assert [(choice.plan, choice.why, choice.proposals) for choice in choices] == [
        ("north", "the only plan", ()),
        ("stay", "the only plan", ()),
    ]


def test_a_joint_decision_is_one_of_both_cooks() -> None:
    model = in_turn("cook_1: north\ncook_0: east", "cook_0: south\ncook_1: interact")
    (row,) = stories(read(model, Rising(), mode="joint", threshold=5.5))
    (choice,) = row
    assert choice.agents == ("cook_0", "cook_1")
    assert told(choice)[0] == ("cook_0: east\ncook_1: north", 2.0, "sent back")
    assert choice.plan == "cook_0: south\ncook_1: interact"


@pytest.mark.parametrize(("mode", "others", "left_out"), [("sequential", 5, 0), ("joint", 12, 23)])
def test_plans_that_are_weighed_at_once_are_told_best_first_with_the_one_that_was_drawn(
    mode: Any, others: int, left_out: int
) -> None:
    config = ReweighConfig(plans="steps", mode=mode, beta=100.0)
    for row in stories(ReweighingPlanner(KITCHEN, uniform_prior(), Rising(), config), rows=20):
        for choice in row:
            scores = [one.score for one in choice.proposals if one.score is not None]
            assert scores == sorted(scores, reverse=True)
            assert len(scores) == len(choice.proposals) == others + 1
            assert [one.text for one in choice.proposals if one.verdict == "drawn"] == [choice.plan]
            assert choice.why == "drawn"
            assert choice.left_out == left_out


def test_small_scores_keep_digits_that_tell_something() -> None:
    assert [signed(x) for x in (0.0, 12.3456, -0.5, 0.00042, -2.9e-5)] == [
        "+0.00",
        "+12.35",
        "-0.50",
        "+0.00042",
        "-2.9e-05",
    ]


def test_of_many_plans_that_were_weighed_the_best_are_told() -> None:
    config = ReweighConfig(plans="steps", mode="joint", beta=100.0)
    planner = ReweighingPlanner(KITCHEN, uniform_prior(), Rising(), config)
    ((choice,),) = stories(planner)
    ((one,),) = planner.latest
    others = sorted((score for plan, score in one.scores.items() if plan != one.chosen), reverse=True)
    assert [each.score for each in choice.proposals if not each.taken] == others[:WEIGHED]
