"""Regression of prefix critics on logged play, against exact values of small games."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from worlds import TabularGame

from envs.core import Actor, Decision, InputError, Observation, Streams, Tree
from envs.kitchen import Kitchen
from envs.world import RandomActor, TensorEnv
from marl.learning.offline_batch import Logged
from marl.learning.regression import Regression, RegressionConfig, source
from marl.learning.state_log import StateLog, record
from marl.models.critics import CriticConfig
from marl.models.layers import NetworkConfig
from marl.models.prefix_critic import PrefixCritic

DISCOUNT = 0.8


class Dependent:
    """The second agent does what the first one does in three of four steps, and otherwise anything."""

    def initial_memory(self, num_envs: int) -> None:
        return None

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        rows = len(obs.alive)
        drawn = torch.stack([torch.randint(3, (rows,), generator=streams.generators[0]) for _ in range(2)], 1)
        follows = torch.rand(rows, generator=streams.generators[0]) < 0.75
        drawn[:, 1] = torch.where(follows, drawn[:, 0], drawn[:, 1])
        return Decision(drawn.unsqueeze(-1)), memory

    @staticmethod
    def policy() -> Tensor:
        return (torch.eye(3, dtype=torch.float64) / 4 + 1 / 36).expand(6, 3, 3)


def learned(log: StateLog, updates: int, members: int = 1, **settings: Any) -> Regression:
    learner, source = learner_of(members, updates, **settings), source_of(log, members)
    for _, batch in zip(range(updates), source):
        learner.update(batch)
    return learner


def learner_of(members: int, updates: int, **settings: Any) -> Regression:
    spec, seeds = TabularGame().spec, range(members)
    network = NetworkConfig(hidden=(64, 64), activation="relu")
    critic = PrefixCritic(spec, CriticConfig(network=network, output="team"), Streams([10 + seed for seed in seeds]))
    config = RegressionConfig(discount=DISCOUNT, learning_rate=5e-3, learning_rate_end=1e-3, averaging=0.05, **settings)
    return Regression(critic, config, Streams([20 + seed for seed in seeds]), updates)


def source_of(log: StateLog, members: int) -> Logged:
    return Logged(log, rows=256, steps=4, streams=Streams([30 + member for member in range(members)]))


def prefixes(game: TabularGame, learner: Regression, given: list[bool]) -> Tensor:
    """Learned values [S,J] of every joint choice where some agents' choices are given."""
    state = torch.arange(game.states).repeat_interleave(9)
    action = torch.cartesian_prod(torch.arange(3), torch.arange(3)).repeat(game.states, 1).unsqueeze(-1)
    with torch.no_grad():
        value = learner.values(game.observe(state), action, torch.tensor(given).expand(len(state), -1))
    return value.mean((-2, -1)).view(game.states, 3, 3).double()


def exact(game: TabularGame, policy: Tensor) -> dict[tuple[bool, ...], Tensor]:
    """Exact values of prefixes."""
    _, q = game.q_of(policy.flatten(1), DISCOUNT)
    q = q.view(policy.shape)
    first = (policy * q).sum(2, keepdim=True) / policy.sum(2, keepdim=True)
    second = (policy * q).sum(1, keepdim=True) / policy.sum(1, keepdim=True)
    value = (policy * q).sum((1, 2), keepdim=True)
    found = {(False, False): value, (True, False): first, (False, True): second, (True, True): q}
    return {given: values.expand_as(q) for given, values in found.items()}


def play(actor: Actor, limit: int = 4, **options: Any) -> StateLog:
    env = TensorEnv(TabularGame(), 128, time_limit=limit)
    return record(env, actor, 200, seed=3, **options)


@pytest.mark.parametrize("actor", ["independent", "dependent"])
def test_bootstrapped_values_of_every_prefix_are_those_of_the_policy_that_played(actor: str) -> None:
    game = TabularGame()
    player = Dependent() if actor == "dependent" else RandomActor(game.spec)
    policy = Dependent.policy() if actor == "dependent" else torch.full((6, 3, 3), 1 / 9, dtype=torch.float64)
    learner = learned(play(player), 600)
    reached = ~game.ends  # nothing is logged of where the game is over
    for given, truth in exact(game, policy).items():
        error = (prefixes(game, learner, list(given)) - truth)[reached].abs()
        assert float(error.mean()) < 0.08, given
        assert float(error.max()) < 0.5, given


