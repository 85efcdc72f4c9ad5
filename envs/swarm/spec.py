"""Specification of the worlds of this package, and the checks of their arguments."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from numbers import Integral, Real

from envs.core import Continuous, Discrete, EnvSpec, InputError

LARGEST = 1e15  # its square, and that of its inverse, are still numbers in 32 bits


def swarm_spec(
    agents: int, observation_size: int, action: Discrete | Continuous, state_size: int, horizon: int
) -> EnvSpec:
    """Like agents who earn one team reward. Raises InputError for fewer than two agents and a horizon below 1."""
    require_whole(agents=agents, horizon=horizon)
    if agents < 2:
        raise InputError(f"A swarm has at least two agents; got agents={agents}.")
    if horizon < 1:
        raise InputError(f"A horizon is at least 1 step; got horizon={horizon}.")
    return EnvSpec(
        agents=tuple(f"agent_{i}" for i in range(agents)),
        kind=(0,) * agents,
        channels=("team",),
        observation_sizes=(observation_size,) * agents,
        actions=(action,) * agents,
        state_size=state_size,
        horizon=horizon,
    )


def one_of(name: str, value: str, choices: Collection[str]) -> None:
    """Raise InputError, which names the nearest choice, if `value` is none of them."""
    if value not in list(choices):  # a list may be asked for anything, a set or dict only for what has a hash
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"{name} must be one of {', '.join(choices)}; got {value!r}.{hint}")


def require_truth(**values: bool) -> None:
    """Raise InputError for what is neither true nor false."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false; got {value!r}.")


def require_whole(**numbers: int) -> None:
    """Raise InputError for what is no whole number, such as 2.5, 1e3 (write 1000) or true."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise InputError(f"{name} must be a whole number; got {value!r}.")


def require_finite(**numbers: float) -> None:
    """Raise InputError for what is no number, and for numbers beyond ±1e15: physics is computed in 32 bits."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputError(f"{name} must be a number; got {value!r}.")
        if not abs(value) <= LARGEST:
            raise InputError(f"{name} must be a finite number, at most {LARGEST:g} in size; got {value}.")


def require_positive(**numbers: float) -> None:
    """Raise InputError for a number that is not finite and above 0, or below 1e-15."""
    require_finite(**numbers)
    for name, value in numbers.items():
        if value <= 0:
            raise InputError(f"{name} must be above 0; got {value}.")
        if value < 1 / LARGEST:
            raise InputError(f"{name} must be above 0 by at least {1 / LARGEST:g}; got {value}.")


def require_nonnegative(**numbers: float) -> None:
    """Raise InputError for a number that is not finite or below 0."""
    require_finite(**numbers)
    for name, value in numbers.items():
        if value < 0:
            raise InputError(f"{name} must not be negative; got {value}.")


def require_probabilities(**numbers: float) -> None:
    """Raise InputError for a number outside [0, 1]."""
    require_finite(**numbers)
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} is a probability between 0 and 1; got {value}.")
