"""The permutation game, and what it is worth on each graph.

Agents of one kind with equal parents are twins: they see the same and share parameters, so they draw independently from
one distribution.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from envs.core import InputError, Observation
from envs.dags import Edges, parents
from envs.games.one_shot import Hidden, OneShot, one_shot_spec, see

# Groups of agents: their parents, and all agents who have exactly these. Parents come first.
Twins = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
# The optimum has no closed form on every graph; the search for it is reliable up to so many agents.
LARGEST_SEARCH = 4


class PermutationGame(OneShot):
    """N indistinguishable agents with N actions earn 1 if all actions differ, else 0 (Fu et al., arXiv 2206.07505).

    All agents are of one kind and see the same: one policy decides for all of them, and only what they see of each
    other's actions can tell them apart.
    """

    def __init__(self, agents: int = 3):
        if agents < 2:
            raise InputError(f"The permutation game needs at least two agents; got agents={agents}.")
        self.spec = one_shot_spec((0,) * agents, (agents,) * agents, contexts=1, state_size=1)

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E 0"]:
        """Nothing is random."""
        return torch.empty(num, 0, device=generator.device)

    def initial(self, noise: Float[Tensor, "E 0"]) -> Hidden:
        """A constant."""
        return noise.new_ones(len(noise), 1)

    def team_reward(self, state: Hidden, action: Num[Tensor, "E N"]) -> Float[Tensor, " E"]:
        """1 if no two actions are equal."""
        return (action.sort(-1).values.diff(dim=-1) != 0).all(-1).to(state)

    def observe(self, state: Hidden) -> Observation:
        """Nothing, (1, 0), for everybody."""
        return see(state, state, state.new_zeros(len(state), len(self.spec.agents)))

    def optimal_value(self, graph: Edges) -> float:
        """The best probability that all actions differ, when one policy with shared parameters decides for everybody.

        What an agent sees of its parents is each one's action in that parent's own slot, and empty slots elsewhere. So
        agents with different parents can be told apart, and agents with the same parents (twins) draw independently
        from the same distribution p(· | parents' actions). Twins never see one another.

        - Without twins the value is 1: what an agent sees tells who it is. A line of N-1 edges is enough.
        - m twins who know which k actions are free are all different with probability at most m!·C(k, m) / k^m,
          reached by the uniform p (Maclaurin's inequality). Where each group of twins sees everybody before it, the
          value is the product of these, k falling by m each time. Without edges it is N!/N^N.
        - In general this product, least over the orders in which the groups may act, bounds the value from above: it
          grants each group the sight of all actions before. From below: divide the actions into blocks, each played by
          groups who see all members of the block's earlier groups, and take the product over blocks.
        - Where both agree, that is the value. Elsewhere the later groups see some twins and not others, but may be told
          of them by a third (edges 02, 03, 12, 23: agent 2's action tells agent 3 what agent 1 did), and a search
          decides: P(all differ) is a polynomial with non-negative coefficients on a product of simplices, which the map
          p ← p·∂P/∂p, normalized, never decreases (Baum and Eagon, 1967), here from many starts. Up to 4 agents it
          always ends at one of the two bounds, at the upper only on that graph.

        Raises InputError for an impossible graph, and for one that needs the search with more than 4 agents.
        """
        agents = len(self.spec.agents)
        twins = twin_groups(parents(graph, agents))
        least, most = value_of_blocks(twins), value_with_full_sight(twins)
        if math.isclose(least, most):
            return least
        if agents > LARGEST_SEARCH:
            raise InputError(
                f"The optimum of the permutation game on this graph lies between {least:.6g} and {most:.6g} and has no "
                f"known closed form; it is searched for up to {LARGEST_SEARCH} agents, and this game has {agents}. Use "
                "a graph in which no two agents have the same parents, or in which each agent sees all before it."
            )
        searched = search_for_value(twins)
        return most if math.isclose(searched, most, rel_tol=1e-6) else max(least, searched)


def xor() -> PermutationGame:
    """Two indistinguishable agents earn 1 if they act differently: 1/2 without an edge, 1 with one."""
    return PermutationGame(2)


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
