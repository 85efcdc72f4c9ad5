"""Forms that the tensors of an environment have by its spec: shape, type and device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.core import Discrete, EnvSpec, InputError, Observation


class Form(NamedTuple):
    """Form of one tensor; `axes` are the letters of its shape. optional: None may stand for it."""

    axes: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    optional: bool = False


def observation_form(spec: EnvSpec, rows: int) -> dict[str, Form]:
    """Fields of an `Observation`."""
    agents, action = len(spec.agents), spec.action
    choices = sum(action.choices) if isinstance(action, Discrete) else action.size
    return {
        "agent": Form("[E,N,D]", (rows, agents, spec.observation_size), torch.float32),
        "state": Form("[E,S]", (rows, spec.state_size), torch.float32),
        "alive": Form("[E,N]", (rows, agents), torch.bool),
        "legal": Form("[E,N,A]", (rows, agents, choices), torch.bool, optional=True),
    }


def transition_form(spec: EnvSpec, rows: int) -> dict[str, Form]:
    """Fields of a `Transition` beside the state, which is the world's own."""
    agents = len(spec.agents)
    return {
        "reward": Form("[E,N,K]", (rows, agents, len(spec.channels)), torch.float32),
        "terminated": Form("[E,N]", (rows, agents), torch.bool, optional=True),
    }


def misfits(
    forms: dict[str, Form], tree: Any, name: str, device: torch.device, exact: bool = True
) -> Iterator[tuple[str, str]]:
    """Fields of `tree` that have another form, and a sentence about each. exact: float64 is no float32."""
    for part, (axes, shape, dtype, optional) in forms.items():
        value = getattr(tree, part)
        if value is None and optional:
            continue
        wanted = f"{name}.{part} must be {_type(dtype)} {axes} = {list(shape)} on {device} by spec, num_envs and device"
        if not isinstance(value, Tensor):
            yield part, f"{wanted}; it is of type {type(value).__name__}."
            continue
        right = value.dtype == dtype or (not exact and dtype == torch.float32 and value.is_floating_point())
        if tuple(value.shape) != shape or not right or value.device.type != device.type:
            came = f"{_type(value.dtype)} {list(value.shape)} on {value.device}"
            yield part, f"{wanted}; it is {came}. Mend it or the spec."


def require_form(world: Any, given: Any, kind: type, rows: int, device: torch.device, *, exact: bool = False) -> None:
    """Raise InputError unless the Observation or Transition (`kind`) that a world gave has the form of its spec."""
    function, form = ("observe", observation_form) if kind is Observation else ("transition", transition_form)
    name = f"{type(world).__name__}.{function}(…)"
    if not isinstance(given, kind):
        raise InputError(f"{name} must be of type {kind.__name__}; it is of type {type(given).__name__}.")
    wrong = [sentence for _, sentence in misfits(form(world.spec, rows), given, name, device, exact)]
    if wrong:
        raise InputError(" ".join(wrong))


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
