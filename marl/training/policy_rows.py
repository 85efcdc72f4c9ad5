"""Policies as rows of saved states: one taken from several, several joined into one.

One rule holds for the state of every learner, source and probe that trains policies side by side: a tensor has the
policies one after the other on its first axis (policy-major), or it is a scalar that all of them share. Numbers, texts
and None are shared as well. So `take_policy(join_policies([a, b]), 0, 2)` is a, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from envs.core import InputError


def take_policy(state: Any, number: int, policies: int) -> Any:
    """The state of one of several policies; its tensors are views of the given ones.

    With seed-major members, part `number` of as many parts as there are seeds is all that one seed's members have.
    Raises InputError for a tensor that breaks the rule.
    """
    if not 0 <= number < policies:
        raise InputError(f"Expected the number of a policy, from 0 to {policies - 1}; got {number}.")
    return _take(state, number, policies, "state")


def join_policies(states: Sequence[Any]) -> Any:
    """The state of all these policies side by side, in this order.

    Raises InputError for states of different form, and where what policies share differs, such as the updates done.
    """
    if not states:
        raise InputError("Expected the states of one policy or more to join; got none.")
    return _join(states, "state")


def take_from_checkpoint(checkpoint: dict[str, Any], number: int, parts: int) -> dict[str, Any]:
    """One part of a finished stage's checkpoint, for a folder of its own; with seed-major members, one seed's.

    The processor's time was shared by all, the time on the clock was not. Raises InputError where something is still to
    be logged, of all policies together.
    """
    if any(checkpoint.get("tally", {}).values()):
        raise InputError("Only the checkpoint of a finished stage can be parted; this one has something left to log.")
    rest = {key: value for key, value in checkpoint.items() if key != "used"}
    every = checkpoint["used"]
    size = len(every) // parts
    own = every[number * size : (number + 1) * size]
    used = [{**counts, "cpu_seconds": counts["cpu_seconds"] / parts} for counts in own]
    return {**take_policy(rest, number, parts), "used": used}


def _take(tree: Any, number: int, policies: int, path: str) -> Any:
    if isinstance(tree, Tensor):
        if tree.dim() == 0:
            return tree
        if len(tree) % policies:
            raise InputError(
                f"{path} has {len(tree)} rows, no whole number for each of {policies} policies. A saved tensor must "
                "have the policies one after the other on its first axis, or be a scalar that they share."
            )
        return tree.unflatten(0, (policies, -1))[number]
    if isinstance(tree, dict):
        return {key: _take(value, number, policies, f"{path}/{key}") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return _like(tree, [_take(value, number, policies, f"{path}/{i}") for i, value in enumerate(tree)])
    return tree


def _join(trees: Sequence[Any], path: str) -> Any:
    first = trees[0]
    if len({_form(tree) for tree in trees}) > 1:
        raise InputError(f"States that are joined must have one form; {path} is {', '.join(map(_form, trees))}.")
    if isinstance(first, Tensor) and first.dim() > 0:
        if any(tree.shape != first.shape or tree.dtype != first.dtype for tree in trees):
            kinds = ", ".join(f"{list(tree.shape)} {tree.dtype}" for tree in trees)
            raise InputError(f"States that are joined must have one form; {path} is {kinds}.")
        return torch.cat(list(trees))
    if isinstance(first, dict):
        _require_equal([sorted(tree) for tree in trees], f"the keys of {path}")
        return {key: _join([tree[key] for tree in trees], f"{path}/{key}") for key in first}
    if isinstance(first, list | tuple):
        _require_equal([len(tree) for tree in trees], f"the length of {path}")
        return _like(first, [_join(values, f"{path}/{i}") for i, values in enumerate(zip(*trees, strict=True))])
    _require_equal([tree.item() if isinstance(tree, Tensor) else tree for tree in trees], path)
    return first


def _form(tree: Any) -> str:
    """The form of a tree in a word; live states have tuples and ordered dicts where loaded ones have lists, dicts."""
    if isinstance(tree, Tensor):
        return "tensor"
    if isinstance(tree, dict):
        return "dict"
    return "list" if isinstance(tree, list | tuple) else type(tree).__name__


def _like(tree: list[Any] | tuple[Any, ...], values: list[Any]) -> Any:
    """The values in a list, a tuple or a named tuple, as `tree` is one."""
    return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)


def _require_equal(values: Sequence[Any], name: str) -> None:
    if any(value != values[0] for value in values):
        raise InputError(
            f"Policies that are joined share {name}; it differs: {', '.join(map(str, values))}. Only what was trained "
            "for as long and in the same form goes on side by side."
        )
