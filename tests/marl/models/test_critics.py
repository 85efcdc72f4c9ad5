"""Critics of all agents and channels in one pass, and the scale of their values."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from small_runs import ATTENTION, GRU, MESSAGES, Mortals
from torch import Tensor

from envs.core import Streams, tree_map
from envs.world import TensorEnv
from marl.learning.value_scale import ValueScale
from marl.models.critics import CriticConfig, build_critic

SMALL = {"network": {"hidden": (8,)}}


def observed(rows: int = 6, seeds: tuple[int, ...] = (0,)) -> tuple[TensorEnv, Any]:
    env = TensorEnv(Mortals(), rows)
    return env, env.reset(list(seeds))


@pytest.mark.parametrize(
    ("network", "sees"),
    [*product([SMALL, GRU, ATTENTION], ["state", "agent"]), (MESSAGES, "agent")],
    ids=[*map("-".join, product(["mlp", "gru", "attention"], ["state", "agent"])), "message_passing"],
)
@pytest.mark.parametrize("share_trunk", [False, True])
def test_values_have_agents_and_channels_and_a_policy_s_are_its_own(
    network: dict[str, Any], sees: str, share_trunk: bool
) -> None:
    env, obs = observed(6, (3, 4, 5))
    config = CriticConfig(**network, sees=sees, share_trunk=share_trunk)
    together = build_critic(env.spec, config, Streams([3, 4, 5]))
    value, memory = together(obs, together.initial_memory(6))
    assert value.shape == (6, 3, 2)
    assert (memory is None) == (network is not GRU)
    for p in range(3):
        alone = build_critic(env.spec, config, Streams([3 + p]))
        mine = tree_map(lambda x, p=p: x[2 * p : 2 * p + 2], obs)
        own, _ = alone(mine, alone.initial_memory(2))
        torch.testing.assert_close(value[2 * p : 2 * p + 2], own, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sees", ["state", "agent"])
def test_channels_share_a_network_only_when_asked(sees: str) -> None:
    env, obs = observed()
    for share_trunk in (False, True):
        critic = build_critic(env.spec, CriticConfig(**SMALL, sees=sees, share_trunk=share_trunk), Streams([0]))
        value, _ = critic(obs, None)
        first = next(critic.parameters())
        slopes = [torch.autograd.grad(value[..., k].sum(), first, retain_graph=True)[0] for k in range(2)]
        touched = [bool((slope != 0).all(0).any()) for slope in slopes]
        assert touched == [share_trunk, share_trunk] or not share_trunk
        if not share_trunk:
            assert bool((slopes[0][1] == 0).all())
            assert bool((slopes[1][0] == 0).all())


def test_a_central_critic_sees_the_state_and_a_local_one_the_agent_s_own_view() -> None:
    env, obs = observed()
    for sees, field in (("state", "state"), ("agent", "agent")):
        critic = build_critic(env.spec, CriticConfig(**SMALL, sees=sees), Streams([0]))
        x = getattr(obs, field).clone().requires_grad_()
        value, _ = critic(type(obs)(**{**{n: getattr(obs, n) for n in ("agent", "state", "alive")}, field: x}), None)
        (slope,) = torch.autograd.grad(value[:, 0].sum(), x)
        assert bool((slope != 0).any())
        if sees == "agent":
            assert bool((slope[:, 1:] == 0).all())


def batches(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Targets [count, B, N, K] of two policies of different size, and who is alive."""
    draw = torch.Generator().manual_seed(seed)
    target = torch.randn(count, 10, 3, 2, generator=draw) * torch.tensor([1.0, 50.0]) + torch.tensor([3.0, -200.0])
    target[:, 5:] *= 10
    return target, torch.rand(count, 10, 3, generator=draw) < 0.7


def test_the_value_scale_is_each_policy_s_and_channel_s_mean_and_deviation_over_the_living() -> None:
    target, alive = batches(1)
    scale = ValueScale(2, 2, torch.device("cpu"))
    scale.update(target[0], alive[0])
    for p in range(2):
        mine = target[0, 5 * p : 5 * p + 5][alive[0, 5 * p : 5 * p + 5]]
        torch.testing.assert_close(scale.mean[p], mine.mean(0), rtol=1e-5, atol=1e-5)
        unit = scale.apply_to(target[0])[5 * p : 5 * p + 5][alive[0, 5 * p : 5 * p + 5]]
        torch.testing.assert_close(unit.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(unit.std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(scale.restore(scale.apply_to(target[0])), target[0], rtol=1e-4, atol=1e-3)


def test_the_value_scale_ignores_the_dead_and_policies_without_any_living() -> None:
    target, alive = batches(2)
    alive[1, :5] = False
    one, other = (ValueScale(2, 2, torch.device("cpu")) for _ in range(2))
    for t in range(2):
        one.update(target[t], alive[t])
        other.update(target[t].where(alive[t].unsqueeze(-1), 1e6), alive[t])
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    first = ValueScale(2, 2, torch.device("cpu"))
    first.update(target[0], alive[0])
    assert torch.equal(first.mean[0], one.mean[0])
    assert one.batches.tolist() == [[1], [2]]


def test_the_value_scale_averages_all_batches_at_first() -> None:
    target, _ = batches(7)
    scale = ValueScale(2, 2, torch.device("cpu"))
    for batch in target:
        scale.update(batch, torch.ones(10, 3, dtype=torch.bool))
    whole = target.view(7, 2, 15, 2).transpose(0, 1).flatten(1, 2)
    torch.testing.assert_close(scale.mean, whole.mean(1), rtol=1e-4, atol=1e-4)
    unit = scale.apply_to(target.flatten(0, 1).view(7, 2, 5, 3, 2).transpose(0, 1).flatten(0, 2))
    torch.testing.assert_close(unit.view(2, -1, 2).std(1, correction=0), torch.ones(2, 2), rtol=1e-3, atol=0)


def test_the_value_scale_tells_a_small_deviation_from_a_huge_mean() -> None:
    target, alive = 1e5 + batches(1)[0][..., :1] - 3, batches(1)[1]
    target = target[:, :5].repeat(1, 2, 1, 1)
    scale = ValueScale(1, 1, torch.device("cpu"))
    for _ in range(3):
        scale.update(target[0], alive[0])
    wanted = target[0][alive[0]].double().std(0, correction=0)
    unit = scale.apply_to(target[0])[alive[0]].double().std(0, correction=0)
    torch.testing.assert_close(unit, torch.ones_like(wanted), rtol=0.02, atol=0)
