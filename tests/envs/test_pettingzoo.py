import copy
import importlib
import inspect
import os
import pickle
import pkgutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import cloudpickle
import numpy as np
import pytest
import torch
from gymnasium import spaces
from mpe2 import simple_speaker_listener_v4, simple_spread_v3
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.conversions import parallel_to_aec
from torch.nn.functional import pad

import envs
from envs import games
from envs.core import ConcordError, Discrete, EnvSpec, InputError, Observation, tree_map
from envs.particles import SimpleSpread, SpeakerListener
from envs.pettingzoo import ParallelWorld, PettingZooEnv, parallel_env, workers
from envs.testing import check_env
from envs.world import TensorEnv, Transition, World

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
        if self.time == 6:
            if self.fault == "shape":
                observations["ant_1"] = np.zeros(4)
            if self.fault == "nan observation":
                observations["ant_1"][1] = np.nan
            if self.fault == "nan reward":
                rewards["bee_0"] = np.nan
            if self.fault == "stranger":
                self.agents.append("cat_0")
            if self.fault == "missing":
                del observations["bee_0"]
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


# --- from PettingZoo to tensors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [simple_spread_v3, simple_speaker_listener_v4])
def test_rows_show_exactly_what_the_environment_does(module: Any) -> None:
    env = PettingZooEnv(module.parallel_env, 2, options={"max_cycles": 4})
    actions = random_actions(env, 10)
    obs = env.reset(3)
    seeds = [int(np.random.SeedSequence(3, spawn_key=(1, k)).generate_state(1)[0]) >> 1 for k in range(4)]
    raw, episode = module.parallel_env(max_cycles=4), 0
    seen, _ = raw.reset(seed=seeds[0])
    for action in actions % torch.tensor([[space.choices[0]] for space in env.spec.actions]):
        for slot, name in enumerate(env.spec.agents):
            size = env.spec.observation_sizes[slot]
            np.testing.assert_array_equal(obs.agent[1, slot, :size].numpy(), seen[name])
            assert not obs.agent[1, slot, size:].any()
        np.testing.assert_array_equal(obs.state[1].numpy(), raw.state())
        seen, rewards, _, truncated, _ = raw.step({n: int(a) for n, a in zip(env.spec.agents, action[1, :, 0])})
        step = env.step(action)
        np.testing.assert_array_equal(step.reward[1, :, 0].numpy(), np.float32([*rewards.values()]))
        assert step.truncated[1].tolist() == list(truncated.values())
        assert not step.terminated.any()
        assert step.ended[1] == (not raw.agents)
        for slot, name in enumerate(env.spec.agents):
            np.testing.assert_array_equal(step.final_obs.agent[1, slot, : seen[name].size].numpy(), seen[name])
        np.testing.assert_array_equal(step.final_obs.state[1].numpy(), raw.state())
        obs = step.obs
        if not raw.agents:
            episode += 1
            seen, _ = raw.reset(seed=seeds[episode])
    assert episode == 2


def test_spec_tells_padding_kinds_and_choices() -> None:
    env = PettingZooEnv(simple_speaker_listener_v4.parallel_env, 1)
    assert env.spec.observation_sizes == (3, 11)
    assert env.spec.kind == (0, 1)
    assert env.spec.channels == ("reward",)
    obs = env.reset(0)
    assert obs.legal is not None
    assert env.spec.legal is not None
    assert torch.equal(obs.legal[0], env.spec.legal)
    assert spread(1).spec.kind == (0, 0, 0)
    assert PettingZooEnv(Clockwork, 1).spec.kind == (0, 0, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: spread(rows, cycles=7),
        lambda rows: PettingZooEnv("pettingzoo.classic.tictactoe.tictactoe:raw_env", rows),
        lambda rows: PettingZooEnv("pettingzoo.classic.rps.rps:raw_env", rows, options={"max_cycles": 3}),
        lambda rows: PettingZooEnv(Zoo, rows),
        lambda rows: PettingZooEnv(Reals, rows),
        lambda rows: PettingZooEnv(Clockwork, rows),
        lambda rows: PettingZooEnv(Bidding, rows),
        lambda rows: PettingZooEnv(lambda: Bidding(real=True), rows),
        lambda rows: PettingZooEnv(lambda: parallel_env(Bursts()), rows),
    ],
)
def test_the_contract_of_vector_environments_holds(make: Any) -> None:
    check_env(make, steps=20)


