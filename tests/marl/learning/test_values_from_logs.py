"""Values that are learned from logs: what follows, by which policy, how far ahead, and among which actions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_offline import TableCritic, TablePolicy
from torch import Tensor

from envs.core import InputError, Streams
from marl.learning.batch import Batch
from marl.learning.offline_actor_critic import Estimated, LoggedActorCritic, LoggedLearnerConfig
from marl.learning.offline_batch import Logged, chooser_spec, transitions
from marl.models.action_critic import ActionCritic
from marl.models.layers import NetworkConfig
from marl.models.policies import IndependentPolicy, PolicyConfig

STATES, ACTIONS = 4, 3
LEAP = np.random.default_rng(0).integers(STATES, size=(STATES, ACTIONS))  # the state that follows
REWARD = np.random.default_rng(1).normal(size=(STATES, ACTIONS, 3))
CHANCES = np.random.default_rng(2).dirichlet(np.ones(ACTIONS), STATES)


def stand_still(batch: Batch, rows: Estimated) -> Tensor:
    """An objective that leaves the policy as it is: what is learned are its values alone."""
    return 0.0 * rows.weight


def every_transition(channels: int) -> Batch:
    """Each state and action once."""
    state, action = (torch.tensor(x.ravel()) for x in np.indices((STATES, ACTIONS)))
    seen = torch.eye(STATES, dtype=torch.float64)
    following = seen[torch.tensor(LEAP)[state, action]]
    reward = torch.tensor(REWARD[..., :channels])[state, action]
    never = torch.zeros(len(state), dtype=torch.bool)
    return transitions(seen[state], action, torch.full((len(state),), 1 / ACTIONS), reward, following, never)


def evaluated(log: Batch, channels: int, updates: int = 600, **settings: object) -> np.ndarray:
    """Q of the fixed policy [S,A,K], by the learner's own steps, of which the last are small."""
    critic = TableCritic(np.zeros((STATES, ACTIONS, channels)))
    config = LoggedLearnerConfig(critic_learning_rate=0.1, averaging=0.5, max_grad_norm=1e3, **settings)
    learner = LoggedActorCritic(TablePolicy(np.log(CHANCES)), critic, config, objective=stand_still)
    for step in range(updates):
        learner.critic_optimizer.learning_rate = 0.1 * (1 - step / updates)
        learner.update(log)
    return critic.values.detach().movedim(0, -1).numpy()


def exact(discounts: tuple[float, ...]) -> np.ndarray:
    """Q = r + γ P (I - γ P_π)^-1 r_π, [S,A,K]."""
    found = np.empty((STATES, ACTIONS, len(discounts)))
    step = np.zeros((STATES, STATES))
    np.add.at(step, (np.repeat(np.arange(STATES), ACTIONS), LEAP.ravel()), CHANCES.ravel())
    for k, discount in enumerate(discounts):
        value = np.linalg.solve(np.eye(STATES) - discount * step, (CHANCES * REWARD[..., k]).sum(1))
        found[..., k] = REWARD[..., k] + discount * value[LEAP]
    return found


def test_each_critic_solves_its_own_equation_and_one_discount_for_all_does_not() -> None:
    discounts = (0.5, 0.9, 0.0)
    found = evaluated(every_transition(3), 3, discount=discounts)
    np.testing.assert_allclose(found, exact(discounts), atol=1e-3)
    joint = evaluated(every_transition(3), 3, discount=0.9)
    off = np.abs(joint - exact(discounts)).max((0, 1))
    assert off[1] < 1e-3
    assert off[0] > 0.3
    assert off[2] > 0.3


def test_an_episode_that_was_cut_off_is_worth_what_would_follow_and_a_terminated_one_nothing() -> None:
    # One state that follows itself and pays 1: worth 1 / (1 - γ) if it goes on, 1 if it ends.
    seen = torch.ones(1, 1, dtype=torch.float64)
    for ended, worth in ((True, 1.0), (False, 10.0)):
        log = transitions(seen, torch.tensor([0]), torch.ones(1), torch.ones(1, 1), seen, torch.tensor([ended]))
        critic = TableCritic(np.zeros((1, 1, 1)))
        config = LoggedLearnerConfig(discount=0.9, critic_learning_rate=0.2, averaging=1.0, max_grad_norm=1e3)
        learner = LoggedActorCritic(TablePolicy([[0.0]]), critic, config)
        for step in range(300):
            learner.critic_optimizer.learning_rate = 0.2 * (1 - step / 300)
            learner.update(log)
        assert critic.values.item() == pytest.approx(worth, abs=1e-3)


def test_soft_values_are_less_by_the_divergence_from_uniform() -> None:
    tau = 0.3
    found = evaluated(every_transition(1), 1, discount=0.8, temperature=tau)
    divergence = (CHANCES * np.log(ACTIONS * CHANCES)).sum(1)
    step = np.zeros((STATES, STATES))
    np.add.at(step, (np.repeat(np.arange(STATES), ACTIONS), LEAP.ravel()), CHANCES.ravel())
    value = np.linalg.solve(np.eye(STATES) - 0.8 * step, (CHANCES * REWARD[..., 0]).sum(1) - tau * divergence)
    np.testing.assert_allclose(found[..., 0], REWARD[..., 0] + 0.8 * value[LEAP], atol=1e-3)


