"""Critics of joint choices of which only some agents' are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from envs.core import Discrete, EnvSpec, InputError, Observation, Streams
from marl.models.critics import CriticConfig
from marl.models.layers import NetworkConfig
from marl.models.prefix_critic import PrefixCritic

SMALL = NetworkConfig(hidden=(8,))


def spec(**changes: Any) -> EnvSpec:
    base: dict[str, Any] = {
        "agents": ("a", "b", "c"),
        "kind": (0, 0, 0),
        "channels": ("soup", "shaping"),
        "observation_sizes": (4, 4, 4),
        "actions": (Discrete((5,)),) * 3,
        "state_size": 6,
    }
    return EnvSpec(**{**base, **changes})


def critic(seeds: tuple[int, ...] = (0,), **config: Any) -> PrefixCritic:
    return PrefixCritic(spec(), CriticConfig(network=SMALL, **config), Streams(seeds))


def seen(rows: int = 7, seed: int = 0) -> tuple[Observation, Tensor]:
    g = torch.Generator().manual_seed(seed)
    state = torch.randn(rows, 6, generator=g)
    alive = torch.ones(rows, 3, dtype=torch.bool)
    return Observation(torch.zeros(rows, 3, 4), state, alive), torch.randint(5, (rows, 3, 1), generator=g)


@pytest.mark.parametrize("config", [{}, {"share_trunk": True}, {"output": "team"}])
def test_only_given_choices_count_and_with_none_it_is_the_value_of_the_state(config: dict[str, Any]) -> None:
    net, (obs, action) = critic(**config), seen()
    first = torch.tensor([True, False, False]).expand(7, 3)
    value = net(obs)
    assert value.shape == (7, 3, 2)
    assert_close(net(obs, action, torch.zeros_like(first)), value, rtol=0, atol=0)
    prefix = net(obs, action, first)
    assert not torch.equal(prefix, value)
    other = action.clone()
    other[:, 1:] = (other[:, 1:] + 1) % 5
    assert_close(net(obs, other, first), prefix, rtol=0, atol=0)
    other[:, 0] = (other[:, 0] + 1) % 5
    assert not torch.equal(net(obs, other, first), prefix)
    assert not torch.equal(net(obs, action, torch.ones_like(first)), prefix)


def test_several_prefixes_in_one_pass_are_as_one_by_one_also_of_several_policies() -> None:
    net, (obs, action) = critic((0, 1)), seen(8)
    g = torch.Generator().manual_seed(3)
    given = torch.rand(2, 3, 8, 3, generator=g) < 0.5
    together = net(obs, action, given)
    assert together.shape == (2, 3, 8, 3, 2)
    for i in range(2):
        for j in range(3):
            assert_close(together[i, j], net(obs, action, given[i, j]))


def test_policies_stacked_are_as_alone() -> None:
    both, (obs, action) = critic((4, 5)), seen(8)
    given = torch.tensor([True, False, True]).expand(2, 8, 3)
    for place, seed in enumerate((4, 5)):
        rows = slice(4 * place, 4 * place + 4)
        part = Observation(obs.agent[rows], obs.state[rows], obs.alive[rows])
        alone = critic((seed,))(part, action[rows], given[:, rows])
        assert_close(both(obs, action, given)[:, rows], alone)


def test_channels_have_networks_of_their_own_unless_they_share() -> None:
    def reaches(net: PrefixCritic) -> bool:
        """True where the value of one channel depends on a parameter of which another's does too."""
        obs, action = seen()
        value = net(obs, action, torch.ones(7, 3, dtype=torch.bool))
        parts = [torch.autograd.grad(value[..., k].sum(), list(net.parameters()), retain_graph=True) for k in (0, 1)]
        return any(bool(((a != 0) & (b != 0)).any()) for a, b in zip(*parts, strict=True))

    assert not reaches(critic())
    assert reaches(critic(share_trunk=True))


def test_a_team_has_one_value() -> None:
    obs, action = seen()
    value = critic(output="team")(obs, action, torch.ones(7, 3, dtype=torch.bool))
    assert_close(value, value[:, :1].expand(-1, 3, -1))


@pytest.mark.parametrize(
    ("task", "config", "told"),
    [
        (spec(), CriticConfig(sees="agent"), r"sees: state"),
        (spec(), CriticConfig(network=NetworkConfig(kind="gru")), r"without memory; gru"),
        (spec(actions=(Discrete((2, 2)),) * 3), CriticConfig(), r"2 choices at once"),
    ],
)
def test_what_it_cannot_judge_is_refused(task: EnvSpec, config: CriticConfig, told: str) -> None:
    with pytest.raises(InputError, match=told):
        PrefixCritic(task, config, Streams([0]))
