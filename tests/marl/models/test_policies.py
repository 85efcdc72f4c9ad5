"""Policies of independent agents: who shares what, and who depends on what."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from small_runs import ATTENTION, GRU, MESSAGES, Mortals, assert_close
from torch import Tensor
from worlds import Walk

from envs.core import Decision, Observation, Streams, Tree, tree_map
from envs.games import climbing
from envs.speaker_listener import SpeakerListener
from envs.world import TensorEnv, World
from marl.evaluation.greedy import Greedy
from marl.models.policies import IndependentPolicy, PolicyConfig

SMALL = {"network": {"hidden": (8,)}}
KINDS: list[dict[str, Any]] = [SMALL, GRU, {**ATTENTION, "share": "all"}, {**MESSAGES, "share": "all"}]
IDS = ["mlp", "gru", "attention", "message_passing"]


def make(
    world: World[Any], config: dict[str, Any] = SMALL, seeds: tuple[int, ...] = (0,), rows: int = 6
) -> tuple[IndependentPolicy, Observation, Tree]:
    """A policy, an observation in the middle of things, and memory that is not zero."""
    env = TensorEnv(world, rows)
    obs = env.reset(list(seeds))
    policy = IndependentPolicy(env.spec, PolicyConfig(**config), Streams(seeds))
    memory = policy.initial_memory(rows)
    streams = Streams(seeds)
    with torch.no_grad():
        for _ in range(2):
            decision, memory = policy.act(obs, memory, streams)
            obs = env.step(decision.action).obs
    return policy, obs, memory


def log_probs(policy: IndependentPolicy, obs: Observation, memory: Tree) -> Tensor:
    return policy(obs, memory)[0].log_probs().detach()


@pytest.mark.parametrize("config", KINDS, ids=IDS)
@pytest.mark.parametrize("world", [Mortals(), SpeakerListener()], ids=["alike", "by kind"])
def test_permuting_rows_permutes_decisions(world: World[Any], config: dict[str, Any]) -> None:
    policy, obs, memory = make(world, config)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    moved, moved_memory = tree_map(lambda x: x[order], (obs, memory))
    torch.testing.assert_close(
        log_probs(policy, moved, moved_memory), log_probs(policy, obs, memory)[order], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("config", KINDS, ids=IDS)
def test_a_row_decides_the_same_alone(config: dict[str, Any]) -> None:
    policy, obs, memory = make(Mortals(), config)
    row, row_memory = tree_map(lambda x: x[2:3], (obs, memory))
    torch.testing.assert_close(
        log_probs(policy, row, row_memory), log_probs(policy, obs, memory)[2:3], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("config", KINDS, ids=IDS)
@pytest.mark.parametrize("world", [Mortals(), SpeakerListener(), Walk()], ids=["alike", "by kind", "continuous"])
def test_each_of_several_policies_decides_and_draws_as_it_would_alone(
    world: World[Any], config: dict[str, Any]
) -> None:
    policy, obs, memory = make(world, config, seeds=(3, 4, 5))
    decision, kept = policy.act(obs, memory, Streams([7, 8, 9]))
    for p in range(3):
        mine = slice(2 * p, 2 * p + 2)
        alone, _, _ = make(world, config, seeds=(3 + p,), rows=2)
        own_obs, own_memory = tree_map(lambda x, mine=mine: x[mine], (obs, memory))
        own, own_kept = alone.act(own_obs, own_memory, Streams([7 + p]))
        assert_close((own, own_kept), tree_map(lambda x, mine=mine: x[mine], (decision, kept)), 1e-5)


def test_agents_of_a_kind_share_parameters_and_others_do_not() -> None:
    sizes = {}
    for share in ("kind", "all", "none"):
        for name, world in (("alike", Mortals()), ("by kind", SpeakerListener())):
            policy, _, _ = make(world, {**SMALL, "share": share})
            sizes[share, name] = sum(p.numel() for p in policy.parameters())
    assert sizes["kind", "alike"] == sizes["all", "alike"] == sizes["none", "alike"] / 3
    assert sizes["kind", "by kind"] == sizes["none", "by kind"] > sizes["all", "by kind"]


def test_agents_who_share_parameters_and_see_the_same_act_differently_only_when_told_who_they_are() -> None:
    for agent_id in (False, True):
        policy, obs, memory = make(Mortals(), {**SMALL, "agent_id": agent_id})
        same = dataclasses.replace(obs, agent=obs.agent[:, :1].expand(-1, 3, -1), legal=None)
        found = log_probs(policy, same, memory)
        assert torch.equal(found[:, 0], found[:, 1]) != agent_id


def test_one_network_for_unlike_agents_is_told_their_kind() -> None:
    policy, obs, memory = make(climbing(), {**SMALL, "share": "all"})
    found = log_probs(policy, obs, memory)
    assert not torch.equal(found[:, 0], found[:, 1])


def test_padding_is_never_chosen() -> None:
    policy, obs, memory = make(SpeakerListener(), rows=600)
    action = policy.act(obs, memory, Streams([0]))[0].action
    assert set(action[:, 0].flatten().tolist()) == {0, 1, 2}
    assert set(action[:, 1].flatten().tolist()) == {0, 1, 2, 3, 4}


def test_components_that_an_agent_lacks_enter_no_log_probability() -> None:
    policy, obs, memory = make(Walk())
    distribution, _ = policy(obs, memory)
    decision = distribution.sample(Streams([0]))
    other = Decision(decision.action.clone())
    other.action[:, 0, 1] += 5.0
    torch.testing.assert_close(distribution.log_prob(other), distribution.log_prob(decision))
    other.action[:, 1, 1] += 5.0
    assert not torch.allclose(distribution.log_prob(other), distribution.log_prob(decision))


def test_first_decisions_are_almost_uniform() -> None:
    policy, obs, memory = make(Mortals())
    counts = torch.ones(6, 3, 3) if obs.legal is None else obs.legal.sum(-1, keepdim=True).expand(-1, -1, 3)
    found = log_probs(policy, obs, memory).exp()
    legal = torch.ones_like(found, dtype=torch.bool) if obs.legal is None else obs.legal
    torch.testing.assert_close(found[legal], (1 / counts)[legal], atol=0.02, rtol=0)


def test_greedy_takes_the_mode_and_remembers() -> None:
    policy, obs, memory = make(Mortals(), GRU)
    decision, kept = Greedy(policy).act(obs, memory, Streams([0]))
    distribution, remembered = policy(obs, memory)
    assert torch.equal(decision.action, distribution.mode().action)
    assert torch.equal(kept, remembered)
    assert_close(Greedy(policy).initial_memory(4), torch.zeros(4, 1, 3, 8))
