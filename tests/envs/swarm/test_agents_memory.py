"""Memory for the agents of any swarm."""

from __future__ import annotations

from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor
from worlds import Walk

from envs.core import InputError, Observation, Streams
from envs.swarm import SIS, LinearQuadratic, Vicsek, WithMemory
from envs.testing import check_env
from envs.world import Scripted, TensorEnv
from marl.evaluation.episodes import play

LINE = "envs.swarm:LinearQuadratic"


def test_unused_memory_changes_nothing() -> None:
    plain, remembering = (TensorEnv(world, 3) for world in (Vicsek(20), WithMemory(Vicsek(20), cells=2)))
    one, two = plain.reset(5), remembering.reset(5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(plain.spec.horizon or 0):
        assert torch.equal(two.agent, torch.cat([one.agent, torch.zeros(3, 20, 2)], -1))
        assert torch.equal(two.state, torch.cat([one.state, torch.zeros(3, 4)], -1))
        turn = torch.randn(3, 20, 1, generator=generator)
        step, same = plain.step(turn), remembering.step(torch.cat([turn, torch.zeros(3, 20, 2)], -1))
        assert torch.equal(step.reward, same.reward)
        one, two = step.obs, same.obs
    assert bool(step.ended.all())


def test_an_agent_sees_what_it_wrote_and_starts_with_nothing() -> None:
    env = TensorEnv(WithMemory(LINE, cells=2, agents=3, horizon=2), 2)
    assert bool((env.reset(0).agent[..., 1:] == 0).all())
    written = torch.tensor([[0.5, -3.0], [0.25, 0.0], [0.0, 2.0]]).expand(2, 3, 2)
    step = env.step(torch.cat([torch.zeros(2, 3, 1), written], -1))
    kept = torch.tensor([[0.5, -1.0], [0.25, 0.0], [0.0, 1.0]])
    assert torch.equal(step.obs.agent[..., 1:], kept.expand(2, 3, 2)), "cut to [-1, 1]"
    moments = torch.cat([kept.mean(0), kept.var(0, correction=0)])
    torch.testing.assert_close(step.obs.state[:, -4:], moments.expand(2, 4), msg="the critic sees its moments")
    step = env.step(torch.cat([torch.zeros(2, 3, 1), written], -1))
    assert bool(step.ended.all())
    assert bool((step.obs.agent[..., 1:] == 0).all()), "a new episode remembers nothing"


@pytest.mark.parametrize(("sigma_y", "gain"), [(0.3, 0.01), (1.0, 0.08)])
def test_a_rule_that_filters_beats_every_linear_rule_without_memory(sigma_y: float, gain: float) -> None:
    """x^ = (1 - L_t) m + L_t y, u_t = -k_t x^, m' = x^ + u: Kalman's filter in a memory that holds x / 4.

    It costs what the Riccati optimum does and k_t² (r + P_t) Var(x - x^) a step, P_t being the cost to go.
    """
    scale, world = 4.0, WithMemory(LINE, agents=1000, sigma_y=sigma_y)
    problem = LinearQuadratic(sigma_y=sigma_y).problem
    gains = problem.optimal_rule().gains
    shares, error, cost = [], problem.initial_variance, problem.optimal_cost()
    for k in gains:
        shares.append(error / (error + sigma_y**2))
        error *= 1 - shares[-1]
        cost += k * k * (problem.r + problem.r * k / (1 - k)) * error  # k = P / (r + P)
        error += problem.sigma**2

    def rule(obs: Observation, streams: Streams) -> Tensor:
        step = round(float(obs.state[0, 0]) * problem.horizon)
        y, memory = obs.agent.unbind(-1)
        found = torch.lerp(scale * memory, y, shares[step])
        return torch.stack([-gains[step] * found, (1 - gains[step]) * found / scale], -1)

    played = -float(play(TensorEnv(world, 128), Scripted(rule), 128, 3).per_agent.mean())
    assert played == pytest.approx(cost, abs=0.03)
    assert played < problem.cost(problem.best_rule()) - gain


def test_swarms_with_memory_keep_the_contract_of_environments_and_their_world_s_task() -> None:
    world = WithMemory("envs.swarm:Aggregation", cells=2, agents=5, horizon=4)
    check_env(lambda rows: TensorEnv(world, rows), steps=12)
    assert (world.spec.horizon, len(world.spec.agents)) == (4, 5)
    assert world.spec.action.size == 4
    state = world.initial(world.initial_noise(1, torch.Generator().manual_seed(0)))
    assert (world.frame(state) == world.world.frame(state.inner)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"world": SIS()}, "choose among finitely many"),
        ({"world": LINE, "cells": 0}, "at least one cell"),
        ({"world": Walk()}, "finitely many|differently"),
        ({"world": "envs.swarm:Nowhere"}, "has no Nowhere"),
        ({"world": 5}, "WithMemory needs a World, or the dotted path of one.* got 5"),
        ({"world": "envs.swarm"}, "WithMemory needs a World, or the dotted path of one.* got 'envs.swarm'"),
        ({"world": LINE, "horizn": 3}, r"Unknown key args\.horizn\. Did you mean args\.horizon\?"),
        ({"world": LINE, "foo": 3}, r"Unknown key args\.foo\. LinearQuadratic takes: agents, horizon"),
        ({"world": LINE, "cells": 1.5}, r"cells must be a whole number; got 1\.5"),
    ],
)
def test_what_cannot_remember_is_refused(
    arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # only tests check annotations
    with pytest.raises(InputError, match=message):
        WithMemory(**arguments)
