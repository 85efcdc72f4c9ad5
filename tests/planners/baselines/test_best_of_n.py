"""The best of several plans that a model proposes at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from envs.core import InputError, Observation, Streams, tree_map
from envs.kitchen import Kitchen
from planners.baselines import uniform_prior
from planners.baselines.best_of_n import BestOfN, BestOfNConfig
from planners.episode.story import choice_of
from planners.language.backends.scripted import Scripted
from planners.language.base import Query
from planners.read.planner import PlannerConfig, ReadPlanner

KITCHEN = Kitchen("cramped_room_small", horizon=None, soups=1, counter_items=0)


def seen(rows: int) -> Observation:
    return KITCHEN.observe(tree_map(lambda leaf: leaf.expand(rows, *leaf.shape[1:]), KITCHEN.first()))


class Linear:
    """A critic that values a plan by its number."""

    scale = 2.0
    needs_behavior = False

    def values(self, obs: Observation, action: Tensor, given: Tensor, behavior: Tensor | None = None) -> Tensor:
        return (action[..., 0].double() * given).sum(-1)


def planner(function: Any, critic: Any = None, **config: Any) -> BestOfN:
    config = {"plans": "steps", "n": 3, **config}
    return BestOfN(KITCHEN, Scripted(function, "test"), critic, BestOfNConfig(**config))


@pytest.mark.parametrize("mode", ["sequential", "joint"])
def test_the_best_of_what_one_query_brings_is_taken(mode: Any) -> None:
    asked: list[Query] = []

    def say(query: Query, number: int) -> str:
        asked.append(query)
        return query.choices[(1, 4, 2)[number]]

    best = planner(say, Linear(), mode=mode)
    decision, _ = best.act(seen(2), None, Streams([0]))
    decisions = 2 if mode == "sequential" else 1
    assert decision.action[..., 0].tolist() == [[4, 4]] * 2 if mode == "sequential" else [[0, 4]] * 2
    assert decision.counts is not None
    assert decision.counts["queries"].tolist() == [decisions] * 2
    assert decision.counts["nothing_acceptable"].tolist() == [0, 0]
    assert {(query.n, len(query.choices)) for query in asked} == {(3, 6 ** (3 - decisions))}
    told = choice_of(best.latest[0][0], judged=True)
    assert [proposal.verdict for proposal in told.proposals] == ["too low", "accepted", "too low"]
    assert [proposal.score for proposal in told.proposals] == [0.5, 2.0, 1.0]


def test_one_plan_is_the_model_alone() -> None:
    alone = ReadPlanner(KITCHEN, uniform_prior(), None, PlannerConfig(plans="steps"))
    one = BestOfN(KITCHEN, uniform_prior(), Linear(), BestOfNConfig(plans="steps", n=1))
    chosen = [each.act(seen(50), None, Streams([3]))[0].action for each in (alone, one)]
    assert torch.equal(*chosen)
    assert len(chosen[0].unique()) == 6


def test_what_is_no_plan_is_counted_and_never_executed_and_the_same_plan_is_told_once() -> None:
    said = ("fly", "interact.", "- interact")
    best = planner(lambda query, number: said[number], Linear())
    decision, _ = best.act(seen(1), None, Streams([0]))
    assert decision.action.flatten().tolist() == [5, 5]
    assert decision.counts is not None
    assert decision.counts["illegal"].tolist() == [2]
    assert [plan for _, plan in best.latest[0][0].proposed] == [None, 5]


def test_where_none_is_a_plan_it_is_any_plan_and_counted_as_such() -> None:
    decision, _ = planner(lambda query, number: "fly", Linear()).act(seen(100), None, Streams([0]))
    assert decision.counts is not None
    assert decision.counts["illegal"].tolist() == [6] * 100
    assert decision.counts["nothing_acceptable"].tolist() == [2] * 100
    assert len(decision.action.unique()) == 6


def test_several_plans_need_a_critic_and_a_temperature() -> None:
    with pytest.raises(InputError, match="got no critic"):
        planner(lambda query, number: "")
    with pytest.raises(InputError, match="all the same"):
        planner(lambda query, number: "", Linear(), temperature=0)
    planner(lambda query, number: "", n=1, temperature=0)


def test_a_plan_is_told_by_what_it_has_above_its_own_rows_value() -> None:
    class Worth(Linear):
        """A row is worth its number, whatever is planned in it."""

        def values(self, obs: Observation, action: Tensor, given: Tensor, behavior: Tensor | None = None) -> Tensor:
            return super().values(obs, action, given) + 10 * torch.arange(len(action))

    best = planner(lambda query, number: query.choices[4], Worth(), n=1)
    best.act(seen(3), None, Streams([0]))
    assert [row[0].scores for row in best.latest] == [{4: 2.0}] * 3
