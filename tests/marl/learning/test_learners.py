"""PPO from batch to parameters: what it must keep exactly, whatever the policy, the critic and who is alive."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_runs import ATTENTION, GRU, LOCAL, MESSAGES, Lives, Mortals, Small, assert_close, build
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._pytree import tree_flatten
from worlds import Walk

import marl.learning.actor_critic
import marl.learning.batch
from envs.core import Decision, InputError, Observation, Streams, Tree, tree_map
from envs.games import Constant
from envs.particles import SimpleSpread
from envs.speaker_listener import SpeakerListener
from envs.world import TensorEnv, Transition, World
from marl.learning.actor_critic import ActorCritic
from marl.learning.batch import Batch, with_reward
from marl.learning.learner import Chain, Kept, Learner, Stateful, find_part, per_channel
from marl.learning.losses import clipped_surrogate
from marl.learning.optimizers import DECAY
from marl.learning.returns import gae
from marl.learning.scalarization import Normalized, Own, Scalarization, Team
from marl.training.tally import Tally

RECURRENT: dict[str, Any] = {"policy": GRU, "critic": GRU, "sequence_length": 4}
SETUPS: dict[str, tuple[World[Any], dict[str, Any]]] = {
    "mlp": (Mortals(), {}),
    "gru": (Mortals(), RECURRENT),
    "gru policy, mlp critic": (Mortals(), {"policy": GRU, "sequence_length": 8}),
    "attention": (Mortals(), {"policy": ATTENTION, "critic": {**ATTENTION, **LOCAL}}),
    "message_passing": (Mortals(), {"policy": MESSAGES, "critic": {**MESSAGES, **LOCAL}}),
    "local critic": (Mortals(), {"critic": LOCAL, "scale_values": True}),
    "networks by kind": (SpeakerListener(), {"time_limit": 5}),
    "recurrent networks by kind": (SpeakerListener(), {"time_limit": 5, **RECURRENT, "critic": {**GRU, **LOCAL}}),
    "gaussian": (Walk(), {"policy": {"network": {"hidden": (8,)}}, "time_limit": 5}),
    "team, three policies": (Mortals(), {"weigh": Team, "seeds": (0, 1, 2)}),
}


def setup(name: str, **changes: Any) -> Small:
    world, settings = SETUPS[name]
    return build(world, **{**settings, **changes})


class Recording(ActorCritic):
    """Keeps what each call of its loss was given."""

    def loss(self, *given: Any) -> tuple[Tensor, dict[str, Tensor]]:
        self.given = given
        return super().loss(*given)


@pytest.mark.parametrize("name", SETUPS)
def test_the_first_minibatch_of_each_batch_has_ratio_1(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the second batch: after an update, with memory carried over and episodes that end within segments."""
    ratios: list[Tensor] = []

    def spied(log_prob: Tensor, old: Tensor, *rest: Any) -> Tensor:
        ratios.append((log_prob - old).detach().exp())
        return clipped_surrogate(log_prob, old, *rest)

    monkeypatch.setattr(marl.learning.actor_critic, "clipped_surrogate", spied)
    small = setup(name, epochs=1, minibatches=2)
    ended = 0
    for _, batch in zip(range(2), small.source):
        ratios.clear()
        ended += int(batch.ended.sum())
        small.learner.update(batch)
        torch.testing.assert_close(ratios[0], torch.ones_like(ratios[0]), atol=1e-6, rtol=0)
        assert not torch.allclose(ratios[1], torch.ones_like(ratios[1]), atol=1e-6, rtol=0), "the policy has moved"
    assert ended > 4


@pytest.mark.parametrize("name", SETUPS)
def test_one_step_on_the_whole_batch_clips_nothing_and_has_no_divergence(name: str) -> None:
    small = setup(name, epochs=1, minibatches=1)
    for _, batch in zip(range(2), small.source):
        terms = small.learner.update(batch)
        assert bool((terms["clipped"] == 0).all())
        torch.testing.assert_close(terms["kl"], torch.zeros_like(terms["kl"]), atol=1e-12, rtol=0)
        torch.testing.assert_close(terms["surrogate"], torch.zeros_like(terms["kl"]), atol=1e-5, rtol=0)


# Dead agents


def gradients(small: Small, batch: Batch) -> Tree:
    """Of one step on the whole batch, after clipping; and the loss's terms with the value scale."""
    terms = small.learner.update(batch)
    moments = small.learner.optimizer.state_dict()
    found = [moments[f"{i}.mean"] / (1 - DECAY) for i in range(len(small.parameters()))]
    scale = small.learner.scale
    return tuple(found), {"terms": terms, "scale": {} if scale is None else dict(scale.state_dict())}