def test_soft_values_of_the_best_soft_policy_are_the_soft_maximum() -> None:
    tau = 0.3
    critic = TableCritic(np.zeros((STATES, ACTIONS, 1)))
    config = LoggedLearnerConfig(
        discount=0.8, temperature=tau, entropy=tau, critic_learning_rate=0.1, learning_rate=0.1, averaging=0.5
    )
    policy = TablePolicy(np.zeros((STATES, ACTIONS)))

    def values(batch: Batch, rows: Estimated) -> Tensor:
        return torch.linalg.vecdot(rows.probability, rows.q)

    learner = LoggedActorCritic(policy, critic, config, objective=values)
    for step in range(800):
        learner.critic_optimizer.learning_rate = learner.policy_optimizer.learning_rate = 0.1 * (1 - step / 800)
        learner.update(every_transition(1))
    q = np.zeros((STATES, ACTIONS))
    for _ in range(500):
        value = tau * np.log(np.exp(q / tau).mean(1))
        q = REWARD[..., 0] + 0.8 * value[LEAP]
    np.testing.assert_allclose(critic.values[0].detach().numpy(), q, atol=2e-2)


def test_soft_values_of_several_channels_or_of_none_are_refused() -> None:
    config = LoggedLearnerConfig(temperature=0.1)
    with pytest.raises(InputError, match=r"learner\.temperature is of returns of one reward channel"):
        LoggedActorCritic(TablePolicy([[0.0, 0.0]]), TableCritic(np.zeros((1, 2, 2))), config)
    nothing = torch.zeros(1, 1)
    with pytest.raises(InputError, match=r"one reward channel that counts"):
        LoggedActorCritic(TablePolicy([[0.0, 0.0]]), TableCritic(np.zeros((1, 2, 1))), config, weights=nothing)


def test_without_discounts_sessions_are_learned_from_as_single_decisions_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    seen, reward = torch.randn(200, 4, generator=generator), torch.rand(200, 2, generator=generator)
    action = torch.randint(5, (200,), generator=generator)
    rows = (seen, action, torch.full((200,), 0.2), reward)
    found = []
    for log in (transitions(*rows), transitions(*rows, seen.roll(-1, 0), torch.arange(200) % 7 == 6)):
        spec, network = chooser_spec(4, 5, ("click", "like"), None), NetworkConfig(hidden=(8,))
        policy = IndependentPolicy(spec, PolicyConfig(network=network), Streams([1]))
        learner = LoggedActorCritic(policy, ActionCritic(spec, network, Streams([2])), LoggedLearnerConfig())
        for _, batch in zip(range(20), Logged(log, rows=32, streams=Streams([3]))):
            learner.update(batch)
        found.append([p.detach() for p in (*policy.parameters(), *learner.critic.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_what_is_not_legal_next_is_worth_nothing_and_has_no_share_in_the_divergence() -> None:
    log = every_transition(1)
    generous = np.zeros((STATES, ACTIONS, 1))
    generous[:, 2] = 1e3  # what would be worth most may not be done
    legal = torch.ones(STATES * ACTIONS, ACTIONS, dtype=torch.bool)
    legal[:, 2] = False
    config = LoggedLearnerConfig(discount=0.8, temperature=0.3)
    here = log.obs.agent[:, 0]
    rows = (here, log.decision.action[:, 0, 0], torch.full((len(here),), 0.5), log.reward[:, 0])  # type: ignore[union-attr]
    allowed = transitions(
        *rows, log.final_obs.agent[:, 0], log.terminated[:, 0], torch.ones_like(legal), legal_following=legal
    )
    policy = TablePolicy(np.zeros((STATES, ACTIONS)))
    learner = LoggedActorCritic(policy, TableCritic(generous), config, objective=stand_still)
    error = float(learner.loss(allowed)[1]["value_error"])
    q = generous[..., 0]
    # Two actions alike, both worth 0: no divergence from what is legal, and nothing follows.
    assert error == pytest.approx(float((0.5 * (q - REWARD[..., 0]) ** 2).mean()), rel=1e-6)


def test_an_action_that_was_not_legal_is_refused() -> None:
    seen, legal = torch.ones(2, 1), torch.tensor([[True, False], [True, True]])
    good = (seen, torch.tensor([0, 1]), torch.tensor([0.5, 0.5]), torch.ones(2, 1))
    assert transitions(*good, legal=legal).obs.legal.shape == (2, 1, 2)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="one of those that were legal in its row"):
        transitions(seen, torch.tensor([1, 1]), *good[2:], legal=legal)


def test_a_batch_keeps_what_was_legal_when_rows_are_drawn() -> None:
    legal = torch.rand(50, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    action = torch.arange(50) % 5
    legal[torch.arange(50), action] = True
    seen = torch.arange(50.0).unsqueeze(1)
    ended = torch.zeros(50, dtype=torch.bool)
    log = transitions(seen, action, torch.ones(50), torch.ones(50, 1), seen, ended, legal, legal.roll(1, 0))
    batch = next(iter(Logged(log, rows=16, streams=Streams([0]))))
    place = batch.obs.agent[:, 0, 0].long()
    assert torch.equal(batch.obs.legal[:, 0], legal[place])  # type: ignore[index]
    assert torch.equal(batch.final_obs.legal[:, 0], legal.roll(1, 0)[place])  # type: ignore[index]
    assert replace(batch.obs).legal is not None
