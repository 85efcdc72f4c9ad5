"""Who sees whose action: directed acyclic graphs over agents, and what a permutation game is worth on them.

An edge (i, j) says that agent j sees the action that agent i has sampled before j acts. Agents of one kind with equal
parents are twins: they see the same and share parameters, so they draw independently from one distribution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from envs.core import InputError

Edges = Iterable[Sequence[int]]
# Groups of agents: their parents, and all agents who have exactly these. Parents come first.
Twins = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


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


def twin_groups(parents: dict[int, tuple[int, ...]]) -> Twins:
    """Agents with the same parents, group by group."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for agent, seen in parents.items():
        groups.setdefault(seen, []).append(agent)
    # Two groups never wait for one another: a member of each would be the other's parent, which is a cycle.
    return tuple((seen, tuple(members)) for seen, members in groups.items())


def all_different(twins: int, free: int) -> float:
    """The best probability that `twins` independent equal draws hit different ones of `free` actions: m!·C(k,m)/k^m."""
    return math.perm(free, twins) / free**twins


def value_with_full_sight(twins: Twins) -> float:
    """The value if each group saw all actions before its own, in the order that makes this least."""
    agents = sum(len(members) for _, members in twins)

    @cache
    def least(acted: frozenset[int]) -> float:
        ready = [members for seen, members in twins if members[0] not in acted and acted.issuperset(seen)]
        free = agents - len(acted)
        return min((all_different(len(m), free) * least(acted.union(m)) for m in ready), default=1.0)

    return least(frozenset())


def value_of_blocks(twins: Twins) -> float:
    """The best product over blocks of actions, each played by groups who see all of the block's earlier members."""

    def best(index: int, blocks: tuple[tuple[int, ...], ...]) -> float:
        if index == len(twins):
            return math.prod(map(_block, blocks))
        seen, _ = twins[index]
        joined = [b for b, block in enumerate(blocks) if all(set(twins[g][1]) <= set(seen) for g in block)]
        options = [(*blocks[:b], (*blocks[b], index), *blocks[b + 1 :]) for b in joined]
        return max(best(index + 1, option) for option in [*options, (*blocks, (index,))])

    def _block(groups: tuple[int, ...]) -> float:
        sizes = [len(twins[g][1]) for g in groups]
        return math.prod(all_different(size, sum(sizes[i:])) for i, size in enumerate(sizes))

    return best(0, ())


@cache
def search_for_value(twins: Twins, starts: int = 256, rounds: int = 400) -> float:
    """The largest P(all actions differ) that Baum and Eagon's ascent finds from many random starts."""
    agents = sum(len(members) for _, members in twins)
    wins = torch.tensor(list(itertools.permutations(range(agents))))
    generator = torch.Generator().manual_seed(0)
    policies, chosen = [], []
    for group, (seen, members) in enumerate(twins):
        situation = sum((wins[:, agent] * agents**place for place, agent in enumerate(seen)), torch.zeros(len(wins)))
        chosen += [(group, situation.long(), wins[:, member]) for member in members]
        # Sparse starts lie near each of the many deterministic corners, where the local maxima are.
        start = torch.rand(starts, agents ** len(seen), agents, generator=generator, dtype=torch.float64) ** 4
        policies.append(F.normalize(start, p=1, dim=-1))

    def probability(policies: list[Tensor]) -> Float[Tensor, " starts"]:
        factors = [policies[group][:, situation, action] for group, situation, action in chosen]
        return torch.stack(factors).prod(0).sum(-1)

    for _ in range(rounds):
        policies = [policy.requires_grad_() for policy in policies]
        slopes = torch.autograd.grad(probability(policies).sum(), policies)
        policies = [_grown(policy.detach(), slope) for policy, slope in zip(policies, slopes, strict=True)]
    return float(probability(policies).max())


def _grown(policy: Float[Tensor, "starts situations A"], slope: Float[Tensor, "starts situations A"]) -> Tensor:
    """p·∂P/∂p, normalized; unchanged in situations that cannot be won any more."""
    grown = policy * slope
    total = grown.sum(-1, keepdim=True)
    return torch.where(total > 0, grown / total.clamp(min=1e-300), policy)
