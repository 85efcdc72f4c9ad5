"""Forms that the tensors of an environment have by its spec: shape, type and device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.core import Discrete, EnvSpec, InputError


class Form(NamedTuple):
    """Form of one tensor; `axes` are the letters of its shape."""

    axes: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def observation_form(spec: EnvSpec, rows: int) -> dict[str, Form]:
    """Fields of an `Observation`."""
    agents, action = len(spec.agents), spec.action
    choices = sum(action.choices) if isinstance(action, Discrete) else action.size
    return {
        "agent": Form("[E,N,D]", (rows, agents, spec.observation_size), torch.float32),
        "state": Form("[E,S]", (rows, spec.state_size), torch.float32),
        "alive": Form("[E,N]", (rows, agents), torch.bool),
        "legal": Form("[E,N,A]", (rows, agents, choices), torch.bool),
    }


def transition_form(spec: EnvSpec, rows: int) -> dict[str, Form]:
    """Fields of a `Transition` beside the state, which is the world's own."""
    agents = len(spec.agents)
    return {
        "reward": Form("[E,N,K]", (rows, agents, len(spec.channels)), torch.float32),
        "terminated": Form("[E,N]", (rows, agents), torch.bool),
    }


def step_form(spec: EnvSpec, rows: int) -> dict[str, Form]:
    """Fields of a `Step` beside its observations."""
    leaving = transition_form(spec, rows)
    ended = Form("[E]", (rows,), torch.bool)
    return {**leaving, "truncated": leaving["terminated"], "ended": ended}


def misfits(
    forms: dict[str, Form], tree: Any, name: str, device: torch.device, *, optional: str = "", exact: bool = True
) -> Iterator[tuple[str, str]]:
    """Fields of `tree` that have another form, and a sentence about each.

    optional: the field that may be None. exact: float64 is no float32, for which native worlds alone may stand it in.
    """
    for part, (axes, shape, dtype) in forms.items():
        value = getattr(tree, part)
        if part == optional and value is None:
            continue
        if not isinstance(value, Tensor):
            yield part, f"{name}.{part} must be a tensor; it is a {type(value).__name__}."
            continue
        right = value.dtype == dtype or (not exact and dtype == torch.float32 and value.is_floating_point())
        if tuple(value.shape) != shape or not right or value.device.type != device.type:
            yield (
                part,
                f"{name}.{part} must be {_type(dtype)} {axes} = {list(shape)} on {device} by spec, num_envs and "
                f"device; it is {_type(value.dtype)} {list(value.shape)} on {value.device}. Mend it or the spec.",
            )


def require_form(forms: dict[str, Form], tree: Any, kind: type, name: str, device: torch.device, **how: Any) -> None:
    """Raise InputError unless `tree` is a `kind` whose fields have these forms; see `misfits`."""
    if not isinstance(tree, kind):
        raise InputError(f"{name} must be of type {kind.__name__}; it is of type {type(tree).__name__}.")
    wrong = [sentence for _, sentence in misfits(forms, tree, name, device, **how)]
    if wrong:
        raise InputError(" ".join(wrong))


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
