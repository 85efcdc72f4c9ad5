"""A small swarm and small training runs of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.core import Continuous, Discrete, EnvSpec, Observation, Streams
from envs.world import TensorEnv, Transition, World
from marl.algorithms.mean_field import SwarmCriticConfig, SwarmLearnerConfig
from marl.algorithms.mean_field.policy import SwarmPolicy, SwarmPolicyConfig
from marl.learning.actor_critic import ActorCritic
from marl.learning.rollout import OnPolicy
from marl.learning.scalarization import team
from marl.models.critics import CriticConfig, build_critic

SMALL = {"network": {"hidden": (8,)}}


class Drift(World[Tensor]):
    """N agents on a line: x' = x + u + noise, and all earn -mean x² - mean u² / 2. Each sees its own x."""

    shows_clock = False

    def __init__(
        self, agents: int = 20, horizon: int | None = 10, noise: float = 0.3, choices: int = 0, noisy: int = 0
    ):
        self.deviation, self.choices, self.noisy = noise, choices, noisy
        action = Discrete((choices,)) if choices else Continuous((-5.0,), (5.0,))
        self.spec = EnvSpec(
            agents=tuple(f"agent_{i}" for i in range(agents)),
            kind=(0,) * agents,
            channels=("team",),
            observation_sizes=(1 + noisy,) * agents,
            actions=(action,) * agents,
            state_size=2,
            horizon=horizon,
        )

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.randn(num, len(self.spec.agents), generator=generator)

    def initial(self, noise: Tensor) -> Tensor:
        return noise

    def noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.randn(num, len(self.spec.agents), generator=generator)

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Transition:
        u = action.squeeze(-1)
        if self.choices:
            u = 2.0 * u / (self.choices - 1) - 1.0
        reward = -(state.square() + u.square() / 2).mean(-1)
        moved = state + u.clamp(-5, 5) + self.deviation * noise
        return Transition(moved, reward.view(-1, 1, 1).expand(-1, state.shape[1], 1))

    def observe(self, state: Tensor) -> Observation:
        alive = torch.ones_like(state, dtype=torch.bool)
        moments = torch.stack([state.mean(-1), state.square().mean(-1)], -1)
        agent = state.unsqueeze(-1)
        return Observation(torch.cat([agent, *(agent.sin(),) * self.noisy], -1), moments, alive)

    def best(self) -> float:
        """The optimal return of an infinite swarm, by the Riccati recursion of one agent."""
        value = added = 0.0
        assert self.spec.horizon is not None
        for _ in range(self.spec.horizon):
            added += value * self.deviation**2
            value = 1 + 0.5 * value / (0.5 + value)
        return -(value + added)


class SmallSwarm(NamedTuple):
    """Everything of one small training run."""

    env: TensorEnv
    policy: SwarmPolicy
    learner: ActorCritic
    source: OnPolicy

    def train(self, updates: int) -> dict[str, Tensor]:
        """The last update's terms."""
        terms = {}
        for _, batch in zip(range(updates), self.source):
            terms = self.learner.update(batch)
        return terms


def build(
    world: World[Any],
    num_envs: int = 4,
    *,
    seeds: Sequence[int] = (0,),
    policy: dict[str, Any] | None = None,
    critic: dict[str, Any] | None = None,
    updates: int = 1,
    **settings: Any,
) -> SmallSwarm:
    """A run of one policy a seed, `num_envs` swarms each, with networks of one layer of 8 unless told."""
    config = SwarmLearnerConfig(**{"steps": 10, "epochs": 2, "minibatches": 2, **settings})
    env = TensorEnv(world, num_envs * len(seeds))

    def streams(purpose: int) -> Streams:
        return Streams([100 * seed + purpose for seed in seeds])

    actor = SwarmPolicy(env.spec, SwarmPolicyConfig.model_validate({**SMALL, **(policy or {})}), streams(1))
    values: CriticConfig = SwarmCriticConfig.model_validate({**SMALL, **(critic or {})})
    learner = ActorCritic(actor, build_critic(env.spec, values, streams(2)), config, team, streams(3), updates)
    starts = [100 * seed + 5 for seed in seeds]
    source = OnPolicy(env, actor, steps=config.steps, segment=config.sequence_length, streams=streams(4), seeds=starts)
    return SmallSwarm(env, actor, learner, source)