def test_returns_are_learned_to_the_end_of_episodes() -> None:
    game = TabularGame()
    log, learner = play(RandomActor(game.spec), limit=40), learner_of(1, 600, target="return")
    assert learner.target_critic is None
    for _, batch in zip(range(600), source(log, learner.config, Streams([30]))):
        learner.update(batch)
    truth = exact(game, torch.full((6, 3, 3), 1 / 9, dtype=torch.float64))[False, False]
    error = (prefixes(game, learner, [False, False]) - truth)[~game.ends].abs()
    assert float(error.mean()) < 0.15


def test_targets_look_ahead_as_far_as_lambda_says() -> None:
    learner = learner_of(1, 3, gae_lambda=1.0, gae_lambda_end=0.0)
    batches = iter(source_of(play(RandomActor(TabularGame().spec), limit=40), 1))
    learner.update(next(batches))
    batch = next(batches)
    reward, over, cut = (x.view(4, 64, 2, -1) for x in (batch.reward, batch.terminated, batch.truncated))
    with torch.no_grad():
        following = learner.scale.restore(learner.target_critic(batch.final_obs)).view(4, 64, 2, 1)  # type: ignore[misc]
    learner.progress.done = 1
    far = learner._target(batch).view(4, 64, 2, 1)
    learner.progress.done = 3
    near = learner._target(batch).view(4, 64, 2, 1)
    assert_close(near, reward + DISCOUNT * following * ~over)
    then = torch.where(cut[:-1], following[:-1], far[1:])
    assert_close(far[:-1], reward[:-1] + DISCOUNT * then * ~over[:-1])
    assert_close(far[-1], near[-1])


def test_nothing_is_bootstrapped_past_the_end() -> None:
    log = play(RandomActor(TabularGame().spec))
    learner = learner_of(1, 1)
    batch = next(iter(source_of(log, 1)))
    learner.update(batch)
    target = learner._target(batch)
    over = batch.terminated[:, 0]
    assert bool(over.any())
    assert torch.equal(target[over], batch.reward[over])
    assert not torch.equal(target[~over], batch.reward[~over])


def test_every_row_is_learned_from_with_every_prefix_of_some_order() -> None:
    learner = learner_of(1, 1)
    batch = next(iter(source_of(play(RandomActor(TabularGame().spec)), 1)))
    given = learner._prefixes(batch)
    assert given.shape == (3, 256, 2)
    assert given.sum(-1).unique(dim=1).flatten().tolist() == [0, 1, 2]
    assert bool((given[1:] >= given[:-1]).all())
    assert 100 < int(given[1, :, 0].sum()) < 156


@pytest.mark.parametrize("output", ["team", "agent"])
@pytest.mark.parametrize("target", ["bootstrap", "return"])
def test_several_channels_are_learned_side_by_side_each_with_its_discount(output: str, target: str) -> None:
    env = TensorEnv(Kitchen("cramped_room_small", horizon=None, starts="random"), 16, time_limit=9)
    log = record(env, RandomActor(env.spec), 20, seed=0)
    critic = PrefixCritic(env.spec, CriticConfig(output=output), Streams([1, 2]))  # type: ignore[arg-type]
    config = RegressionConfig(rows=64, steps=4, target=target, discount=(0.9, 0.0))  # type: ignore[arg-type]
    learner = Regression(critic, config, Streams([3, 4]), 3)
    for _, batch in zip(range(3), source(log, config, Streams([5, 6]))):
        terms = learner.update(batch)
        assert_close(learner._target(batch)[..., 1], batch.reward[..., 1])
    assert terms["joint_error"].shape == (2,)
    assert learner.values(env.reset([0, 1])).shape == (16, 2, 2)


def test_members_of_an_ensemble_learn_as_if_alone() -> None:
    log = play(RandomActor(TabularGame().spec))
    both = learned(log, 20, members=2)
    alone = learner_of(1, 20)
    other = PrefixCritic(
        TabularGame().spec,
        CriticConfig(network=NetworkConfig(hidden=(64, 64), activation="relu"), output="team"),
        Streams([11]),
    )
    alone = Regression(other, alone.config, Streams([21]), 20)
    for _, batch in zip(range(20), Logged(log, rows=256, steps=4, streams=Streams([31]))):
        alone.update(batch)
    for one, two in zip(alone.critic.parameters(), both.critic.parameters(), strict=True):
        assert_close(one[0], two[1], rtol=1e-4, atol=1e-5)


