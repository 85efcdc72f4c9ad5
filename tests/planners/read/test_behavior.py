"""Play by a model's own probabilities, against the frequencies that they say."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from dependent_cooks import FIRST, KITCHEN, SECOND, log_prob
from scipy.stats import chisquare
from torch import Tensor
from torch.testing import assert_close

from envs.core import Actor, InputError, Observation, Streams, tree_map
from envs.kitchen import Kitchen
from envs.world import TensorEnv
from marl.learning.regression import Regression, RegressionConfig, behavior_of, source
from marl.learning.state_log import record
from marl.models.critics import CriticConfig
from marl.models.ordered_critic import OrderedCritic
from planners.language.backends.scripted import Scripted
from planners.language.base import Query, Scores
from planners.read.behavior import Behavior
from planners.read.planner import PlannerConfig, ReadPlanner
from planners.read.situations import Situations
from planners.read.team import TeamConfig


class Counting(Scripted):
    """Keeps what it is asked to score, call by call."""

    def __init__(self, log_probs: Any = log_prob):
        super().__init__(lambda query, number: query.choices[0], "test", log_probs)
        self.calls: list[list[Query]] = []

    def score(self, queries: Sequence[Query]) -> Iterator[tuple[int, Scores]]:
        self.calls.append(list(queries))
        return super().score(queries)


def behavior(model: Any = None, **config: Any) -> Behavior:
    return Behavior(KITCHEN, model or Counting(), TeamConfig(**{"plans": "steps", **config}))


def seen(rows: int) -> Observation:
    return KITCHEN.observe(tree_map(lambda leaf: leaf.expand(rows, *leaf.shape[1:]), KITCHEN.first()))


@pytest.mark.parametrize("mode", ["sequential", "joint"])
def test_choices_are_as_frequent_as_the_model_says_and_it_tells_by_which_probabilities(mode: str) -> None:
    actor = behavior(mode=mode)
    assert isinstance(actor, Actor)
    decision, _ = actor.act(seen(20_000), None, Streams([0]))
    action, told = decision.action.squeeze(-1), decision.latent
    assert told.dtype == torch.float32
    assert_close(told[:, 0], FIRST.float().expand(20_000, 6))
    assert_close(told[:, 1], SECOND.float()[action[:, 0]])
    counted = torch.bincount(action[:, 0] * 6 + action[:, 1], minlength=36)
    expected = (FIRST.unsqueeze(1) * SECOND).flatten() * 20_000
    assert chisquare(counted.numpy(), expected.numpy()).pvalue > 0.001


@pytest.mark.parametrize("mode", ["sequential", "joint"])
def test_each_situation_is_asked_once_and_all_new_ones_of_a_step_together(mode: str) -> None:
    model = Counting()
    actor = behavior(model, mode=mode)
    env = TensorEnv(KITCHEN, 64, time_limit=20)
    log = record(env, actor, 40, seed=0)
    asked = [query for call in model.calls for query in call]
    assert max(Counter(asked).values()) == 1
    assert actor.asked == len(asked)
    batch = log.take(torch.arange(len(log)), 1, 1)
    states = {state.numpy().tobytes() for state in batch.obs.state}
    pairs = {(s.numpy().tobytes(), int(a)) for s, a in zip(batch.obs.state, batch.decision.action[:, 0, 0])}
    assert len(asked) == (len(states) if mode == "joint" else len(states) + len(pairs))
    assert len(model.calls) <= 40 * (1 if mode == "joint" else 2)
    actor.act(batch.obs, None, Streams([0]))
    assert len({query for call in model.calls for query in call}) == actor.asked


def test_its_queries_are_those_of_planners_so_that_a_cache_has_them() -> None:
    class Needs:
        scale = 1.0
        needs_behavior = True

        def values(self, obs: Observation, action: Tensor, given: Tensor, behavior: Any = None) -> Tensor:
            return torch.ones(len(action)) * given.sum(-1)

    for mode in ("sequential", "joint"):
        mine, theirs = Counting(), Counting()
        behavior(mine, mode=mode).act(seen(200), None, Streams([0]))
        ReadPlanner(KITCHEN, theirs, Needs(), PlannerConfig(plans="steps", mode=mode)).act(seen(1), None, Streams([0]))
        asked = {query for call in theirs.calls for query in call}
        assert asked <= {query for call in mine.calls for query in call}


def test_equal_streams_draw_alike_whatever_was_met_before() -> None:
    actor = behavior(plans="all", model=Counting(lambda query, text: -len(text) / 10.0))
    first, again, other = (actor.act(seen(50), None, Streams([seed]))[0].action for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    warm = TensorEnv(KITCHEN, 16, time_limit=20)
    record(warm, actor, 20, seed=1)
    assert torch.equal(actor.act(seen(50), None, Streams([3]))[0].action, first)
    before = actor.asked
    anywhere = Kitchen("cramped_room_small", horizon=None, soups=1, counter_items=0, starts="random")
    actor.act(TensorEnv(anywhere, 16).reset(0), None, Streams([0]))
    assert actor.asked > before  # what recording began can go on outside it


def test_policies_draw_as_if_alone() -> None:
    both = behavior().act(seen(20), None, Streams([1, 2]))[0].action
    assert torch.equal(both[10:], behavior().act(seen(10), None, Streams([2]))[0].action)


@pytest.mark.parametrize("mode", ["sequential", "joint"])
def test_who_is_gone_is_not_asked_nor_told_of(mode: str) -> None:
    alike = Counting(lambda query, text: 0.0)
    obs = dataclasses.replace(seen(600), alive=torch.tensor([[False, True]]).expand(600, 2))
    decision, _ = behavior(alike, mode=mode).act(obs, None, Streams([0]))
    (query,) = (query for call in alike.calls for query in call)
    assert "Decided already" not in query.messages[-1].content
    assert "cook_0 can" not in query.messages[-1].content
    assert bool((decision.action[:, 0] == 0).all())
    assert_close(decision.latent[:, 1], torch.full((600, 6), 1 / 6))
    assert sorted(decision.action[:, 1].unique().tolist()) == list(range(6))


@pytest.mark.parametrize("mode", ["sequential", "joint"])
def test_plans_that_begin_alike_are_one_choice(mode: str) -> None:
    actor = behavior(Counting(lambda query, text: 0.0), mode=mode, plans="all")
    decision, _ = actor.act(seen(4000), None, Streams([0]))
    (phrases,) = actor.phrasebook.of(seen(1))
    for agent in range(2):
        often = torch.bincount(phrases.actions[agent], minlength=6)
        assert int(often.max()) > 1
        share = often.double() / often.sum()
        assert_close(decision.latent[:, agent], share.float().expand(4000, 6))
        counted = torch.bincount(decision.action[:, agent, 0], minlength=6)
        assert chisquare(counted[often > 0].numpy(), (4000 * share[often > 0]).numpy()).pvalue > 0.001


def test_only_what_is_legal_is_drawn_and_temperature_0_takes_the_likeliest() -> None:
    legal = torch.ones(50, 2, 6, dtype=torch.bool)
    legal[:, 0, 0] = False
    obs = dataclasses.replace(seen(50), legal=legal)
    decision, _ = behavior().act(obs, None, Streams([0]))
    assert int(decision.action[:, 0].min()) == 1
    assert_close(decision.latent[0, 0, 1:], (FIRST[1:] / FIRST[1:].sum()).float())
    for mode in ("sequential", "joint"):
        sure, _ = behavior(mode=mode, temperature=0).act(obs, None, Streams([0]))
        assert bool((sure.action[:, 0] == 1).all())
        assert bool((sure.latent.amax(-1) == 1).all())


def test_a_critic_that_needs_behavior_learns_from_its_log() -> None:
    env = TensorEnv(KITCHEN, 32, time_limit=20)
    log = record(env, behavior(), 40, seed=0)
    config = RegressionConfig(rows=64, steps=4)
    critic = OrderedCritic(env.spec, CriticConfig(output="team"), Streams([1]))
    learner = Regression(critic, config, Streams([2]), 3)
    for _, batch in zip(range(3), source(log, config, Streams([3]))):
        assert_close(behavior_of(batch).sum(-1), torch.ones(64, 2))
        terms = learner.update(batch)
    assert bool(terms["joint_error"].isfinite().all())


def test_a_model_that_cannot_score_is_refused() -> None:
    with pytest.raises(InputError, match=r"scripted:mute does not\. Take a local model, or let ReadPlanner ask it"):
        behavior(Scripted(lambda query, number: "", "mute"))


@pytest.mark.parametrize("mode", ["sequential", "joint"])
def test_a_share_of_plans_is_any_plan(mode: str) -> None:
    actor = Behavior(KITCHEN, Counting(), TeamConfig(plans="steps", mode=mode), explore=0.3)
    decision, _ = actor.act(seen(500), None, Streams([0]))
    action, told = decision.action.squeeze(-1), decision.latent
    if mode == "sequential":
        first, second = 0.7 * FIRST + 0.05, 0.7 * SECOND + 0.05
    else:
        together = 0.7 * FIRST.unsqueeze(1) * SECOND + 0.3 / 36
        first, second = together.sum(1), together / together.sum(1, keepdim=True)
    assert_close(told[:, 0], first.float().expand(500, 6))
    assert_close(told[:, 1], second.float()[action[:, 0]])


def test_the_share_of_any_plan_is_a_share() -> None:
    with pytest.raises(InputError, match="explore"):
        Behavior(KITCHEN, Counting(), TeamConfig(plans="steps"), explore=1.5)


def test_situations_are_told_apart_by_who_is_there_and_by_what_is_legal() -> None:
    actor, obs = behavior(), seen(20)
    actor.act(obs, None, Streams([0]))
    alone = dataclasses.replace(obs, alive=torch.tensor([[True, False]]).expand(20, 2))
    assert bool((actor.act(alone, None, Streams([0]))[0].action[:, 1] == 0).all())
    for only in (4, 5):
        legal = (torch.arange(6) == only).expand(20, 2, 6)
        decision, _ = actor.act(dataclasses.replace(obs, legal=legal), None, Streams([0]))
        assert bool((decision.action == only).all())


def test_what_has_no_chance_is_drawn_by_no_number() -> None:
    situations = Situations(2)
    share = torch.tensor([0.0, 1.0], dtype=torch.float64)
    place = situations.add(share, torch.arange(2), share.float())
    branch, _, _ = situations.draw(torch.tensor([place]), torch.zeros(1, dtype=torch.float64))
    assert branch.tolist() == [1]
