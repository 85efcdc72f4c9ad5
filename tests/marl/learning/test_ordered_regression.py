"""Regression of critics that know by which probabilities agents chose, against exact values of small games."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from worlds import TabularGame

from envs.core import Decision, InputError, Observation, Streams, Tree
from envs.world import RandomActor, TensorEnv
from marl.learning.batch import Batch
from marl.learning.offline_batch import Logged
from marl.learning.regression import Regression, RegressionConfig, behavior_of, source
from marl.learning.state_log import StateLog, record
from marl.models.critics import CriticConfig
from marl.models.layers import NetworkConfig
from marl.models.ordered_critic import OrderedCritic
from marl.models.prefix_critic import PrefixCritic

DISCOUNT = 0.8
UPDATES = 600
CRITIC = CriticConfig(network=NetworkConfig(hidden=(64, 64), activation="relu"), output="team")
PREFIXES = [(False, False), (True, False), (True, True)]


class Telling:
    """Prefers some choices in some states; the second agent leans to what the first one does. It tells by how much."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(5)
        first = torch.randn(6, 3, generator=g).softmax(-1)
        second = (torch.randn(6, 1, 3, generator=g) + 2 * torch.eye(3)).softmax(-1)
        self.first, self.second = first, second

    def initial_memory(self, num_envs: int) -> None:
        return None

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        state = obs.state.argmax(-1)
        shares: list[Tensor] = []
        choices: list[Tensor] = []
        for agent in range(2):
            share = self.first[state] if agent == 0 else self.second[state, choices[0]]
            shares.append(share)
            choices.append(torch.multinomial(share, 1, generator=streams.generators[0]).squeeze(1))
        return Decision(torch.stack(choices, 1).unsqueeze(-1), torch.stack(shares, 1)), memory

    def policy(self) -> Tensor:
        """Joint probabilities [S,3,3]."""
        return (self.first.unsqueeze(-1) * self.second).double()


@lru_cache
def play(limit: int = 4) -> StateLog:
    return record(TensorEnv(TabularGame(), 128, time_limit=limit), Telling(), 200, seed=3)


def learner_of(kind: Any, updates: int, members: int = 1, first: int = 0, **settings: Any) -> Regression:
    seeds = range(first, first + members)
    config = RegressionConfig(
        rows=256, steps=4, discount=DISCOUNT, learning_rate=5e-3, learning_rate_end=1e-4, averaging=0.05, **settings
    )
    critic = kind(TabularGame().spec, CRITIC, Streams([10 + seed for seed in seeds]))
    return Regression(critic, config, Streams([20 + seed for seed in seeds]), updates)


def learned(kind: Any, log: StateLog, updates: int = UPDATES, members: int = 1, first: int = 0) -> Regression:
    learner = learner_of(kind, updates, members, first)
    draws = Streams([30 + seed for seed in range(first, first + members)])
    for _, batch in zip(range(updates), source(log, learner.config, draws)):
        learner.update(batch)
    return learner


def values(learner: Regression, given: tuple[bool, ...]) -> Tensor:
    """Learned values [S,3,3] of every joint choice where some agents' choices are given."""
    game, player = TabularGame(), Telling()
    state = torch.arange(6).repeat_interleave(9)
    action = torch.cartesian_prod(torch.arange(3), torch.arange(3)).repeat(6, 1).unsqueeze(-1)
    behavior = torch.stack([player.first[state], player.second[state, action[:, 0, 0]]], 1)
    with torch.no_grad():
        found = learner.values(game.observe(state), action, torch.tensor(given).expand(54, -1), behavior)
    return found.mean((-2, -1)).view(6, 3, 3).double()


def errors(learner: Regression) -> list[Tensor]:
    """Errors [S,3,3] of the values of each prefix, in the states that are reached."""
    game, policy = TabularGame(), Telling().policy()
    _, q = game.q_of(policy.flatten(1), DISCOUNT)
    q = q.view(policy.shape)
    first = (policy * q).sum(2, keepdim=True) / policy.sum(2, keepdim=True)
    exact = [(policy * q).sum((1, 2), keepdim=True), first, q]
    return [(values(learner, given) - truth)[~game.ends] for given, truth in zip(PREFIXES, exact, strict=True)]