def whole(name: str, agents: int = 3, **changes: Any) -> Small:
    settings = {"epochs": 1, "minibatches": 1, "max_grad_norm": 1e9, "scale_values": True, **changes}
    return build(Mortals(agents), **{**SETUPS[name][1], **settings})


def over_agents(batch: Batch, change: Any) -> Batch:
    """`change(x, fill)` applied to every tensor with an agent axis, which comes second."""

    def seen(obs: Observation) -> Observation:
        legal = None if obs.legal is None else change(obs.legal, True)
        return Observation(change(obs.agent, 7.0), obs.state, change(obs.alive, False), legal)

    assert batch.decision.log_prob is not None
    return dataclasses.replace(
        batch,
        obs=seen(batch.obs),
        final_obs=seen(batch.final_obs),
        decision=Decision(change(batch.decision.action, 1), log_prob=change(batch.decision.log_prob, -3.0)),
        reward=change(batch.reward, 0.0),
        terminated=change(batch.terminated, False),
        truncated=change(batch.truncated, False),
        memory=None if batch.memory is None else change(batch.memory.transpose(1, 2), 0.5).transpose(1, 2),
        outcome=None,
    )


SLOT_FREE = {
    "mlp": {"critic": LOCAL},
    "gru": {"critic": {**GRU, **LOCAL}},
    "attention": {},
    "message_passing": {},
}


@pytest.mark.parametrize("weigh", [Own, Team], ids=["own", "team"])
@pytest.mark.parametrize("name", SLOT_FREE)
def test_permuting_agents_changes_neither_loss_nor_gradient_nor_value_scale(name: str, weigh: Any) -> None:
    settings = {**SLOT_FREE[name], "weigh": weigh}
    small = whole(name, **settings)
    batch = next(iter(small.source))
    moved = over_agents(batch, lambda x, fill: x[:, [2, 0, 1]])
    assert_close(gradients(whole(name, **settings), moved), gradients(small, batch), 1e-6)


@pytest.mark.parametrize("weigh", [Own, Team], ids=["own", "team"])
@pytest.mark.parametrize("name", SLOT_FREE)
def test_dead_slots_change_neither_loss_nor_gradient_nor_value_scale(name: str, weigh: Any) -> None:
    def with_dead(x: Tensor, fill: Any) -> Tensor:
        dead = torch.full_like(x[:, :1], fill)
        return torch.cat([dead, x[:, :2], dead, x[:, 2:]], 1)

    settings = {**SLOT_FREE[name], "weigh": weigh}
    small = whole(name, **settings)
    batch = next(iter(small.source))
    assert not batch.obs.alive.all()
    larger = whole(name, agents=5, **settings)
    assert_close(gradients(larger, over_agents(batch, with_dead)), gradients(small, batch), 1e-6)


