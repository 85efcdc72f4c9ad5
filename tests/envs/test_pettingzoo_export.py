"""Worlds as PettingZoo environments."""

import copy
import importlib
import inspect
import pickle
import pkgutil
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pettingzoo.utils.conversions import parallel_to_aec
from small_environments import Bursts

import envs
from envs import games
from envs.core import InputError
from envs.kitchen import Kitchen
from envs.particles import SimpleSpread
from envs.pettingzoo import ParallelWorld, parallel_env
from envs.restarts import from_random_play
from envs.speaker_listener import SpeakerListener
from envs.swarm import Vicsek
from envs.world import TensorEnv, World


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
SHORT_KITCHEN = Kitchen("cramped_room", horizon=50)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "MatrixGame": {"payoff": [[1.0, 0.0], [0.0, 2.0]]},
    "Lapsing": {"world": SHORT_KITCHEN, "share": 1.0, "idle": 4},
    "Restarting": {"world": SHORT_KITCHEN, "pool": from_random_play(SHORT_KITCHEN, 5, 10, 0).pool},
    "Interrupted": {"world": SHORT_KITCHEN, "after": 3},
    "from_random_play": {"world": SHORT_KITCHEN, "starts": 5, "steps": 10, "seed": 0},
    "WithMemory": {"world": "envs.swarm:Aggregation", "agents": 20},
}
# PettingZoo's test lists by name who may see different sizes.
NAMES = {"SpeakerListener": "simple_speaker_listener_v4"}
# What the game is and PettingZoo finds unusual: a control without a bound, a view that is one number.
UNUSUAL = {
    "LinearQuadratic": ("Agent's m.* action space value is", "Observation is a single number"),
    "QuadraticAggregation": ("Agent's m.* action space value is",),
}


def test_native_worlds_are_found_whether_classes_or_functions() -> None:
    assert {games.climbing, games.xor, games.Constant, SimpleSpread, SpeakerListener} <= set(NATIVE.values())


@pytest.mark.parametrize("path", NATIVE)
def test_every_native_world_passes_pettingzoos_own_tests(path: str, capsys: Any) -> None:
    name = path.partition(":")[2]
    world = NATIVE[path](**ARGUMENTS.get(name, {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for message in UNUSUAL.get(name, ()):
            warnings.filterwarnings("ignore", message)
        run_pettingzoos_own_tests(lambda: parallel_env(world, time_limit=25, name=NAMES.get(name)))
    said = capsys.readouterr().out
    assert "Passed Parallel API test" in said
    assert "Passed API test" in said


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


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_action_that_is_no_finite_number_is_refused_and_changes_nothing(bad: float) -> None:
    env, other = (parallel_env(Vicsek(3)) for _ in range(2))
    for each in (env, other):
        each.reset(seed=0)
    turns = {agent: np.zeros(1, np.float32) for agent in env.agents}
    with pytest.raises(InputError, match="action of agent_1 must be finite numbers; got"):
        env.step({**turns, "agent_1": np.array([bad], np.float32)})
    assert env.step(turns)[1] == other.step(turns)[1]
