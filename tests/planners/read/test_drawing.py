"""Proposals that are drawn from probabilities, which one query a decision tells."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from dependent_cooks import FIRST, KITCHEN, SECOND, STEPS, log_prob
from pydantic import ValidationError
from scipy.stats import chisquare
from torch import Tensor

from envs.core import InputError, Observation, Streams, tree_map
from planners.language.backends.scripted import Scripted
from planners.language.base import Query, Scores
from planners.read.advantages import filtered
from planners.read.planner import PlannerConfig, ReadPlanner

ROWS = 1200


class Rising:
    """A step is worth its number, to whoever takes it."""

    scale = 1.0
    needs_behavior = False

    def values(self, obs: Observation, action: Tensor, given: Tensor, behavior: Any = None) -> Tensor:
        return (action[..., 0] * given).sum(-1).double()


def planner(critic: Any, **config: Any) -> ReadPlanner:
    settings = PlannerConfig(plans="steps", propose="scored", tell=False, **config)
    return ReadPlanner(KITCHEN, Scripted(refuses, "test", log_prob), critic, settings)


def refuses(query: Query, number: int) -> str:
    raise AssertionError("nothing is to be written")


def seen(rows: int) -> Observation:
    return KITCHEN.observe(tree_map(lambda leaf: leaf.expand(rows, *leaf.shape[1:]), KITCHEN.first()))


def assert_drawn(action: Tensor, share: Tensor) -> None:
    """Joint choices [rows,2] as drawn by these probabilities [6,6]; rare ones are counted together."""
    counted = torch.bincount(action[:, 0] * 6 + action[:, 1], minlength=36).double()
    expected = share.flatten() * len(action)
    assert counted[expected == 0].sum() == 0
    rare = expected < 4
    pairs = [(counted[~rare], expected[~rare]), (counted[rare].sum().view(1), expected[rare].sum().view(1))]
    found, wanted = (torch.cat(part).numpy() for part in zip(*pairs))
    assert chisquare(found[wanted > 0], wanted[wanted > 0]).pvalue > 0.001


@pytest.mark.parametrize("repeats", [False, True])
def test_they_are_filtered_as_written_ones_are_at_one_query_a_decision(repeats: bool) -> None:
    patient = planner(Rising(), threshold=2.5, rounds=100, repeats=repeats)
    decision, _ = patient.act(seen(ROWS), None, Streams([0]))
    worth = torch.arange(6.0).double()
    share = filtered(FIRST, worth, 2.5).unsqueeze(1) * filtered(SECOND, worth.expand(6, 6), 2.5)
    assert_drawn(decision.action[..., 0], share)
    assert decision.counts is not None
    assert decision.counts["queries"].tolist() == [2] * ROWS
    assert int(decision.counts["proposals"].sum()) == ROWS * 2 + int(sum_of_refused(patient))


def sum_of_refused(planner: ReadPlanner) -> int:
    return sum(len(one.proposed) - 1 for row in planner.latest for one in row)


def test_without_a_critic_they_are_the_models_own() -> None:
    decision, _ = planner(None).act(seen(ROWS), None, Streams([1]))
    assert_drawn(decision.action[..., 0], FIRST.unsqueeze(1) * SECOND)


def test_jointly_they_are_drawn_among_joint_plans() -> None:
    decision, _ = planner(None, mode="joint").act(seen(ROWS), None, Streams([1]))
    assert_drawn(decision.action[..., 0], FIRST.unsqueeze(1) * SECOND)
    assert decision.counts is not None
    assert decision.counts["queries"].tolist() == [1] * ROWS


def test_each_proposal_of_a_decision_has_random_numbers_of_its_own() -> None:
    blind = planner(Rising(), threshold=9.0, rounds=12, repeats=True)
    blind.act(seen(1), None, Streams([0]))
    proposed = [plan for _, plan in blind.latest[0][0].proposed]
    assert len(proposed) == 12
    assert len(set(proposed)) > 1


def test_at_temperature_0_the_likeliest_of_those_left_is_next() -> None:
    decision, _ = planner(Rising(), temperature=0, threshold=1.5).act(seen(2), None, Streams([0]))
    assert decision.action[..., 0].tolist() == [[2, 2]] * 2
    assert decision.counts is not None
    assert decision.counts["sent_back"].tolist() == [2 + SECOND[2].argsort(descending=True).tolist().index(2)] * 2


def test_scores_among_some_choices_are_constrained_to_these() -> None:
    scores = Scores(((1, 9), (1, 2, 9), (3, 9)), ((-1.0, -0.5), (-1.0, -2.0, -0.1), (-0.7, -0.2)), 5, 0.1)
    both = scores.among([0, 2])
    shares = np.exp(both.constrained())
    expected = np.exp([-1.0, -0.7])
    np.testing.assert_allclose(shares, expected / expected.sum())
    assert both.prompt_tokens == 5
    assert scores.among([0, 1, 2]) == scores


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValidationError, match="set tell=false"):
        PlannerConfig(propose="scored")
    mute = Scripted(lambda query, number: STEPS[0], "mute")
    with pytest.raises(InputError, match="propose=scored"):
        ReadPlanner(KITCHEN, mute, None, PlannerConfig(plans="steps", propose="scored", tell=False))


def test_what_the_model_never_says_is_never_proposed() -> None:
    def only_north(query: Query, text: str) -> float:
        return 0.0 if text == "north" else -math.inf

    model = Scripted(refuses, "north", only_north)
    found = ReadPlanner(KITCHEN, model, None, PlannerConfig(plans="steps", propose="scored", tell=False))
    assert found.act(seen(20), None, Streams([0]))[0].action.unique().tolist() == [0]
