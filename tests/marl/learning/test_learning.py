"""Small worlds are learned within seconds; `tests/learning` asks more seeds, from config to report."""

from __future__ import annotations

from typing import Any

import torch
from small_runs import build
from torch import Tensor

from envs.core import Discrete, EnvSpec, Observation
from envs.games import Identity, coordination
from envs.world import TensorEnv, Transition, World
from marl.evaluation.episodes import play


class Echo(World[Tensor]):
    """A fair bit is shown at the first of four steps; the last action earns 1 if it repeats the bit."""

    def __init__(self) -> None:
        self.spec = EnvSpec(("only",), (0,), ("right",), (1,), (Discrete((2,)),), 2, horizon=4)

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.randint(2, (num,), generator=generator, device=generator.device)

    def initial(self, noise: Tensor) -> Tensor:
        """The bit as -1 or 1, and the step."""
        return torch.stack([2.0 * noise - 1, torch.zeros_like(noise)], -1)

    def transition(self, state: Tensor, action: Tensor, noise: None) -> Transition:
        bit, step = state.unbind(-1)
        right = (action[:, 0, 0] == (bit > 0)) & (step == 3)
        return Transition(torch.stack([bit, step + 1], -1), right.float().view(-1, 1, 1))

    def observe(self, state: Tensor) -> Observation:
        shown = state[:, :1] * (state[:, 1:] == 0)
        return Observation(shown.unsqueeze(1), state, torch.ones(len(state), 1, dtype=torch.bool))


def learned(world: World[Any], updates: int, kind: str = "mlp", **settings: Any) -> float:
    """The mean return of an agent after so many updates."""
    small = build(
        world,
        32,
        steps=16,
        epochs=4,
        learning_rate=0.01,
        policy={"network": {"kind": kind, "hidden": (16,)}},
        critic={"sees": "agent", "network": {"kind": kind, "hidden": (16,)}},
        **settings,
    )
    small.train(updates)
    return float(play(TensorEnv(world, 256), small.policy, 512, seed=1).per_agent.mean())


def test_independent_agents_learn_to_answer_and_to_coordinate() -> None:
    assert learned(Identity(4, agents=2), 40) > 0.97
    assert learned(coordination(), 25) > 2.4


def test_only_an_agent_that_remembers_learns_to_repeat_what_it_saw() -> None:
    assert learned(Echo(), 20, "gru", sequence_length=8) > 0.95
    assert 0.4 < learned(Echo(), 20) < 0.6
