"""The order of decisions: an ancestral draw goes through the graph level by level, each place [b,i] once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from marl.algorithms.bnpg.graphs import Graph, levels


class Places(NamedTuple):
    """Places b·N + i that decide at once, all of one group of agents, or of any (None); policy-major."""

    group: int | None
    places: Int[Tensor, " X"]


class SamplingOrder:
    """The order in which places of a graph decide, for batches of graphs among agents of these groups, for P policies.

    fixed: the one graph that all rows have, where there is one.
    """

    def __init__(self, group: Int[Tensor, " N"], policies: int, fixed: Graph | None):
        self._group, self._groups, self._policies = group, int(group.max()) + 1, policies
        self._fixed: list[tuple[int, Tensor]] | None = None
        if fixed is not None:
            keys = self._keys(fixed)
            self._fixed = [(int(key) % self._groups, (keys == key).nonzero().squeeze(1)) for key in keys.unique()]

    def __call__(self, graph: Graph) -> Iterator[Places]:
        """Together they name every place once; whoever is heard comes before who hears it."""
        rows, agents = graph.order.shape
        first = torch.arange(0, rows * agents, agents, device=graph.order.device).unsqueeze(1)
        if self._fixed is not None:
            return (Places(group, (first + who).flatten()) for group, who in self._fixed)
        if self._policies == 1 and graph.order.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._by_level(graph)
        # One by one: nobody need know how many levels there are, and each policy has equally many places.
        only = 0 if self._groups == 1 else None
        return (Places(only, (first + who).flatten()) for who in graph.order.split(1, -1))

    def _by_level(self, graph: Graph) -> Iterator[Places]:
        keys = self._keys(graph).flatten()
        places = keys.argsort(stable=True).split(keys.bincount().tolist())
        return (Places(key % self._groups, at) for key, at in enumerate(places) if len(at))

    def _keys(self, graph: Graph) -> Int[Tensor, "*B N"]:
        return levels(graph.edges) * self._groups + self._group
