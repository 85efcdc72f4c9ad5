"""What the worlds of this package have in common: their specification and their checks."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection

from envs.core import Continuous, Discrete, EnvSpec, InputError


def swarm_spec(
    agents: int, observation_size: int, action: Discrete | Continuous, state_size: int, horizon: int
) -> EnvSpec:
    """Like agents who earn one team reward. Raises InputError for fewer than two agents and a horizon below 1."""
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
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"{name} must be one of {', '.join(choices)}; got {value!r}.{hint}")


def require_finite(**numbers: float) -> None:
    """Raise InputError for a number that is infinite or none."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise InputError(f"{name} must be a finite number; got {value}.")


def require_positive(**numbers: float) -> None:
    """Raise InputError for a number that is not finite and above 0."""
    require_finite(**numbers)
    for name, value in numbers.items():
        if value <= 0:
            raise InputError(f"{name} must be above 0; got {value}.")


def require_nonnegative(**numbers: float) -> None:
    """Raise InputError for a number that is not finite or below 0."""
    require_finite(**numbers)
    for name, value in numbers.items():
        if value < 0:
            raise InputError(f"{name} must not be negative; got {value}.")


def require_probabilities(**numbers: float) -> None:
    """Raise InputError for a number outside [0, 1]."""
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} is a probability between 0 and 1; got {value}.")
