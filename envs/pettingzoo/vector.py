"""E copies of a PettingZoo environment as one `VectorEnv`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor

from envs.core import (
    ConcordError,
    InputError,
    Observation,
    Step,
    import_dotted,
    tree_where,
)
from envs.pettingzoo.copies import Copies
from envs.pettingzoo.episodes import Episodes
from envs.pettingzoo.layout import Codec, StateSource, lay, prepare
from envs.pettingzoo.rows import Rows
from envs.pettingzoo.spec import spec_from, told

if TYPE_CHECKING:
    from envs.pettingzoo.workers import Workers


class PettingZooEnv:
    """E copies of a PettingZoo environment, parallel or AEC, stepped together.

    make: a function that makes one environment, or its dotted path ("package.module:name"); `options` are its
    arguments. workers: processes that share the copies, 0 for this one; both give the same numbers. channels: names of
    the rewards, one by default (as many as a vector reward has). state: "env" asks the environment's state(),
    "observations" puts the agents' observations side by side, "auto" takes state() where it exists and says more.

    Agents may leave, come back and differ in their spaces; `spec.agents` are possible_agents. Their numbers are
    flattened (images too), Discrete observations become one-hot; an `action_mask` in the observation or the info
    becomes `legal`. In an AEC environment one step is one turn: everybody is alive, but only the agent in turn has a
    choice; the others' one legal choice is 0, and none of their components counts where actions are real numbers.

    Every episode is reset with its own seed, spawned from (seed, row, episode). Resuming replays the actions of the
    running episodes and requires the same last observation; `restart_episodes` starts new episodes instead where the
    environment is not a function of its seed and the actions. Actions are kept (and saved) until their episode ends,
    one byte for a choice of up to 256 and four for a real number: let an environment that never ends truncate itself
    (`max_cycles`). Raises InputError where an environment breaks its contract and ConcordError where it crashes, or
    takes longer than ten minutes for one step in a worker.
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
    ):
        if num_envs < 1:
            raise InputError(f"num_envs must be at least 1; got {num_envs}.")
        if not 0 <= workers <= num_envs:
            raise InputError(f"workers is from 0 (this process) to num_envs={num_envs}; got {workers}.")
        function = import_dotted(make) if isinstance(make, str) else make
        if not callable(function):
            raise InputError(
                f"make must be a function that makes an environment; got {make!r}, a {type(function).__name__}."
            )
        function, count = partial(function, **(options or {})), len(channels) if channels else None
        self.num_envs, self.device = num_envs, torch.device(device)
        self._restart_episodes, self._begun = restart_episodes, False
        self.restarted: list[int] = []  # rows that began an episode at the last loading, instead of going on
        self._rows: Rows | Workers
        with told():
            if workers:
                from envs.pettingzoo.workers import Workers  # many libraries, for those who want processes

                self._rows = Workers(function, num_envs, workers, count, state)
            else:
                plays, layout = prepare(function, num_envs, 0, count, state)
                self._rows = Rows(plays, layout, bytearray(Codec(layout).record(num_envs).itemsize), num_envs)
        codec = self._codec = Codec(self._rows.layout)
        self.spec, self._limits = spec_from(codec, channels), codec.limits if codec.discrete else None
        record = codec.record(num_envs)
        self._arrays = lay(self._rows.memory, record)
        self._starts, self._steps, self._ends = (
            Copies(self._rows.memory, record, last, self.device) for last in ("state", "ended", "final_state")
        )
        self._seen = [name for name in ("agent", "legal", "state", "alive") if name in self._arrays]

    def reset(self, seed: int | Sequence[int]) -> Observation:
        """Start every row anew; P seeds seed P equal blocks of rows. Seeds are not negative."""
        self._episodes = Episodes(self._codec, self.num_envs, [seed] if isinstance(seed, int) else seed)
        self._begin(range(self.num_envs))
        return _observation(self._starts.take())

    def step(self, action: Num[Tensor, "E N A"]) -> Step:
        """Advance every row by one joint action; real actions are clipped to their bounds."""
        self._require_begun()
        self._take(action)
        with told():
            self._rows.step()
        arrays = self._arrays
        self._episodes.remember(arrays["action"], arrays["ended"])
        somebody_left = arrays["terminated"].any() or arrays["truncated"].any()
        new = (self._ends if somebody_left else self._steps).take()
        final_obs = _observation(new, alive="acted")
        if somebody_left:
            left = (new["terminated"] | new["truncated"]).any(-1)
            final_obs = tree_where(left, _observation(new, "final_", "acted"), final_obs)
        return Step(_observation(new), new["reward"], new["terminated"], new["truncated"], new["ended"], final_obs)

    def frame(self) -> Any:
        """Rendered row 0, [height, width, 3] uint8; needs `render_mode: rgb_array` in options, and no workers."""
        self._require_begun()
        with told():
            picture = self._rows.picture()
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            array = isinstance(picture, np.ndarray)
            came = f"{picture.dtype} {list(picture.shape)}" if array else f"a {type(picture).__name__}"
            raise InputError(
                f"render() gave {came}; expected an array [height, width, 3] of uint8. Make the environment with "
                "render_mode='rgb_array'."
            )
        return picture

    def close(self) -> None:
        """Close all environments and workers; a second call does nothing."""
        self._rows.close()
        self._begun = False

    def state_dict(self) -> dict[str, Any]:
        """The running episodes with their actions so far, and what is seen now."""
        self._require_begun()
        seen = {name: torch.tensor(self._arrays[name]) for name in self._seen}
        return {**self._episodes.state_dict(), "seen": seen}

    def load_state_dict(self, state: dict[str, Any]) -> Observation:
        """Continue where `state` was taken, by replaying the actions of every running episode.

        Raises ConcordError where that does not lead to the same observation, unless episodes may be restarted.
        """
        rows = len(state["length"])
        if rows != self.num_envs:
            raise InputError(f"The saved state has {rows} rows; this environment has num_envs={self.num_envs}.")
        self._episodes, self.restarted = Episodes(self._codec, rows, state["seeds"]), []
        self._episodes.load_state_dict(state)
        failed = set(self._begin(range(self.num_envs)))
        for name in self._seen:
            different = self._arrays[name] != state["seen"][name].cpu().numpy()
            failed |= set(np.flatnonzero(different.reshape(self.num_envs, -1).any(1)).tolist())
        if failed:
            self._start_instead(sorted(failed))
        return _observation(self._starts.take())

    def _begin(self, rows: Sequence[int]) -> list[int]:
        with told():
            failed = self._rows.begin(self._episodes.begins(rows))
        self._begun = True
        return failed

    def _start_instead(self, rows: list[int]) -> None:
        """Begin the next episode in rows that could not be brought back, if that is allowed."""
        if not self._restart_episodes:
            raise ConcordError(
                f"Resuming replayed the seed and actions of the running episodes, but environment {rows[0]} (and "
                f"{len(rows) - 1} others) did not come to the observation that was saved: it is not a function of its "
                "seed and the actions. Let all its randomness come from reset(seed), or accept an inexact resume, in "
                "which these rows start a new episode, with resume.restart_episodes=true."
            )
        self._episodes.skip(rows)
        self._begin(rows)
        self.restarted = rows

    def _take(self, action: Tensor) -> None:
        """Check the joint action and put it where the environments read it."""
        target = self._arrays["action"]
        if action.shape != target.shape:
            raise InputError(f"Expected actions of shape {list(target.shape)} [E,N,A]; got {list(action.shape)}.")
        joint = _to_host(action.detach()).numpy()
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

    def _require_begun(self) -> None:
        if not self._begun:
            raise InputError("Call reset(seed) first; after close() make a new environment.")


def _to_host(action: Tensor) -> Tensor:
    """The actions in this process's memory: one copy into pinned memory, which the host then waits for."""
    if action.device.type != "cuda":
        return action.cpu()
    staged = torch.empty(action.shape, dtype=action.dtype, pin_memory=True)
    staged.copy_(action, non_blocking=True)
    torch.cuda.current_stream(action.device).synchronize()
    return staged


def _observation(new: Mapping[str, Tensor], prefix: str = "", alive: str = "alive") -> Observation:
    return Observation(new[f"{prefix}agent"], new[f"{prefix}state"], new[alive], new.get(f"{prefix}legal"))