def test_the_cycled_shortcut_agrees_with_pettingzoos_own_wrapper() -> None:
    class Plain(ParallelEnv):
        def __init__(self) -> None:
            self.inner = simple_spread_v3.parallel_env(max_cycles=6)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        observation_space = property(lambda self: self.inner.observation_space)
        action_space = property(lambda self: self.inner.action_space)
        reset = property(lambda self: self.inner.reset)
        step = property(lambda self: self.inner.step)
        state = property(lambda self: self.inner.state)

    fast, plain = spread(2, 6), PettingZooEnv(Plain, 2)
    actions = random_actions(fast, 20)
    assert_same(rollout(fast, actions), rollout(plain, actions))


@pytest.mark.parametrize("state", ["env", "observations"])
def test_every_state_source_gives_the_same_where_state_is_the_observations(state: Any) -> None:
    env = spread(2, 4, state=state)
    actions = random_actions(env, 9)
    assert_same(rollout(env, actions), rollout(spread(2, 4), actions))


def test_agents_die_vanish_and_come_back() -> None:
    env = PettingZooEnv(Clockwork, 1)
    obs = env.reset(0)
    constant = float(obs.agent[0, 0, 2])
    alive = [obs.alive[0].tolist()]
    flags, finals, rewards = [], [], []
    for _ in range(6):
        step = env.step(torch.zeros(1, 3, 1, dtype=torch.int64))
        assert step.final_obs.alive[0].tolist() == alive[-1]
        assert not step.obs.agent[~step.obs.alive].any()
        assert not step.reward[~step.final_obs.alive].any()
        assert torch.equal(step.obs.state, step.obs.agent.flatten(1))
        assert torch.equal(step.final_obs.state, step.final_obs.agent.flatten(1))
        alive.append(step.obs.alive[0].tolist())
        flags.append((step.terminated[0].nonzero().flatten().tolist(), step.truncated[0].nonzero().flatten().tolist()))
        finals.append(step.final_obs.agent[0].tolist())
        rewards.append(step.reward[0, :, 0].tolist())
    yes, no = True, False
    assert alive[:6] == [[yes] * 3, [yes] * 3, [no, yes, yes], [no, no, yes], [yes, no, yes], [yes, no, no]]
    assert flags == [([], []), ([0], []), ([], [1]), ([], []), ([2], []), ([], [0])]
    assert rewards == [[1, 1, 1], [2, 2, 2], [0, 3, 3], [0, 0, 4], [5, 0, 0], [6, 0, 0]]
    assert finals[1][0] == [1, 2, constant]  # who leaves still sees where it led
    assert finals[2] == [[0, 0, 0], [2, 3, constant], [3, 3, constant]]
    assert finals[4][2] == [3, 4, constant]  # who vanishes is left with what it saw last
    assert finals[5] == [[1, 6, constant], [0, 0, 0], [0, 0, 0]]
    assert step.ended.tolist() == [True]
    assert step.obs.alive.all()
    assert step.obs.agent[0, :, 1].tolist() == [0, 0, 0]
    assert float(step.obs.agent[0, 0, 2]) != constant


def test_every_space_is_encoded_and_decoded() -> None:
    env = PettingZooEnv(Zoo, 1)
    assert env.spec.observation_sizes == (12, 4, 4)
    assert env.spec.channels == ("reward_0", "reward_1")
    assert env.spec.actions == (Discrete((3,)), Discrete((2, 4)), Discrete((2, 2)))
    assert env.spec.state_size == 2
    obs = env.reset(0)
    assert obs.agent[0, 0].tolist() == [7] * 12
    assert obs.agent[0, 1, :4].tolist() == [1, 0, 0, 0]
    assert obs.agent[0, 2, :4].tolist() == [1, 0, 0.5, -0.5]
    assert obs.legal is not None
    assert obs.legal[0].int().tolist() == [[0, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 1, 1, 0], [1, 1, 0, 1, 1, 0, 0]]
    step = env.step(torch.tensor([[[2, 0], [0, 1], [1, 0]]]))
    taken = env._rows._rows[0].play.env.taken
    assert taken["ant_0"] == 2
    assert taken["ant_1"].tolist() == [1, 1]
    assert taken["bee_0"].tolist() == [1, 0]
    assert step.reward[0].tolist() == [[1, -2]] * 3
    assert step.obs.state[0, 0] == 1
    assert all(leaf.dtype in (torch.float32, torch.bool) for leaf in leaves(step))
    assert PettingZooEnv(Zoo, 1, channels=["gain", "cost"]).spec.channels == ("gain", "cost")


