"""A Python environment as one row of preallocated arrays: every PettingZoo interface, space and way to leave.

Nothing here imports torch, so that worker processes (`envs.workers`) start quickly. `envs.pettingzoo` hands the arrays
out as tensors. Axes: E rows, N agents, D observation features, S state features, A action components, C choices of all
components side by side, K reward channels.
"""

from __future__ import annotations

import contextlib
import copy
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten
from pettingzoo.utils.conversions import aec_to_parallel_wrapper
from pettingzoo.utils.env import AECEnv, ParallelEnv

Arrays = dict[str, np.ndarray]
StateSource = Literal["auto", "env", "observations"]
PROBE_STEPS = 4


class BrokenContractError(Exception):
    """An environment broke the contract of its interface; the message is for the person who wrote it."""


class EnvironmentRaisedError(Exception):
    """An environment's own code raised, or its process stopped."""


class Turn(NamedTuple):
    """What one step led to, in the words of the environment. `acting` is the agent in turn, None where all act at once.

    living: who is still there; the mappings also cover those who have just left.
    """

    living: list[Any]
    observations: Mapping[Any, Any]
    infos: Mapping[Any, Any]
    rewards: Mapping[Any, Any]
    terminated: Mapping[Any, Any]
    truncated: Mapping[Any, Any]
    acting: Any = None


class Simultaneous:
    """The parallel interface: everybody acts at once."""

    in_turns = False

    def __init__(self, env: Any):
        self.env = env

    def reset(self, seed: int) -> Turn:
        """Start an episode."""
        result = self.env.reset(seed=seed)
        if not isinstance(result, tuple) or len(result) != 2:
            raise BrokenContractError(
                f"reset(seed) must return (observations, infos), two dictionaries by agent; got {_form(result)}. "
                "Upgrade the environment to PettingZoo 1.24 or later."
            )
        return Turn(list(self.env.agents), result[0], result[1], {}, {}, {})

    def step(self, actions: dict[Any, Any]) -> Turn:
        """Everybody acts."""
        result = self.env.step(actions)
        if not isinstance(result, tuple) or len(result) != 5:
            raise BrokenContractError(
                "step(actions) must return (observations, rewards, terminations, truncations, infos), five "
                f"dictionaries by agent; got {_form(result)}. Upgrade the environment to PettingZoo 1.24 or later."
            )
        observations, rewards, terminated, truncated, infos = result
        living = _living(self.env.agents, terminated, truncated)
        return Turn(living, observations, infos, rewards, terminated, truncated)


class Cycled(Simultaneous):
    """The parallel interface of PettingZoo's `aec_to_parallel`, without the observations that it makes and throws away.

    That wrapper asks for an agent's observation before every single turn and drops it; in particle worlds that is a
    quarter of all the time.
    """

    def step(self, actions: dict[Any, Any]) -> Turn:
        """Every agent acts in turn; rewards of the cycle are summed."""
        aec, rewards = self.env.aec_env, dict[Any, Any]()
        for agent in list(aec.agents):
            if aec.agent_selection != agent:
                raise BrokenContractError(
                    f"An AEC environment used through the parallel interface must take its agents in order; expected "
                    f"{agent!r}, but {aec.agent_selection!r} is in turn. Use its AEC interface (its `env` function)."
                )
            aec.step(actions[agent])
            for name, reward in aec.rewards.items():
                rewards[name] = rewards.get(name, 0.0) + reward
        terminated, truncated, infos = dict(aec.terminations), dict(aec.truncations), dict(aec.infos)
        observations = {agent: aec.observe(agent) for agent in aec.agents}
        living = _living(aec.agents, terminated, truncated)
        if living:
            _remove_dead(aec)
        self.env.agents = aec.agents
        return Turn(living, observations, infos, rewards, terminated, truncated)


