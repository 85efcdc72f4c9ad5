"""Directed acyclic graphs over agents: an edge (i, j) says that j sees the action that i has sampled before j acts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from envs.core import InputError

Edges = Iterable[Sequence[int]]


def named_edges(name: str, agents: int) -> list[tuple[int, int]]:
    """The edges of `empty`, `line` (each agent sees the one before) or `complete` (each sees all before)."""
    pairs = [(i, j) for j in range(agents) for i in range(j)]
    return {"empty": [], "line": [(i, j) for i, j in pairs if j == i + 1], "complete": pairs}[name]


def _graph(edges: Edges, agents: int) -> Any:
    """The networkx graph of `edges`, if it is one that agents can act along."""
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(range(agents))
    for edge in edges:
        if not isinstance(edge, Sequence) or len(edge) != 2 or not all(agent in range(agents) for agent in edge):
            raise InputError(
                f"Edge {edge}: a graph is a list of edges (i, j), agent j sees i's action, with agents from 0 to "
                f"{agents - 1}. Mend this edge."
            )
        if edge[0] == edge[1]:
            raise InputError(f"Edge {edge}: an agent cannot see its own action before it acts; leave this edge out.")
        graph.add_edge(*edge)
    if not nx.is_directed_acyclic_graph(graph):
        cycle = nx.find_cycle(graph)
        raise InputError(
            f"Edge {cycle[-1]} closes the cycle {', '.join(map(str, cycle))}, on which everybody would wait for "
            "another. Leave one of these edges out."
        )
    return graph


def parents(edges: Edges, agents: int) -> dict[int, tuple[int, ...]]:
    """Each agent's parents in increasing order; agents in an order in which parents come first."""
    import networkx as nx

    graph = _graph(edges, agents)
    return {agent: tuple(sorted(graph.predecessors(agent))) for agent in nx.lexicographical_topological_sort(graph)}


def descendants(edges: Edges, agents: int, agent: int) -> set[int]:
    """The agents that an agent's action can reach."""
    import networkx as nx

    return nx.descendants(_graph(edges, agents), agent)
