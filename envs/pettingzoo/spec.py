"""The `EnvSpec` of a PettingZoo environment, and its errors in the words that users see."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from envs.core import ConcordError, Continuous, Discrete, EnvSpec, InputError
from envs.pettingzoo.interfaces import BrokenContractError, EnvironmentRaisedError
from envs.pettingzoo.layout import Codec, prepare


def spec_of(make: Callable[..., Any], options: Mapping[str, Any]) -> EnvSpec:
    """Specification of an environment, from one that is made, tried for a few steps and closed.

    Raises InputError where it breaks its contract and ConcordError where it crashes.
    """
    with told():
        (play,), layout = prepare(partial(make, **options), 1, 0, None, "auto")
        play.env.close()
    return spec_from(Codec(layout), None)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn what the torch-free modules raise into the errors that users see."""
    try:
        yield
    except (BrokenContractError, EnvironmentRaisedError) as error:
        if isinstance(error.__cause__, ConcordError):
            raise error.__cause__ from None
        kind = InputError if isinstance(error, BrokenContractError) else ConcordError
        raise kind(str(error)) from error.__cause__


def spec_from(codec: Codec, channels: Sequence[str] | None) -> EnvSpec:
    """The spec of a layout; channels: names of the rewards."""
    layout = codec.layout
    if channels is None:
        channels = ["reward"] if layout.channels == 1 else [f"reward_{k}" for k in range(layout.channels)]
    names = [re.sub(r"_?\d+$", "", str(name)) for name in layout.agents]
    likeness = list(zip(names, layout.observation_spaces, layout.action_spaces))
    first = [likeness.index(mine) for mine in likeness]  # spaces cannot be hashed
    return EnvSpec(
        agents=tuple(map(str, layout.agents)),
        kind=tuple(sorted(set(first)).index(kind) for kind in first),
        channels=tuple(channels),
        observation_sizes=tuple(codec.sizes),
        actions=tuple(
            Continuous(tuple(space.low.ravel().tolist()), tuple(space.high.ravel().tolist()))  # type: ignore[attr-defined]
            if choices is None
            else Discrete(choices)
            for space, choices in zip(layout.action_spaces, codec.choices)
        ),
        state_size=layout.state_size,
    )
