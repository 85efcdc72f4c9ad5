"""Values of games for policies that must stay random: E[r] + temperature · H(π), in nats.

This is what an entropy bonus maximizes. Without it one best joint action is a product of policies and no graph helps;
with it every edge can help, for only what sees can be random together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import InputError
from envs.dags import Edges, parents
from envs.games.one_shot import MatrixGame

# All starts hold a table over joint actions.
MOST_JOINT_ACTIONS = 4096
STARTS, MOST_ROUNDS, LEAST_GAIN = 256, 2000, 1e-12


def disagreement() -> MatrixGame:
    """1 if two agents act differently (XOR). Unlike those of `xor`, these agents can be told apart.

    At a temperature t: with an edge t·log(2 + 2·exp(1/t)). Without one, for t of at least 1/2, where uniform play is
    best, 1/2 + t·log 4; below, one of two mirrored optima in which each agent leans to a choice of its own: 1.00984 at
    t = 1/4.
    """
    return MatrixGame([[0, 1], [1, 0]])


def chain(agents: int = 5, coupling: float = 1.0) -> MatrixGame:
    """`coupling` for every agent but the last who acts as the next one does; two choices each.

    At temperature 1 the line 0 → 1 → … is as good as the complete graph, log(2·(1 + exp(coupling))^(agents-1)): 5.94619
    for five agents, 5.46574 without edges. Which edges matter shows: a collider on the line is worth 5.92286.
    """
    if agents < 2:
        raise InputError(f"A chain needs at least two agents; got agents={agents}.")
    return MatrixGame(_table(agents, lambda a: coupling * sum(x == y for x, y in itertools.pairwise(a))))


def frustrated_triangle() -> MatrixGame:
    """Three agents with two choices earn 1 for every pair who differ; all three pairs cannot.

    At temperature 1: 3.57944 without edges, 3.69956 with one, 3.74406 with a chain or a fork, 3.79633 with a collider,
    3.83588 with all three.
    """
    return MatrixGame(_table(3, lambda a: float(sum(x != y for x, y in itertools.combinations(a, 2)))))


def entropic_value(game: MatrixGame, graph: Edges, temperature: float) -> float:
    """max over π = Π_i π_i(a_i | a_parents(i)) of E[r] + temperature · H(π).

    On a complete graph this is temperature · log Σ_a exp(r(a)/temperature). Elsewhere the maximum has no closed form in
    general. Given all other agents' tables, agent i's best one is

        π_i(a_i | a_p) ∝ exp(E[r - temperature · Σ_{j≠i} log π_j | a_p, a_i] / temperature),

    exactly, since what is known of a_p does not depend on π_i. Taking the agents in turn, children first, never loses,
    and on a complete graph arrives after one round. It may end in a local maximum, so the best of 256 random starts is
    taken, each run until no start gains 1e-12 in a round (or 2,000 rounds: at a critical temperature, as 1/2 in
    `disagreement`, convergence is slow, but the value is flat). Deterministic.

    Raises InputError for an impossible graph, a temperature that is not positive and finite, and a game of more than
    4096 joint actions.
    """
    reward = game.payoff
    if not 0 < temperature < float("inf"):
        raise InputError(
            f"A temperature is positive and finite; got {temperature}. Without entropy it is game.optimal_value(graph)."
        )
    if reward.numel() > MOST_JOINT_ACTIONS:
        raise InputError(
            f"The search tabulates all joint actions, at most {MOST_JOINT_ACTIONS}; this game has {reward.numel()}."
        )
    seen = parents(graph, reward.dim())
    log_tables = _random_log_tables(reward, seen)
    value = _values(reward, log_tables, temperature)
    for _ in range(MOST_ROUNDS):
        for agent in reversed(seen):
            log_tables[agent] = _best_response(reward, log_tables, agent, seen[agent], temperature)
        before, value = value, _values(reward, log_tables, temperature)
        if (value - before).max() < LEAST_GAIN:
            break
    return float(value.max())


# A table of agent i has an axis for the start, then one for each agent: its choices if it is i or a parent, else 1.
Tables = dict[int, Float[Tensor, "starts ..."]]


def _random_log_tables(reward: Float[Tensor, "*choices"], seen: dict[int, tuple[int, ...]]) -> Tables:
    """log π_i at the start, sparse: near the deterministic policies, where the local maxima are."""
    generator, tables = torch.Generator().manual_seed(0), {}
    for agent, known in seen.items():
        shape = [count if other in (agent, *known) else 1 for other, count in enumerate(reward.shape)]
        uniform = torch.rand(STARTS, *shape, generator=generator, dtype=torch.float64).clamp(min=1e-9)
        tables[agent] = (4 * uniform.log()).log_softmax(1 + agent)
    return tables


def _values(reward: Float[Tensor, "*choices"], log_tables: Tables, temperature: float) -> Float[Tensor, " starts"]:
    """E[r] + temperature · H of each start's policy."""
    joint = torch.stack(torch.broadcast_tensors(*log_tables.values())).sum(0)
    return (joint.exp() * (reward - temperature * joint)).flatten(1).sum(1)


def _best_response(
    reward: Float[Tensor, "*choices"], log_tables: Tables, agent: int, known: tuple[int, ...], temperature: float
) -> Float[Tensor, "starts ..."]:
    """log π_i that is best for an agent if all others keep theirs."""
    unknown = [1 + other for other in range(reward.dim()) if other not in (agent, *known)]
    # The reward lends its shape: an agent without parents or children is on no other's table.
    others = sum((table for j, table in log_tables.items() if j != agent), torch.zeros_like(reward))
    worth = reward - temperature * others
    if unknown:
        # In logarithms, for at a low temperature a situation may be all but impossible.
        chance = (others - others.logsumexp(unknown, keepdim=True)).exp()
        worth = (chance * worth).sum(unknown, keepdim=True)
    return (worth / temperature).log_softmax(1 + agent)


def _table(agents: int, earned: Callable[[tuple[int, ...]], float]) -> Float[Tensor, "*choices"]:
    """Payoffs of agents with two choices each."""
    payoff = torch.zeros((2,) * agents, dtype=torch.float64)
    for joint in itertools.product((0, 1), repeat=agents):
        payoff[joint] = earned(joint)
    return payoff
