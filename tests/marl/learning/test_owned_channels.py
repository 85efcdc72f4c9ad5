"""Policies that learn from different reward channels of one batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from jaxtyping import Float
from small_runs import Mortals, build
from torch import Tensor

from envs.core import Decision, InputError, Streams
from envs.world import Transition
from marl.learning.learner import Chain
from marl.learning.offline_actor_critic import LoggedActorCritic, LoggedLearnerConfig
from marl.learning.offline_batch import Logged, chooser_spec, transitions
from marl.learning.owned_channels import OwnedChannels
from marl.models.action_critic import ActionCritic
from marl.models.layers import NetworkConfig
from marl.models.policies import IndependentPolicy, PolicyConfig
from marl.training.tally import Tally


class Part(Mortals):
    """Mortals that are paid in some of their channels only."""

    def __init__(self, *channels: int):
        super().__init__()
        self.kept = list(channels)
        names = tuple(self.spec.channels[k] for k in channels)
        self.spec = dataclasses.replace(self.spec, channels=names)

    def transition(self, state: Any, action: Tensor, noise: Tensor) -> Transition:
        whole = super().transition(state, action, noise)
        return whole._replace(reward=whole.reward[..., self.kept])


def test_policies_that_own_a_channel_each_are_as_alone_in_a_world_that_pays_only_that() -> None:
    discounts, settings = torch.tensor([[0.9], [0.5]]), {"scale_values": True}
    # The networks are those of one channel; the source pays both.
    together = build(Part(0), seeds=(3, 4), by_policy=discounts, **settings)
    both = torch.tensor([[0.9, 0.9], [0.5, 0.5]])
    source = build(Mortals(), seeds=(3, 4), by_policy=both, actor=together.policy).source
    chain = Chain({"owned": OwnedChannels([[0], [1]]), "learner": together.learner})
    alone = [build(Part(p), seeds=(3 + p,), by_policy=discounts[p : p + 1], **settings) for p in range(2)]
    for _, batch in zip(range(2), source):
        chain.update(batch)
        tally = Tally(2)
        tally.add({}, chain.outcome(batch))
        for p, (small, row) in enumerate(zip(alone, tally.read()[0], strict=True)):
            mine = next(iter(small.source))
            small.learner.update(mine)
            assert mine.outcome is not None
            assert row["return_team"] == pytest.approx(float(mine.outcome.total.sum()), rel=1e-5), p
            assert row["discounted_return_per_agent"] == pytest.approx(float(mine.outcome.discounted), rel=1e-5), p
    assert together.critic.channels == 1, "P critics, where P K would learn what nobody reads"
    for p, small in enumerate(alone):
        for several, one in zip(together.parameters(), small.parameters(), strict=True):
            torch.testing.assert_close(several.unflatten(0, (2, -1))[p], one, atol=1e-5, rtol=1e-5)


def test_policies_on_one_log_own_a_channel_and_a_discount_each() -> None:
    generator = torch.Generator().manual_seed(0)
    seen, reward = torch.randn(40, 3, generator=generator), torch.randn(40, 2, generator=generator)
    action = torch.randint(2, (40,), generator=generator)
    ends = torch.arange(40) % 5 == 4

    def learned(reward: Tensor, discount: Float[Tensor, "P K"], seeds: list[int], owned: Any) -> Tensor:
        log = transitions(seen, action, torch.full((40,), 0.5), reward, seen.roll(-1, 0), ends)
        spec = OwnedChannels(owned).spec(chooser_spec(3, 2, ("a", "b")))
        network = NetworkConfig(hidden=(4,))
        policy = IndependentPolicy(spec, PolicyConfig(network=network), Streams(seeds))
        critic = ActionCritic(spec, network, Streams([seed + 10 for seed in seeds]))
        learner = LoggedActorCritic(policy, critic, LoggedLearnerConfig(), len(seeds), discount=discount)
        chain = Chain({"owned": OwnedChannels(owned), "learner": learner})
        for _, batch in zip(range(5), Logged(log, rows=8, streams=Streams([seed + 20 for seed in seeds]))):
            chain.update(batch)
        parameters = [*policy.parameters(), *critic.parameters()]
        return torch.cat([p.detach().unflatten(0, (len(seeds), -1)).flatten(1) for p in parameters], 1)

    together = learned(reward, torch.tensor([[0.9], [0.2]]), [1, 2], [[0], [1]])
    for p, discount in enumerate((0.9, 0.2)):
        alone = learned(reward[:, p : p + 1], torch.tensor([[discount]]), [1 + p], [[0]])
        torch.testing.assert_close(together[p : p + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("owned", [[], [[]], [[0], [0, 1]], [[0], [-1]]])
def test_channels_that_are_owned_unequally_are_refused(owned: list[list[int]]) -> None:
    with pytest.raises(InputError, match="equally many reward channels"):
        OwnedChannels(owned)


@pytest.mark.parametrize("owned", [[[0]], [[0], [2]]])
def test_channels_of_other_policies_or_that_are_none_are_refused(owned: list[list[int]]) -> None:
    batch = next(iter(build(Mortals(), seeds=(0, 1)).source))
    with pytest.raises(InputError, match="the batch has 2 policies and 2 channels"):
        OwnedChannels(owned).relabel(batch)


def test_decisions_are_left_as_they_were() -> None:
    batch = next(iter(build(Mortals(), seeds=(0, 1)).source))
    relabeled = OwnedChannels([[1], [0]]).relabel(batch)
    decision: Decision = relabeled.decision
    assert decision is batch.decision
    half = len(batch.reward) // 2
    assert torch.equal(relabeled.reward[:half, :, 0], batch.reward[:half, :, 1])
    assert torch.equal(relabeled.reward[half:, :, 0], batch.reward[half:, :, 0])