class InTurns:
    """The AEC interface: one agent acts per step, everybody is looked at after it."""

    in_turns = True

    def __init__(self, env: Any):
        self.env = env

    def reset(self, seed: int) -> Turn:
        """Start an episode."""
        self.env.reset(seed=seed)
        return self._turn({}, {}, {}, {})

    def step(self, actions: dict[Any, Any]) -> Turn:
        """The agent in turn acts; the environment's `step(None)` for agents who died is done here."""
        env = self.env
        env.step(actions[env.agent_selection])
        rewards, terminated, truncated = dict(env.rewards), dict(env.terminations), dict(env.truncations)
        last = {name: env.observe(name) for name in env.agents if terminated.get(name) or truncated.get(name)}
        if len(last) < len(env.agents):
            _remove_dead(env)
        return self._turn(rewards, terminated, truncated, last)

    def _turn(
        self, rewards: dict[Any, Any], terminated: dict[Any, Any], truncated: dict[Any, Any], last: dict[Any, Any]
    ) -> Turn:
        env = self.env
        living = _living(env.agents, env.terminations, env.truncations)
        if living and env.agent_selection not in living:
            raise BrokenContractError(
                f"agent_selection must be an agent that is alive; it is {env.agent_selection!r}, alive are {living}."
            )
        observations = last | {name: env.observe(name) for name in living}
        acting = env.agent_selection if living else None
        return Turn(living, observations, dict(env.infos), rewards, terminated, truncated, acting)


def interface(env: Any) -> Simultaneous | InTurns:
    """How to play `env`. Raises BrokenContractError for what is no PettingZoo environment."""
    if type(env) is aec_to_parallel_wrapper:
        found: Simultaneous | InTurns | None = Cycled(env)
    elif isinstance(env, ParallelEnv):
        found = Simultaneous(env)
    elif isinstance(env, AECEnv) or (hasattr(env, "last") and hasattr(env, "observe")):
        found = InTurns(env)
    else:
        found = Simultaneous(env) if hasattr(env, "reset") and hasattr(env, "step") else None
    if found is None or not hasattr(env, "possible_agents"):
        raise BrokenContractError(
            "Expected a function that makes a PettingZoo environment (ParallelEnv or AECEnv, with possible_agents); it "
            f"made a {type(env).__module__}.{type(env).__name__}. For example: mpe2.simple_spread_v3:parallel_env."
        )
    return found


@dataclass(frozen=True)
class Layout:
    """What one environment needs of the arrays.

    state: where the state comes from: "env" (its state()), "observations" (side by side), or "both" where they are
    equal as long as everybody is there, so that state() need not be computed again.
    """

    agents: tuple[Any, ...]
    observation_spaces: tuple[spaces.Space[Any], ...]
    action_spaces: tuple[spaces.Space[Any], ...]
    in_turns: bool
    masked: bool
    channels: int
    state: Literal["env", "observations", "both"]
    state_size: int

    @cached_property
    def choices(self) -> tuple[tuple[int, ...] | None, ...]:
        """Each agent's numbers of choices by component, None for real actions."""
        return tuple(_choices(name, space) for name, space in zip(self.agents, self.action_spaces))

    def difference(self, other: Layout) -> str | None:
        """In what another copy of the same environment differs, or None."""
        for field in ("agents", "observation_spaces", "action_spaces", "in_turns"):
            if getattr(self, field) != getattr(other, field):
                return f"{field} {getattr(self, field)} against {getattr(other, field)}"
        return None