def test_real_actions_are_clipped_and_come_without_padding() -> None:
    env = PettingZooEnv(Reals, 1)
    assert env.reset(0).legal is None
    step = env.step(torch.tensor([[[9.0, -9, 0.25, 0.1], [-3, 7, 7, 7], [-5, 1, 5, 7]]], dtype=torch.float64))
    torch.testing.assert_close(
        step.obs.agent[0], torch.tensor([[1, -1, 0.25, 0.1], [0, 0, 0, 0], [-2, 1, 2, 0]]), rtol=0, atol=0
    )
    with pytest.raises(InputError, match="not a finite number"):
        env.step(torch.full((1, 3, 4), torch.nan))


def test_in_turns_only_one_agent_has_a_choice() -> None:
    env = PettingZooEnv(Bidding, 1)
    obs = env.reset(0)
    assert obs.alive.all()
    assert obs.legal is not None
    assert obs.legal[0].int().tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 0]]
    step = env.step(torch.tensor([[[1], [0], [0]]]))  # p_0 bids
    assert step.reward[0, :, 0].tolist() == [1, -0.5, -0.5]
    assert step.obs.legal is not None
    assert step.obs.legal[0].int().tolist() == [[1, 0, 0], [1, 1, 1], [1, 0, 0]]
    step = env.step(torch.tensor([[[0], [0], [0]]]))  # p_1 passes, and is out
    assert step.terminated[0].tolist() == [False, True, False]
    assert step.final_obs.agent[0, 1].tolist() == [2, 1]
    assert step.obs.alive[0].tolist() == [True, False, True]
    step = env.step(torch.tensor([[[0], [0], [1]]]))  # p_2 bids
    assert step.reward[0, :, 0].tolist() == [-0.5, 0, 1]
    step = env.step(torch.tensor([[[0], [0], [1]]]))  # p_0 passes, p_2 wins
    assert step.reward[0, :, 0].tolist() == [0, 0, 10]
    assert step.terminated[0].tolist() == [True, False, True]
    assert step.final_obs.agent[0].tolist() == [[4, 0], [0, 0], [4, 2]]
    assert step.ended.all()
    assert step.obs.alive.all()


def test_in_turns_no_reward_is_lost_or_counted_twice() -> None:
    """Summed between two turns, rewards are what `last()` accumulates, on tic-tac-toe and on mpe2 in turns."""
    for make in (Bidding, lambda: simple_spread_v3.env(max_cycles=4)):
        env, raw = PettingZooEnv(make, 1), make()
        obs = env.reset(5)
        seed = int(np.random.SeedSequence(5, spawn_key=(0, 0)).generate_state(1)[0]) >> 1
        raw.reset(seed=seed)
        generator = np.random.default_rng(0)
        earned, expected = torch.zeros(len(env.spec.agents)), dict.fromkeys(env.spec.agents, 0.0)
        while raw.agents:
            name = raw.agent_selection
            _, reward, terminated, truncated, _ = raw.last()
            expected[name] += float(reward)
            if terminated or truncated:
                raw.step(None)
                continue
            slot = env.spec.agents.index(name)
            assert obs.legal is not None
            action = torch.zeros(1, len(env.spec.agents), 1, dtype=torch.int64)
            action[0, slot] = int(generator.choice(obs.legal[0, slot].nonzero().flatten().numpy()))
            raw.step(int(action[0, slot]))
            step = env.step(action)
            earned, obs = earned + step.reward[0, :, 0], step.obs
        assert step.ended.all()
        torch.testing.assert_close(earned, torch.tensor([*expected.values()]), rtol=0, atol=1e-5)


def test_tensors_that_were_handed_out_are_never_written_again() -> None:
    env = spread(2, 3)
    steps = rollout(env, random_actions(env, 4))
    copies = [leaf.clone() for leaf in leaves(tuple(steps))]
    rollout(env, random_actions(env, 4, seed=1), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(leaves(tuple(steps)), copies))


