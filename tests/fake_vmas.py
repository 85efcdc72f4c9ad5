"""A small package with the public surface of VMAS that the adapter uses, and the habits that make it hard to save."""

from __future__ import annotations

import random
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor

STREAM = [torch.random.get_rng_state()]  # shared by all simulators, as there


class Entity:
    def __init__(self, name: str, rows: int):
        self.name, self.place = name, torch.zeros(rows, 2)


class Scenario:
    """Walkers, of whom each sees itself and its goal, the last one its goal's speed too.

    A row is done when walker 0 has gone far. Goals are dealt anew when all rows start together.
    """

    agents = 3

    def make(self, rows: int, agents: int = 3, hidden: bool = False) -> Any:
        self.walkers = [Entity(f"agent_{i}", rows) for i in range(agents)]
        self.goals = [Entity(f"goal_{i}", rows) for i in range(agents)]
        self.weight = float(torch.rand(()))  # drawn while the world is made
        self.pushed: dict[Any, Tensor] = {}
        if hidden:
            self.far = np.full(rows, 0.7)
        return types.SimpleNamespace(walkers=self.walkers, goals={frozenset([g.name]): g for g in self.goals})

    def reset(self, row: int | None = None) -> None:
        if row is None:
            self.dealt = [self.goals[i] for i in torch.randperm(len(self.goals)).tolist()]
        where = slice(None) if row is None else row
        for thing in (*self.walkers, *self.goals):
            thing.place[where] = torch.rand_like(thing.place[where]) - 0.5

    def step(self, moves: list[Tensor]) -> list[Tensor]:
        self.pushed = {w: 0.1 * move + 0.01 * torch.randn_like(move) for w, move in zip(self.walkers, moves)}
        for walker, push in self.pushed.items():
            walker.place += push
        return [-self.weight * (w.place - g.place).norm(dim=-1) for w, g in zip(self.walkers, self.dealt)]

    def seen(self) -> list[Any]:
        both = [{"me": w.place, "goal": g.place} for w, g in zip(self.walkers, self.dealt)]
        return [*both[:-1], torch.cat([*both[-1].values(), both[-1]["me"][:, :1]], 1)]

    def done(self) -> Tensor:
        return self.walkers[0].place.norm(dim=-1) > 0.9


class Simulator:
    def __init__(self, scenario: Scenario, rows: int, seed: int, continuous: bool, **options: Any):
        self.scenario, self.continuous, self.calls = scenario, continuous, {"reset": 0, "reset_at": 0}
        with self._stream():
            self.world = scenario.make(rows, **options)
            torch.manual_seed(seed)
            scenario.reset()
        self.agents, self.rows = scenario.walkers, rows
        spaces = [Box(-1, 1, (2,), np.float32) if continuous else Discrete(5) for _ in self.agents]
        self.action_space = spaces if continuous else [*spaces[:-1], MultiDiscrete([3, 3])]

    @contextmanager
    def _stream(self) -> Iterator[None]:
        kept = torch.random.get_rng_state()
        torch.random.set_rng_state(STREAM[0])
        yield
        STREAM[0] = torch.random.get_rng_state()
        torch.random.set_rng_state(kept)

    def seed(self, seed: int) -> None:
        with self._stream():
            torch.manual_seed(seed)

    def reset(self) -> list[Any]:
        self.calls["reset"] += 1
        with self._stream():
            self.scenario.reset()
        return self.scenario.seen()

    def reset_at(self, index: int, return_observations: bool = True) -> list[Any] | None:
        self.calls["reset_at"] += 1
        with self._stream():
            self.scenario.reset(index)
        return self.scenario.seen() if return_observations else None

    def step(self, actions: list[Tensor]) -> tuple[Any, ...]:
        with self._stream():
            reward = self.scenario.step([self._move(action) for action in actions])
        done = self.scenario.done()
        return self.scenario.seen(), reward, done, torch.zeros_like(done), [{}] * len(actions)

    def _move(self, action: Tensor) -> Tensor:
        if self.continuous:
            return action.clamp(-1, 1)
        if action.shape[1] == 2:
            return action - 1.0
        return torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])[action[:, 0]]

    def render(self, mode: str, env_index: int) -> Any:
        raise OSError("no display")


def make_env(
    scenario: Any,
    num_envs: int,
    device: Any,
    continuous_actions: bool,
    seed: int,
    clamp_actions: bool,
    terminated_truncated: bool,
    **options: Any,
) -> Simulator:
    assert clamp_actions
    assert terminated_truncated
    if "nonsense" in options:
        warnings.warn(f"Scenario kwargs: {options} passed but not used by the scenario.", stacklevel=1)
    made = Scenario() if isinstance(scenario, str) else scenario
    return Simulator(made, num_envs, seed, continuous_actions, **options)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import vmas` find this."""
    module: Any = types.ModuleType("vmas")
    module.make_env, module.scenarios = make_env, ["meeting"]
    module.mpe_scenarios, module.debug_scenarios = ["simple"], ["goal"]
    monkeypatch.setitem(sys.modules, "vmas", module)
    STREAM[0] = torch.Generator().manual_seed(random.getrandbits(31)).get_state()  # nobody may rely on it
