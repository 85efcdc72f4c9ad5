"""Constants with a copy on every device that a world plays on."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch

from envs.core import tree_map

T = TypeVar("T")


class Constants(Generic[T]):
    """A tensor, or a tree of tensors, that is copied to each device once, so that no step waits for a copy."""

    def __init__(self, value: T):
        self._copies = {torch.device("cpu"): value}

    def on(self, device: torch.device) -> T:
        """The copy on `device`."""
        if device not in self._copies:
            here = self._copies[torch.device("cpu")]
            self._copies[device] = tree_map(lambda leaf: leaf.to(device), here)
        return self._copies[device]
