"""A graph of Python objects, taken down as tensors and JSON values, and put back into one that was made alike.

For simulators of other libraries, which keep their state in objects of their own and offer no way to save it.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from envs.core import ConcordError

PLAIN = (bool, int, float, str, type(None))
# Part of the program, or never changed while it runs: each graph keeps its own.
CONSTANT = (
    type,
    enum.Enum,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    set,
    frozenset,
    torch.device,
    torch.dtype,
    torch.Size,
)
OWN = {"own": True}  # stands for a constant


def take(root: Any) -> dict[str, Any]:
    """All that is reachable from `root` through attributes, lists, tuples and dicts.

    nodes: {kind, slots: [[key, value], …]}, the root first, breadth first. A key or value is plain, or the number of a
    tensor or of a node, so that whatever was one object stays one. tensors: by number. unsaved: places of what is
    neither data nor an object with attributes, such as arrays and generators.
    What is not kept: what only functions hold on to, and that tensors share memory.
    """
    numbers, things, nodes = {id(root): 0}, [root], []
    tensors: list[Tensor] = []
    unsaved: list[str] = []

    def code(value: Any, place: str) -> Any:
        if type(value) in PLAIN:
            return value
        if isinstance(value, CONSTANT):
            return OWN
        if type(value) is not Tensor and not _is_holder(value):
            unsaved.append(place)
            return OWN
        kind, rank = ("tensor", tensors) if isinstance(value, Tensor) else ("node", things)
        if id(value) not in numbers:
            numbers[id(value)] = len(rank)
            rank.append(value)
        return {kind: numbers[id(value)]}

    for thing in things:  # grows while it is read
        name = _kind(thing)
        slots = [[code(key, name), code(value, f"{name}.{key}")] for key, value in _slots(thing)]
        nodes.append({"kind": name, "slots": slots})
    saved = {str(number): tensor.detach().clone() for number, tensor in enumerate(tensors)}
    return {"nodes": nodes, "tensors": saved, "unsaved": unsaved}


def put(root: Any, saved: dict[str, Any]) -> None:
    """Bring a graph to where `saved` was taken. Raises ConcordError where that was a graph of other parts."""
    counterparts = _counterparts(root, saved["nodes"])
    tensors = {number: tensor.clone() for number, tensor in saved["tensors"].items()}
    own = [dict(_slots(thing)) for thing in counterparts]
    built: dict[int, tuple[Any, ...]] = {}

    def value(code: Any, number: int, key: Any) -> Any:
        if not isinstance(code, dict):
            return code
        if code == OWN:
            if key not in own[number]:
                raise ConcordError(f"A {saved['nodes'][number]['kind']} made anew has no {key}.")
            return own[number][key]
        return tensors[str(code["tensor"])] if "tensor" in code else node(code["node"])

    def node(number: int) -> Any:
        if saved["nodes"][number]["kind"] != "tuple":
            return counterparts[number]
        if number not in built:
            built[number] = tuple(value(code, number, i) for i, code in saved["nodes"][number]["slots"])
        return built[number]

    filled: list[list[tuple[Any, Any]]] = []
    for number, each in enumerate(saved["nodes"]):
        keys = [
            _own_key(own[number], place) if key == OWN else value(key, number, None)
            for place, (key, _) in enumerate(each["slots"])
        ]
        filled.append([(key, value(code, number, key)) for key, (_, code) in zip(keys, each["slots"])])
    for thing, slots in zip(counterparts, filled):
        _fill(thing, slots)


def _counterparts(root: Any, nodes: list[dict[str, Any]]) -> list[Any]:
    """For each saved node what it is put into: the thing at the same place, or another one of its kind.

    Which one makes no difference, since everything in it is replaced. Lists and dicts may also be new.
    """
    counterparts: dict[int, Any] = {0: root}
    used = {id(root)}
    spare = [thing for thing in _reachable(root) if thing is not root]
    for number, node in enumerate(nodes):
        if number not in counterparts:
            counterparts[number] = _another(node["kind"], spare, used)
            used.add(id(counterparts[number]))
        members = dict(_slots(counterparts[number]))
        for place, (key, code) in enumerate(node["slots"]):
            child = code.get("node") if isinstance(code, dict) else None
            key = _own_key(members, place) if key == OWN else key
            if child is None or child in counterparts or isinstance(key, dict):
                continue
            thing = members.get(key)
            if id(thing) not in used and _is_holder(thing) and _kind(thing) == nodes[child]["kind"]:
                counterparts[child] = thing
                used.add(id(thing))
    return [counterparts[number] for number in range(len(nodes))]


def _own_key(members: dict[Any, Any], place: int) -> Any:
    """The key in this place, for keys that are constants."""
    if place >= len(members):
        raise ConcordError(f"A dict made anew has {len(members)} entries, fewer than when it was saved.")
    return list(members)[place]


def _another(kind: str, spare: list[Any], used: set[int]) -> Any:
    if kind in ("list", "dict", "tuple"):
        return {"list": [], "dict": {}, "tuple": ()}[kind]
    for thing in spare:
        if id(thing) not in used and _kind(thing) == kind:
            return thing
    raise ConcordError(f"There is one {kind} more than where it was made anew.")


def _reachable(root: Any) -> list[Any]:
    things, seen = [root], {id(root)}
    for thing in things:
        for part in (part for slot in _slots(thing) for part in slot):
            if _is_holder(part) and id(part) not in seen:
                seen.add(id(part))
                things.append(part)
    return things


def _is_holder(value: Any) -> bool:
    """True for values whose contents are saved one by one."""
    if type(value) in (list, tuple, dict):
        return True
    if isinstance(value, (*CONSTANT, Tensor, list, tuple, dict)):
        return False
    return hasattr(value, "__dict__")


def _kind(holder: Any) -> str:
    return type(holder).__name__


def _slots(holder: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(holder, list | tuple):
        return iter(enumerate(holder))
    return iter((holder if isinstance(holder, dict) else vars(holder)).items())


def _fill(holder: Any, slots: list[tuple[Any, Any]]) -> None:
    if isinstance(holder, list):
        holder[:] = [value for _, value in slots]
    elif not isinstance(holder, tuple):
        inside = holder if isinstance(holder, dict) else vars(holder)  # past properties, which may check or copy
        inside.clear()
        inside.update(slots)