def test_a_seed_fixes_whole_episodes_and_all_rows_differ() -> None:
    env = spread(8, 3)
    actions = random_actions(env, 8)
    first, second = rollout(env, actions), rollout(spread(8, 3), actions)
    assert_same(first, second)
    starts = torch.cat([first[0].agent, *(step.obs.agent for step in first[1:] if step.ended.any())]).flatten(1)
    assert len(starts) == 24
    assert torch.pdist(starts).min() > 1e-3
    assert not torch.equal(env.reset(1).agent, first[0].agent)


def test_blocks_of_seeds_are_as_environments_of_their_own() -> None:
    env = spread(4, 3)
    actions = random_actions(env, 8)
    together = rollout(env, actions, [7, 8])
    for block, seed in enumerate((7, 8)):
        rows = slice(2 * block, 2 * block + 2)
        alone = rollout(spread(2, 3), actions[:, rows], seed)
        assert_same(tree_map(lambda leaf, rows=rows: leaf[rows], tuple(together)), alone)


def test_a_native_world_started_from_mpe2s_state_agrees() -> None:
    env = spread(3, 30)
    env.reset(0)

    def body(row: Any) -> torch.Tensor:
        world = row.play.env.unwrapped.world
        parts = [[a.state.p_vel for a in world.agents], [e.state.p_pos for e in world.entities]]
        return torch.tensor(np.concatenate(parts)).T

    native = SimpleSpread(dtype=torch.float64)
    state = native.at(torch.stack([body(row) for row in env._rows._rows]))
    for action in random_actions(env, 25):
        step, transition = env.step(action), native.transition(state, action, None)
        state = transition.state
        torch.testing.assert_close(step.reward.double(), transition.reward, rtol=0, atol=1e-5)
        torch.testing.assert_close(step.obs.agent.double(), native.observe(state).agent, rtol=0, atol=1e-6)


def test_a_row_restarts_although_the_environment_still_lists_who_has_left() -> None:
    class Careless(Clockwork):
        def step(self, actions: dict[str, int]) -> Any:
            listed = list(self.agents)
            observations, rewards, _, _, infos = super().step(actions)
            self.agents = listed
            over = dict.fromkeys(listed, self.time == 2)
            return observations, rewards, dict.fromkeys(listed, False), over, infos

    env = PettingZooEnv(Careless, 1)
    env.reset(0)
    ends = [env.step(action) for action in random_actions(env, 4)]
    assert [bool(step.ended) for step in ends] == [False, True, False, True]
    assert ends[1].truncated.all()


# --- workers ----------------------------------------------------------------------------------------------------------


def test_workers_give_the_same_rollout_as_the_list_and_resume_it() -> None:
    local, remote = spread(5, 4), spread(5, 4, workers=2)
    try:
        actions = random_actions(local, 18)
        expected = rollout(local, actions[:10], [3])
        found = rollout(remote, actions[:10], [3])
        assert_same(expected, found)
        assert torch.pdist(found[0].agent.flatten(1)).min() > 1e-3
        saved = pickle.loads(pickle.dumps(remote.state_dict()))
        rest = [remote.step(action) for action in actions[10:]]
        assert_same([remote.load_state_dict(saved)], [found[-1].obs])
        assert_same([remote.step(action) for action in actions[10:]], rest)
        fresh = spread(5, 4)
        fresh.load_state_dict(saved)
        assert_same([fresh.step(action) for action in actions[10:]], rest)
    finally:
        remote.close()
        remote.close()
    with pytest.raises(InputError, match="reset"):
        remote.step(actions[0])


@pytest.mark.parametrize(
    ("fault", "message"),
    [("exits", "exit code 7"), ("raises", "ZeroDivisionError: the clock stands still"), ("hangs", "within 1 s")],
)
def test_a_worker_that_fails_says_so(fault: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = PettingZooEnv(lambda: Broken(fault), 2, workers=1)
    env.reset(0)
    monkeypatch.setattr(workers, "PATIENCE", 1.0)
    with pytest.raises(ConcordError, match=message) as caught:
        play(env)
    assert caught.value.exit_code == 1
    assert "orker 0" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConcordError, match="closed"):
        play(env)