def test_a_saved_learner_continues_to_the_same_bits() -> None:
    log = play(RandomActor(TabularGame().spec))
    learner, source = learner_of(2, 10), source_of(log, 2)
    for _, batch in zip(range(5), source):
        learner.update(batch)
    saved = copy.deepcopy((learner.state_dict(), source.state_dict()))
    again, resumed = learner_of(2, 10), source_of(log, 2)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for each, batches in ((learner, source), (again, resumed)):
        for _, batch in zip(range(5), batches):
            each.update(batch)
    for one, two in zip(learner.critic.parameters(), again.critic.parameters(), strict=True):
        assert torch.equal(one, two)


def test_an_ensemble_has_a_stream_for_each_member() -> None:
    critic = PrefixCritic(TabularGame().spec, CriticConfig(), Streams([0, 1]))
    with pytest.raises(InputError, match=r"got 1 streams for a critic of 2 members"):
        Regression(critic, RegressionConfig(), Streams([0]), 1)


def test_who_is_gone_chooses_nothing() -> None:
    walk = TensorEnv(TabularGame(), 4, time_limit=3)
    batch = next(iter(Logged(record(walk, RandomActor(walk.spec), 5, 0), rows=8, streams=Streams([0]))))
    gone = dataclasses.replace(batch.obs, alive=batch.obs.alive & torch.tensor([True, False]))
    given = learner_of(1, 1)._prefixes(dataclasses.replace(batch, obs=gone))
    assert not bool(given[..., 1].any())
    assert bool(given[-1, :, 0].all())


def test_values_of_several_prefixes_are_told_as_returns_of_each_member() -> None:
    learner = learned(play(RandomActor(TabularGame().spec)), 3, members=2)
    obs = TensorEnv(TabularGame(), 8).reset([0, 1])
    action = torch.ones(8, 2, 1, dtype=torch.int64)
    given = torch.tensor([[True, False], [False, True], [True, True]]).view(3, 1, 2).expand(3, 8, 2)
    with torch.no_grad():
        together = learner.values(obs, action, given)
        assert_close(together, torch.stack([learner.values(obs, action, one) for one in given]))
        raw = learner.critic(obs, action, given[0])
    by_member = raw.view(2, 4, 2, 1) * learner.scale.variance.sqrt().view(2, 1, 1, 1)
    assert_close(together[0], (by_member + learner.scale.mean.view(2, 1, 1, 1)).view(8, 2, 1))


def test_the_learning_rate_goes_to_its_end_and_the_average_follows_slowly() -> None:
    learner, batches = learner_of(1, 3), iter(source_of(play(RandomActor(TabularGame().spec)), 1))
    assert learner.target_critic is not None
    before = [p.detach().clone() for p in learner.target_critic.parameters()]
    rates = []
    for _ in range(3):
        learner.update(next(batches))
        rates.append(learner.optimizer.learning_rate)
        if len(rates) == 1:
            now = zip(before, learner.target_critic.parameters(), learner.critic.parameters(), strict=True)
            for old, slow, fast in now:
                assert_close(slow.detach(), old + 0.05 * (fast.detach() - old))
    assert rates == pytest.approx([5e-3, 3e-3, 1e-3])


def test_errors_are_told_of_nobody_and_of_all_and_who_is_gone_counts_in_none() -> None:
    learner = learned(play(RandomActor(TabularGame().spec)), 50)
    batch = next(iter(source_of(play(RandomActor(TabularGame().spec)), 1)))
    _, terms = learner.loss(batch, learner._target(batch))
    assert float(terms["joint_error"]) < float(terms["value_error"])
    gone = dataclasses.replace(batch.obs, alive=batch.obs.alive & torch.tensor([True, False]))
    batch = dataclasses.replace(batch, obs=gone)
    target = learner._target(batch)
    wild = torch.where(gone.alive.unsqueeze(-1), target, 1e6)
    assert_close(learner.loss(batch, target)[1]["value_error"], learner.loss(batch, wild)[1]["value_error"])
    mean = learner.scale.mean.clone()
    learner.scale.update(wild, gone.alive)
    assert float((learner.scale.mean - mean).abs()) < 1
