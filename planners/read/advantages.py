"""Advantages of prefixes of joint decisions, and what they make of a policy: exact, on arrays of joint choices.

Arrays have an axis for each agent's choice, last: [*S,A,…,A], N times. Source: Zhang et al., 2025 (arXiv 2405.14314),
after Kuba et al., ICLR 2022 (arXiv 2109.11251). Where the paper's equations slip, the docstrings say so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import InputError


def prefix_value(
    q: Float[Tensor, "*joint"], policy: Float[Tensor, "*joint"], agents: int, given: Sequence[int]
) -> Float[Tensor, "*prefix"]:
    """Value of the choices of some agents, Q^G(s, a) = E[Q(s, a) | a^G], the others choosing as the policy does.

    policy: joint probabilities, which need not be independent. The axes of agents who are not given have size 1; with
    none given it is V, with all Q. Where the policy never makes the choices of G, the others choose uniformly.
    """
    others = _axes([agent for agent in range(agents) if agent not in given], agents)
    if not others:
        return q
    mass = policy.sum(others, keepdim=True)
    joint = math.prod(q.shape[axis] for axis in others)
    share = torch.where(mass > 0, policy / mass.clamp(min=torch.finfo(policy.dtype).tiny), 1 / joint)
    return (share * q).sum(others, keepdim=True)


def advantages(
    q: Float[Tensor, "*joint"], policy: Float[Tensor, "*joint"], agents: int, order: Sequence[int]
) -> list[Float[Tensor, "*prefix"]]:
    """Advantage of each agent's choice after those before it in the order, by place in the order.

        A^{i_k}(s, a^{i_1:k-1}, a^{i_k}) = Q^{i_1:k}(s, a) - Q^{i_1:k-1}(s, a)

    They add up to A(s, a) = Q(s, a) - V(s) in any order (the decomposition lemma of Kuba et al.).
    """
    require_order(order, agents)
    values = [prefix_value(q, policy, agents, order[:known]) for known in range(agents + 1)]
    return [after - before for before, after in itertools.pairwise(values)]


def reweighed(
    policy: Float[Tensor, "*S A"], advantage: Float[Tensor, "*S A"], temperature: float
) -> Float[Tensor, "*S A"]:
    """The policy that maximizes E_π[A] - β KL(π || μ): π(a|s) = μ(a|s) exp(A(s, a) / β) / Z(s), over the last axis.

    temperature: β > 0, in the unit of the advantage. What μ never chooses stays out (Zhang et al., equation 7).
    """
    if not temperature > 0:
        raise InputError(f"A policy is reweighed at a temperature above 0; got {temperature}.")
    return torch.softmax(policy.log() + advantage / temperature, -1)


def reweighed_in_order(
    policy: Float[Tensor, "*joint"],
    q: Float[Tensor, "*joint"],
    temperature: float,
    agents: int,
    order: Sequence[int],
    *,
    look_ahead: bool = True,
) -> Float[Tensor, "*joint"]:
    """The joint policy of agents who reweigh their choices one after the other, each by its own advantage.

        π^{i_k}(a^{i_k} | s, a^{i_1:k-1}) ∝ μ(a^{i_k} | s, a^{i_1:k-1}) exp(A^{i_k} / β) Z^{i_k+1}(s, a^{i_1:k})

    With Z, what the agents after it will make of the prefix, the product is the closed form of joint decisions exactly.
    Without it (look_ahead=False) it is the product that the paper publishes (equation 9), which is another policy.
    """
    require_order(order, agents)
    parts = advantages(q, policy, agents, order)
    product, ahead = torch.ones_like(q), torch.zeros(())
    for place in reversed(range(agents)):
        later, own = order[place + 1 :], _axes(order[place : place + 1], agents)
        before = policy.sum(_axes(later, agents), keepdim=True) if later else policy
        mass = before.sum(own, keepdim=True).clamp(min=torch.finfo(policy.dtype).tiny)
        weight = (before / mass).log() + parts[place] / temperature + (ahead if look_ahead else 0)
        total = weight.logsumexp(own, keepdim=True)
        # A prefix that never happens has no distribution; whatever stands there has probability 0 in the product.
        product = product * (weight - total.clamp(min=torch.finfo(total.dtype).min)).exp()
        ahead = total
    return product


def filtered(
    policy: Float[Tensor, "*S A"], advantage: Float[Tensor, "*S A"], threshold: Float[Tensor, "*S 1"] | float = 0.0
) -> Float[Tensor, "*S A"]:
    """The policy without what does not pass, μ(a|s) 1[A(s, a) > ε] / Z(s), over the last axis.

    Where nothing passes that μ ever chooses, the best of what it chooses: a planner's best proposal so far. With the
    true advantage of μ and ε >= 0 it is nowhere worse than μ, since E_π[A(s, ·)] >= 0 in every state (Kakade and
    Langford, ICML 2002); the paper's proof of its proposition 2 assumes less.
    """
    kept = policy * (advantage > threshold)
    mass = kept.sum(-1, keepdim=True)
    possible = advantage.masked_fill(policy == 0, -torch.inf)
    best = torch.nn.functional.one_hot(possible.argmax(-1), policy.shape[-1]).to(policy.dtype)
    return torch.where(mass > 0, kept / mass.clamp(min=torch.finfo(policy.dtype).tiny), best)


def require_order(order: Sequence[int], agents: int) -> None:
    """Raise InputError unless every agent is named once."""
    if sorted(order) != list(range(agents)):
        raise InputError(f"An order names each of the agents 0 to {agents - 1} once; got {list(order)}.")


def _axes(which: Sequence[int], agents: int) -> tuple[int, ...]:
    """Axes of these agents, counted from the last."""
    return tuple(agent - agents for agent in which)