def test_workers_import_no_torch() -> None:
    code = "import sys, envs.pettingzoo.workers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_worker_reports_bad_environments_as_bad_input() -> None:
    lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be sent"):
        PettingZooEnv(lambda: lock, 1, workers=1)
    with pytest.raises(InputError, match="object"):
        PettingZooEnv(object, 1, workers=1)


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [simple_spread_v3.parallel_env, Reals, lambda: Bidding(real=True), Clockwork],
    ids=["mpe2", "real", "aec", "deaths"],
)
def test_resuming_mid_episode_continues_exactly(make: Any) -> None:
    env = PettingZooEnv(make, 3)
    generator = torch.Generator().manual_seed(0)

    def act() -> torch.Tensor:
        shape = (3, len(env.spec.agents), env.spec.action.size)
        if isinstance(env.spec.action, Discrete):
            return torch.randint(2, shape, generator=generator)
        return torch.rand(shape, generator=generator)

    env.reset([4, 5, 6])
    for _ in range(8):
        last = env.step(act())
    saved, resume_at = env.state_dict(), generator.get_state()
    rest = [env.step(act()) for _ in range(7)]
    other = PettingZooEnv(make, 3)
    assert_same([other.load_state_dict(saved)], [last.obs])
    again = other.state_dict()
    assert all(torch.equal(again[name], saved[name]) for name in ("episode", "length", "actions"))
    generator.set_state(resume_at)
    assert_same([other.step(act()) for _ in range(7)], rest)


def test_episodes_without_end_can_be_resumed_too() -> None:
    env = PettingZooEnv(Reals, 2)
    env.reset(0)
    for t in range(150):  # longer than the memory of actions is at first
        last = env.step(torch.full((2, 3, 4), t / 150))
    saved = env.state_dict()
    assert saved["actions"].shape == (300, 3, 4)
    assert_same([PettingZooEnv(Reals, 2).load_state_dict(saved)], [last.obs])


def test_irreproducible_environments_are_refused_unless_episodes_may_restart() -> None:
    env = PettingZooEnv(Fickle, 2)
    env.reset(0)
    for action in random_actions(env, 4):
        env.step(action)
    saved = env.state_dict()
    with pytest.raises(ConcordError, match=r"resume\.restart_episodes=true"):
        PettingZooEnv(Fickle, 2).load_state_dict(saved)
    lenient = PettingZooEnv(Fickle, 2, restart_episodes=True)
    obs = lenient.load_state_dict(saved)
    assert obs.agent[:, :, 1].tolist() == [[0, 0, 0]] * 2
    assert lenient.state_dict()["length"].tolist() == [0, 0]
    lenient.step(action)
    assert lenient.state_dict()["episode"].tolist() == [1, 1]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shape", r"Environment 0: 'ant_1' observes an array of shape \(4,\); its observation space says \(3,\)"),
        ("nan observation", r"Environment 0 gave 'ant_1' the observation nan \(index 1\)"),
        ("nan reward", "Environment 0 gave 'bee_0' the reward nan"),
        ("stranger", "an agent 'cat_0'"),
        ("missing", "'bee_0' is alive, but got no observation"),
    ],
)
def test_bad_environments_are_told_what_is_wrong(fault: str, message: str) -> None:
    env = PettingZooEnv(lambda: Broken(fault), 2)
    env.reset(0)
    with pytest.raises(InputError, match=message):
        play(env)


