"""Critics of every action: single values and sums over actions are those of the array of all values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from envs.core import Observation, Streams
from marl.learning.offline_batch import chooser_spec, observed
from marl.models.action_critic import ActionCritic, ActionValues, weigh
from marl.models.layers import NetworkConfig

ROWS, ACTIONS, CHANNELS, POLICIES = 6, 5, 3, 2


class SelfAware(ActionCritic):
    """The same critic by the array of all values."""

    judged = ActionValues.judged
    expected = ActionValues.expected


def critic_of(kind: type[ActionCritic], hidden: tuple[int, ...] = (8, 7)) -> ActionCritic:
    spec = chooser_spec(4, ACTIONS, [f"r{k}" for k in range(CHANNELS)], None)
    critic = kind(spec, NetworkConfig(hidden=hidden), Streams(range(POLICIES)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # biases begin at 0, where it does not matter whether they count
        for parameter in critic.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return critic


def drawn() -> tuple[Observation, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = POLICIES * ROWS
    probability = torch.rand(rows, 1, ACTIONS, generator=generator)
    action = torch.randint(ACTIONS, (rows, 1, 1), generator=generator)
    weights = torch.randn(POLICIES, CHANNELS, generator=generator)
    return observed(torch.randn(rows, 4, generator=generator)), action, probability, weights


@pytest.mark.parametrize("hidden", [(8,), (8, 7)])
def test_single_values_and_sums_are_those_of_all_values(hidden: tuple[int, ...]) -> None:
    obs, action, probability, weights = drawn()
    one, other = critic_of(ActionCritic, hidden), critic_of(SelfAware, hidden)
    judged, wanted = one.judged(obs, action, weights), other.judged(obs, action, weights)
    torch.testing.assert_close(judged.logged, wanted.logged)
    torch.testing.assert_close(judged.weighed, wanted.weighed)
    assert not judged.weighed.requires_grad
    torch.testing.assert_close(one.expected(obs, probability), other.expected(obs, probability))
    slopes = [
        torch.autograd.grad(x.logged.square().sum(), list(c.parameters())) for x, c in ((judged, one), (wanted, other))
    ]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b)


def test_all_values_are_gathered_and_weighed_by_policy() -> None:
    obs, action, probability, weights = drawn()
    critic = critic_of(ActionCritic)
    q = critic(obs)
    assert q.shape == (POLICIES * ROWS, 1, ACTIONS, CHANNELS)
    judged = critic.judged(obs, action, weights)
    for row in range(POLICIES * ROWS):
        torch.testing.assert_close(judged.logged[row, 0], q[row, 0, action[row, 0, 0]])
        torch.testing.assert_close(judged.weighed[row, 0], q[row, 0] @ weights[row // ROWS])
        torch.testing.assert_close(critic.expected(obs, probability)[row, 0], probability[row, 0] @ q[row, 0])
    torch.testing.assert_close(weigh(q[:, :, 0], weights), judged.weighed[..., 0].detach(), check_stride=False)


def test_a_network_without_a_last_layer_of_its_own_gives_all_values() -> None:
    spec = chooser_spec(4, ACTIONS, ["a", "b"], None)
    critic = ActionCritic(spec, NetworkConfig(kind="attention", hidden=(8,), heads=2), Streams([0]))
    obs, action, probability, _ = drawn()
    q = critic(obs)
    judged = critic.judged(obs, action, torch.ones(1, 2))
    torch.testing.assert_close(judged.weighed, q.detach().sum(-1))
    torch.testing.assert_close(judged.logged[3, 0], q[3, 0, action[3, 0, 0]])
    torch.testing.assert_close(critic.expected(obs, probability), torch.einsum("bna,bnak->bnk", probability, q))
