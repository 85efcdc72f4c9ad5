"""Any `World` as a PettingZoo `ParallelEnv`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Num
from pettingzoo.utils.env import ParallelEnv
from torch import Tensor

from envs.core import Continuous, Discrete, InputError, Observation
from envs.world import Rows, TensorEnv, World

# Finite bounds: PettingZoo's own test refuses infinite ones for any environment that is not its own.
LARGEST = float(np.finfo(np.float32).max)


class ParallelWorld(ParallelEnv[str, np.ndarray, Any]):
    """A native world as a PettingZoo ParallelEnv; `name` is what PettingZoo calls it, by default after its class.

    Every agent sees its own features without padding (the clock first, where the world has one and shows it) and acts
    in its own space. The world's mask of legal choices is in infos[agent]["action_mask"], a reward of several channels
    in infos[agent]["reward_vector"], and their sum is the reward. reset(seed) starts as a `TensorEnv` of one row does,
    and reset() continues its random stream as that does when a row restarts. Raises InputError for a render mode that
    is not "rgb_array" and for actions outside their space.
    """

    def __init__(
        self, world: World[Any], time_limit: int | None = None, render_mode: str | None = None, name: str | None = None
    ):
        if render_mode not in (None, "rgb_array"):
            raise InputError(f"render_mode is 'rgb_array' or null; got {render_mode!r}.")
        self._env = _OneEpisode(world, 1, time_limit=time_limit)
        spec = self.spec = self._env.spec
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(world).__name__).lower()
        self.metadata = {
            "name": name or f"{snake}_v0",
            "render_modes": ["rgb_array"],
            "is_parallelizable": True,
            "render_fps": 10,
        }
        self.render_mode = render_mode
        self.possible_agents, self.agents = list(spec.agents), list[str]()
        self.observation_spaces = {
            agent: _any_numbers(size) for agent, size in zip(spec.agents, spec.observation_sizes)
        }
        self.action_spaces = {agent: _action_space(space) for agent, space in zip(spec.agents, spec.actions)}
        self.state_space = _any_numbers(spec.state_size)
        self._slots = {agent: slot for slot, agent in enumerate(spec.agents)}
        self._now: Observation | None = None

    def observation_space(self, agent: str) -> spaces.Box:
        """Space of the agent's observations."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """Space of the agent's actions."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        """Start an episode. Worlds take no options; PettingZoo asks that they are accepted."""
        if seed is None and self._now is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        self._now = self._env.again() if seed is None else self._env.reset(seed)
        self.agents = self._present(self._now.alive)
        return self._views(self._now, self.agents), {agent: self._info(self._now, agent) for agent in self.agents}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Advance by one action of every agent who is there."""
        if not self.agents:
            return {}, {}, {}, {}, {}
        step = self._env.step(self._joint(actions))
        reward, acted, self._now = step.reward[0].float(), self.agents, step.final_obs
        self.agents = [] if bool(step.ended) else self._present(step.obs.alive)
        listed = {agent: self._slots[agent] for agent in dict.fromkeys(acted + self.agents)}
        infos = {agent: self._info(step.final_obs, agent) for agent in listed}
        if len(self.spec.channels) > 1:
            for agent, slot in listed.items():
                infos[agent]["reward_vector"] = reward[slot].numpy()
        earned, terminated, truncated = (
            {agent: values[slot] for agent, slot in listed.items()}
            for values in (reward.sum(-1).tolist(), step.terminated[0].tolist(), step.truncated[0].tolist())
        )
        return self._views(step.final_obs, listed), earned, terminated, truncated, infos

    def state(self) -> np.ndarray:
        """The whole, [S] float32, as a central critic sees it."""
        return self._current().state[0].float().numpy().copy()

    def render(self) -> Any:
        """A picture, [height, width, 3] uint8."""
        self._current()
        if self.render_mode is None:
            raise InputError("Nothing to render: make the environment with render_mode='rgb_array'.")
        return self._env.frame()

    def close(self) -> None:
        """Nothing to free; call it as often as you like."""

    def __getstate__(self) -> dict[str, Any]:
        running = None if self._now is None else self._env.state_dict()
        return {**self.__dict__, "_env": (self._env.world, self._env.time_limit, running)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        world, time_limit, running = state["_env"]
        self._env = _OneEpisode(world, 1, time_limit=time_limit)
        if running is not None:
            self._env.load_state_dict(running)

    def _current(self) -> Observation:
        if self._now is None:
            raise InputError("Call reset() first.")
        return self._now

    def _present(self, alive: Bool[Tensor, "1 N"]) -> list[str]:
        return [agent for agent, here in zip(self.possible_agents, alive[0].tolist()) if here]

    def _views(self, obs: Observation, agents: Sequence[str] | Mapping[str, int]) -> dict[str, np.ndarray]:
        rows = np.array(obs.agent[0].numpy(), np.float32)
        # Copies: a world may keep its observations as part of its state.
        return {agent: rows[self._slots[agent], : self.observation_spaces[agent].shape[0]].copy() for agent in agents}

    def _info(self, obs: Observation, agent: str) -> dict[str, Any]:
        slot = self._slots[agent]
        space = self.spec.actions[slot]
        if obs.legal is None or not isinstance(space, Discrete):
            return {}
        parts = obs.legal[0, slot].numpy().astype(np.int8)
        starts = np.cumsum([0, *self.spec.action.choices])  # type: ignore[union-attr]
        own = tuple(parts[start : start + count].copy() for start, count in zip(starts, space.choices))
        return {"action_mask": own[0] if space.size == 1 else own}

    def _joint(self, actions: Mapping[str, Any]) -> Num[Tensor, "1 N A"]:
        action = self.spec.action
        kind = np.int64 if isinstance(action, Discrete) else np.float32
        joint = np.zeros((1, len(self.possible_agents), action.size), kind)
        for agent in self.agents:
            if agent not in actions:
                raise InputError(
                    f"Every agent who is there acts: {self.agents}. {agent} is missing; got {list(actions)}."
                )
            space, chosen = self.action_spaces[agent], actions[agent]
            if isinstance(space, spaces.Box):
                if not np.isfinite(chosen).all():
                    raise InputError(f"The action of {agent} must be finite numbers; got {chosen!r}.")
                chosen = np.clip(chosen, space.low, space.high)
            elif not space.contains(chosen):
                raise InputError(f"The action of {agent} must be in {space}; got {chosen!r}.")
            joint[0, self._slots[agent], : np.size(chosen)] = chosen
        return torch.from_numpy(joint)


def parallel_env(
    world: World[Any] | TensorEnv,
    time_limit: int | None = None,
    render_mode: str | None = None,
    name: str | None = None,
) -> ParallelWorld:
    """A world, or the world of a `TensorEnv` (with its time limit, unless another is given), as PettingZoo knows it."""
    if isinstance(world, TensorEnv):
        time_limit = world.time_limit if time_limit is None else time_limit
        world = world.world
    return ParallelWorld(world, time_limit, render_mode, name)


class _OneEpisode(TensorEnv):
    """A row that stays where its episode ended, until it is told to begin again."""

    def again(self) -> Observation:
        """Start an episode with the next numbers of the random stream."""
        everywhere = torch.ones(1, dtype=torch.bool)
        self._rows, self._obs = super()._restart(self._rows, self._obs, everywhere)
        return self._obs

    def _restart(self, rows: Rows, obs: Observation, ended: Bool[Tensor, " E"]) -> tuple[Rows, Observation]:
        return rows, obs


def _any_numbers(size: int) -> spaces.Box:
    return spaces.Box(-LARGEST, LARGEST, (size,), np.float32)


def _action_space(space: Discrete | Continuous) -> spaces.Space[Any]:
    if isinstance(space, Continuous):
        return spaces.Box(np.array(space.low, np.float32), np.array(space.high, np.float32), dtype=np.float32)
    return spaces.Discrete(space.choices[0]) if space.size == 1 else spaces.MultiDiscrete(list(space.choices))
