"""Sizes of the arrays that an environment needs, found by trying it, and their places in memory.

Axes: E rows, N agents, D observation features, S state features, A action components, C choices of all components
side by side, K reward channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from envs.pettingzoo.interfaces import BrokenContractError, Play, Turn, explained, interface
from envs.pettingzoo.spaces import Encoder, Space, choices, components, decoder

Arrays = dict[str, np.ndarray]
StateSource = Literal["auto", "env", "observations"]
PROBE_STEPS = 4


@dataclass(frozen=True)
class Layout:
    """Needs of one environment that size the arrays. state: "env" for its state(), or its observations side by side."""

    agents: tuple[Any, ...]
    observation_spaces: tuple[Space, ...]
    action_spaces: tuple[Space, ...]
    in_turns: bool
    masked: bool = False
    channels: int = 1
    state: Literal["env", "observations"] = "observations"
    state_size: int = 0

    def require_like(self, other: Layout) -> None:
        """Raise BrokenContractError unless another copy of the environment has the same agents and spaces."""
        for field in ("agents", "observation_spaces", "action_spaces", "in_turns"):
            if getattr(self, field) != getattr(other, field):
                raise BrokenContractError(
                    f"all copies must have the same agents and spaces; copies differ in {field}, "
                    f"{getattr(self, field)} against {getattr(other, field)}. Fix the environment's configuration, and "
                    "let its randomness come from reset(seed) alone."
                )


class Codec:
    """Places of the agents' observations and actions in the arrays.

    choices: by agent and component, None for real actions. limits: the same padded, [N,A]. base: the choices that exist
    for each agent, [N,C]; components that it lacks have one, 0. nothing: choice 0 of every component, [C]. Real actions
    have no choices: base tells the components that exist, [N,A], and nothing is none of them.
    """

    def __init__(self, layout: Layout):
        self.layout, self.slots = layout, _Slots(zip(layout.agents, range(len(layout.agents))))
        self.encode = [Encoder(name, space) for name, space in zip(layout.agents, layout.observation_spaces)]
        self.decode = [decoder(space) for space in layout.action_spaces]
        self.sizes = [encoder.size for encoder in self.encode]
        self.width = max(self.sizes)
        # The state is made of these of all observations [N·D]: those that are not padding.
        self.own_features = np.concatenate([slot * self.width + np.arange(n) for slot, n in enumerate(self.sizes)])
        self.choices = [choices(name, space) for name, space in zip(layout.agents, layout.action_spaces)]
        self.components = max(map(components, layout.action_spaces))
        discrete = [own for own in self.choices if own is not None]
        if discrete and len(discrete) < len(self.choices):
            raise BrokenContractError(
                "the agents of one environment must act in the same way, all discrete or all continuous; the action "
                f"spaces are {layout.action_spaces}. Discretize the continuous ones."
            )
        self.discrete = bool(discrete)
        if not discrete:
            sizes = [[components(space)] for space in layout.action_spaces]
            self.base = np.arange(self.components) < np.array(sizes)
            self.nothing = np.zeros(self.components, bool)
            self.has_legal = layout.in_turns
        else:
            self.limits = np.array([[*own, *[1] * (self.components - len(own))] for own in discrete])
            widest = self.limits.max(0)
            self._starts = np.cumsum(widest) - widest
            self.base = np.concatenate([np.arange(w) < self.limits[:, [c]] for c, w in enumerate(widest)], 1)
            self.nothing = np.isin(np.arange(sum(widest)), self._starts)
            self._columns = [np.flatnonzero(row)[: sum(own)] for row, own in zip(self.base, discrete)]
            # Without masks, turns and padding everything is always legal.
            self.has_legal = layout.masked or layout.in_turns or not self.base.all()

    def record(self, rows: int) -> np.dtype[Any]:
        """All arrays of this many rows as the fields of one record, those first that are read at every step."""
        agents, reals, flags = len(self.slots), np.float32, np.bool_
        seen: list[tuple[str, Any, tuple[int, ...]]] = [("agent", reals, (rows, agents, self.width))]
        if self.has_legal:
            seen.append(("legal", flags, (rows, *self.base.shape)))
        seen.append(("state", reals, (rows, self.layout.state_size)))
        fields = [("alive", flags, (rows, agents)), *seen, ("reward", reals, (rows, agents, self.layout.channels))]
        fields += [(name, flags, (rows, agents)) for name in ("acted", "terminated", "truncated")]
        fields += [("ended", flags, (rows,)), *((f"final_{name}", kind, shape) for name, kind, shape in seen)]
        fields.append(("action", np.int64 if self.discrete else reals, (rows, agents, self.components)))
        return np.dtype(fields, align=True)

    def legal(self, slot: int, mask: Any) -> np.ndarray | None:
        """The row [C] of legal choices, or None where the mask forbids every choice of a component."""
        if mask is None:
            return self.base[slot]
        columns = self._columns[slot]
        if np.shape(mask) != columns.shape:
            raise BrokenContractError(
                f"The action_mask of {self.layout.agents[slot]!r} has shape {np.shape(mask)}; expected "
                f"{columns.shape}, one per choice."
            )
        row = self.base[slot].copy()
        row[columns] = mask
        return row if all(part.any() for part in self.by_component(row)) else None

    def by_component(self, legal: np.ndarray) -> list[np.ndarray]:
        """A row [C] of legal choices, parted."""
        return np.split(legal, self._starts[1:])


def lay(memory: Any, record: np.dtype[Any]) -> Arrays:
    """The arrays within one piece of memory."""
    everything = np.ndarray((), record, memory)
    return {name: everything[name] for name in record.names or ()}


def prepare(
    make: Callable[[], Any], count: int, first: int, channels: int | None, state: StateSource
) -> tuple[list[Play], Layout]:
    """Environments `first` to `first + count`, all alike and each an object of its own, and what they need."""
    plays: list[Play] = []
    for row in range(first, first + count):
        with explained(lambda row=row: f"Making environment {row}"):  # type: ignore[misc]
            play = interface(make())
            if any(play.env is other.env for other in plays):
                raise BrokenContractError(
                    "the function gave the same object twice; it must make a new one at every call."
                )
            plays.append(play)
            _bare_layout(plays[0]).require_like(_bare_layout(play))
    with explained(lambda: f"Environment {first}"):
        return plays, describe(plays[0], channels, state)


def describe(play: Play, channels: int | None, state: StateSource) -> Layout:
    """The layout of an environment, found by trying it for a few steps (every episode is reset later anyway).

    state(), which is slow where it observes for everybody again, is not asked for if it gave just the observations.
    """
    bare = _bare_layout(play)
    codec = Codec(bare)
    masked = any(encoder.masked for encoder in codec.encode)
    lengths, turns, apart = {1}, 0, False
    states: list[np.ndarray] = []
    for turn in _tried(play, codec):
        masked = masked or any("action_mask" in info for info in turn.infos.values() if info)
        lengths |= {np.size(reward) for reward in turn.rewards.values()}
        whole = _try_state(play.env) if turn.living and state != "observations" else None
        if whole is not None:
            states.append(whole)
            if len(turn.living) == len(bare.agents):
                apart = apart or not np.array_equal(whole, _side_by_side(codec, turn))
        turns += bool(turn.living)
    has_state = 0 < turns == len(states)
    if state == "env" and not has_state:
        raise BrokenContractError(
            "state='env' needs an environment whose state() gives an array. Say state='observations'."
        )
    described = replace(bare, masked=masked, channels=channels or max(lengths), state_size=sum(codec.sizes))
    if has_state and (state == "env" or apart):
        return replace(described, state="env", state_size=states[0].size)
    return described


def _bare_layout(play: Play) -> Layout:
    """Agents and spaces, without trying the environment."""
    env = play.env
    agents = tuple(env.possible_agents)
    if not agents or len(set(map(str, agents))) < len(agents):
        raise BrokenContractError(f"possible_agents must be one or more different names; they are {list(agents)}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PettingZoo's own, about spaces kept in dictionaries
        seen = tuple(env.observation_space(name) for name in agents)
        done = tuple(env.action_space(name) for name in agents)
    return Layout(agents, seen, done, play.in_turns)


def _tried(play: Play, codec: Codec) -> Iterator[Turn]:
    """An episode's start and its first steps under random actions."""
    generator = np.random.default_rng(0)
    turn = play.reset(0)
    yield turn
    for _ in range(PROBE_STEPS):
        if not turn.living:
            return
        asked = turn.living if turn.acting is None else [turn.acting]
        turn = play.step({name: _any_action(codec, generator, name, turn) for name in asked})
        yield turn


