"""What the constructors of swarm worlds check of their arguments."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection

from envs.core import InputError


def one_of(name: str, value: str, choices: Collection[str]) -> None:
    """Raises InputError, which names the nearest choice, if `value` is none of them."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"{name} must be one of {', '.join(choices)}; got {value!r}.{hint}")


def positive(**values: float) -> None:
    """Raises InputError for a value that is not a finite number above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name} must be a finite number above 0; got {value}.")


def not_negative(**values: float) -> None:
    """Raises InputError for a value that is not a finite number of at least 0."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name} must be a finite number of at least 0; got {value}.")


def pairs_and_time(agents: int, horizon: int) -> None:
    """Raises InputError for a swarm without pairs and for an episode without steps."""
    if agents < 2:
        raise InputError(f"This swarm is rewarded for pairs, so it needs at least 2 agents; got agents={agents}.")
    if horizon < 1:
        raise InputError(f"A horizon is at least 1 step; got {horizon}.")
