"""Plans drawn from a model's probabilities, reweighed by advantages, against the closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from envs.core import Decision, InputError, Observation, Streams, tree_map
from envs.kitchen import Kitchen
from planners.baselines import uniform_prior
from planners.language.backends.scripted import Scripted
from planners.language.base import Message, ModelError, Query
from planners.read.advantages import reweighed
from planners.read.planner import PlannerConfig, ReadPlanner
from planners.read.reweigh import ReweighConfig, ReweighingPlanner

KITCHEN = Kitchen("cramped_room_small", horizon=None, soups=1, counter_items=0)
PRIOR = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], dtype=torch.float64)


def log_prob(query: Query, text: str) -> float:
    """Of a joint plan that of each line, of a single one that of the step."""
    steps = [line.split(": ")[-1] for line in text.split("\n")]
    return sum(math.log(PRIOR[KITCHEN.choices.index(step)]) for step in steps)


class Linear:
    """A critic whose values add up over the agents who are given: 0, 1, 4, 9, … by choice, the second's doubled."""

    scale = 2.0
    needs_behavior = False

    def values(self, obs: Observation, action: Tensor, given: Tensor, behavior: Any = None) -> Tensor:
        return (action[..., 0].double().square() * given * torch.tensor([1.0, 2.0])).sum(-1)


def planner(critic: Any = None, **config: Any) -> ReweighingPlanner:
    model = Scripted(lambda query, number: "", "test", log_prob)
    return ReweighingPlanner(KITCHEN, model, critic, ReweighConfig(plans="steps", **config))


def seen(rows: int) -> Observation:
    return KITCHEN.observe(tree_map(lambda leaf: leaf.expand(rows, *leaf.shape[1:]), KITCHEN.first()))


def assert_drawn(counted: np.ndarray, share: Tensor) -> None:
    likely = share.numpy() > 1e-9
    assert counted[~likely].sum() == 0
    expected = share.numpy()[likely] * counted.sum()
    assert likely.sum() == 1 or chisquare(counted[likely], expected / expected.sum() * counted.sum()).pvalue > 0.001


@pytest.mark.parametrize("beta", [0.5, 5.0])
def test_each_agent_draws_by_the_closed_form(beta: float) -> None:
    rows = 1500
    decision, _ = planner(Linear(), beta=beta).act(seen(rows), None, Streams([0]))
    for agent in range(2):
        gain = torch.arange(6.0).double().square() * (agent + 1) / Linear.scale
        counted = torch.bincount(decision.action[:, agent, 0], minlength=6).numpy()
        assert_drawn(counted, reweighed(PRIOR, gain, beta))
    assert decision.counts is not None
    assert decision.counts["queries"].tolist() == [2] * rows


def test_a_joint_plan_is_drawn_by_the_closed_form_of_all() -> None:
    decision, _ = planner(Linear(), beta=5.0, mode="joint").act(seen(1500), None, Streams([1]))
    one = torch.arange(6.0).double().square()
    gain = (one.view(-1, 1) + 2 * one).flatten() / Linear.scale
    expected = reweighed(torch.outer(PRIOR, PRIOR).flatten(), gain, 5.0)
    counted = torch.bincount(decision.action[:, 0, 0] * 6 + decision.action[:, 1, 0], minlength=36).double()
    often = expected * 1500 > 3
    assert_drawn(
        np.append(counted[often].numpy(), float(counted[~often].sum())),
        torch.cat([expected[often], expected[~often].sum().view(1)]),
    )


@pytest.mark.parametrize(
    ("config", "share"),
    [
        ({}, PRIOR),
        ({"temperature": 2.0}, PRIOR.sqrt() / PRIOR.sqrt().sum()),
        ({"temperature": 0}, torch.tensor([1.0, 0, 0, 0, 0, 0]).double()),
        ({"probabilities": "whole"}, PRIOR),
        ({"probabilities": "per_token", "temperature": 0}, torch.tensor([1.0, 0, 0, 0, 0, 0]).double()),
    ],
)
def test_without_a_critic_the_models_own_probabilities_decide(config: dict[str, Any], share: Tensor) -> None:
    decision, _ = planner(**config).act(seen(800), None, Streams([2]))
    assert_drawn(torch.bincount(decision.action[:, 0, 0], minlength=6).numpy(), share)


def test_a_plan_that_the_model_never_says_stays_out_however_good_it_is() -> None:
    def never_interacts(query: Query, text: str) -> float:
        return -math.inf if text == "interact" else 0.0

    model = Scripted(lambda query, number: "", "test", never_interacts)
    found = ReweighingPlanner(KITCHEN, model, Linear(), ReweighConfig(plans="steps", beta=1e-3))
    decision, _ = found.act(seen(50), None, Streams([0]))
    assert decision.action.unique().tolist() == [4]


def test_equal_streams_draw_alike() -> None:
    first, again, other = (planner().act(seen(50), None, Streams([seed]))[0].action for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_uniform_prior_proposes_and_scores_all_plans_alike() -> None:
    def counted(decision: Decision) -> np.ndarray:
        return torch.bincount(decision.action[:, 1, 0], minlength=6).numpy()

    model, streams = uniform_prior(), Streams([5])
    asking = ReadPlanner(KITCHEN, model, None, PlannerConfig(plans="steps"))
    scoring = ReweighingPlanner(KITCHEN, model, None, ReweighConfig(plans="steps"))
    for planner_of in (asking, scoring):
        decision, _ = planner_of.act(seen(900), None, streams)
        assert_drawn(counted(decision), torch.full((6,), 1 / 6))


def test_what_cannot_be_scored_or_chosen_is_refused() -> None:
    with pytest.raises(InputError, match=r"tells how probable a text is"):
        ReweighingPlanner(KITCHEN, Scripted(lambda query, number: "", "mute"), None, ReweighConfig())
    with pytest.raises(InputError, match=r"allows any text"):
        list(uniform_prior().complete([Query((Message("user", "anything"),))]))
    with pytest.raises(InputError, match=r"At temperature 0 the model leaves one plan"):
        planner(Linear(), temperature=0)


@pytest.mark.parametrize("told", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("probabilities", ["constrained", "whole", "per_token"])
def test_log_probabilities_of_which_none_can_be_drawn_are_an_error(told: float, probabilities: Any) -> None:
    model = Scripted(lambda query, number: "", "test", lambda query, text: told)
    config = ReweighConfig(plans="steps", probabilities=probabilities)
    if told == -math.inf and probabilities == "constrained":
        return  # constrained sampling still draws one of them, all alike
    with pytest.raises(ModelError, match=r"of which none can be drawn"):
        ReweighingPlanner(KITCHEN, model, None, config).act(seen(2), None, Streams([0]))
