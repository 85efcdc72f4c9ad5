"""Learned critics as planners ask them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from envs.core import Streams, tree_map
from envs.kitchen import Kitchen
from envs.world import RandomActor, TensorEnv
from marl.learning.batch import Batch
from marl.learning.regression import Regression, RegressionConfig, source
from marl.learning.state_log import StateLog, record
from marl.models.critics import CriticConfig
from marl.models.ordered_critic import OrderedCritic
from marl.models.prefix_critic import PrefixCritic
from planners.baselines import uniform_prior
from planners.read.critics import LearnedCritic, PlanCritic
from planners.read.planner import PlannerConfig, ReadPlanner

KITCHEN = Kitchen("cramped_room_small", horizon=None, starts="random")


def log() -> StateLog:
    return record(TensorEnv(KITCHEN, 64, time_limit=20), RandomActor(KITCHEN.spec), 40, seed=0)


def fitted(members: int = 1) -> tuple[Regression, Batch]:
    critic = PrefixCritic(KITCHEN.spec, CriticConfig(output="team"), Streams(range(members)))
    config, recorded = RegressionConfig(rows=512, steps=4), log()
    learner = Regression(critic, config, Streams(range(10, 10 + members)), 5)
    for _, batch in zip(range(5), source(recorded, config, Streams(range(20, 20 + members)))):
        learner.update(batch)
    return learner, recorded.take(torch.arange(100), 1, 1)


def values(critic: PlanCritic, batch: Batch, given: bool = True) -> Tensor:
    return critic.values(batch.obs, batch.decision.action, torch.full((100, 2), given))


def test_it_is_the_weighted_sum_of_the_channels_a_mean_over_agents() -> None:
    learner, batch = fitted()
    both = torch.ones(100, 2, dtype=torch.bool)
    with torch.no_grad():
        by_channel = learner.values(batch.obs, batch.decision.action, both).mean(1)
    assert_close(values(LearnedCritic(learner, batch), batch), by_channel.sum(-1))
    soup = LearnedCritic(learner, batch, weights=torch.tensor([1.0, 0.0]))
    assert_close(values(soup, batch), by_channel[:, 0])


def test_its_scale_is_the_root_mean_square_of_single_advantages() -> None:
    learner, batch = fitted()
    critic = LearnedCritic(learner, batch)
    squares = []
    for agent in range(2):
        given = torch.zeros(100, 2, dtype=torch.bool)
        given[:, agent] = True
        gain = critic.values(batch.obs, batch.decision.action, given) - values(critic, batch, given=False)
        squares.append(gain.square().mean())
    assert critic.scale == pytest.approx(float((sum(squares) / 2) ** 0.5), rel=1e-5)


def test_all_members_judge_and_their_disagreement_may_count_against_a_plan() -> None:
    learner, batch = fitted(3)
    one_by_one = []
    for member in range(3):
        alone = LearnedCritic(only(learner, member), batch)
        one_by_one.append(values(alone, batch))
    stacked = torch.stack(one_by_one)
    assert_close(values(LearnedCritic(learner, batch), batch), stacked.mean(0), rtol=1e-4, atol=1e-5)
    wary = values(LearnedCritic(learner, batch, pessimism=2.0), batch)
    assert_close(wary, stacked.mean(0) - 2 * stacked.std(0), rtol=1e-4, atol=1e-5)


def only(learner: Regression, member: int) -> Regression:
    """One member of an ensemble, by itself."""
    critic = PrefixCritic(KITCHEN.spec, CriticConfig(output="team"), Streams([0]))
    alone = Regression(critic, learner.config, Streams([0]), 5)
    copies = critic.copies
    with torch.no_grad():
        for own, all_of_them in zip(critic.parameters(), learner.critic.parameters(), strict=True):
            own.copy_(all_of_them[member * copies : (member + 1) * copies])
    for name in ("mean", "variance"):
        setattr(alone.scale, name, getattr(learner.scale, name)[member : member + 1])
    return alone


def test_a_planner_plans_with_it() -> None:
    learner, batch = fitted(2)
    config: Any = PlannerConfig(plans="steps")
    planner = ReadPlanner(KITCHEN, uniform_prior(), LearnedCritic(learner, batch, pessimism=0.5), config)
    decision, _ = planner.act(TensorEnv(KITCHEN, 5).reset(0), None, Streams([0]))
    assert decision.action.shape == (5, 2, 1)
    assert decision.counts is not None
    assert bool((decision.counts["queries"] >= 2).all())


def knowing(members: int = 1) -> tuple[Regression, Batch]:
    """A critic that knows how the play that it learned from was chosen, all choices alike."""
    critic = OrderedCritic(KITCHEN.spec, CriticConfig(output="team"), Streams(range(members)))
    config, recorded = RegressionConfig(rows=512, steps=4), log()
    recorded.latent = torch.full((len(recorded), 2, 6), 1 / 6)
    learner = Regression(critic, config, Streams(range(10, 10 + members)), 5)
    for _, batch in zip(range(5), source(recorded, config, Streams(range(20, 20 + members)))):
        learner.update(batch)
    return learner, recorded.take(torch.arange(100), 1, 1)


def test_one_that_needs_behavior_passes_it_on_and_has_the_unit_of_advantages_in_order() -> None:
    learner, batch = knowing(2)
    critic = LearnedCritic(learner, batch)
    assert critic.needs_behavior
    behavior = batch.decision.latent
    by_prefix = []
    for count in range(3):
        given = (torch.arange(2) < count).expand(100, 2)
        doubled = [torch.cat([x, x]) for x in (batch.decision.action, given, behavior)]
        twice = tree_map(lambda leaf: torch.cat([leaf, leaf]), batch.obs)
        with torch.no_grad():
            by_member = learner.values(twice, *doubled).mean(1).sum(-1).view(2, 100)
        by_prefix.append(by_member.mean(0))
        assert_close(critic.values(batch.obs, batch.decision.action, given, behavior), by_prefix[-1])
    gains = torch.stack(by_prefix).diff(dim=0)
    assert critic.scale == pytest.approx(float(gains.square().mean().sqrt()), rel=1e-5)


def test_a_planner_scores_for_one_that_needs_behavior() -> None:
    learner, batch = knowing()
    config: Any = PlannerConfig(plans="steps")
    planner = ReadPlanner(KITCHEN, uniform_prior(), LearnedCritic(learner, batch), config)
    decision, _ = planner.act(TensorEnv(KITCHEN, 5).reset(0), None, Streams([0]))
    assert decision.counts is not None
    assert bool((decision.counts["queries"] >= 4).all())


def test_what_somebody_who_is_gone_would_choose_counts_for_nothing() -> None:
    learner, batch = fitted()
    critic = LearnedCritic(learner, scale=1.0)
    first = torch.tensor([[True, False]]).expand(100, 2)
    alone = dataclasses.replace(batch.obs, alive=first)
    of_first = critic.values(alone, batch.decision.action, first)
    assert torch.equal(critic.values(alone, batch.decision.action, torch.ones_like(first)), of_first)
    assert not torch.equal(values(critic, batch), of_first)
