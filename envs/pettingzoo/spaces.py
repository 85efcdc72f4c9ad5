"""From an agent's observations to numbers, and from numbers to its actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten

from envs.pettingzoo.interfaces import BrokenContractError

Space = spaces.Space[Any]


class Encoder:
    """Writes one agent's observations as `size` numbers, and gives the action mask that came along.

    Box and MultiBinary are flattened, Discrete becomes one-hot, every other space is as gymnasium flattens it. A mask
    stands beside the observation, {"observation", "action_mask"}, or in the agent's info; several components' masks
    come as a tuple.
    """

    def __init__(self, agent: Any, space: Space):
        self.masked = isinstance(space, spaces.Dict) and set(space.spaces) == {"observation", "action_mask"}
        self.space: Space = space["observation"] if self.masked else space  # type: ignore[index]
        if not self.space.is_np_flattenable:
            raise BrokenContractError(
                f"The observation space of {agent!r}, {space}, has no fixed size. Pad it to a Box."
            )
        self.agent, self.size, self._shape = agent, flatdim(self.space), self.space.shape
        self._write = self._array if isinstance(self.space, (spaces.Box, spaces.MultiBinary)) else self._other

    def __call__(self, observation: Any, info: Any, target: np.ndarray) -> Any:
        """Write the observation to `target`; returns the mask, or None."""
        if observation is None:
            raise BrokenContractError(
                f"{self.agent!r} is alive, but got no observation. Return one for each living agent."
            )
        if self.masked:
            mask, observation = observation["action_mask"], observation["observation"]
        else:
            mask = info.get("action_mask") if info else None
        self._write(observation, target)
        return np.concatenate(mask) if isinstance(mask, tuple) else mask

    def _array(self, observation: Any, target: np.ndarray) -> None:
        observation = np.asarray(observation)
        if observation.shape != self._shape:
            raise BrokenContractError(
                f"{self.agent!r} observes an array of shape {observation.shape}; its observation space says "
                f"{self._shape}. Return what the space says, or mend the space."
            )
        target[:] = observation.reshape(-1)

    def _other(self, observation: Any, target: np.ndarray) -> None:
        try:
            if isinstance(self.space, spaces.Discrete):
                observation = int(observation)
                if not self.space.contains(observation):  # a negative index would count from the end
                    raise ValueError(f"got {observation}")
            target[:] = flatten(self.space, observation)
        except (KeyError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise BrokenContractError(
                f"{self.agent!r} observes something outside its observation space {self.space}: {error}."
            ) from error


def choices(agent: Any, space: Space) -> tuple[int, ...] | None:
    """The agent's numbers of choices by component, None for real actions."""
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


def components(space: Space) -> int:
    """The number of components of an action."""
    return int(np.prod(space.shape or ()))


def decoder(space: Space) -> Callable[[Any], Any]:
    """From an agent's padded components to what its environment takes; real numbers are clipped to their bounds."""
    count, shape, dtype = components(space), space.shape, space.dtype
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return lambda padded: padded[0] + first
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
        return lambda padded: np.clip(padded[:count].reshape(shape).astype(dtype), low, high)
    start = space.start if isinstance(space, spaces.MultiDiscrete) else 0
    return lambda padded: (np.array(padded[:count]).reshape(shape) + start).astype(dtype)