class Codec:
    """How the agents' observations and actions lie in the arrays."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.slots = {name: slot for slot, name in enumerate(layout.agents)}
        self.encode = [_encoder(name, space) for name, space in zip(layout.agents, layout.observation_spaces)]
        self.decode = [_decoder(space) for space in layout.action_spaces]
        self.sizes = [encoder.size for encoder in self.encode]
        self.mask_in_observation = [_carries_mask(space) for space in layout.observation_spaces]
        self.discrete = layout.choices[0] is not None
        self.nothing, self.columns = self._legal()
        # Components that an agent lacks have one choice: 0.
        self.padding = np.tile(self.nothing, (len(self.slots), 1))
        self.base = self.padding.copy()
        for slot, column in enumerate(self.columns):
            self.padding[slot, column], self.base[slot, column] = False, True
        # Without a mask, without turns and without padding everything is always legal.
        self.has_legal = self.discrete and (layout.masked or layout.in_turns or not self.base.all())

    def fields(self, rows: int) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shape and type of every array for this many rows."""
        n, d, k, s = len(self.slots), max(self.sizes), self.layout.channels, self.layout.state_size
        components = max(_components(space) for space in self.layout.action_spaces)
        fields: dict[str, tuple[tuple[int, ...], type]] = {
            "action": ((rows, n, components), np.int64 if self.discrete else np.float32),
            "reward": ((rows, n, k), np.float32),
            **dict.fromkeys(("alive", "acted", "terminated", "truncated"), ((rows, n), np.bool_)),
            # left: somebody has left, so that the true successor (final_…) is not what is seen next
            **dict.fromkeys(("ended", "left"), ((rows,), np.bool_)),
        }
        for prefix in ("", "final_"):
            fields[prefix + "agent"] = ((rows, n, d), np.float32)
            fields[prefix + "state"] = ((rows, s), np.float32)
            if self.has_legal:
                fields[prefix + "legal"] = ((rows, *self.base.shape), np.bool_)
        return fields

    def slot(self, name: Any) -> int:
        """The place of an agent. Raises BrokenContractError for a name that is not among possible_agents."""
        try:
            return self.slots[name]
        except KeyError:
            raise BrokenContractError(
                f"The environment speaks of an agent {name!r}, but possible_agents are {list(self.slots)}. List every "
                "agent that may ever appear."
            ) from None

    def mask(self, slot: int, observation: Any, info: Any) -> Any:
        """The action mask that came with an observation or an info, or None."""
        if observation is not None and self.mask_in_observation[slot]:
            mask = observation["action_mask"]
        else:
            mask = info.get("action_mask") if info else None
        return np.concatenate(mask) if isinstance(mask, tuple) else mask

    def _legal(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """The no-op, choice 0 of every component, [C]; and each agent's own columns of C."""
        if not self.discrete:
            return np.ones(0, np.bool_), []
        own = [choices or () for choices in self.layout.choices]
        components = max(len(choices) for choices in own)
        widest = [max(choices[c] if c < len(choices) else 1 for choices in own) for c in range(components)]
        starts = np.cumsum([0, *widest])
        nothing = np.zeros(starts[-1], np.bool_)
        nothing[starts[:-1]] = True
        columns = [[starts[c] + np.arange(n) for c, n in enumerate(choices)] for choices in own]
        return nothing, [np.concatenate(column) if column else np.zeros(0, np.int64) for column in columns]


class Row:
    """One environment that writes what happens into row `index` of the arrays.

    Every episode is reset with its own seed, a function of (seed, number, episode) alone.
    """

    def __init__(self, play: Simultaneous | InTurns, codec: Codec, arrays: Arrays, index: int):
        self.play, self.codec = play, codec
        view = {name: array[index : index + 1] for name, array in arrays.items()}
        self._flags = {name: view[name][0] for name in ("terminated", "truncated")}
        self._ended, self._left = view["ended"], view["left"]
        self._agent, self._final_agent = view["agent"][0], view["final_agent"][0]
        self._state, self._final_state = view["state"][0], view["final_state"][0]
        self._alive, self._reward = view["alive"][0], view["reward"][0]
        self._legal = view["legal"][0] if codec.has_legal else None
        self._final_legal = view["final_legal"][0] if codec.has_legal else None
        self._targets = [self._agent[slot, :size] for slot, size in enumerate(codec.sizes)]
        self._living: list[Any] = []
        self._asked: list[tuple[Any, int]] = []

    def begin(self, seed: int, number: int, episode: int) -> None:
        """Start this episode."""
        self._seed, self._number, self._episode = seed, number, episode
        self._start()

    def step(self, joint: Any) -> None:
        """Advance by a joint action: for every agent its components."""
        codec, acted = self.codec, self._living
        turn = self.play.step({name: codec.decode[slot](joint[slot]) for name, slot in self._asked})
        rewards = turn.rewards
        for name in acted:
            if name in rewards:
                self._earn(name, rewards[name])
        if turn.living == acted:
            self._see(turn)
        else:
            self._change(turn, acted)

    def _start(self) -> None:
        sequence = np.random.SeedSequence(self._seed, spawn_key=(self._number, self._episode))
        turn = self.play.reset(int(sequence.generate_state(1)[0]) >> 1)  # 31 bits, which every generator accepts
        if not turn.living:
            raise BrokenContractError("After reset(seed) nobody is there: agents is empty. Fill it in reset.")
        self._alive[:], self._agent[:], self._living = False, 0, []
        if self._legal is not None:
            self._legal[:] = self.codec.base
        self._see(turn)
        if self.codec.layout.state == "both" and len(turn.living) == len(self.codec.slots):
            self._compare_state()

    def _see(self, turn: Turn) -> None:
        """Write what the living observe and may do, and the state."""
        codec, observations, infos = self.codec, turn.observations, turn.infos
        if turn.living != self._living:
            for name in turn.living:
                self._alive[codec.slot(name)] = True
            self._living = turn.living
            self._asked = [(name, codec.slots[name]) for name in turn.living]
        if turn.acting is not None:
            self._asked = [(turn.acting, codec.slots[turn.acting])]
        for name in turn.living:
            slot = codec.slots[name]
            observation = observations.get(name)
            if observation is None:
                raise BrokenContractError(
                    f"{name!r} is alive, but got no observation. Return one for each living agent."
                )
            codec.encode[slot](observation, self._targets[slot])
            mask = codec.mask(slot, observation, infos.get(name))
            if self._legal is not None:
                self._legal[slot] = self._allowed(name, slot, mask, turn.acting)
            elif mask is not None:
                raise BrokenContractError(
                    f"{name!r} has an action_mask now, but nobody had one in the first steps (or actions are real "
                    "numbers, which have none). Give masks from the first observation on."
                )
        self._write_state(self._state, self._agent, len(turn.living) == len(codec.slots))

    def _change(self, turn: Turn, acted: list[Any]) -> None:
        """Somebody has left or come: keep the true successor, clear what the dead would see, restart an empty row."""
        living, final = set(turn.living), self._final_agent
        left = [name for name in acted if name not in living]
        final[:] = self._agent
        for name in left:
            slot = self.codec.slots[name]
            # Both flags mean an end of the task: no value is bootstrapped. So does leaving without any.
            out = bool(turn.truncated.get(name)) and not turn.terminated.get(name)
            self._flags["truncated" if out else "terminated"][slot] = True
            self._alive[slot], self._agent[slot] = False, 0
            if turn.observations.get(name) is not None:
                self.codec.encode[slot](turn.observations[name], final[slot, : self.codec.sizes[slot]])
            if self._legal is not None:
                self._legal[slot] = self.codec.base[slot]
        self._left[0] = True
        if living:
            self._see(turn)
            for name in turn.living:
                final[self.codec.slots[name]] = self._agent[self.codec.slots[name]]
        everybody = {*acted, *living} >= set(self.codec.slots) and all(
            turn.observations.get(n) is not None for n in left
        )
        self._write_state(self._final_state, final, everybody)
        if self._final_legal is not None:
            self._final_legal[:] = self._legal
            for name in left:
                slot = self.codec.slots[name]
                mask = self.codec.mask(slot, turn.observations.get(name), turn.infos.get(name))
                if mask is not None and np.shape(mask) == self.codec.columns[slot].shape and np.any(mask):
                    self._final_legal[slot, self.codec.columns[slot]] = mask
        if not living:
            self._ended[0] = True
            self._episode += 1
            self._start()

    def _earn(self, name: Any, reward: Any) -> None:
        target = self._reward[self.codec.slots[name]]
        if isinstance(reward, np.ndarray) and reward.ndim:
            if reward.shape != target.shape:
                raise BrokenContractError(
                    f"{name!r} earned a reward of shape {reward.shape}; expected {len(target)} channel(s). Every "
                    "reward must have the same length; name the channels to fix it."
                )
            target[:] = reward
        elif len(target) == 1 or not reward:  # environments with vector rewards start with a plain 0
            target[0] = reward
        else:
            raise BrokenContractError(f"{name!r} earned the single reward {reward}; expected {len(target)} channels.")

    def _allowed(self, name: Any, slot: int, mask: Any, acting: Any) -> np.ndarray:
        """The row [C] of legal choices."""
        codec = self.codec
        if acting is not None and acting != name:
            return codec.nothing
        if mask is None:
            return codec.base[slot]
        columns, choices = codec.columns[slot], codec.layout.choices[slot] or ()
        if np.shape(mask) != columns.shape:
            raise BrokenContractError(
                f"The action_mask of {name!r} has shape {np.shape(mask)}; expected {columns.shape}, one per choice."
            )
        legal = codec.padding[slot].copy()
        legal[columns] = mask
        if not all(part.any() for part in np.split(legal[columns], np.cumsum(choices)[:-1])):
            raise BrokenContractError(
                f"The action_mask of {name!r} forbids every choice although the agent is alive. Allow at least one "
                "(a no-op), or let the agent terminate."
            )
        return legal

    def _write_state(self, target: np.ndarray, agent: np.ndarray, everybody: bool) -> None:
        source = self.codec.layout.state
        if source == "env" or (source == "both" and not everybody):
            target[:] = _state_of(self.play.env, len(target))
        else:
            start = 0
            for slot, size in enumerate(self.codec.sizes):
                target[start : start + size] = agent[slot, :size]
                start += size

    def _compare_state(self) -> None:
        if not np.array_equal(_state_of(self.play.env, len(self._state)), self._state):
            raise BrokenContractError(
                "state() gave the agents' observations side by side when the environment was first tried, but does not "
                "any more. Say state='env' to ask for state() at every step, or state='observations'."
            )


class Begin(NamedTuple):
    """An episode for row `row` to start, and the joint actions [L,N,A] to replay in it."""

    row: int
    seed: int
    number: int
    episode: int
    actions: np.ndarray | None = None


class Rows:
    """Several environments in this process, stepped one after another into the same arrays.

    `first` is the number of the first row, for messages.
    """

    def __init__(self, plays: Sequence[Simultaneous | InTurns], layout: Layout, arrays: Arrays, first: int = 0):
        self.arrays, self.first, self._codec = arrays, first, Codec(layout)
        self._rows = [Row(play, self._codec, arrays, index) for index, play in enumerate(plays)]
        self._current = 0

    def begin(self, episodes: Sequence[Begin]) -> list[int]:
        """Start these episodes; returns the rows whose actions could not be replayed to their end."""
        failed = []
        with self._explained():
            for row, seed, number, episode, actions in episodes:
                self._current = row
                self._rows[row].begin(seed, number, episode)
                if actions is not None and not self._replay(row, actions):
                    failed.append(row)
        self._require_finite("agent")
        return failed

    def step(self) -> None:
        """Advance every row by `arrays["action"]`."""
        arrays = self.arrays
        self._clear()
        action = arrays["action"].tolist() if self._codec.discrete else arrays["action"]
        with self._explained():
            for self._current, joint in enumerate(action):
                self._rows[self._current].step(joint)
        self._require_finite("agent")
        self._require_finite("reward")
        if arrays["left"].any():
            self._require_finite("final_agent")

    def picture(self, row: int) -> Any:
        """What the environment of that row renders."""
        self._current = row
        with self._explained():
            try:
                return self._rows[row].play.env.render()
            except NotImplementedError:
                return None

    def close(self) -> None:
        """Close every environment."""
        for row in self._rows:
            row.play.env.close()
        self._rows = []

    def _clear(self) -> None:
        arrays = self.arrays
        arrays["acted"][:] = arrays["alive"]
        arrays["reward"][:] = 0
        for name in ("terminated", "truncated", "ended", "left"):
            arrays[name][:] = False

    def _replay(self, row: int, actions: np.ndarray) -> bool:
        for joint in actions.tolist() if self._codec.discrete else actions:
            self._clear()
            try:
                self._rows[row].step(joint)
            except Exception:
                return False  # another game than the one these actions were taken in
            if self.arrays["ended"][row]:
                return False
        return True

    def _require_finite(self, name: str) -> None:
        array = self.arrays[name]
        if np.isfinite(array).all():
            return
        row, slot, *_, feature = np.argwhere(~np.isfinite(array))[0].tolist()
        what = "reward" if name == "reward" else "observation"
        agent = self._codec.layout.agents[slot]
        raise BrokenContractError(
            f"Environment {self.first + row} gave {agent!r} the {what} {array[row, slot, feature]} (index {feature}); "
            "expected finite numbers. Mend the environment; the usual cause is a division by zero or a logarithm of 0."
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        with explained(lambda: f"Environment {self.first + self._current}"):
            yield


@contextlib.contextmanager
def explained(who: Callable[[], str]) -> Iterator[None]:
    """Put who did it before the message of whatever goes wrong within."""
    try:
        yield
    except BrokenContractError as error:
        raise BrokenContractError(f"{who()}: {error}") from error.__cause__
    except EnvironmentRaisedError:
        raise
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(at.filename)}, line {at.lineno}, in {at.name}"
        raise EnvironmentRaisedError(f"{who()} raised {type(error).__name__}: {error} ({where}).") from error


def make_plays(make: Callable[[], Any], count: int, first: int = 0) -> list[Simultaneous | InTurns]:
    """Environments `first` to `first + count`; all must be alike, and each an object of its own."""
    plays: list[Simultaneous | InTurns] = []
    for row in range(first, first + count):
        with explained(lambda row=row: f"Making environment {row}"):  # type: ignore[misc]
            plays.append(interface(make()))
            if any(plays[-1].env is other.env for other in plays[:-1]):
                raise BrokenContractError(
                    "the function gave the same object twice; it must make a new one at every call."
                )
            difference = bare_layout(plays[0]).difference(bare_layout(plays[-1])) if len(plays) > 1 else None
            require_alike(difference)
    return plays


def require_alike(difference: str | None) -> None:
    """Raise BrokenContractError if there is a difference between two copies."""
    if difference:
        raise BrokenContractError(
            f"all copies must have the same agents and spaces; copies differ in {difference}. Fix the environment's "
            "configuration, and let its randomness come from reset(seed) alone."
        )


def bare_layout(play: Simultaneous | InTurns) -> Layout:
    """Agents and spaces, without trying the environment."""
    env = play.env
    agents = tuple(env.possible_agents)
    if not agents or len(set(map(str, agents))) < len(agents):
        raise BrokenContractError(f"possible_agents must be one or more different names; they are {list(agents)}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PettingZoo's own, about spaces kept in dictionaries
        seen = tuple(env.observation_space(name) for name in agents)
        done = tuple(env.action_space(name) for name in agents)
    return Layout(agents, seen, done, play.in_turns, False, 1, "observations", 0)


def describe(play: Simultaneous | InTurns, channels: int | None, state: StateSource) -> Layout:
    """The layout of an environment, found by trying it for a few steps (every episode is reset later anyway)."""
    bare = bare_layout(play)
    codec, env = Codec(bare), play.env
    generator = np.random.default_rng(0)
    turn = play.reset(0)
    masked = any(codec.mask_in_observation)
    lengths, equal, sizes = {0}, [], set[int]()
    for _ in range(PROBE_STEPS):
        masked = masked or any("action_mask" in info for info in turn.infos.values() if info)
        found = _try_state(env) if state != "observations" else None
        sizes.add(-1 if found is None else found.size)
        if len(turn.living) == len(bare.agents) <= len(turn.observations):
            equal.append(found is not None and np.array_equal(found, _side_by_side(codec, turn)))
        for name in turn.living:
            codec.slot(name)
        asked = turn.living if turn.acting is None else [turn.acting]
        turn = play.step({name: _any_action(codec, generator, name, turn) for name in asked})
        lengths |= {np.size(reward) for reward in turn.rewards.values() if np.ndim(reward)}
        if not turn.living:
            break
    if state == "env" and -1 in sizes:
        raise BrokenContractError(
            "state='env' needs an environment whose state() gives an array. Say state='observations'."
        )
    together = sum(codec.sizes)
    source: Literal["env", "observations", "both"] = "env"
    if -1 in sizes:
        source = "observations"
    elif state == "auto" and len(equal) > 1 and all(equal):
        source = "both"
    size = sizes.pop() if source == "env" else together
    return Layout(
        bare.agents,
        bare.observation_spaces,
        bare.action_spaces,
        bare.in_turns,
        masked,
        channels or max(1, *lengths),
        source,
        size,
    )


def _living(agents: Sequence[Any], terminated: Mapping[Any, Any], truncated: Mapping[Any, Any]) -> list[Any]:
    """Who is listed and has not just been said to leave."""
    if any(terminated.values()) or any(truncated.values()):
        return [name for name in agents if not (terminated.get(name) or truncated.get(name))]
    return list(agents)


def _remove_dead(env: Any) -> None:
    """Take the empty steps that an AEC environment wants of agents who have died."""
    for _ in range(2 * len(env.possible_agents)):
        selected = env.agent_selection
        if not env.agents or not (env.terminations.get(selected) or env.truncations.get(selected)):
            return
        env.step(None)
    raise BrokenContractError(
        f"step(None) must remove an agent that has died, but {env.agent_selection!r} stays. Call _was_dead_step there."
    )


def _try_state(env: Any) -> np.ndarray | None:
    try:
        return np.asarray(env.state(), np.float32).reshape(-1)
    except Exception:
        return None  # many environments have no state, and say so in as many ways


def _state_of(env: Any, size: int) -> np.ndarray:
    state = np.asarray(env.state(), np.float32).reshape(-1)
    if state.size != size:
        raise BrokenContractError(
            f"state() gave {state.size} numbers; expected {size}. Keep its size, or say state='observations'."
        )
    return state


def _side_by_side(codec: Codec, turn: Turn) -> np.ndarray:
    parts = [np.zeros(size, np.float32) for size in codec.sizes]
    for slot, name in enumerate(codec.slots):
        codec.encode[slot](turn.observations[name], parts[slot])
    return np.concatenate(parts)


def _any_action(codec: Codec, generator: np.random.Generator, name: Any, turn: Turn) -> Any:
    """Something that the agent may do."""
    slot = codec.slots[name]
    choices, space = codec.layout.choices[slot], codec.layout.action_spaces[slot]
    if choices is None:
        return copy.deepcopy(space).sample()
    mask = codec.mask(slot, turn.observations.get(name), turn.infos.get(name))
    if np.shape(mask) != (sum(choices),) or not np.any(mask):
        mask = np.ones(sum(choices))  # a wrong mask is reported when the first episode starts
    parts = np.split(np.asarray(mask), np.cumsum(choices)[:-1])
    return codec.decode[slot]([int(generator.choice(np.flatnonzero(part))) for part in parts])


def _form(result: Any) -> str:
    return f"a tuple of {len(result)}" if isinstance(result, tuple) else f"a {type(result).__name__}"


def _carries_mask(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Dict) and set(space.spaces) == {"observation", "action_mask"}


class _Numbers:
    """Box and MultiBinary: the numbers themselves, flattened."""

    def __init__(self, agent: Any, space: spaces.Space[Any]):
        self.agent, self.shape = agent, space.shape
        self.size = int(np.prod(space.shape or ()))

    def __call__(self, observation: Any, target: np.ndarray) -> None:
        observation = np.asarray(observation)
        if observation.shape != self.shape:
            raise BrokenContractError(
                f"{self.agent!r} observes an array of shape {observation.shape}; its observation space says "
                f"{self.shape}. Return what the space says, or mend the space."
            )
        target[:] = observation.reshape(-1)


class _OneHot:
    """Discrete: a one at the observed number."""

    def __init__(self, agent: Any, space: spaces.Discrete):
        self.agent, self.start, self.size = agent, int(space.start), int(space.n)

    def __call__(self, observation: Any, target: np.ndarray) -> None:
        index = int(observation) - self.start
        if not 0 <= index < self.size:
            raise BrokenContractError(
                f"{self.agent!r} observes {observation}; its space has the numbers {self.start} to "
                f"{self.start + self.size - 1}."
            )
        target[:] = 0
        target[index] = 1


class _Flattened:
    """Every other space, as gymnasium flattens it."""

    def __init__(self, agent: Any, space: spaces.Space[Any]):
        self.agent, self.space = agent, space
        if not space.is_np_flattenable:
            raise BrokenContractError(
                f"The observation space of {agent!r}, {space}, has no fixed size. Pad it to a Box."
            )
        self.size = flatdim(space)

    def __call__(self, observation: Any, target: np.ndarray) -> None:
        try:
            target[:] = flatten(self.space, observation)
        except (KeyError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise BrokenContractError(
                f"{self.agent!r} observes something outside its observation space {self.space}: {error}."
            ) from error


class _Unmasked:
    """The observation within {"observation", "action_mask"}."""

    def __init__(self, inner: _Numbers | _OneHot | _Flattened):
        self.inner, self.size = inner, inner.size

    def __call__(self, observation: Any, target: np.ndarray) -> None:
        self.inner(observation["observation"], target)


def _encoder(agent: Any, space: spaces.Space[Any]) -> _Numbers | _OneHot | _Flattened | _Unmasked:
    if _carries_mask(space):
        assert isinstance(space, spaces.Dict)
        inner = _encoder(agent, space["observation"])
        assert not isinstance(inner, _Unmasked)
        return _Unmasked(inner)
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return _Numbers(agent, space)
    if isinstance(space, spaces.Discrete):
        return _OneHot(agent, space)
    return _Flattened(agent, space)


def _choices(agent: Any, space: spaces.Space[Any]) -> tuple[int, ...] | None:
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(np.ravel(space.nvec).tolist())
    if isinstance(space, spaces.MultiBinary):
        return (2,) * int(np.prod(space.shape))
    if isinstance(space, spaces.Box):
        return None
    raise BrokenContractError(
        f"The actions of {agent!r} are a {type(space).__name__}; expected Discrete, MultiDiscrete, MultiBinary or Box. "
        "Flatten them in a wrapper."
    )


def _components(space: spaces.Space[Any]) -> int:
    return 1 if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or ()))


def _decoder(space: spaces.Space[Any]) -> Callable[[Any], Any]:
    """From an agent's padded components to what its environment takes."""
    count, shape = _components(space), space.shape
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return lambda components: components[0] + start
    if isinstance(space, spaces.Box):
        dtype, low, high = space.dtype, space.low, space.high
        return lambda reals: np.clip(reals[:count].reshape(shape).astype(dtype), low, high)
    begin = space.start if isinstance(space, spaces.MultiDiscrete) else 0
    return lambda components: (np.array(components[:count]).reshape(shape) + begin).astype(space.dtype)
