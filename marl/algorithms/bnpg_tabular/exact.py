"""Values of joint policies in a tabular game, by solving linear equations; P policies at once.

A joint policy is π(a | s), [P,S,A].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from marl.algorithms.bnpg_tabular.game import TabularGame

# Policy iteration ends where no state's value grows by more, relative to the largest value.
TOLERANCE = 1e-12

Improve = Callable[[Float[Tensor, "P S A"]], Float[Tensor, "P S A"]]


def state_value(game: TabularGame, joint: Float[Tensor, "P S A"]) -> Float[Tensor, "P S"]:
    """V = (I - γ P_π)^-1 r_π."""
    return torch.linalg.solve(_resolvent(game, joint), (joint * game.reward).sum(-1))


def action_value(game: TabularGame, value: Float[Tensor, "P S"]) -> Float[Tensor, "P S A"]:
    """Q(s, a) = r(s, a) + γ Σ_s' P(s' | s, a) V(s')."""
    return game.reward + game.discount * torch.einsum("sat,pt->psa", game.transition, value)


def occupancy(game: TabularGame, joint: Float[Tensor, "P S A"]) -> Float[Tensor, "P S"]:
    """d(s) / (1 - γ), the expected discounted number of visits: μᵀ (I - γ P_π)^-1."""
    resolvent = _resolvent(game, joint)
    return torch.linalg.solve(resolvent.mT, game.start.expand(len(joint), -1))


def expected_return(game: TabularGame, value: Float[Tensor, "P S"]) -> Float[Tensor, " P"]:
    """J = Σ_s μ(s) V(s)."""
    return value @ game.start


def _resolvent(game: TabularGame, joint: Float[Tensor, "P S A"]) -> Float[Tensor, "P S S"]:
    """I - γ P_π."""
    identity = torch.eye(game.states, dtype=joint.dtype, device=joint.device)
    return identity - game.discount * torch.einsum("psa,sat->pst", joint, game.transition)


def best_value(game: TabularGame, joint: Float[Tensor, "P S A"], improve: Improve) -> Float[Tensor, "P S"]:
    """V of the best joint policies that `improve` can make, by policy iteration from `joint`.

    improve: from Q to the joint policies that are greedy on it. They must form the choices of a single decider whose
    environment is fixed, so that the best one exists in all states at once.
    """
    value = state_value(game, joint)
    while True:
        better = state_value(game, improve(action_value(game, value)))
        if bool((better <= value + TOLERANCE * value.abs().max()).all()):
            return torch.maximum(value, better)
        value = better


def optimum(game: TabularGame) -> float:
    """J*, the best expected return of all joint policies: one decider chooses for everybody.

    Some deterministic policy reaches it, and that is a product of policies: a graph never raises it.
    """
    uniform = torch.full_like(game.reward, 1 / game.reward.shape[-1]).unsqueeze(0)
    return float(expected_return(game, best_value(game, uniform, lambda q: greedy(q, -1))))


def greedy(q: Float[Tensor, "P S ..."], axis: int) -> Float[Tensor, "P S ..."]:
    """1 at the first best choice along an axis, else 0."""
    return torch.zeros_like(q).scatter_(axis, q.argmax(axis, keepdim=True), 1.0)
