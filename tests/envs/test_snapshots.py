"""Graphs of objects come back as they were, references included."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from envs.core import ConcordError, tree_map
from envs.vmas.snapshots import put, take


class Part:
    def __init__(self, number: int):
        self.number, self.x = number, torch.full((2,), float(number))


def make() -> SimpleNamespace:
    parts = [Part(i) for i in range(3)]
    return SimpleNamespace(
        first=parts[0],
        parts=parts,
        double=lambda x: 2 * x,
        joints={frozenset(["a", "b"]): parts[1]},
        pushed={},
        trail=[],
        pair=(parts[2], 1),
        absent=None,
    )


def through_text(saved: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint keeps it: tuples become lists."""
    return {**json.loads(json.dumps({**saved, "tensors": None})), "tensors": tree_map(torch.clone, saved["tensors"])}


def test_values_and_references_come_back() -> None:
    root = make()
    root.first = root.parts[2]  # another object than the one made there
    root.parts.reverse()
    root.parts[1].x = root.first.x  # one tensor in two places
    root.parts[0].number = 7
    root.pushed = {part: part.x + 1 for part in root.parts}
    root.trail = [(torch.ones(1), 2.5), (torch.zeros(1), float("inf"))]
    root.absent = torch.tensor([True])
    saved = take(root)
    other = make()
    double = other.double
    put(other, through_text(saved))
    assert other.first is other.parts[0]
    assert [part.number for part in other.parts] == [part.number for part in root.parts]
    assert other.parts[1].x is other.first.x
    assert other.joints[frozenset(["a", "b"])] is other.parts[1]
    assert list(other.pushed) == other.parts
    assert torch.equal(other.pushed[other.first], root.pushed[root.first])
    assert other.trail[1][1] == float("inf")
    assert isinstance(other.trail[0], tuple)
    assert other.pair[0] is other.parts[0]
    assert bool(other.absent)
    assert other.double is double
    root.first.x += 1
    assert not torch.equal(root.first.x, other.first.x)


def test_what_was_saved_is_not_changed_by_what_happens_then() -> None:
    root = make()
    saved = take(root)
    put(root, saved)
    root.parts[0].x += 1
    other = make()
    put(other, saved)
    assert torch.equal(other.parts[0].x, torch.zeros(2))


def test_what_cannot_be_kept_is_named() -> None:
    root = make()
    root.parts[1].array = np.zeros(2)
    root.generator = torch.Generator()
    assert take(root)["unsaved"] == ["SimpleNamespace.generator", "Part.array"]


def test_a_graph_of_other_parts_is_refused() -> None:
    root = make()
    root.parts.append(Part(3))
    with pytest.raises(ConcordError, match="one Part more"):
        put(make(), take(root))
    root = make()
    root.joints[frozenset(["c"])] = root.first
    with pytest.raises(ConcordError, match="1 entries, fewer"):
        put(make(), take(root))
    root = make()
    root.double_again = root.double
    with pytest.raises(ConcordError, match="has no double_again"):
        put(make(), take(root))
