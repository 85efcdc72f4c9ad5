"""Worlds for the tests of both worlds and learners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from envs.core import Continuous, Discrete, EnvSpec, Observation
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
        return torch.empty(num, 0, device=generator.device)

    def initial(self, noise: Tensor) -> Tensor:
        return noise.new_zeros(len(noise), 2)

    def noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.randn(num, 2, 2, generator=generator, device=generator.device)

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Transition:
        position = state + 0.2 * action[..., 0] + 0.5 * noise[..., 0]
        return Transition(position, position.abs().unsqueeze(-1), position.abs() > 2)

    def observe(self, state: Tensor) -> Observation:
        return Observation(state.unsqueeze(-1), state, torch.ones_like(state, dtype=torch.bool))


class TabularGame(World[Tensor]):
    """A random game of S states: where each joint choice leads, what it earns all agents, and the states that end."""

    def __init__(self, states: int = 6, choices: int = 3, agents: int = 2, seed: int = 0):
        g = torch.Generator().manual_seed(seed)
        self.states, self.choices, joint = states, choices, choices**agents
        self.successor = torch.randint(states, (states, joint), generator=g)
        self.reward = torch.randn(states, joint, generator=g)
        self.ends = torch.arange(states) == states - 1
        self.spec = EnvSpec(
            agents=tuple(f"agent_{i}" for i in range(agents)),
            kind=(0,) * agents,
            channels=("reward",),
            observation_sizes=(states,) * agents,
            actions=(Discrete((choices,)),) * agents,
            state_size=states,
        )

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.states - 1, (num,), generator=generator, device=generator.device)

    def initial(self, noise: Tensor) -> Tensor:
        return noise

    def transition(self, state: Tensor, action: Tensor, noise: None) -> Transition:
        agents = action.shape[1]
        place = sum(action[:, i, 0] * self.choices ** (agents - 1 - i) for i in range(agents))
        earned = self.reward[state, place].view(-1, 1, 1).expand(-1, agents, 1)
        after = self.successor[state, place]
        return Transition(after, earned, self.ends[after].unsqueeze(1).expand(-1, agents))

    def observe(self, state: Tensor) -> Observation:
        seen = torch.nn.functional.one_hot(state, self.states).float()
        agents = len(self.spec.agents)
        alive = torch.ones(len(state), agents, dtype=torch.bool)
        return Observation(seen.unsqueeze(1).expand(-1, agents, -1), seen, alive)

    def q_of(self, policy: Tensor, discount: float) -> tuple[Tensor, Tensor]:
        """V [S] and Q [S,J] of a joint policy [S,J]."""
        value = torch.zeros(self.states, dtype=torch.float64)
        goes_on = ~self.ends[self.successor]
        while True:
            q = self.reward.double() + discount * value[self.successor] * goes_on
            better = (policy * q).sum(1)
            if float((better - value).abs().max()) < 1e-12:
                return value, q
            value = better


class Misformed(World[Tensor]):
    """Two agents and two channels; what it gives is altered as `ALTERED` or `DOUBLE` say."""

    def __init__(self, altered: str):
        self.alter = (ALTERED | DOUBLE)[altered][0]
        self.spec = EnvSpec(("x", "y"), (0, 0), ("a", "b"), (3, 3), (Discrete((3,)),) * 2, 1)

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.rand(num, 1, generator=generator, device=generator.device)

    def initial(self, noise: Tensor) -> Tensor:
        return noise

    def transition(self, state: Tensor, action: Tensor, noise: None) -> Any:
        given = Transition(state, torch.ones(len(state), 2, 2), (state > 0.9).expand(-1, 2))
        return self.alter(given)

    def observe(self, state: Tensor) -> Any:
        alive = torch.ones(len(state), 2, dtype=torch.bool)
        return self.alter(Observation(torch.zeros(len(state), 2, 3), state, alive))


def _of_transition(alter: Callable[[Transition], Any]) -> Callable[[Any], Any]:
    return lambda given: alter(given) if isinstance(given, Transition) else given


def _of_observation(alter: Callable[[Observation], Any]) -> Callable[[Any], Any]:
    return lambda given: given if isinstance(given, Transition) else alter(given)


def _double(obs: Observation) -> Observation:
    return Observation(obs.agent.double(), obs.state.double(), obs.alive)


# What is altered, and how that is told.
ALTERED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "one reward for all": (
        _of_transition(lambda t: t._replace(reward=t.reward[:, :1])),
        r"transition\(…\)\.reward must be float32 \[E,N,K\] = \[\d+, 2, 2\].* it is float32 \[\d+, 1, 2\]",
    ),
    "no channels": (_of_transition(lambda t: t._replace(reward=t.reward[..., 0])), r"it is float32 \[\d+, 2\] on"),
    "too many channels": (
        _of_transition(lambda t: t._replace(reward=t.reward.repeat(1, 1, 2))),
        r"it is float32 \[\d+, 2, 4\] on",
    ),
    "whole rewards": (_of_transition(lambda t: t._replace(reward=t.reward.long())), r"it is int64 \[\d+, 2, 2\]"),
    "ends of rows": (
        _of_transition(lambda t: t._replace(terminated=t.terminated[:, 0])),
        r"terminated must be bool \[E,N\] = \[\d+, 2\].* it is bool \[\d+\]",
    ),
    "real ends": (_of_transition(lambda t: t._replace(terminated=t.terminated.float())), r"it is float32 \[\d+, 2\]"),
    "a tuple": (_of_transition(tuple), r"transition\(…\) must be of type Transition; it is of type tuple"),
    "narrow views": (
        _of_observation(lambda o: Observation(o.agent[..., :2], o.state, o.alive)),
        r"observe\(…\)\.agent must be float32 \[E,N,D\] = \[\d+, 2, 3\].* it is float32 \[\d+, 2, 2\]",
    ),
    "a view": (_of_observation(lambda o: o.agent), r"observe\(…\) must be of type Observation; it is of type Tensor"),
}
DOUBLE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "double rewards": (
        _of_transition(lambda t: t._replace(reward=t.reward.double())),
        r"reward must be float32 .* it is float64",
    ),
    "double views": (_of_observation(_double), r"agent must be float32 .* it is float64"),
}