def test_an_environment_that_raises_is_named_with_the_line() -> None:
    env = PettingZooEnv(lambda: Broken("raises"), 2)
    env.reset(0)
    with pytest.raises(
        ConcordError, match=r"Environment 0 raised ZeroDivisionError: .*test_pettingzoo\.py, line"
    ) as caught:
        play(env)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_cannot_be_an_environment_is_refused() -> None:
    class Forbidding(Zoo):
        def infos(self) -> dict[str, Any]:
            return {"ant_1": {"action_mask": np.zeros(6, np.int8)}, "ant_0": {}, "bee_0": {}}

    env = PettingZooEnv(lambda: Broken("none"), 1)
    env.reset(0)
    same = Clockwork()
    cases = [
        (lambda: PettingZooEnv(dict, 1), "it made a builtins.dict"),
        (lambda: PettingZooEnv("mpe2.simple_spread_v3:parallel_em", 1), "parallel_env"),
        (lambda: PettingZooEnv("mpe2.simple_spread_v3", 1), "must be a function"),
        (lambda: PettingZooEnv(lambda: Broken("spaces"), 2), "copies differ in observation_spaces"),
        (lambda: PettingZooEnv(lambda: same, 2), "same object twice"),
        (lambda: PettingZooEnv(lambda: Broken("nested actions"), 1), "actions of 'ant_0' are a Tuple"),
        (lambda: PettingZooEnv(lambda: Broken("mixed actions"), 1), "all discrete or all continuous"),
        (lambda: PettingZooEnv(Forbidding, 1).reset(0), "forbids every choice"),
        (lambda: PettingZooEnv(Clockwork, 1, state="env"), "needs an environment whose state"),
        (lambda: PettingZooEnv(Clockwork, 0), "at least 1"),
        (lambda: PettingZooEnv(Clockwork, 2, workers=3), "workers is from 0"),
        (lambda: PettingZooEnv(Clockwork, 3).reset([1, 2]), "shared equally"),
        (lambda: PettingZooEnv(Clockwork, 3).reset(-1), "not negative"),
        (lambda: env.step(torch.full((1, 3, 1), 2)), "ant_0 has choices 0 to 1; got 2"),
        (lambda: env.step(torch.zeros(1, 3, 2, dtype=torch.int64)), r"shape \[1, 3, 1\]"),
        (lambda: env.step(torch.zeros(1, 3, 1)), "whole numbers"),
        (env.frame, "render"),
    ]
    for attempt, message in cases:
        with pytest.raises(InputError, match=message):
            attempt()


def test_a_row_can_be_drawn() -> None:
    env = PettingZooEnv(lambda: parallel_env(Bursts(), render_mode="rgb_array"), 2)
    env.reset(0)
    env.step(torch.zeros(2, 2, 2, dtype=torch.int64))
    assert env.frame().tolist() == np.full((4, 4, 3), 1).tolist()


# --- from worlds to PettingZoo ----------------------------------------------------------------------------------------


