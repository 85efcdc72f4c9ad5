"""Costs of parts of a network beside one another: reward channels of a critic, and draws of joint policies."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from envs.aloha import Aloha
from envs.core import Observation, Streams
from envs.particles import SimpleSpread
from envs.world import TensorEnv, World
from marl.bench.timing import Effort, Findings, Work, over_rounds, take_turns
from marl.learning.losses import squared_error
from marl.models.critics import CriticConfig, build_critic
from marl.models.policies import IndependentPolicy, JointPolicy, PolicyConfig


def channels(effort: Effort) -> Findings:
    """A central critic's gradient step on 512 states: the cost of four reward channels in units of one."""
    cases = {
        "one": critic_step(1, share_trunk=False),
        "separate": critic_step(4, share_trunk=False),
        "shared_trunk": critic_step(4, share_trunk=True),
    }
    rates = take_turns(cases, effort)
    return Findings(
        {f"channels/cost_of_4/{name}": over_rounds(rates["one"] / rates[name]) for name in ("separate", "shared_trunk")}
    )


def critic_step(count: int, *, share_trunk: bool) -> Work:
    """One gradient step of a critic of `count` reward channels."""
    spec = dataclasses.replace(SimpleSpread().spec, channels=tuple(f"channel_{k}" for k in range(count)))
    critic = build_critic(spec, CriticConfig.model_validate({"share_trunk": share_trunk}), Streams([0]))
    optimizer = torch.optim.Adam(critic.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    state, target = torch.randn(512, 54, generator=generator), torch.randn(512, 3, count, generator=generator)
    obs = Observation(state.unflatten(1, (3, 18)), state, torch.ones(512, 3, dtype=torch.bool))

    def work() -> int:
        squared_error(critic(obs, None)[0], target).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return 1

    return work


def sampling(effort: Effort) -> Findings:
    """A draw of graphs and actions of a Bayesian network, in units of an independent policy's draw of actions."""
    from marl.algorithms.bnpg.policy import BayesianPolicy, BayesianPolicyConfig  # imports scipy, which takes a while

    found = {}
    sizes: dict[str, tuple[World[Any], int]] = {
        "aloha-10": (Aloha(), 1024),
        "spread-10": (SimpleSpread(10), 1024),
        "spread-64": (SimpleSpread(64), 64),
    }
    for name, (world, rows) in sizes.items():
        spec, obs = world.spec, TensorEnv(world, rows, time_limit=20).reset(0)
        shared = {"share": "all", "agent_id": True}
        cases = {"independent": draws(IndependentPolicy(spec, PolicyConfig.model_validate(shared), Streams([0])), obs)}
        for kind in ("learned", "complete", "line"):
            config = BayesianPolicyConfig.model_validate({**shared, "graph": {"kind": kind}})
            cases[kind] = draws(BayesianPolicy(spec, config, Streams([0])), obs)
        rates = take_turns(cases, effort)
        for kind in ("learned", "complete", "line"):
            found[f"sampling/{name}/{kind}"] = over_rounds(rates["independent"] / rates[kind])
    return Findings(found)


def draws(policy: JointPolicy, obs: Observation) -> Work:
    """Everybody's action for these observations, graphs included."""
    streams = Streams([1])

    def work() -> int:
        with torch.inference_mode():
            policy.act(obs, None, streams)
        return 1

    return work
