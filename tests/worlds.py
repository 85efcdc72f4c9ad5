"""A world for the tests of both worlds and learners."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.core import Continuous, EnvSpec, Observation
from envs.world import Transition, World


class Walk(World[Tensor]):
    """Two random walkers, each gone beyond distance 2; the start is fixed, only the steps are random."""

    def __init__(self, horizon: int | None = None):
        self.spec = EnvSpec(
            agents=("x", "y"),
            kind=(0, 1),
            channels=("distance",),
            observation_sizes=(1, 1),
            actions=(Continuous((-1.0,), (3.0,)), Continuous((-1.0, -0.5), (1.0, 0.5))),
            state_size=2,
            horizon=horizon,
        )

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.empty(num, 0)

    def initial(self, noise: Tensor) -> Tensor:
        return noise.new_zeros(len(noise), 2)

    def noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.randn(num, 2, 2, generator=generator)

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Transition:
        position = state + 0.2 * action[..., 0] + 0.5 * noise[..., 0]
        return Transition(position, position.abs().unsqueeze(-1), position.abs() > 2)

    def observe(self, state: Tensor) -> Observation:
        return Observation(state.unsqueeze(-1), state, torch.ones_like(state, dtype=torch.bool))