def native_worlds() -> dict[str, Callable[..., World[Any]]]:
    """Every world of `envs`, and every function that makes one, by dotted path."""
    found: dict[str, Callable[..., World[Any]]] = {}
    for module in pkgutil.walk_packages(envs.__path__, "envs."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if getattr(value, "__module__", "") != module.name:
                continue  # imported from elsewhere
            made = inspect.signature(value, eval_str=True).return_annotation if inspect.isfunction(value) else value
            if inspect.isclass(made) and issubclass(made, World) and not inspect.isabstract(made):
                found[f"{module.name}:{name}"] = value
    return found


NATIVE = native_worlds()
ARGUMENTS: dict[str, dict[str, Any]] = {"MatrixGame": {"payoff": [[1.0, 0.0], [0.0, 2.0]]}}
# PettingZoo's test lists by name who may see different sizes.
NAMES = {"SpeakerListener": "simple_speaker_listener_v4"}


def test_native_worlds_are_found_whether_classes_or_functions() -> None:
    assert {games.climbing, games.xor, games.Constant, SimpleSpread, SpeakerListener} <= set(NATIVE.values())


@pytest.mark.parametrize("path", NATIVE)
def test_every_native_world_passes_pettingzoos_own_tests(path: str, capsys: Any) -> None:
    name = path.partition(":")[2]
    world = NATIVE[path](**ARGUMENTS.get(name, {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_pettingzoos_own_tests(lambda: parallel_env(world, time_limit=25, name=NAMES.get(name)))


def run_pettingzoos_own_tests(make: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing PettingZoo's tests imports its deprecated games
        from pettingzoo.test import api_test, parallel_api_test
    parallel_api_test(make(), num_cycles=60)
    api_test(parallel_to_aec(make()), num_cycles=60)


@pytest.mark.parametrize("world", [SimpleSpread, SpeakerListener, Bursts])
def test_everything_lies_in_its_space_at_every_step(world: Any) -> None:
    env = parallel_env(world(), time_limit=12)
    generator = np.random.default_rng(0)
    for seed in (0, 1, None):
        observations, infos = env.reset(seed=seed)
        steps = 0
        while env.agents:
            for agent, observation in observations.items():
                assert env.observation_space(agent).contains(observation)
            assert env.state_space.contains(env.state())
            for agent in env.agents:
                env.action_space(agent).seed(int(generator.integers(99)))
            actions = {a: env.action_space(a).sample(infos[a].get("action_mask")) for a in env.agents}
            observations, _, _, _, infos = env.step(actions)
            steps += 1
        assert steps == (9 if world is Bursts else 12)
    assert env.step({}) == ({}, {}, {}, {}, {})


def test_a_parallel_world_is_the_row_of_a_tensor_env() -> None:
    """Round trip: the same world, as PettingZoo and back, gives the same numbers; reset() continues the stream."""
    native, foreign = TensorEnv(Bursts(), 1), parallel_env(Bursts())
    obs, (observations, infos) = native.reset(5), foreign.reset(seed=5)
    episodes = 0
    for t in range(30):
        for slot, agent in enumerate(native.spec.agents):
            if obs.alive[0, slot]:
                size = native.spec.observation_sizes[slot]
                np.testing.assert_array_equal(observations[agent], obs.agent[0, slot, :size].numpy())
        np.testing.assert_array_equal(foreign.state(), obs.state[0].numpy())
        action = torch.tensor([[[2 * (t % 2), 0], [t % 2, t % 4]]])
        chosen = {"red_0": int(action[0, 0, 0]), "blue_0": action[0, 1].numpy()}
        step = native.step(action)
        present = list(foreign.agents)
        observations, rewards, terminated, truncated, infos = foreign.step({a: chosen[a] for a in present})
        assert list(rewards) == present
        for agent in present:
            slot = native.spec.agents.index(agent)
            assert infos[agent]["reward_vector"].tolist() == step.reward[0, slot].tolist()
            assert rewards[agent] == step.reward[0, slot].sum()
            assert (terminated[agent], truncated[agent]) == (step.terminated[0, slot], step.truncated[0, slot])
        np.testing.assert_array_equal(foreign.state(), step.final_obs.state[0].numpy())
        assert (not foreign.agents) == bool(step.ended)
        if step.ended:
            episodes += 1
            observations, infos = foreign.reset()
        obs = step.obs
    assert episodes == 3


def test_masks_are_without_padding() -> None:
    _, infos = parallel_env(Bursts()).reset(seed=0)
    assert infos["red_0"]["action_mask"].tolist() == [1, 0, 1]
    assert [part.tolist() for part in infos["blue_0"]["action_mask"]] == [[1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_parallel_worlds_can_be_copied_in_mid_episode(duplicate: Any) -> None:
    env = parallel_env(Bursts())
    assert duplicate(env).reset(seed=3)[0].keys() == env.reset(seed=3)[0].keys()
    for _ in range(4):  # red has left
        env.step({"red_0": 0, "blue_0": np.array([1, 2])})
    other = duplicate(env)
    assert other.agents == env.agents == ["blue_0"]
    np.testing.assert_array_equal(other.state(), env.state())
    for _ in range(5):
        one, two = (e.step({"blue_0": np.array([0, 3])}) for e in (env, other))
        np.testing.assert_array_equal(one[0]["blue_0"], two[0]["blue_0"])
        assert one[1:4] == two[1:4]
    assert not other.agents
    np.testing.assert_array_equal(env.reset()[0]["red_0"], other.reset()[0]["red_0"])


def test_parallel_worlds_render_the_end_and_close_twice() -> None:
    env = parallel_env(TensorEnv(Bursts(), 4, time_limit=2), render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(2):
        env.step({"red_0": 0, "blue_0": np.array([1, 2])})
    assert not env.agents
    assert env.render()[0, 0].tolist() == [2, 2, 2]
    env.close()
    env.close()
    assert ParallelWorld(SpeakerListener()).metadata["name"] == "speaker_listener_v0"


def test_misuse_of_a_parallel_world_is_explained() -> None:
    env = parallel_env(Bursts())
    for attempt, message in [
        (lambda: parallel_env(Bursts(), render_mode="human"), "rgb_array"),
        (env.state, "reset"),
        (lambda: (env.reset(seed=0), env.render()), "render_mode"),
        (lambda: env.step({"red_0": 0}), "blue_0 is missing"),
        (lambda: env.step({"red_0": 3, "blue_0": np.array([0, 0])}), r"must be in Discrete\(3\); got 3"),
    ]:
        with pytest.raises(InputError, match=message):
            attempt()
