"""Python environments played one after another, each into its row of the arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from envs.pettingzoo.interfaces import BrokenContractError, Play, Turn, explained
from envs.pettingzoo.layout import Arrays, Codec, Layout, lay


class Begin(NamedTuple):
    """An episode for row `row` to start, and the joint actions [L,N,A] to replay in it.

    It is reset with a seed that is a function of (seed, number, episode) alone.
    """

    row: int
    seed: int
    number: int
    episode: int
    actions: np.ndarray


class Row:
    """One environment that writes what happens into its row, views [1, …] of the arrays."""

    def __init__(self, play: Play, codec: Codec, views: Arrays):
        self.play, self._codec, self._ended = play, codec, views["ended"]
        self._row = {name: view[0] for name, view in views.items()}
        self._legal = self._row.get("legal")
        self._targets = [self._row["agent"][slot, :size] for slot, size in enumerate(codec.sizes)]
        self._living: list[Any] = []
        self._asked: list[tuple[Any, int]] = []

    def begin(self, episode: Begin) -> bool:
        """Start this episode and replay its actions; whether that went to their end."""
        self._episode = episode
        self._start()
        self._ended[:] = False
        for joint in episode.actions.tolist() if self._codec.discrete else episode.actions:
            try:
                self.step(joint)
            except Exception:
                return False  # another game than the one these actions were taken in
            if self._ended[0]:
                return False
        return True

    def step(self, joint: Any) -> None:
        """Advance by a joint action: for every agent its components."""
        codec, acted = self._codec, self._living
        turn = self.play.step({name: codec.decode[slot](joint[slot]) for name, slot in self._asked})
        for name in acted:
            if name in turn.rewards:
                self._earn(name, turn.rewards[name])
            else:
                self._allow_no_reward(name, turn)
        self._see(turn)
        if turn.living != acted:
            self._change(turn, [name for name in acted if name not in turn.living])

    def _start(self) -> None:
        _, seed, number, episode, _ = self._episode
        sequence = np.random.SeedSequence(seed, spawn_key=(number, episode))
        turn = self.play.reset(int(sequence.generate_state(1)[0]) >> 1)  # 31 bits, which every generator accepts
        if not turn.living:
            raise BrokenContractError("After reset(seed) nobody is there: agents is empty. Fill it in reset.")
        self._living = []
        self._clear(slice(None))
        self._see(turn)

    def _see(self, turn: Turn) -> None:
        """Write what the living observe and may do, and the state."""
        slots = self._codec.slots
        if turn.living != self._living:
            self._living, self._asked = turn.living, [(name, slots[name]) for name in turn.living]
            self._row["alive"][[slot for _, slot in self._asked]] = True
        if turn.acting is not None:
            self._asked = [(turn.acting, slots[turn.acting])]
        for name in turn.living:
            self._look(name, turn)
        if self._codec.layout.state == "env":
            self._ask_state()

    def _look(self, name: Any, turn: Turn) -> None:
        """Write what one agent observes and may do."""
        codec, slot = self._codec, self._codec.slots[name]
        mask = codec.encode[slot](turn.observations.get(name), turn.infos.get(name), self._targets[slot])
        if mask is not None and (self._legal is None or not codec.discrete):
            raise BrokenContractError(
                f"{name!r} has an action_mask now, but nobody had one in the first steps (or actions are real numbers, "
                "which have none). Give masks from the first observation on."
            )
        if self._legal is None:
            return
        if codec.layout.in_turns and turn.acting != name:
            self._legal[slot] = codec.nothing
            return
        legal = codec.legal(slot, mask)
        if legal is None and name in turn.living:
            raise BrokenContractError(
                f"The action_mask of {name!r} forbids every choice although the agent is alive. Allow at least one (a "
                "no-op), or let the agent terminate."
            )
        self._legal[slot] = codec.base[slot] if legal is None else legal

    def _change(self, turn: Turn, left: Sequence[Any]) -> None:
        """Keep the true successor with what the leavers saw last; then clear them, and restart an empty row."""
        row = self._row
        for name in left:
            # Both flags mean an end of the task: no value is bootstrapped. So does leaving without any.
            cut = turn.truncated.get(name) and not turn.terminated.get(name)
            row["truncated" if cut else "terminated"][self._codec.slots[name]] = True
            if turn.observations.get(name) is not None:
                self._look(name, turn)
        for name in ("agent", "state", "legal"):
            if name in row:
                row[f"final_{name}"][:] = row[name]
        self._clear([self._codec.slots[name] for name in left])
        if not turn.living:
            self._ended[:] = True
            self._episode = self._episode._replace(episode=self._episode.episode + 1)
            self._start()

    def _clear(self, slots: Any) -> None:
        """Write the observation of agents who are not there: zeros, and choices that exist."""
        self._row["alive"][slots], self._row["agent"][slots] = False, 0
        if self._legal is not None:
            self._legal[slots] = self._codec.base[slots] if self._codec.discrete else False

    def _allow_no_reward(self, name: Any, turn: Turn) -> None:
        """Only who was not asked (it is another's turn), or is not spoken of any more, may earn nothing unsaid."""
        spoken_of = name in turn.living or name in turn.terminated or name in turn.truncated
        if spoken_of and any(name == asked for asked, _ in self._asked):
            raise BrokenContractError(
                f"{name!r} acted, but has no reward; rewards are for {list(turn.rewards)}. Give a reward to each agent "
                "that acted, 0.0 if it earned nothing."
            )

    def _earn(self, name: Any, reward: Any) -> None:
        target = self._row["reward"][self._codec.slots[name]]
        if reward is None or isinstance(reward, str):
            raise BrokenContractError(f"{name!r} earned the reward {reward!r}; expected a number, 0.0 for nothing.")
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

    def _ask_state(self) -> None:
        state, target = np.asarray(self.play.env.state(), np.float32).reshape(-1), self._row["state"]
        if state.size != target.size:
            raise BrokenContractError(
                f"state() gave {state.size} numbers; expected {target.size}. Keep its size, or say "
                "state='observations'."
            )
        target[:] = state


class Rows:
    """Several environments in this process: rows `first` and following of `num_envs` that share the memory."""

    def __init__(self, plays: Sequence[Play], layout: Layout, memory: Any, num_envs: int, first: int = 0):
        self.layout, self.memory, self._codec = layout, memory, Codec(layout)
        everything = lay(memory, self._codec.record(num_envs))
        self._arrays = {name: array[first : first + len(plays)] for name, array in everything.items()}
        self._rows = [
            Row(play, self._codec, {name: array[row : row + 1] for name, array in self._arrays.items()})
            for row, play in enumerate(plays)
        ]
        self._first, self._current = first, 0

    def begin(self, episodes: Sequence[Begin]) -> list[int]:
        """Start these episodes; returns the rows whose actions could not be replayed to their end."""
        failed = []
        with explained(self._who):
            for episode in episodes:
                self._current = episode.row - self._first
                if not self._rows[self._current].begin(episode):
                    failed.append(episode.row)
        self._finish()
        return failed

    def step(self) -> None:
        """Advance every row by the actions in the arrays."""
        arrays = self._arrays
        arrays["acted"][:] = arrays["alive"]
        arrays["reward"][:] = 0
        for name in ("terminated", "truncated", "ended"):
            arrays[name][:] = False
        action = arrays["action"].tolist() if self._codec.discrete else arrays["action"]
        with explained(self._who):
            for self._current, joint in enumerate(action):
                self._rows[self._current].step(joint)
        self._finish()
        if arrays["terminated"].any() or arrays["truncated"].any():
            self._finish("final_")
        self._require_finite("reward")

    def picture(self) -> Any:
        """Picture that the environment of the first row renders."""
        self._current = 0
        with explained(self._who), contextlib.suppress(NotImplementedError):
            return self._rows[0].play.env.render()

    def close(self) -> None:
        """Close every environment."""
        while self._rows:
            self._rows.pop().play.env.close()

    def _finish(self, prefix: str = "") -> None:
        """Check what was written, and put observations side by side where they are the state."""
        agent = self._arrays[prefix + "agent"]
        self._require_finite(prefix + "agent")
        if self.layout.state == "observations":
            self._arrays[prefix + "state"][:] = agent.reshape(len(agent), -1)[:, self._codec.own_features]

    def _require_finite(self, name: str) -> None:
        array = self._arrays[name]
        if np.isfinite(array).all():
            return
        row, slot, feature = np.argwhere(~np.isfinite(array))[0].tolist()
        what = "reward" if name == "reward" else "observation"
        raise BrokenContractError(
            f"Environment {self._first + row} gave {self.layout.agents[slot]!r} the {what} {array[row, slot, feature]} "
            f"(index {feature}); expected finite numbers. Mend the environment; the usual cause is a division by zero "
            "or a logarithm of 0."
        )

    def _who(self) -> str:
        return f"Environment {self._first + self._current}"
