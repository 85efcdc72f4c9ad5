"""Critics of agents who choose one after the other, by known probabilities."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from envs.core import Discrete, EnvSpec, InputError, Observation, Streams
from marl.models.critics import CriticConfig
from marl.models.layers import NetworkConfig
from marl.models.ordered_critic import OrderedCritic

SMALL = NetworkConfig(hidden=(8,))
CONFIGS: list[dict[str, Any]] = [{}, {"share_trunk": True}, {"output": "team"}]


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


def critic(seeds: tuple[int, ...] = (0,), **config: Any) -> OrderedCritic:
    return OrderedCritic(spec(), CriticConfig(network=SMALL, **config), Streams(seeds))


def seen(rows: int = 8, seed: int = 0) -> tuple[Observation, Tensor, Tensor]:
    """An observation, choices, and probabilities of them."""
    g = torch.Generator().manual_seed(seed)
    state = torch.randn(rows, 6, generator=g)
    alive = torch.ones(rows, 3, dtype=torch.bool)
    behavior = torch.rand(rows, 3, 5, generator=g).softmax(-1)
    return Observation(torch.zeros(rows, 3, 4), state, alive), torch.randint(5, (rows, 3, 1), generator=g), behavior


def first(count: int, rows: int = 8) -> Tensor:
    return (torch.arange(3) < count).expand(rows, 3)


@pytest.mark.parametrize("config", CONFIGS)
def test_advantages_have_a_mean_of_zero_over_what_each_agent_would_choose(config: dict[str, Any]) -> None:
    net, (obs, action, behavior) = critic(**config), seen()
    for agent in range(3):
        mean = torch.zeros(8, 3, 2)
        for choice in range(5):
            other = action.clone()
            other[:, agent] = choice
            gain = net.advantages(obs, other, behavior)[agent].detach()
            assert float(gain.abs().max()) > 1e-4
            mean += behavior[:, agent, choice, None, None] * gain
        assert float(mean.abs().max()) < 1e-6


@pytest.mark.parametrize("config", CONFIGS)
def test_values_of_prefixes_add_up_advantages_and_know_only_who_is_given(config: dict[str, Any]) -> None:
    net, (obs, action, behavior) = critic(**config), seen()
    value, gain = net(obs), net.advantages(obs, action, behavior)
    assert value.shape == (8, 3, 2)
    assert_close(net(obs, action, first(0), behavior), value)
    for count in range(1, 4):
        prefix = net(obs, action, first(count), behavior)
        assert_close(prefix, value + gain[:count].sum(0))
        other = action.clone()
        other[:, count:] = (other[:, count:] + 1) % 5
        assert_close(net(obs, other, first(count), behavior), prefix, rtol=0, atol=0)
        other[:, count - 1] = (other[:, count - 1] + 1) % 5
        assert not torch.equal(net(obs, other, first(count), behavior), prefix)


def test_what_an_agent_adds_depends_on_who_chose_before_it() -> None:
    net, (obs, action, behavior) = critic(), seen()
    other = action.clone()
    other[:, 0] = (other[:, 0] + 1) % 5
    before, after = (net.advantages(obs, choices, behavior) for choices in (action, other))
    assert bool((before[1:] != after[1:]).any(-1).all())
    same = action.expand(-1, 3, -1)[:, :1].expand(-1, 3, -1)
    alike = net.advantages(obs, same, behavior[:, :1].expand(-1, 3, -1))
    assert not torch.equal(alike[0], alike[1])


def test_several_prefixes_in_one_pass_are_as_one_by_one_also_of_several_policies() -> None:
    net, (obs, action, behavior) = critic((0, 1)), seen()
    given = torch.stack([torch.stack([first(3), first(1)]), torch.stack([first(0), first(2)])])
    together = net(obs, action, given, behavior)
    assert together.shape == (2, 2, 8, 3, 2)
    for i in range(2):
        for j in range(2):
            assert_close(together[i, j], net(obs, action, given[i, j], behavior))


@pytest.mark.parametrize("config", CONFIGS)
def test_policies_stacked_are_as_alone(config: dict[str, Any]) -> None:
    both, (obs, action, behavior) = critic((4, 5), **config), seen()
    given = torch.stack([first(1), first(3)])
    for place, seed in enumerate((4, 5)):
        rows = slice(4 * place, 4 * place + 4)
        part = Observation(obs.agent[rows], obs.state[rows], obs.alive[rows])
        alone = critic((seed,), **config)(part, action[rows], given[:, rows], behavior[rows])
        assert_close(both(obs, action, given, behavior)[:, rows], alone)


def test_channels_have_networks_of_their_own_unless_they_share() -> None:
    def reaches(net: OrderedCritic) -> bool:
        """True where the value of one channel depends on a parameter of which another's does too."""
        obs, action, behavior = seen()
        value = net(obs, action, first(3), behavior)
        parts = [torch.autograd.grad(value[..., k].sum(), list(net.parameters()), retain_graph=True) for k in (0, 1)]
        return any(bool(((a != 0) & (b != 0)).any()) for a, b in zip(*parts, strict=True))

    assert not reaches(critic())
    assert reaches(critic(share_trunk=True))


def test_a_team_has_one_value_and_agents_have_several() -> None:
    obs, action, behavior = seen()
    value = critic(output="team")(obs, action, first(3), behavior)
    assert_close(value, value[:, :1].expand(-1, 3, -1))
    own = critic()(obs, action, first(3), behavior)
    assert not torch.allclose(own, own[:, :1].expand(-1, 3, -1))


def test_who_is_gone_adds_nothing_is_seen_by_nobody_and_need_not_be_given() -> None:
    net, (obs, action, behavior) = critic(), seen()
    alive = torch.tensor([True, False, True]).expand(8, 3)
    obs = dataclasses.replace(obs, alive=alive)
    behavior = behavior.clone()
    behavior[:, 1] = 0  # of nobody
    value = net(obs, action, alive, behavior)
    assert_close(net(obs, action, first(3), behavior), value)
    gain = net.advantages(obs, action, behavior)
    assert_close(value, net(obs) + gain[0] + gain[2])
    other = action.clone()
    other[:, 1] = (other[:, 1] + 1) % 5
    assert_close(net(obs, other, alive, behavior), value, rtol=0, atol=0)


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
        OrderedCritic(task, config, Streams([0]))


def test_what_is_no_prefix_and_no_probabilities_is_refused() -> None:
    net, (obs, action, behavior) = critic(), seen()
    with pytest.raises(InputError, match=r"not the first of those alive\. Give agents 0 to k-1, or take"):
        net(obs, action, torch.tensor([[False, True, False]]).expand(8, 3), behavior)
    with pytest.raises(InputError, match=r"all three or none"):
        net(obs, action, first(1))
    with pytest.raises(InputError, match=r"probabilities of every agent's choices, \[8, 3, 5\]; got \[8, 3, 4\]"):
        net(obs, action, first(1), behavior[..., :4])
    with pytest.raises(InputError, match=r"add up to 1 where its choice is given; here to 0\.5"):
        net(obs, action, torch.stack([first(0), first(1)]), behavior / 2)
    with pytest.raises(InputError, match=r"here to nan"):
        net(obs, action, first(1), behavior * torch.nan)
