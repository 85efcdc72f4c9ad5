"""Three ways to the gradient of one rule agree in direction with that of infinitely many agents.

`pytest -m slow -s tests/marl/algorithms/mean_field/test_mean_field_gradients.py` prints the table of
docs/mean_field.md.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import Streams
from envs.swarm import LinearQuadratic
from envs.world import TensorEnv
from marl.algorithms.mean_field.pathwise import Differentiable, discounted_return
from marl.algorithms.mean_field.policy import SwarmPolicy, SwarmPolicyConfig
from marl.algorithms.mean_field.rules import Rule
from marl.learning.rollout import OnPolicy

HORIZON = 6
STD = 0.02  # of xi, where rules are explored


class Linear(Rule):
    """u = -xi_0 y, with deviation softplus(xi_1): its costs in the limit are a recursion of variances."""

    def parameters_at(self, xi: Float[Tensor, "B R"], y: Float[Tensor, "B N D"]) -> Float[Tensor, "B N Q"]:
        gain, raw = xi.unsqueeze(1).chunk(2, -1)
        return torch.cat([-gain * y, torch.nn.functional.softplus(raw).expand_as(y)], -1)

    def lipschitz(self, xi: Float[Tensor, "B R"]) -> Float[Tensor, " B"]:
        return xi[:, 0].abs()

    def start(self, streams: Streams) -> Float[Tensor, "P 1 R"]:
        return torch.tensor([0.3, -1.5]).expand(len(streams), 1, 2)


def swarms(agents: int, rows: int, explore: str) -> tuple[TensorEnv, SwarmPolicy]:
    """The same upper level, which sees the clock, at every size; the gain is too low, the deviation .2."""
    env = TensorEnv(LinearQuadratic(agents, HORIZON), rows)
    config = SwarmPolicyConfig.model_validate(
        {"sees": "time", "explore": explore, "rule_std": STD, "network": {"hidden": (8,)}, "rule": {"points": 1}}
    )
    policy = SwarmPolicy(env.spec, config, Streams([0]))  # R = 2, as a linear rule's
    policy.rule = Linear(policy.rule.actions)
    policy.start.copy_(policy.rule.start(Streams([0])))
    return env, policy


def gradient(value: Tensor, policy: SwarmPolicy) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(policy.network.parameters()))])


def limit_gradient() -> Tensor:
    """Of minus the cost of infinitely many agents: V' = (a - b k)² V + b² (k² σ_y² + s²) + σ²."""
    env, policy = swarms(2, HORIZON, "agent")
    clock, p = torch.arange(HORIZON).unsqueeze(-1) / HORIZON, env.world.problem  # type: ignore[attr-defined]
    obs = env.reset(0)
    seen = obs.state.clone()
    seen[:, :1] = clock
    xi, _ = policy.mean_rule(type(obs)(obs.agent, seen, obs.alive), None)
    variance, cost = torch.tensor(p.initial_variance), torch.tensor(0.0)
    for k, raw in xi:
        effort = k**2 * (variance + p.sigma_y**2) + torch.nn.functional.softplus(raw) ** 2
        cost = cost + p.q * variance + p.r * effort
        noise = p.b**2 * (effort - k**2 * variance) + p.sigma**2
        variance = (p.a - p.b * k) ** 2 * variance + noise
    return gradient(-(cost + p.q * variance), policy)


def pathwise(agents: int, rows: int, seed: int) -> Tensor:
    """Through the physics, with certain rules."""
    env, policy = swarms(agents, rows, "agent")
    batch = next(iter(Differentiable(env, policy, steps=HORIZON, streams=Streams([seed]), seeds=[seed])))
    return gradient(discounted_return(batch, torch.ones(1)).sum(), policy)


def score(explore: str, agents: int, rows: int, seed: int) -> Tensor:
    """Σ_t ∇ log π · (what the swarm earns from t on, less its mean over swarms): of xi, or of all agents' actions."""
    env, policy = swarms(agents, rows, explore)
    batch = next(iter(OnPolicy(env, policy, steps=HORIZON, streams=Streams([seed]), seeds=[seed])))
    (reward,) = batch.over_time((batch.reward[:, 0, 0],))
    to_go = reward.flip(0).cumsum(0).flip(0)
    advantage = (to_go - to_go.mean(-1, keepdim=True)).transpose(0, 1).flatten()
    log_prob = policy(batch.obs, None)[0].log_prob(batch.decision).sum(-1)
    return gradient((log_prob * advantage).sum() / rows, policy)


ESTIMATORS = {"rule": partial(score, "rule"), "agent": partial(score, "agent"), "pathwise": pathwise}


class Agreement(NamedTuple):
    """cosine: with the limit, the mean over estimates; noise: their standard deviation, in lengths of the limit."""

    cosine: float
    noise: float


def agreement(way: str, agents: int, rows: int, repeats: int) -> Agreement:
    """Of estimates from `rows` swarms each."""
    limit = limit_gradient()
    found = torch.stack([ESTIMATORS[way](agents, rows, seed) for seed in range(repeats)])
    cosine = torch.cosine_similarity(found, limit, dim=-1).mean()
    return Agreement(float(cosine), float(found.var(0).sum().sqrt() / limit.norm()))


def test_the_gradient_of_a_huge_swarm_is_that_of_the_variances_recursion() -> None:
    limit = limit_gradient()
    assert float((pathwise(50_000, 4, 0) - limit).norm() / limit.norm()) < 0.02


def test_all_three_ways_point_where_the_limit_s_gradient_does_as_the_swarm_grows() -> None:
    """Noise of pathwise gradients and of explored rules falls as 1/sqrt N; that of agents who explore stays.

    The latter multiplies each agent's score with what all the others drew.
    """
    small, large = (
        {way: agreement(way, agents, 200, repeats) for way in ESTIMATORS} for agents, repeats in ((10, 24), (300, 8))
    )
    assert large["pathwise"].cosine > 0.99999 > small["pathwise"].cosine > 0.999
    assert large["rule"].cosine > 0.96 > 0.9 > small["rule"].cosine
    assert min(large["agent"].cosine, small["agent"].cosine) > 0.95
    assert large["pathwise"].noise < small["pathwise"].noise / 2.5
    assert large["rule"].noise < small["rule"].noise / 2.5
    assert small["agent"].noise / 2 < large["agent"].noise < small["agent"].noise * 2


@pytest.mark.slow
@pytest.mark.parametrize("way", ESTIMATORS)
def test_the_table_of_the_documentation(way: str) -> None:
    found = [agreement(way, agents, 200, 20) for agents in (10, 100, 1000)]
    print(way, *(f"N={n}: {x.cosine:.6f} {x.noise:.3f}" for n, x in zip((10, 100, 1000), found)))
    assert found[2].cosine > 0.985
    assert way == "agent" or found[0].cosine < found[1].cosine < found[2].cosine
