"""Both ways between worlds: any PettingZoo environment as a `VectorEnv`, any `World` as a PettingZoo `ParallelEnv`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Num
from pettingzoo.utils.env import ParallelEnv
from torch import Tensor

from envs.core import (
    ConcordError,
    Continuous,
    Discrete,
    EnvSpec,
    InputError,
    Observation,
    Step,
    import_dotted,
    tree_where,
)
from envs.rows import (
    Begin,
    BrokenContractError,
    Codec,
    EnvironmentRaisedError,
    Layout,
    Rows,
    StateSource,
    describe,
    explained,
    make_plays,
)
from envs.workers import Workers
from envs.world import TensorEnv, World

LARGEST = float(np.finfo(np.float32).max)


class PettingZooEnv:
    """E copies of a PettingZoo environment, parallel or AEC, stepped together.

    make: a function that makes one environment, or its dotted path ("package.module:name"); `options` are its
    arguments. workers: processes that share the copies, 0 for this one; both give the same numbers. channels: names of
    the rewards, one by default (as many as a vector reward has). state: "env" asks the environment's state(),
    "observations" puts the agents' observations side by side, "auto" takes state() where there is one.

    Agents may leave, come back and differ in their spaces; `spec.agents` are possible_agents. Their numbers are
    flattened (images too), Discrete observations become one-hot; an `action_mask` in the observation or the info
    becomes `legal`. In an AEC environment one step is one turn: everybody is alive, but only the agent in turn has a
    choice, the others' one legal choice is 0 (real-valued actions out of turn are ignored).

    Every episode is reset with its own seed, spawned from (seed, row, episode). Resuming replays the actions of the
    running episode and requires the same last observation; `restart_episodes` starts a new episode instead where the
    environment is not a function of its seed and the actions. Raises InputError where an environment breaks its
    contract and ConcordError where it crashes, or takes longer than `timeout` seconds in a worker.
    """

    def __init__(
        self,
        make: str | Callable[..., Any],
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        workers: int = 0,
        options: Mapping[str, Any] | None = None,
        channels: Sequence[str] | None = None,
        state: StateSource = "auto",
        restart_episodes: bool = False,
        timeout: float = 600.0,
    ):
        if num_envs < 1:
            raise InputError(f"num_envs must be at least 1; got {num_envs}.")
        if not 0 <= workers <= num_envs:
            raise InputError(f"workers is from 0 (this process) to num_envs={num_envs}; got {workers}.")
        function = import_dotted(make) if isinstance(make, str) else make
        if not callable(function):
            raise InputError(
                f"make must be a function that makes an environment; got {make!r}, a {type(make).__name__}."
            )
        function = partial(function, **options) if options else function
        self.num_envs, self.device = num_envs, torch.device(device)
        self._restart_episodes = restart_episodes
        count = len(channels) if channels else None
        self._rows: Rows | Workers
        with _told():
            if workers:
                self._rows = Workers(function, num_envs, workers, channels=count, state=state, timeout=timeout)
                layout = self._rows.layout
                try:
                    self.spec = _spec(layout, channels)
                except InputError:
                    self._rows.close()
                    raise
            else:
                plays = make_plays(function, num_envs)
                with explained(lambda: "Environment 0"):
                    layout = describe(plays[0], count, state)
                self.spec = _spec(layout, channels)
                fields = Codec(layout).fields(num_envs)
                self._rows = Rows(
                    plays, layout, {name: np.zeros(shape, kind) for name, (shape, kind) in fields.items()}
                )
        self._arrays = self._rows.arrays
        self._tensors = {name: torch.from_numpy(array) for name, array in self._arrays.items()}
        self._seen = [name for name in ("agent", "state", "alive", "legal") if name in self._arrays]
        self._limits = _limits(layout)
        self._begun = False

    def reset(self, seed: int | Sequence[int]) -> Observation:
        """Start every row anew; P seeds seed P equal blocks of rows. Seeds are not negative."""
        self._plan([seed] if isinstance(seed, int) else list(seed))
        self._begin([self._episode_of(row) for row in range(self.num_envs)])
        return self._observation(self._fresh(self._seen))

    def step(self, action: Num[Tensor, "E N A"]) -> Step:
        """Advance every row by one joint action; real actions are clipped to their bounds."""
        self._require_begun()
        arrays = self._arrays
        self._take(action)
        with _told():
            self._rows.step()
        self._history.append(arrays["action"].astype(self._saved_type))
        if arrays["ended"].any():
            self._forget(arrays["ended"])
        somebody_left = bool(arrays["left"].any())
        names = [*self._seen, "acted", "reward", "terminated", "truncated", "ended"]
        if somebody_left:
            names += ["left", *(f"final_{name}" for name in self._seen if name != "alive")]
        new = self._fresh(names)
        obs = self._observation(new)
        final_obs = Observation(obs.agent, obs.state, new["acted"], obs.legal)
        if somebody_left:
            final = Observation(new["final_agent"], new["final_state"], new["acted"], new.get("final_legal"))
            final_obs = tree_where(new["left"], final, final_obs)
        return Step(obs, new["reward"], new["terminated"], new["truncated"], new["ended"], final_obs)

    def frame(self) -> Any:
        """What row 0 renders, [height, width, 3] uint8; needs `render_mode: rgb_array` in options, and no workers."""
        self._require_begun()
        if not isinstance(self._rows, Rows):
            raise InputError("Pictures need an environment in this process: use workers=0.")
        with _told():
            picture = self._rows.picture(0)
        if not isinstance(picture, np.ndarray):
            raise InputError(
                f"render() gave a {type(picture).__name__}; expected an array [height, width, 3]. Make the environment "
                "with render_mode='rgb_array'."
            )
        return picture

    render = frame

    def close(self) -> None:
        """Close all environments and workers; a second call does nothing."""
        self._rows.close()
        self._begun = False

    def state_dict(self) -> dict[str, Any]:
        """Seeds, the running episodes' numbers, their actions so far [sum of lengths, N, A], and what is seen now."""
        self._require_begun()
        now = self._forgotten + len(self._history)
        actions = [
            self._history[t - self._forgotten][e] for e in range(self.num_envs) for t in range(self._start[e], now)
        ]
        shape = (0, *self._arrays["action"].shape[1:])
        stacked = np.stack(actions) if actions else np.zeros(shape, self._saved_type)
        return {
            "seeds": list(self._seeds),
            "episode": torch.from_numpy(self._episode.copy()),
            "length": torch.from_numpy(now - self._start),
            "actions": torch.from_numpy(stacked),
            "seen": {name: self._tensors[name].clone() for name in self._seen},
        }

    def load_state_dict(self, state: dict[str, Any]) -> Observation:
        """Continue where `state` was taken, by replaying the actions of every running episode.

        Raises ConcordError where that does not lead to the same observation, unless episodes may be restarted.
        """
        lengths = state["length"].tolist()
        if len(lengths) != self.num_envs:
            raise InputError(f"The saved state has {len(lengths)} rows; this environment has num_envs={self.num_envs}.")
        self._plan(state["seeds"])
        self._episode[:] = state["episode"].cpu().numpy()
        actions = [part.cpu().numpy() for part in state["actions"].split(lengths)]
        self._remember(actions)
        kind = self._arrays["action"].dtype
        failed = set(self._begin([self._episode_of(row, actions[row].astype(kind)) for row in range(self.num_envs)]))
        for name in self._seen:
            same = (self._tensors[name] == state["seen"][name].cpu()).flatten(1).all(1)
            failed |= set((~same).nonzero().flatten().tolist())
        if failed:
            self._start_instead(sorted(failed))
        return self._observation(self._fresh(self._seen))

    def _start_instead(self, rows: list[int]) -> None:
        """Begin the next episode in rows that could not be brought back, if that is allowed."""
        if not self._restart_episodes:
            raise ConcordError(
                f"Resuming replayed the seed and actions of the running episodes, but environment {rows[0]} (and "
                f"{len(rows) - 1} others) did not come to the observation that was saved: it is not a function of its "
                "seed and the actions. Let all its randomness come from reset(seed), or accept an inexact resume, in "
                "which these rows start a new episode, with resume.restart_episodes=true."
            )
        self._episode[rows] += 1
        self._start[rows] = self._forgotten + len(self._history)
        self._begin([self._episode_of(row) for row in rows])

    def _plan(self, seeds: Sequence[int]) -> None:
        if not seeds or self.num_envs % len(seeds):
            raise InputError(f"{self.num_envs} environments cannot be shared equally by {len(seeds)} seeds.")
        if min(seeds) < 0:
            raise InputError(f"A seed is not negative; got {min(seeds)}.")
        self._seeds = [int(seed) for seed in seeds]
        self._episode = np.zeros(self.num_envs, np.int64)
        self._start = np.zeros(self.num_envs, np.int64)  # the time at which each running episode began
        self._history: list[np.ndarray] = []
        self._forgotten = 0

    def _episode_of(self, row: int, actions: np.ndarray | None = None) -> Begin:
        block = self.num_envs // len(self._seeds)
        return Begin(row, self._seeds[row // block], row % block, int(self._episode[row]), actions)

    def _begin(self, episodes: Sequence[Begin]) -> list[int]:
        with _told():
            failed = self._rows.begin(episodes)
        self._begun = True
        return failed

    def _forget(self, ended: np.ndarray) -> None:
        """Drop actions that belong to no running episode."""
        self._episode[ended] += 1
        self._start[ended] = self._forgotten + len(self._history)
        unused = int(self._start.min()) - self._forgotten
        if unused:
            del self._history[:unused]
            self._forgotten += unused

    def _remember(self, actions: Sequence[np.ndarray]) -> None:
        """The history in which every row has just taken these actions."""
        longest = max(map(len, actions))
        history = np.zeros((longest, *self._arrays["action"].shape), self._saved_type)
        for row, taken in enumerate(actions):
            self._start[row] = longest - len(taken)
            history[self._start[row] :, row] = taken
        self._history = list(history)

    @property
    def _saved_type(self) -> np.dtype[Any]:
        """The smallest type that holds every action."""
        return np.dtype(np.float32) if self._limits is None else np.min_scalar_type(int(self._limits.max()) - 1)

    def _take(self, action: Tensor) -> None:
        """Check the joint action and put it where the environments read it."""
        target = self._arrays["action"]
        if action.shape != target.shape:
            raise InputError(f"Expected actions of shape {list(target.shape)} [E,N,A]; got {list(action.shape)}.")
        joint = action.detach().cpu().numpy()
        if self._limits is None:
            np.copyto(target, joint, casting="unsafe")
            if not np.isfinite(target).all():
                raise InputError("An action is not a finite number; the policy that chose it has most likely diverged.")
            return
        if action.is_floating_point():
            raise InputError(f"Actions here are whole numbers, the choices' indices; got {action.dtype}.")
        wrong = ((joint < 0) | (joint >= self._limits)) & self._arrays["alive"][..., None]
        if wrong.any():
            row, slot, component = np.argwhere(wrong)[0].tolist()
            raise InputError(
                f"Environment {row}: {self.spec.agents[slot]} has choices 0 to {self._limits[slot, component] - 1}; "
                f"got {joint[row, slot, component]}. A policy must respect `legal`."
            )
        np.copyto(target, joint, casting="unsafe")

    def _fresh(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Copies that belong to the receiver, on the device."""
        if self.device.type == "cpu":
            return {name: self._tensors[name].clone() for name in names}
        if self.device.type != "cuda":
            return {name: self._tensors[name].to(self.device) for name in names}
        return in_one_copy({name: self._tensors[name] for name in names}, self.device)

    def _observation(self, new: dict[str, Tensor]) -> Observation:
        return Observation(new["agent"], new["state"], new["alive"], new.get("legal"))

    def _require_begun(self) -> None:
        if not self._begun:
            raise InputError("Call reset(seed) first; after close() make a new environment.")


class ParallelWorld(ParallelEnv[str, np.ndarray, Any]):
    """A native world as a PettingZoo ParallelEnv.

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
        self.possible_agents = list(spec.agents)
        self.agents: list[str] = []
        self.observation_spaces = {
            agent: _any_numbers(size) for agent, size in zip(spec.agents, spec.observation_sizes)
        }
        self.action_spaces = {agent: _action_space(space) for agent, space in zip(spec.agents, spec.actions)}
        self.state_space = _any_numbers(spec.state_size)
        self._slots = {agent: slot for slot, agent in enumerate(spec.agents)}
        self._columns = _own_columns(spec)
        self._now: Observation | None = None

    def observation_space(self, agent: str) -> spaces.Box:
        """What the agent sees."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """What the agent can do."""
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
        acted, reward = self.agents, step.reward[0].float()
        self._now = step.final_obs
        self.agents = [] if bool(step.ended) else self._present(step.obs.alive)
        listed = acted + [agent for agent in self.agents if agent not in acted]
        infos = {agent: self._info(step.final_obs, agent) for agent in listed}
        if len(self.spec.channels) > 1:
            for agent in listed:
                infos[agent]["reward_vector"] = reward[self._slots[agent]].numpy()
        earned, terminated, truncated = reward.sum(-1).tolist(), step.terminated[0].tolist(), step.truncated[0].tolist()
        return (
            self._views(step.final_obs, listed),
            {agent: earned[self._slots[agent]] for agent in listed},
            {agent: terminated[self._slots[agent]] for agent in listed},
            {agent: truncated[self._slots[agent]] for agent in listed},
            infos,
        )

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
        env = self._env
        running = None if self._now is None else env.state_dict()
        return {**self.__dict__, "_env": (env.world, env.time_limit, running)}

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

    def _views(self, obs: Observation, agents: Sequence[str]) -> dict[str, np.ndarray]:
        # Copies: a world may keep its observations as part of its state.
        rows = np.array(obs.agent[0].numpy(), np.float32)
        return {agent: rows[self._slots[agent], : self.observation_spaces[agent].shape[0]].copy() for agent in agents}

    def _info(self, obs: Observation, agent: str) -> dict[str, Any]:
        if obs.legal is None:
            return {}
        row = obs.legal[0, self._slots[agent]].numpy().astype(np.int8)
        parts = tuple(row[columns] for columns in self._columns[self._slots[agent]])
        return {"action_mask": parts[0] if isinstance(self.action_spaces[agent], spaces.Discrete) else parts}

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
    """A world, or the world of a `TensorEnv` (with its time limit, unless another is given), as PettingZoo knows it.

    name: what PettingZoo calls it, by default after the world's class.
    """
    if isinstance(world, TensorEnv):
        time_limit = world.time_limit if time_limit is None else time_limit
        world = world.world
    return ParallelWorld(world, time_limit, render_mode, name)


class _OneEpisode(TensorEnv):
    """A row that stays where its episode ended, until it is told to begin again."""

    def again(self) -> Observation:
        """Start an episode with the next numbers of the random stream."""
        everywhere = torch.ones(1, dtype=torch.bool)
        self._state, self._clock, self._obs = super()._restart_by_index(self._state, self._clock, self._obs, everywhere)
        return self._obs

    def _restart_by_index(
        self, state: Any, clock: Tensor, obs: Observation, ended: Bool[Tensor, " E"]
    ) -> tuple[Any, Tensor, Observation]:
        return state, clock, obs


def in_one_copy(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same tensors on another device, moved as one piece of pinned memory, for which the host does not wait."""
    parts = [tensor.contiguous().view(torch.uint8).flatten() for tensor in tensors.values()]
    room = [-(-len(part) // 16) * 16 for part in parts]  # numbers of several bytes must begin on their own multiples
    staged = torch.empty(sum(room), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for part, place in zip(parts, staged.split(room)):
        place[: len(part)] = part
    moved = staged.to(device, non_blocking=True).split(room)
    return {
        name: place[: len(part)].view(tensor.dtype).view(tensor.shape)
        for (name, tensor), part, place in zip(tensors.items(), parts, moved)
    }


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn what the torch-free modules raise into the errors that users see."""
    try:
        yield
    except (BrokenContractError, EnvironmentRaisedError) as error:
        if isinstance(error.__cause__, ConcordError):
            raise error.__cause__ from None
        kind = InputError if isinstance(error, BrokenContractError) else ConcordError
        raise kind(str(error)) from error.__cause__


def _spec(layout: Layout, channels: Sequence[str] | None) -> EnvSpec:
    codec = Codec(layout)
    if channels is None:
        channels = ["reward"] if layout.channels == 1 else [f"reward_{k}" for k in range(layout.channels)]
    likeness: list[tuple[Any, ...]] = []
    kind = []
    for name, seen, done in zip(layout.agents, layout.observation_spaces, layout.action_spaces):
        mine = (re.sub(r"_?\d+$", "", str(name)), seen, done)
        if mine not in likeness:
            likeness.append(mine)
        kind.append(likeness.index(mine))
    return EnvSpec(
        agents=tuple(map(str, layout.agents)),
        kind=tuple(kind),
        channels=tuple(channels),
        observation_sizes=tuple(codec.sizes),
        actions=tuple(_actions(space, choices) for space, choices in zip(layout.action_spaces, layout.choices)),
        state_size=layout.state_size,
    )


def _actions(space: Any, choices: tuple[int, ...] | None) -> Discrete | Continuous:
    if choices is not None:
        return Discrete(choices)
    return Continuous(tuple(space.low.ravel().tolist()), tuple(space.high.ravel().tolist()))


def _limits(layout: Layout) -> np.ndarray | None:
    """The number of choices by agent and component, [N,A]; None for real actions."""
    if layout.choices[0] is None:
        return None
    rows = [choices or () for choices in layout.choices]
    widest = max(map(len, rows))
    return np.array([[*row, *[1] * (widest - len(row))] for row in rows])


def _any_numbers(size: int) -> spaces.Box:
    # Finite bounds: PettingZoo's own test refuses infinite ones for any environment that is not its own.
    return spaces.Box(-LARGEST, LARGEST, (size,), np.float32)


def _action_space(space: Discrete | Continuous) -> spaces.Space[Any]:
    if isinstance(space, Continuous):
        return spaces.Box(np.array(space.low, np.float32), np.array(space.high, np.float32), dtype=np.float32)
    return spaces.Discrete(space.choices[0]) if space.size == 1 else spaces.MultiDiscrete(list(space.choices))


def _own_columns(spec: EnvSpec) -> list[list[slice]]:
    """Where each component's own choices lie among the padded ones, by agent."""
    if not isinstance(spec.action, Discrete):
        return [[] for _ in spec.agents]
    starts = np.cumsum([0, *spec.action.choices]).tolist()
    return [
        [slice(start, start + count) for start, count in zip(starts, space.choices)]
        for space in spec.actions
        if isinstance(space, Discrete)
    ]
