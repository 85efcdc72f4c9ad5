"""Learning from logs: gradients against their closed forms, bootstrapping, stacking, and exact resumption."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from small_offline import TableCritic, TablePolicy
from small_runs import assert_close
from torch import Tensor

from envs.core import Decision, InputError, Streams
from marl.learning.batch import Batch
from marl.learning.offline_actor_critic import LoggedActorCritic, LoggedLearnerConfig, channel_weights
from marl.learning.offline_batch import Logged, chooser_spec, transitions
from marl.models.action_critic import ActionCritic
from marl.models.layers import NetworkConfig
from marl.models.policies import IndependentPolicy, PolicyConfig

CONTEXTS, ACTIONS = 2, 3
LOGITS = [[0.5, -1.0, 0.2], [1.5, 0.3, -0.7]]
LOGGING = np.array([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
MEAN = np.array([[0.9, 0.1, 0.5], [0.2, 0.6, 0.4]])


def logged(rows: int, seed: int, channels: int = 1) -> tuple[Batch, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.integers(CONTEXTS, size=rows)
    a = (rng.random(rows)[:, None] > LOGGING.cumsum(1)[x]).sum(1)
    reward = (rng.random((rows, channels)) < MEAN[x, a][:, None]).astype(np.float64)
    batch = transitions(
        torch.eye(CONTEXTS, dtype=torch.float64)[x],
        torch.tensor(a),
        torch.tensor(LOGGING[x, a]),
        torch.tensor(reward),
    )
    return batch, x, a, reward


def softmax(logits: np.ndarray) -> np.ndarray:
    chances: np.ndarray = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return chances


def gradient_of(learner: LoggedActorCritic, batch: Batch) -> np.ndarray:
    """Of what is maximized, by the policy's logits."""
    (slope,) = torch.autograd.grad(learner.loss(batch)[0], learner.policy.logits)  # type: ignore[attr-defined]
    return -slope.numpy()


def table_learner(q: np.ndarray, **settings: Any) -> LoggedActorCritic:
    config = LoggedLearnerConfig(**settings)
    return LoggedActorCritic(TablePolicy(LOGITS), TableCritic(q), config)


def differences(objective: Any) -> np.ndarray:
    """Central finite differences by each logit."""
    found, step = np.zeros((CONTEXTS, ACTIONS)), 1e-6
    for at in np.ndindex(found.shape):
        sides = []
        for sign in (1, -1):
            logits = np.array(LOGITS)
            logits[at] += sign * step
            sides.append(objective(softmax(logits)))
        found[at] = (sides[0] - sides[1]) / (2 * step)
    return found


@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"gradient": "ips", "baseline": "none"}, "none"),
        ({"gradient": "ips", "baseline": "mean"}, "mean"),
        ({"gradient": "ips", "baseline": "value"}, "value"),
        ({"gradient": "dr"}, "dr"),
        ({"gradient": "dr", "entropy": 0.3, "kl": 0.2}, "regularized"),
    ],
)
def test_gradients_are_those_of_the_closed_forms(settings: dict[str, Any], kind: str, clip: float | None) -> None:
    batch, x, a, reward = logged(40, seed=1)
    q = np.random.default_rng(2).normal(size=(CONTEXTS, ACTIONS, 1))
    now = softmax(np.array(LOGITS))
    baseline = {"none": 0.0, "mean": reward.mean(), "value": (now * q[..., 0]).sum(1)[x]}

    def objective(pi: np.ndarray) -> float:
        weight = pi[x, a] / LOGGING[x, a]
        assert clip is None or 0 < (weight > clip).mean() < 1
        capped = weight if clip is None else np.minimum(weight, clip)
        if kind in baseline:
            return float((capped * (reward[:, 0] - baseline[kind])).mean())
        found = (pi * q[..., 0]).sum(1)[x] + capped * (reward[:, 0] - q[x, a, 0])
        if kind == "regularized":
            found = found - 0.3 * (pi * np.log(pi)).sum(1)[x] + 0.2 * np.log(weight)
        return float(found.mean())

    learner = table_learner(q, clip=clip, **settings)
    np.testing.assert_allclose(gradient_of(learner, batch), differences(objective), atol=1e-8)
    if kind in ("none", "dr"):
        assert float(learner.loss(batch)[1]["objective"]) == pytest.approx(objective(now), rel=1e-6)


