"""Small PettingZoo environments that do what few others do, and what several tests do with them."""

import os
import sys
import time
from typing import Any, ClassVar, NamedTuple

import cloudpickle
import numpy as np
import torch
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv
from torch.nn.functional import pad

from envs.core import Discrete, EnvSpec, Observation, tree_map
from envs.pettingzoo import PettingZooEnv
from envs.world import Transition, World

# Worker processes get these environments by value, so that they need not import this file (and torch).
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SPREAD = "mpe2.simple_spread_v3:parallel_env"


def spread(num_envs: int, cycles: int = 5, **options: Any) -> PettingZooEnv:
    return PettingZooEnv(SPREAD, num_envs, options={"max_cycles": cycles}, **options)


def random_actions(env: PettingZooEnv, steps: int, seed: int = 0) -> torch.Tensor:
    assert isinstance(env.spec.action, Discrete)
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, env.num_envs, len(env.spec.agents))
    return torch.stack([torch.randint(n, shape, generator=generator) for n in env.spec.action.choices], -1)


def leaves(tree: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def keep(leaf: torch.Tensor) -> torch.Tensor:
        found.append(leaf)
        return leaf

    tree_map(keep, tree)
    return found


def rollout(env: PettingZooEnv, actions: torch.Tensor, seed: int | list[int] = 0) -> list[Any]:
    return [env.reset(seed), *(env.step(action) for action in actions)]


def play(env: PettingZooEnv) -> None:
    for action in random_actions(env, 9):
        env.step(action)


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(leaves(tuple(one)), leaves(tuple(other)), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


class Event(NamedTuple):
    leave: str = ""  # "terminated", "truncated", "vanish" or nothing
    come: bool = False


class Clockwork(ParallelEnv):
    """Three agents who see (their number, the time, a random constant) and come and go by a timetable."""

    metadata: ClassVar[Any] = {"name": "clockwork_v0"}
    render_mode = None
    timetable: ClassVar[Any] = {
        2: {"ant_0": Event("terminated")},
        3: {"ant_1": Event("truncated")},
        4: {"ant_0": Event(come=True)},
        5: {"bee_0": Event("vanish")},
        6: {"ant_0": Event("truncated")},
    }

    def __init__(self) -> None:
        self.possible_agents = ["ant_0", "ant_1", "bee_0"]
        self._seen = {name: spaces.Box(-10, 10, (3,), np.float64) for name in self.possible_agents}
        self._done = {name: spaces.Discrete(2, start=5) for name in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._seen[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._done[agent]

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.constant = np.random.default_rng(seed).uniform()
        self.time, self.agents = 0, list(self.possible_agents)
        return self.views(self.agents), {name: {} for name in self.agents}

    def views(self, names: list[str]) -> dict[str, Any]:
        return {name: np.array([1 + self.possible_agents.index(name), self.time, self.constant]) for name in names}

    def step(self, actions: dict[str, int]) -> Any:
        assert set(actions) == set(self.agents)
        assert all(self._done[name].contains(action) for name, action in actions.items())
        self.time += 1
        events = self.timetable.get(self.time, {})
        acted = list(self.agents)
        vanished = [name for name, event in events.items() if event.leave == "vanish"]
        leaving = [name for name, event in events.items() if event.leave]
        coming = [name for name, event in events.items() if event.come]
        told = [name for name in acted if name not in vanished]
        flags = [{n: n in events and events[n].leave == flag for n in told} for flag in ("terminated", "truncated")]
        self.agents = [name for name in self.possible_agents if name in {*acted, *coming} - set(leaving)]
        rewards = {name: float(self.time) for name in told}
        return self.views(told + coming), rewards, *flags, {name: {} for name in told + coming}


class Broken(Clockwork):
    """Clockwork that breaks its contract in one way at time 3."""

    def __init__(self, fault: str):
        super().__init__()
        self.fault = fault
        if fault == "spaces":
            self._seen["ant_0"] = spaces.Box(-10, 10, (np.random.default_rng().integers(3, 10**6),))
        if fault == "nested actions":
            self._done["ant_0"] = spaces.Tuple([spaces.Discrete(2)])
        if fault == "mixed actions":
            self._done["ant_0"] = spaces.Box(0, 1, (2,))

    timetable: ClassVar[Any] = {9: {name: Event("terminated") for name in ("ant_0", "ant_1", "bee_0")}}

    def step(self, actions: dict[str, int]) -> Any:
        observations, rewards, terminated, truncated, infos = super().step(actions)
        if self.time == 9 and self.fault == "unpaid at the end":
            del rewards["ant_1"]
        if self.time == 6:
            if self.fault == "shape":
                observations["ant_1"] = np.zeros(4)
            if self.fault == "nan observation":
                observations["ant_1"][1] = np.nan
            if self.fault == "nan reward":
                rewards["bee_0"] = np.nan
            if self.fault == "no reward":
                rewards["bee_0"] = None
            if self.fault == "reward in words":
                rewards["bee_0"] = "hi"
            if self.fault == "stranger":
                self.agents.append("cat_0")
            if self.fault == "missing":
                del observations["bee_0"]
            if self.fault == "unpaid":
                del rewards["ant_1"]
            if self.fault == "raises":
                raise ZeroDivisionError("the clock stands still")
            if self.fault == "exits":
                os._exit(7)
            if self.fault == "hangs":
                time.sleep(60)
        return observations, rewards, terminated, truncated, infos


class Fickle(Clockwork):
    """Clockwork that ignores its seed."""

    timetable: ClassVar[Any] = Broken.timetable

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(None)


class Zoo(Clockwork):
    """Agents who see and act in every supported space, with masks, a state of its own and vector rewards."""

    timetable: ClassVar[Any] = {4: {name: Event("truncated") for name in ("ant_0", "ant_1", "bee_0")}}

    def __init__(self, masked: bool = True) -> None:
        super().__init__()
        self.masked = masked
        box = spaces.Box(0, 255, (2, 2, 3), np.uint8)
        mask = spaces.Box(0, 1, (3,), np.int8)
        self._seen = {
            "ant_0": spaces.Dict({"observation": box, "action_mask": mask}),
            "ant_1": spaces.Discrete(4, start=1),
            "bee_0": spaces.Tuple([spaces.MultiBinary(2), spaces.Dict({"x": spaces.Box(-1, 1, (2,))})]),
        }
        self._done = {
            "ant_0": spaces.Discrete(3),
            "ant_1": spaces.MultiDiscrete([2, 4], start=[1, 0]),
            "bee_0": spaces.MultiBinary(2),
        }
        self.taken: dict[str, Any] = {}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        observations, _ = super().reset(seed)
        return observations, self.infos()

    def infos(self) -> dict[str, Any]:
        mask = (np.array([1, 0], np.int8), np.array([0, 1, 1, 0], np.int8))
        return {"ant_0": {}, "ant_1": {"action_mask": mask} if self.masked else {}, "bee_0": {}}

    def views(self, names: list[str]) -> dict[str, Any]:
        return {
            "ant_0": {"observation": np.full((2, 2, 3), 7 + self.time, np.uint8), "action_mask": np.array([0, 1, 1])},
            "ant_1": 1 + self.time % 4,
            "bee_0": (np.array([1, 0]), {"x": np.array([0.5, -0.5], np.float32)}),
        }

    def step(self, actions: dict[str, Any]) -> Any:
        for name, action in actions.items():
            assert self._done[name].contains(action), (name, action)
        self.taken, self.time = actions, self.time + 1
        out = dict.fromkeys(self.agents, self.time == 4)
        self.agents = [] if self.time == 4 else self.agents
        rewards = {name: np.array([1.0, -2.0]) for name in out}
        return self.views(list(out)), rewards, dict.fromkeys(out, False), out, self.infos()

    def state(self) -> Any:
        return np.array([[self.time, self.constant]])


class Reals(Clockwork):
    """Real actions of different sizes, which come back as observations."""

    timetable: ClassVar[Any] = Broken.timetable

    def __init__(self) -> None:
        super().__init__()
        self._done = {
            "ant_0": spaces.Box(-1, 1, (2, 2), np.float64),
            "ant_1": spaces.Box(np.float32(0), np.inf, (1,)),
            "bee_0": spaces.Box(-2, 2, (3,)),
        }
        self._seen = {name: spaces.Box(-np.inf, np.inf, (4,), np.float64) for name in self.possible_agents}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.taken: dict[str, Any] = {}
        return super().reset(seed)

    def views(self, names: list[str]) -> dict[str, Any]:
        taken = {name: np.ravel(self.taken.get(name, 0.0)) for name in names}
        return {name: np.pad(taken[name], (0, 4 - len(taken[name]))) for name in names}

    def step(self, actions: dict[str, Any]) -> Any:
        assert all(self._done[name].contains(action) for name, action in actions.items()), actions
        self.taken, self.time = actions, self.time + 1
        never = dict.fromkeys(self.agents, False)
        return self.views(self.agents), dict.fromkeys(self.agents, 0), never, never, {n: {} for n in self.agents}


class Bidding(AECEnv):
    """Three agents in turn. Who passes (choice 0 of 1..) is out; a bid pays the bidder 1 and costs everybody else 0.5.

    The player whose turn comes may choose only as many as are left. The last one left wins 10 and the game is over.
    """

    metadata: ClassVar[Any] = {"name": "bidding_v0"}
    render_mode = None

    def __init__(self, real: bool = False) -> None:
        self.possible_agents = ["p_0", "p_1", "p_2"]
        self.real = real
        self._seen = {name: spaces.Box(-1, 100, (2,), np.float32) for name in self.possible_agents}
        done = spaces.Box(-1, 1, (1,)) if real else spaces.Discrete(3)
        self._done = dict.fromkeys(self.possible_agents, done)

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._seen[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._done[agent]

    def observe(self, agent: str) -> Any:
        return np.array([self.time, self.possible_agents.index(agent)], np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.time, self.agents = 0, list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos = {name: self.info() for name in self.agents}
        self.agent_selection, self._skip_agent_selection = "p_0", None

    def info(self) -> dict[str, Any]:
        return {} if self.real else {"action_mask": np.array([1, 1, self.time % 2], np.int8)}

    def step(self, action: Any) -> None:
        me = self.agent_selection
        if self.terminations[me] or self.truncations[me]:
            return self._was_dead_step(action)
        assert self._done[me].contains(action)
        self.time += 1
        self._cumulative_rewards[me] = 0.0
        self._clear_rewards()
        following = self.agents[(self.agents.index(me) + 1) % len(self.agents)]
        passed = action[0] < 0 if self.real else action == 0
        for name in self.agents:
            self.rewards[name] = (0.0 if passed else 1.0) if name == me else (0.0 if passed else -0.5)
        if passed:
            self.terminations[me] = True
            if len(self.agents) == 2:
                self.terminations[following] = True
                self.rewards[following] = 10.0
        self.infos = {name: self.info() for name in self.agents}
        self._accumulate_rewards()
        self.agent_selection = following
        self._deads_step_first()
        return None


class Bursts(World[Any]):
    """A world with a clock, padding, masks, two rewards, chance, and agents that leave one by one."""

    def __init__(self) -> None:
        self.spec = EnvSpec(
            ("red_0", "blue_0"), (0, 1), ("gain", "loss"), (2, 3), (Discrete((3,)), Discrete((2, 4))), 2, horizon=9
        )

    def initial_noise(self, num: int, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(num, 1, generator=generator)

    def noise(self, num: int, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(num, 1, generator=generator)

    def initial(self, noise: torch.Tensor) -> torch.Tensor:
        return pad(noise, (0, 1))

    def transition(self, state: torch.Tensor, action: torch.Tensor, noise: torch.Tensor) -> Transition:
        state = torch.cat([noise, state[:, 1:] + 1], 1)
        reward = torch.stack([action.sum(-1), -action.sum(-1)], -1).float()
        leaving = torch.stack([state[:, 1] >= 3, state[:, 1] >= 99], 1)
        return Transition(state, reward, leaving)

    def observe(self, state: torch.Tensor) -> Observation:
        agent = torch.stack([pad(state, (0, 1)), torch.cat([state, state[:, :1] + 1], 1)], 1)
        legal = self.spec.legal.expand(len(state), -1, -1).clone()
        legal[:, 0, 1] = False
        return Observation(agent, state, torch.ones(len(state), 2, dtype=torch.bool), legal)

    def frame(self, state: torch.Tensor) -> Any:
        return np.full((4, 4, 3), int(state[0, 1]), np.uint8)