def test_every_prefix_is_learned_exactly_and_better_than_from_samples_of_the_others() -> None:
    found = {kind: errors(learned(kind, play())) for kind in (OrderedCritic, PrefixCritic)}
    known, sampled = (torch.stack([error.square().mean().sqrt() for error in found[kind]]) for kind in found)
    print(known, sampled)
    assert float(torch.stack(found[OrderedCritic]).abs().max()) < 0.1
    assert bool((known < 0.02).all())
    assert bool((known < sampled / 2).all())


def test_the_value_of_a_state_is_the_mean_of_its_choices_whatever_was_learned() -> None:
    learner, policy = learned(OrderedCritic, play(), 3), Telling().policy()
    value, first, joint = (values(learner, given) for given in PREFIXES)
    assert_close((policy * joint).sum((1, 2)), value[:, 0, 0], rtol=0, atol=1e-6)
    assert_close((policy * joint).sum(2) / policy.sum(2), first[..., 0], rtol=0, atol=1e-6)


def test_the_joint_error_alone_is_descended_and_that_of_the_state_told() -> None:
    learner, log = learned(OrderedCritic, play(), 50), play()
    batch = log.take(torch.arange(256), 1, 1)
    loss, terms = learner.loss(batch, batch.reward)
    assert_close(loss.detach(), terms["joint_error"].sum())
    assert float(terms["joint_error"]) < float(terms["value_error"])
    everybody = learner.critic(batch.obs, batch.decision.action, batch.obs.alive, behavior_of(batch))
    error = 0.5 * (everybody - learner.scale.apply_to(batch.reward)).square().sum(-1).mean()
    assert_close(loss, error)


def test_returns_are_learned_from_with_the_behavior_that_played() -> None:
    learner = learner_of(OrderedCritic, 5, target="return")
    for _, batch in zip(range(5), source(play(40), learner.config, Streams([0]))):
        terms = learner.update(batch)
        told = Telling()
        assert_close(behavior_of(batch)[:, 0], told.first[batch.obs.state.argmax(-1)])
    assert bool(terms["joint_error"].isfinite().all())


def test_members_of_an_ensemble_learn_as_if_alone() -> None:
    both = learned(OrderedCritic, play(), 20, members=2)
    alone = learned(OrderedCritic, play(), 20, first=1)
    for one, two in zip(alone.critic.parameters(), both.critic.parameters(), strict=True):
        assert_close(one[0], two[1], rtol=1e-4, atol=1e-5)


def test_who_is_gone_is_not_learned_from() -> None:
    learner = learned(OrderedCritic, play(), 3)
    batch = play().take(torch.arange(64), 1, 1)
    alive = torch.tensor([True, False]).expand(64, 2)
    gone = dataclasses.replace(batch, obs=dataclasses.replace(batch.obs, alive=alive))
    loss, _ = learner.loss(gone, gone.reward)
    other = dataclasses.replace(gone, decision=_with_others(gone))
    assert_close(learner.loss(other, gone.reward)[0], loss, rtol=0, atol=0)


def _with_others(batch: Batch) -> Decision:
    """The same of the first agent, and something else of the second, with probabilities that are none."""
    action, behavior = batch.decision.action.clone(), behavior_of(batch).clone()
    action[:, 1] = (action[:, 1] + 1) % 3
    behavior[:, 1] = 0
    return Decision(action, behavior)


def test_a_log_without_probabilities_is_refused() -> None:
    game = TabularGame()
    silent = record(TensorEnv(game, 8, time_limit=4), RandomActor(game.spec), 8, seed=0)
    batch = next(iter(Logged(silent, rows=8, steps=4, streams=Streams([0]))))
    with pytest.raises(InputError, match=r"the log has NoneType\. Record an actor that tells them"):
        learner_of(OrderedCritic, 1).update(batch)
    wrong = dataclasses.replace(batch, decision=dataclasses.replace(batch.decision, latent=torch.zeros(8, 3)))
    with pytest.raises(InputError, match=r"the log has a tensor \[8, 3\]"):
        learner_of(OrderedCritic, 1).update(wrong)