def test_both_gradients_are_unbiased_and_dr_with_the_exact_q_varies_less() -> None:
    def value(pi: np.ndarray) -> float:
        return float((pi * MEAN).sum() / CONTEXTS)

    exact = differences(value)
    spread = {}
    for gradient in ("ips", "dr"):
        learner = table_learner(MEAN[..., None], gradient=gradient, clip=None)
        found = np.stack([gradient_of(learner, logged(100, seed)[0]) for seed in range(200)])
        shrink = 0.99 if gradient == "ips" else 1.0  # the minibatch's mean as baseline: 1 - 1/n
        z = (found.mean(0) - shrink * exact) / (found.std(0) / np.sqrt(len(found)))
        assert np.abs(z).max() < 4, gradient
        spread[gradient] = found.var(0).sum()
    assert spread["dr"] < 0.9 * spread["ips"]


def test_the_critic_learns_what_actions_earn_and_the_policy_takes_the_best() -> None:
    learner = table_learner(np.zeros((CONTEXTS, ACTIONS, 1)), learning_rate=0.05, critic_learning_rate=0.02, clip=None)
    batch, x, a, reward = logged(4000, seed=0)
    for _ in range(250):
        learner.update(batch)
    means = [[reward[(x == s) & (a == b)].mean() for b in range(ACTIONS)] for s in range(CONTEXTS)]
    np.testing.assert_allclose(learner.critic.values.detach().numpy()[0], means, atol=1e-3)  # type: ignore[attr-defined]
    chances = softmax(learner.policy.logits.detach().numpy())  # type: ignore[attr-defined]
    assert (chances.argmax(1) == MEAN.argmax(1)).all()
    assert chances.max(1).min() > 0.9


def test_values_reach_through_time_by_each_channels_discount_and_never_through_termination() -> None:
    """From context 0 one stays for ever and earns 1 in both channels; in context 1 the same, but the episode ends."""
    x = torch.tensor([0, 1]).repeat(12)
    seen = torch.eye(CONTEXTS, dtype=torch.float64)[x]
    action = torch.arange(ACTIONS).repeat(8)
    reward = torch.ones(24, 2, dtype=torch.float64)
    batch = transitions(seen, action, torch.full((24,), 1 / 3), reward, seen, x == 1)
    learner = table_learner(
        np.zeros((CONTEXTS, ACTIONS, 2)),
        discount=(0.5, 0.9),
        averaging=0.5,
        critic_learning_rate=0.2,
        max_grad_norm=9.0,
    )
    for _ in range(300):
        learner.update(batch)
    found = learner.critic.values.detach().numpy()  # type: ignore[attr-defined]
    np.testing.assert_allclose(found[:, 0], [[2.0] * ACTIONS, [10.0] * ACTIONS], atol=0.02)
    np.testing.assert_allclose(found[:, 1], 1.0, atol=0.02)


def test_weights_that_are_scattered_bring_the_policy_back_to_the_log() -> None:
    far = [[-6.0, -2.0, 6.0], [6.0, -2.0, -6.0]]  # certain of what was seldom logged
    batch = logged(2000, seed=0)[0]
    found = {}
    for least in (0.0, 0.5):
        config = LoggedLearnerConfig(least_ess=least, learning_rate=0.05, clip=None)
        learner = LoggedActorCritic(TablePolicy(far), TableCritic(MEAN[..., None]), config)
        for _ in range(200):
            terms = learner.update(batch)
        found[least] = float(terms["ess"])
    assert found[0.0] < 0.4
    assert found[0.5] > 0.45


# Networks, several policies, resumption


def network_learner(seeds: Sequence[int], weights: Tensor | None = None, **settings: Any) -> LoggedActorCritic:
    spec, network = chooser_spec(4, 5, ("click", "like"), None), NetworkConfig(hidden=(8,))
    policy = IndependentPolicy(spec, PolicyConfig(network=network), Streams([10 * s + 1 for s in seeds]))
    critic = ActionCritic(spec, network, Streams([10 * s + 2 for s in seeds]))
    return LoggedActorCritic(policy, critic, LoggedLearnerConfig(**settings), len(seeds), weights=weights)


def network_log(rows: int = 300) -> Batch:
    g = torch.Generator().manual_seed(0)
    seen, following = torch.randn(rows, 4, generator=g), torch.randn(rows, 4, generator=g)
    action = torch.randint(5, (rows,), generator=g)
    reward = torch.stack([(action == 1) + 0.1 * seen[:, 0], (action == 3) + 0.1 * seen[:, 1]], 1)
    return transitions(seen, action, torch.full((rows,), 0.2), reward, following, torch.rand(rows, generator=g) < 0.5)


def trained(learner: LoggedActorCritic, source: Logged, updates: int) -> None:
    for _, batch in zip(range(updates), source):
        learner.update(batch)


