"""The episodes that run, kept so that they can be played again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from envs.core import InputError
from envs.pettingzoo.layout import Codec
from envs.pettingzoo.rows import Begin

ROOM = 64  # steps that fit before the memory of actions grows


class Episodes:
    """Number of the episode in each row, and the actions taken in it so far, [L,E,N,A] of the smallest type.

    P seeds share the rows equally.
    """

    def __init__(self, codec: Codec, num_envs: int, seeds: Sequence[int]):
        if not seeds or num_envs % len(seeds):
            raise InputError(f"{num_envs} environments cannot be shared equally by {len(seeds)} seeds.")
        if min(seeds) < 0:
            raise InputError(f"A seed is not negative; got {min(seeds)}.")
        self._seeds, self._rows = [int(seed) for seed in seeds], np.arange(num_envs)
        self._number, self._length = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64)
        kind: Any = np.float32
        if codec.discrete:
            kind = np.uint8 if codec.limits.max() <= 256 else np.int64
        self._actions = np.zeros((ROOM, num_envs, len(codec.slots), codec.components), kind)

    def begins(self, rows: Sequence[int]) -> list[Begin]:
        """Seeds, episodes and actions that lead to the present of these rows."""
        block = len(self._rows) // len(self._seeds)
        return [
            Begin(row, self._seeds[row // block], row % block, int(self._number[row]), self._taken(row)) for row in rows
        ]

    def remember(self, action: np.ndarray, ended: np.ndarray) -> None:
        """These actions were taken, and some episodes ended by them."""
        if self._length.max() == len(self._actions):
            self._actions = np.concatenate([self._actions, np.zeros_like(self._actions)])
        self._actions[self._length, self._rows] = action
        self._length += 1
        self.skip(ended)

    def skip(self, rows: Any) -> None:
        """Turn to the next episode."""
        self._number[rows] += 1
        self._length[rows] = 0

    def state_dict(self) -> dict[str, Any]:
        """Seeds, the episodes' numbers and lengths, and their actions, [sum of lengths, N, A]."""
        return {
            "seeds": list(self._seeds),
            "episode": torch.tensor(self._number),
            "length": torch.tensor(self._length),
            "actions": torch.from_numpy(np.concatenate([self._taken(row) for row in range(len(self._rows))])),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The episodes as they were; seeds are those of the constructor."""
        lengths = state["length"].tolist()
        self._number[:], self._length[:] = state["episode"].tolist(), lengths
        self._actions = np.zeros((max(ROOM, *lengths), *self._actions.shape[1:]), self._actions.dtype)
        for row, actions in enumerate(state["actions"].split(lengths)):
            self._actions[: len(actions), row] = actions.cpu().numpy()

    def _taken(self, row: int) -> np.ndarray:
        return self._actions[: self._length[row], row]