def _any_action(codec: Codec, generator: np.random.Generator, name: Any, turn: Turn) -> Any:
    """Something that the agent may do."""
    slot = codec.slots[name]
    if not codec.discrete:
        return codec.decode[slot](generator.uniform(-1, 1, codec.components))
    ignored = np.empty(codec.sizes[slot])
    legal = codec.legal(slot, codec.encode[slot](turn.observations.get(name), turn.infos.get(name), ignored))
    if legal is None:
        legal = codec.base[slot]  # such a mask is refused when the first episode starts
    return codec.decode[slot]([int(generator.choice(np.flatnonzero(part))) for part in codec.by_component(legal)])


def _try_state(env: Any) -> np.ndarray | None:
    try:
        return np.asarray(env.state(), np.float32).reshape(-1)
    except Exception:
        return None  # many environments have no state, and say so in as many ways


def _side_by_side(codec: Codec, turn: Turn) -> np.ndarray:
    parts = [np.zeros(size, np.float32) for size in codec.sizes]
    for name in turn.living:
        slot = codec.slots[name]
        codec.encode[slot](turn.observations.get(name), turn.infos.get(name), parts[slot])
    return np.concatenate(parts)


class _Slots(dict[Any, int]):
    """The agents' places."""

    def __missing__(self, name: Any) -> int:
        raise BrokenContractError(
            f"The environment speaks of an agent {name!r}, but possible_agents are {list(self)}. List every agent that "
            "may ever appear."
        )