@pytest.mark.parametrize("name", ["mlp", "gru", "attention", "message_passing", "team, three policies"])
def test_an_environment_with_nobody_alive_changes_nothing(name: str) -> None:
    small = whole(name)
    batch = next(iter(small.source))

    def with_empty(tree: Tree, steps: int) -> Tree:
        """One more environment for each policy, in which the first one's numbers remain, but nobody is alive."""

        def widen(x: Tensor) -> Tensor:
            x = x.unflatten(0, (batch.policies, steps, batch.rows))
            empty = x[:, :, :1]
            return torch.cat([x, empty & False if x.dtype == torch.bool else empty], 2).flatten(0, 2)

        return tree_map(widen, tree)

    flags = ("terminated", "truncated", "ended")
    wider = dataclasses.replace(
        batch,
        **{name: with_empty(getattr(batch, name), batch.steps) for name in ("obs", "final_obs", "decision", "reward")},
        **{name: with_empty(getattr(batch, name), batch.steps) for name in flags},
        memory=with_empty(batch.memory, batch.steps // batch.segment),
        outcome=None,
    )
    assert wider.rows == batch.rows + 1
    assert_close(gradients(whole(name, num_envs=5), wider), gradients(small, batch), 1e-6)


def test_what_the_dead_would_do_may_be_any_number() -> None:
    """Their ratio overflows here; nothing else notices."""
    small = whole("mlp", critic=LOCAL)
    batch = next(iter(small.source))
    dead = ~batch.obs.alive
    assert batch.decision.log_prob is not None
    wild = dataclasses.replace(batch.decision, log_prob=batch.decision.log_prob.masked_fill(dead, -1e4))
    found = gradients(whole("mlp", critic=LOCAL), dataclasses.replace(batch, decision=wild))
    assert_close(found, gradients(small, batch), 1e-6)


def test_the_policy_hears_nothing_of_what_agents_without_a_choice_earn() -> None:
    """As those out of turn: they live, so critics learn their values, but they decide nothing."""

    def policy_gradient(reward: float) -> Tree:
        small = whole("mlp", gae_lambda=0.0, critic=LOCAL, scale_values=False)
        batch = next(iter(small.source))
        assert batch.obs.legal is not None
        waiting = batch.obs.alive & (torch.arange(len(batch.ended)) % 2 == 0).unsqueeze(1)
        legal = torch.where(waiting.unsqueeze(-1), torch.tensor([True, False, False]), batch.obs.legal)
        obs = dataclasses.replace(batch.obs, legal=legal)
        with torch.no_grad():
            decision = small.policy(obs, None)[0].mode()
        paid = batch.reward + reward * waiting.unsqueeze(-1)
        batch = dataclasses.replace(batch, obs=obs, decision=decision, reward=paid)
        return gradients(small, batch)[0][: len(list(small.policy.parameters()))]

    one, other = policy_gradient(0.0), policy_gradient(100.0)
    assert_close(one, other, 1e-7)
    assert any(bool(part.any()) for part in one)


# Gradients


@pytest.mark.parametrize("name", ["mlp", "gru", "attention", "message_passing"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    options = {"attention": {"heads": 2}, "message_passing": {"positions": (0,), "radius": 1.0}}
    tiny = {"hidden": (4,), "kind": name, **options.get(name, {})}
    small = build(
        Mortals(),
        4,
        steps=4,
        sequence_length=4 if name == "gru" else 1,
        epochs=1,
        minibatches=1,
        policy={"network": tiny},
        critic={"network": {"hidden": (4,), "kind": "gru" if name == "gru" else "mlp"}},
        learner=Recording,
        discount=(0.9, 0.5),
    )
    learner = small.learner
    learner.update(next(iter(small.source)))  # parameters move, so that some ratios are clipped
    double = tree_map(lambda x: x.double() if x.is_floating_point() else x, learner.given)
    for module in (small.policy, small.critic):
        module.double()
        for p in module.parameters():
            p.data += 0.25 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    loss, terms = learner.loss(*double)
    assert 0 < float(terms["clipped"]) < 1
    slopes = torch.autograd.grad(loss, small.parameters())
    with torch.no_grad():
        for parameter, slope in zip(small.parameters(), slopes, strict=True):
            flat = parameter.view(-1)
            for i in range(0, len(flat), 1 + len(flat) // 7):
                value, around = flat[i].clone(), []
                for step in (1e-6, -1e-6):
                    flat[i] = value + step
                    around.append(float(learner.loss(*double)[0]))
                flat[i] = value
                measured = (around[0] - around[1]) / 2e-6
                assert measured == pytest.approx(float(slope.view(-1)[i]), rel=1e-4, abs=1e-7)


def test_the_policy_and_each_channel_s_critic_are_clipped_apart() -> None:
    small = whole("mlp", max_grad_norm=1e-3)
    found, _ = gradients(small, next(iter(small.source)))
    count = len(list(small.policy.parameters()))
    channels = zip(*(gradient.chunk(2) for gradient in found[count:]))
    for group in (found[:count], *channels):
        assert float(torch.cat([g.flatten() for g in group]).norm()) == pytest.approx(1e-3, rel=0.01)


# Time


@pytest.mark.parametrize(("horizon", "limit"), [(None, 5), (5, None)], ids=["truncated", "terminated with a clock"])
def test_reward_one_is_learned_to_be_worth_the_endless_sum_or_the_finite_one(
    horizon: int | None, limit: int | None
) -> None:
    small = build(
        Constant(horizon=horizon),
        4,
        time_limit=limit,
        steps=10,
        epochs=8,
        minibatches=1,
        discount=0.8,
        learning_rate=0.01,
        max_grad_norm=10.0,
        critic={"network": {"hidden": (32, 32), "activation": "silu"}},
    )
    small.train(50)
    batch = next(iter(small.source))
    value = small.critic(batch.obs, None)[0].detach().flatten()
    if horizon is None:
        wanted = torch.full_like(value, 5.0)
    else:
        left = (horizon * (1 - batch.obs.state[:, 0])).round()
        assert set(left.tolist()) == set(range(1, 6))
        wanted = (1 - 0.8**left) / 0.2
    torch.testing.assert_close(value, wanted, rtol=0.03, atol=0)


@pytest.mark.parametrize("critic", [GRU, {**GRU, **LOCAL}], ids=["central", "local"])
def test_a_recurrent_critic_remembers_across_batches_and_forgets_where_an_episode_ends(critic: dict[str, Any]) -> None:
    """Without a trace, targets are r + γ V(s'), with what the critic remembers in a plain walk through time."""
    small = build(
        Mortals(),
        3,
        critic=critic,
        sequence_length=4,
        gae_lambda=0.0,
        discount=0.9,
        epochs=1,
        minibatches=1,
        learning_rate=1e-12,
        learner=Recording,
    )
    memory = small.critic.initial_memory(3)
    for _, batch in zip(range(3), small.source):
        small.learner.update(batch)
        targets = []
        for t in range(batch.steps):
            obs, final_obs, reward, terminated, ended = tree_map(
                lambda x, t=t: x[3 * t : 3 * t + 3],
                (batch.obs, batch.final_obs, batch.reward, batch.terminated, batch.ended),
            )
            with torch.no_grad():
                value, memory = small.critic(obs, memory)
                hope, _ = small.critic(final_obs, memory)
            target = reward + 0.9 * hope * ~terminated.unsqueeze(-1)
            targets.append(torch.where(obs.alive.unsqueeze(-1), target, value))
            memory = memory * ~ended.view(-1, 1, 1, 1)
        assert bool(batch.ended.any())
        found = small.learner.given[0].target  # shuffled
        torch.testing.assert_close(found.flatten().sort().values, torch.stack(targets).flatten().sort().values)


@pytest.mark.parametrize("critic", [{**ATTENTION, **LOCAL}, GRU, {}], ids=["attention", "recurrent", "central"])
def test_a_successor_is_worth_what_the_next_step_says_also_when_a_teammate_has_just_died(
    critic: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns: list[tuple[Tensor, ...]] = []

    def spied(*given: Any) -> Tensor:
        columns.append(given)
        return gae(*given)

    monkeypatch.setattr(marl.learning.batch, "gae", spied)
    small = build(Mortals(), critic=critic, sequence_length=8)
    batch = next(iter(small.source))
    small.learner.update(batch)
    _, value, next_value, terminated, _, alive, *_ = columns[0]
    goes_on = (alive & ~terminated)[:-1]
    bereaved = goes_on & terminated[:-1].any(-1, keepdim=True)
    assert bool(bereaved.any())
    torch.testing.assert_close(next_value[:-1][goes_on], value[1:][goes_on], atol=1e-6, rtol=0)


# Channels


@pytest.mark.parametrize("sees", ["state", "agent"])
def test_three_channels_with_critics_of_their_own_are_three_critics(sees: str) -> None:
    """One update of two channels' critics equals that of a critic of one channel on that channel's reward."""
    small = build(
        Mortals(), critic={"sees": sees}, discount=(0.9, 0.5), gae_lambda=0.7, max_grad_norm=0.1, scale_values=True
    )
    start = copy.deepcopy(small.critic.state_dict())
    batch = next(iter(small.source))
    small.learner.update(batch)
    for k, discount in enumerate((0.9, 0.5)):
        world = Mortals()
        world.spec = dataclasses.replace(world.spec, channels=("one",))
        alone = build(
            world, critic={"sees": sees}, discount=discount, gae_lambda=0.7, max_grad_norm=0.1, scale_values=True
        )
        alone.critic.load_state_dict({name: value[k : k + 1] for name, value in start.items()})
        alone.learner.update(dataclasses.replace(batch, reward=batch.reward[..., k : k + 1], outcome=None))
        for name, value in alone.critic.state_dict().items():
            torch.testing.assert_close(small.critic.state_dict()[name][k : k + 1], value, atol=1e-5, rtol=0)


def test_a_discount_for_each_channel_must_be_one_for_each_channel_between_0_and_1() -> None:
    assert per_channel(0.5, 2).tolist() == [0.5, 0.5]
    for wrong in ((0.5,), (0.5, 0.5, 0.5), 1.5):
        with pytest.raises(InputError, match=r"learner\.discount"):
            per_channel(wrong, 2)


def test_the_entropy_bonus_weighs_what_the_plan_says_and_goes_on_after_a_resume() -> None:
    """Its share of the loss, update by update; a policy that earns nothing moves only by it."""
    small = setup("mlp", learner=Recording, entropy=0.4, entropy_end=0.1)
    small.learner.progress.updates = 4
    weights = []
    for number, batch in zip(range(6), small.source):
        if number == 2:  # as after a resume
            saved = copy.deepcopy(small.learner.state_dict())
            small.learner.progress.done = 0
            small.learner.load_state_dict(saved)
        terms = small.learner.update(batch)
        samples, *memories = small.learner.given
        still = samples._replace(
            advantage=torch.zeros_like(samples.advantage), agent_weight=torch.zeros_like(samples.agent_weight)
        )
        total, terms = small.learner.loss(still, *memories)
        weights.append(float(-total.detach() / terms["entropy"].sum()))
    assert weights == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.1, 0.1], rel=1e-4)


def test_the_learning_rate_is_what_the_plan_says_and_goes_on_after_a_resume() -> None:
    small = setup("mlp", learning_rate=4e-3, learning_rate_end=1e-3)
    small.learner.progress.updates = 4
    rates = []
    for number, batch in zip(range(5), small.source):
        if number == 2:
            saved = copy.deepcopy(small.learner.state_dict())
            small.learner.progress.done = 0
            small.learner.load_state_dict(saved)
        small.learner.update(batch)
        rates.append(small.learner.optimizer.learning_rate)
    assert rates == pytest.approx([4e-3, 3e-3, 2e-3, 1e-3, 1e-3])


# State


@pytest.mark.parametrize("name", ["mlp", "gru", "attention", "recurrent networks by kind", "gaussian"])
def test_learner_and_source_continue_bit_for_bit_from_their_state(name: str) -> None:
    first = setup(name, scale_values=True, seeds=(0, 1))
    first.train(2)
    saved = copy.deepcopy((first.learner.state_dict(), first.source.state_dict()))
    fresh = setup(name, scale_values=True, seeds=(7, 8))
    for part, state in zip((fresh.learner, fresh.source), saved, strict=True):
        part.load_state_dict(state)
    for _, batch, same in zip(range(2), first.source, fresh.source):
        assert_close(same.outcome, batch.outcome)
        assert_close(fresh.learner.update(same), first.learner.update(batch))
    assert_close(tuple(fresh.parameters()), tuple(first.parameters()))
    assert _digest(fresh.learner.state_dict()) == _digest(first.learner.state_dict())
    assert _digest(fresh.source.state_dict()) == _digest(first.source.state_dict())


def _digest(state: Any) -> str:
    digest = hashlib.sha256()
    for leaf in tree_flatten(state)[0]:
        digest.update(leaf.numpy().tobytes() if isinstance(leaf, Tensor) else repr(leaf).encode())
    return digest.hexdigest()


def digest_of_two_updates(name: str = "gru") -> str:
    small = setup(name)
    small.train(2)
    return _digest([p.detach() for p in small.parameters()])


def test_two_processes_with_one_seed_give_the_same_parameters_byte_for_byte() -> None:
    code = "import torch; torch.set_num_threads(1); import test_learners; print(test_learners.digest_of_two_updates())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "1"}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert other.stdout.strip() == digest_of_two_updates()


def test_another_seed_gives_other_parameters() -> None:
    assert digest_of_two_updates("mlp") != _digest([p.detach() for p in setup("mlp", seeds=(1,)).parameters()])


# Devices


@pytest.fixture
def no_host_synchronization(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Tensors without data: whatever needs a value on the host (`.item()`, `bool()`, `nonzero`) raises.

    torch cannot fake exponential draws from a generator; uniform ones stand in.
    """

    def exponential(streams: Streams, shape: Any) -> Tensor:
        return streams.draw(lambda n, g: -torch.rand((n, *shape[1:]), generator=g).log(), shape[0])

    monkeypatch.setattr(Streams, "exponential", exponential)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


ON_DEVICES = pytest.mark.parametrize(
    ("world", "settings"),
    [
        (SimpleSpread(), {}),
        (SimpleSpread(), {**RECURRENT, "seeds": (0, 1)}),
        (SpeakerListener(), {"critic": LOCAL}),
        (Mortals(), {"policy": ATTENTION, "weigh": Team, "scale_values": True}),
        (SimpleSpread(), {"policy": MESSAGES, "critic": {**MESSAGES, **LOCAL}, "seeds": (0, 1)}),
        (Walk(), {}),
    ],
    ids=["spread", "recurrent, two policies", "by kind", "attention", "message_passing", "gaussian"],
)


@ON_DEVICES
def test_rollout_and_update_never_wait_for_the_device(
    world: World[Any], settings: dict[str, Any], no_host_synchronization: FakeTensorMode
) -> None:
    with unset_fake_temporarily():
        TensorEnv(world, 1).reset(0)  # worlds make their constants once, for real
        build(world, time_limit=5, **settings)  # and a library is imported by the first network that needs it
    small = build(world, time_limit=5, select_rows=True, **settings)
    terms = small.train(2)
    assert small.source.unroll is not None  # steps were taken as they are compiled
    assert all(isinstance(term, FakeTensor) for term in terms.values())


class OfMeta(torch.Generator):
    """A generator of a device without numbers."""

    device = torch.device("meta")


@ON_DEVICES
def test_rollout_and_update_stay_on_a_device_that_is_not_the_host(
    world: World[Any], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made elsewhere raises where it meets what is here, as on a GPU, and so does reading a value."""
    begin = Streams.__init__

    def begun(streams: Streams, seeds: Sequence[int], device: str = "cpu") -> None:
        begin(streams, seeds)
        streams.device = torch.device(device)
        if device != "cpu":
            streams.generators = [OfMeta() for _ in seeds]

    def exponential(streams: Streams, shape: Sequence[int]) -> Tensor:
        return streams.draw(lambda n, g: torch.rand((n, *shape[1:]), device=streams.device), shape[0])

    monkeypatch.setattr(Streams, "__init__", begun)
    monkeypatch.setattr(Streams, "exponential", exponential)
    small = build(world, time_limit=5, device="meta", **settings)
    terms = small.train(2)
    found = *small.parameters(), *terms.values(), *small.learner.optimizer.standing()
    assert {x.device.type for x in found} == {"meta"}


def test_restarting_by_index_does_wait_for_the_device(no_host_synchronization: FakeTensorMode) -> None:
    with pytest.raises(DynamicOutputShapeException):
        build(Mortals(), select_rows=False).train(1)


def test_a_batch_s_segments_must_divide_its_steps_and_fill_its_minibatches() -> None:
    with pytest.raises(ValidationError, match="multiple of sequence_length"):
        build(Mortals(), steps=8, sequence_length=3)
    with pytest.raises(InputError, match="minibatches"):
        build(Mortals(), 2, steps=8, sequence_length=8, minibatches=3).train(1)


class Doubling(Learner):
    """Counts the batches, and passes rewards on doubled."""

    def __init__(self) -> None:
        self.seen = Kept([])

    def update(self, batch: Batch) -> dict[str, Tensor]:
        self.seen.value = [*self.seen.value, float(batch.reward.sum())]
        return {f"rewards_{id(self)}": batch.reward.sum().view(1)}

    def relabel(self, batch: Batch) -> Batch:
        return dataclasses.replace(batch, reward=2 * batch.reward)

    def parts(self) -> dict[str, Stateful | None]:
        return {"seen": self.seen}


def doubling() -> Chain:
    return Chain({name: Doubling() for name in ("first", "second", "third")})


def test_in_a_chain_each_learns_from_what_those_before_have_relabeled_and_all_is_saved_by_name() -> None:
    chain = doubling()
    batch = next(iter(build(Mortals()).source))
    terms = chain.update(batch)
    total = float(batch.reward.sum())
    assert chain.state_dict() == {name: {"seen": [n * total]} for name, n in zip(chain.learners, (1, 2, 4))}
    assert len(terms) == 3
    fresh = doubling()
    fresh.load_state_dict(chain.state_dict())
    assert fresh.state_dict() == chain.state_dict()
    assert float(chain.relabel(batch).reward.sum()) == pytest.approx(8 * total)


def test_a_chain_s_state_of_an_earlier_version_still_loads() -> None:
    """It had the first learner's parts beside a list of the others'."""
    chain = doubling()
    chain.load_state_dict({"seen": [1.0], "following": [{"seen": [2.0]}, {"seen": [4.0]}]})
    assert chain.state_dict() == {"first": {"seen": [1.0]}, "second": {"seen": [2.0]}, "third": {"seen": [4.0]}}


def test_a_part_is_found_wherever_in_a_chain_it_stands() -> None:
    state = {"encoder": {"network": 1}, "actor_critic": {"policy": 2, "critic": 3}, "other": {"network": 4}}
    assert find_part(state, "policy") == find_part(state["actor_critic"], "policy") == 2
    with pytest.raises(InputError, match="encoder, other"):
        find_part(state, "network")
    with pytest.raises(InputError, match="not among encoder, actor_critic"):
        find_part(state, "student")


def test_a_state_from_before_scalarizations_had_one_still_loads() -> None:
    small = setup("mlp")
    state = small.learner.state_dict()
    del state["scalarization"]
    fresh = setup("mlp", seeds=(1,))
    fresh.learner.load_state_dict(state)
    for old, new in zip(small.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(old, new)


# Units


class Priced(Mortals):
    """The same, each channel's reward multiplied by its price."""

    def __init__(self, *prices: float):
        super().__init__()
        self.prices = torch.tensor(prices)
        self.spec = dataclasses.replace(self.spec, channels=tuple(f"channel_{k}" for k in range(len(prices))))

    def transition(self, state: Lives, action: Tensor, noise: Tensor) -> Transition:
        step = super().transition(state, action, noise)
        bet, age = step.reward.unbind(-1)
        reward = torch.stack([bet, age, bet.abs() * 0 + action.squeeze(-1)], -1)[..., : len(self.prices)]
        return step._replace(reward=reward * self.prices)


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10])
@pytest.mark.parametrize(
    ("kind", "channels"), [(Normalized, 3), (Own, 1), (Team, 1)], ids=["normalized", "own", "team"]
)
def test_policies_do_not_depend_on_the_units_of_rewards(kind: type[Scalarization], channels: int, scale: float) -> None:
    """Byte for byte after 30 updates, for powers of two, which floats multiply exactly."""
    prices = (scale, 1.0, 1 / scale) if channels == 3 else (scale,)
    settings: dict[str, Any] = {"weigh": kind, "scale_values": True, "epochs": 1}
    one = build(Priced(*[1.0] * channels), 2, **settings)
    other = build(Priced(*prices), 2, **settings)
    for small in (one, other):
        small.train(30)
    for mine, theirs in zip(one.policy.parameters(), other.policy.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_values_without_a_unit_yet_are_the_mean_of_the_targets() -> None:
    small = build(Constant(horizon=1), 4, steps=4, gae_lambda=0.0, scale_values=True)
    terms = small.train(2)
    assert small.learner.scale is not None
    assert small.learner.scale.mean.tolist() == [[1.0]]
    assert float(small.learner.scale.variance) == 0
    assert all(bool(term.isfinite().all()) for term in terms.values())
    value = small.learner.scale.restore(small.critic(next(iter(small.source)).obs, None)[0])
    assert bool((value == 1).all())


# Policies that differ


def test_two_policies_with_discounts_of_their_own_are_each_as_alone() -> None:
    discounts = torch.tensor([[0.9, 0.5], [0.3, 1.0]])
    settings: dict[str, Any] = {"epochs": 1, "scale_values": True}
    together = build(Mortals(), seeds=(3, 4), by_policy=discounts, **settings)
    alone = [build(Mortals(), seeds=(3 + p,), discount=tuple(discounts[p].tolist()), **settings) for p in range(2)]
    for _, batch in zip(range(2), together.source):
        together.learner.update(batch)
        for p, small in enumerate(alone):
            mine = next(iter(small.source))
            assert batch.outcome is not None
            assert mine.outcome is not None
            assert_close(batch.outcome.discounted[p : p + 1], mine.outcome.discounted, 1e-6)
            small.learner.update(mine)
    for p, small in enumerate(alone):
        for several, one in zip(together.parameters(), small.parameters(), strict=True):
            torch.testing.assert_close(several.unflatten(0, (2, -1))[p], one, atol=1e-5, rtol=1e-5)


def test_without_normalization_advantages_keep_their_units() -> None:
    """With an advantage of deviation d, the entropy's weight is β, not β d."""

    def advantages(**settings: Any) -> Tensor:
        small = build(Mortals(), learner=Recording, epochs=1, minibatches=1, **settings)
        small.train(1)
        samples = small.learner.given[0]
        return samples.advantage[samples.decider_weight > 0].sort().values

    plain, normal = advantages(normalize_advantages=False), advantages()
    torch.testing.assert_close((plain - plain.mean()) / plain.std(correction=0), normal, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, normal, atol=0.1)


class Paying(Learner):
    """Pays a channel anew, a skill's reward for instance; leaves the outcome as it was, as nobody should."""

    def __init__(self, channel: int):
        self.channel = channel
        self.seen: list[Any] = []

    def update(self, batch: Batch) -> dict[str, Tensor]:
        self.seen.append(batch.outcome)
        return {}

    def relabel(self, batch: Batch) -> Batch:
        reward = batch.reward.clone()
        reward[..., self.channel] = reward[..., self.channel] + 1
        return dataclasses.replace(batch, reward=reward)

    def parts(self) -> dict[str, Stateful | None]:
        return {}


@pytest.mark.parametrize("channel", [0, 1])
def test_no_outcome_tells_of_a_channel_that_was_relabeled(channel: int) -> None:
    first, last = Paying(channel), Paying(channel)
    chain = Chain({"first": first, "last": last})
    batch = next(iter(build(Mortals(), seeds=(0, 1)).source))
    raw = batch.outcome
    assert raw is not None
    chain.update(batch)
    assert first.seen == [raw], "before anything is relabeled"
    (after,) = last.seen
    other = 1 - channel
    for found in (after, chain.outcome(batch), chain.relabel(batch).outcome):
        for name in ("discounted", "total"):
            returns = getattr(found, name)
            assert bool(returns[..., channel].isnan().all())
            assert torch.equal(returns[..., other], getattr(raw, name)[..., other])
        assert torch.equal(found.length, raw.length)
    tally = Tally(2)
    tally.add({}, chain.outcome(batch))
    rows, _ = tally.read()
    assert [row["return_per_agent"] for row in rows] == pytest.approx(raw.total[..., other].mean(1).tolist())
    for row in rows:
        by_channel = [row[f"return_per_agent/{name}"] for name in ("bet", "age")]
        assert by_channel[other] == row["return_per_agent"]
        assert math.isnan(by_channel[channel])
        assert row[f"discounted_return_per_agent/{('bet', 'age')[other]}"] == row["discounted_return_per_agent"]
    both = Chain({"first": Paying(0), "last": Paying(1)})
    both.update(batch)
    tally.add({}, both.outcome(batch))
    assert all(math.isnan(row["return_per_agent"]) for row in tally.read()[0]), "nothing is known"


def test_where_nothing_is_relabeled_the_outcome_is_the_environment_s() -> None:
    small = build(Mortals())
    batch = next(iter(small.source))
    assert small.learner.outcome(batch) is batch.outcome
    chain = Chain({"only": small.learner})
    chain.update(batch)
    assert chain.outcome(batch) is batch.outcome
    assert with_reward(batch, batch.reward[..., :1]).outcome is None, "other channels"


def test_the_first_values_are_in_the_units_of_the_first_batch_s_returns() -> None:
    """Rewards of 1 over 4 steps: returns of 4, 3, 2 and 1, and a critic's numbers around them from the first on."""
    small = build(
        Constant(horizon=4),
        4,
        steps=4,
        discount=1.0,
        gae_lambda=1.0,
        scale_values=True,
        normalize_advantages=False,
        learning_rate=1e-12,
        epochs=1,
        minibatches=1,
        learner=Recording,
    )
    batch = next(iter(small.source))
    small.learner.update(batch)
    returns = 4 * (1 - batch.obs.state[:, 0])
    value = returns.mean() + returns.std(correction=0) * small.critic(batch.obs, None)[0].detach().flatten()
    assert float(value.std()) > 0
    found = small.learner.given[0].advantage
    torch.testing.assert_close(found.flatten().sort().values, (returns - value).sort().values, atol=1e-4, rtol=1e-4)


def test_a_channel_that_was_relabeled_for_one_agent_once_has_no_outcome() -> None:
    batch = next(iter(build(Mortals()).source))
    reward = batch.reward.clone()
    reward[3, 0, 1] += 1
    raw, found = batch.outcome, with_reward(batch, reward).outcome
    assert raw is not None
    assert found is not None
    for name in ("discounted", "total"):
        assert bool(getattr(found, name)[..., 1].isnan().all())
        assert torch.equal(getattr(found, name)[..., 0], getattr(raw, name)[..., 0])


def test_the_divergence_is_the_mean_of_r_minus_1_minus_log_r_over_those_who_act() -> None:
    small = whole("mlp", learning_rate=1e-12)
    batch = next(iter(small.source))
    assert batch.decision.log_prob is not None
    shift = 0.3 * torch.randn(batch.decision.log_prob.shape, generator=torch.Generator().manual_seed(0))
    old = dataclasses.replace(batch.decision, log_prob=batch.decision.log_prob - shift)
    terms = small.learner.update(dataclasses.replace(batch, decision=old))
    assert batch.obs.legal is not None
    acting = batch.obs.alive & (batch.obs.legal.sum(-1) > 1)
    wanted = (shift.expm1() - shift)[acting]
    assert float(terms["kl"]) == pytest.approx(float(wanted.mean()), rel=1e-4)
    assert float(terms["kl"]) > 0
    assert float(terms["clipped"]) == pytest.approx(float((shift.expm1().abs() > 0.2)[acting].float().mean()))


@pytest.mark.parametrize("count", [2, 4])
def test_minibatches_log_together_what_the_whole_batch_does(count: int) -> None:
    one, several = (whole("mlp", minibatches=number, learning_rate=1e-12) for number in (1, count))
    batch = next(iter(one.source))
    wanted, found = one.learner.update(batch), several.learner.update(batch)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=1e-4)