def test_policies_stacked_on_one_log_learn_as_if_alone_each_what_it_is_told_to_want() -> None:
    weights = torch.eye(2)
    settings = {"discount": (0.9, 0.0), "learning_rate": 0.03}
    stacked = network_learner((0, 1), weights, **settings)
    trained(stacked, Logged(network_log(), rows=32, streams=Streams([7, 8])), 100)
    for place in range(2):
        alone = network_learner((place,), weights[place : place + 1], **settings)
        trained(alone, Logged(network_log(), rows=32, streams=Streams([7 + place])), 100)
        for one, other in zip(alone.policy.parameters(), stacked.policy.parameters(), strict=True):
            assert_close(one[0], other[place], 1e-3)
        distribution, _ = alone.policy(network_log().obs, None)
        assert float(distribution.log_probs().detach().exp()[:, 0, 1 + 2 * place].mean()) > 0.8


def test_a_saved_learner_and_source_continue_to_the_same_bits() -> None:
    learner, source = network_learner((0, 1), discount=0.9), Logged(network_log(), rows=16, streams=Streams([3, 4]))
    trained(learner, source, 5)
    saved = copy.deepcopy((learner.state_dict(), source.state_dict()))
    trained(learner, source, 5)
    again, resumed = network_learner((2, 3), discount=0.9), Logged(network_log(), rows=16, streams=Streams([5, 6]))
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    trained(again, resumed, 5)
    assert_close(learner.state_dict(), again.state_dict())


def test_minibatches_hold_whole_rows_of_the_log_each_policys_as_alone() -> None:
    log = network_log()
    place = {tuple(row): n for n, row in enumerate(log.obs.agent[:, 0].tolist())}
    both = next(iter(Logged(log, rows=64, streams=Streams([1, 2]))))
    assert (both.policies, both.rows) == (2, 64)
    rows = torch.tensor([place[tuple(row)] for row in both.obs.agent[:, 0].tolist()])
    assert len(rows.unique()) > 60
    for name in ("reward", "terminated", "truncated", "ended"):
        assert_close(getattr(both, name), getattr(log, name)[rows])
    assert_close(both.decision, Decision(log.decision.action[rows], log_prob=log.decision.log_prob[rows]))  # type: ignore[index]
    assert_close(both.final_obs.agent, log.final_obs.agent[rows])
    alone = next(iter(Logged(log, rows=64, streams=Streams([2]))))
    assert_close(both.obs.agent[64:], alone.obs.agent)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"propensity": torch.tensor([0.5, 0.0])}, r"in \(0, 1\]"),
        ({"following": torch.ones(2, 1)}, "or neither"),
    ],
)
def test_logs_that_are_none_are_refused(change: dict[str, Tensor], told: str) -> None:
    good = {"observation": torch.ones(2, 1), "action": torch.tensor([0, 1]), "propensity": torch.tensor([0.5, 0.5])}
    with pytest.raises(InputError, match=told):
        transitions(**{**good, "reward": torch.ones(2, 1), **change})


def test_what_cannot_be_learned_from_a_log_is_refused() -> None:
    with pytest.raises(InputError, match=r"learner\.weights must be one number, or 2"):
        channel_weights((1.0, 2.0, 3.0), 2)
    with pytest.raises(InputError, match="not all 0"):
        channel_weights(0.0, 2)
    spec = chooser_spec(4, 5, ("click",))
    recurrent = IndependentPolicy(spec, PolicyConfig(network=NetworkConfig(kind="gru", hidden=(8,))), Streams([0]))
    critic = ActionCritic(spec, NetworkConfig(hidden=(8,)), Streams([0]))
    with pytest.raises(InputError, match="remember nothing"):
        LoggedActorCritic(recurrent, critic, LoggedLearnerConfig())
    with pytest.raises(ValueError, match="baseline is for gradient=ips"):
        LoggedLearnerConfig(gradient="dr", baseline="value")


def test_transitions_keep_what_followed_and_cut_nothing() -> None:
    seen, following = torch.eye(4), torch.eye(4).roll(1, 0)
    ends = torch.tensor([True, False, False, True])
    batch = transitions(seen, torch.arange(4), torch.full((4,), 0.5), torch.ones(4, 1), following, ends)
    assert_close(batch.final_obs.agent[:, 0], following)
    assert_close(batch.obs.agent[:, 0], seen)
    assert torch.equal(batch.terminated[:, 0], ends)
    assert not bool(batch.truncated.any())
    with pytest.raises(InputError, match=r"steps must be 1; got 2"):
        Logged(batch, rows=4, steps=2, streams=Streams([0]))
    drawn = torch.cat(
        [b.obs.agent[:, 0].argmax(1) for _, b in zip(range(20), Logged(batch, rows=8, streams=Streams([0])))]
    )
    assert drawn.unique().tolist() == [0, 1, 2, 3]
