"""Gain of an agent that deviates alone: best responses to Bayesian-network policies, and gaps to Nash equilibria.

Where an agent deviates, all other conditionals π_j(a_j | s, a_parents(j)) stay as they are, so its children react. What
it then faces is a Markov decision process of one agent, solved exactly.
"""

from __future__ import annotations

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from marl.algorithms.bnpg_tabular.exact import best_value, expected_return, greedy
from marl.algorithms.bnpg_tabular.game import TabularGame
from marl.algorithms.bnpg_tabular.network import BayesianNetwork, Table, evaluate, others, total


def nash_gap(game: TabularGame, theta: list[Table]) -> Float[Tensor, " P"]:
    """max_i max_{π'_i(a_i | s)} J(π'_i, π_-i) - J(π): the best gain of one agent who looks at the state only.

    Without edges, 0 is a Nash equilibrium. It is never negative: some agent has no parents and looks at the state only.
    Source: Chen and Zhang, ICML 2023 (arXiv 2306.01920), the NE-gap of their code.
    """
    unseen = [others(game.choices, agent) for agent in range(len(game.choices))]
    return _gap(game, theta, unseen)


def bn_nash_gap(game: TabularGame, network: BayesianNetwork, theta: list[Table]) -> Float[Tensor, " P"]:
    """max_i max_{π'_i(a_i | s, a_P)} J(π'_i, π_-i) - J(π): the best gain of one agent who looks at its parents too."""
    return _gap(game, theta, [network.unseen(agent) for agent in range(len(game.choices))])


def _gap(game: TabularGame, theta: list[Table], unseen: list[tuple[int, ...]]) -> Float[Tensor, " P"]:
    best = [expected_return(game, _response(game, theta, agent, axes)) for agent, axes in enumerate(unseen)]
    gain = torch.stack(best).amax(0) - expected_return(game, evaluate(game, theta).value)
    return gain.clamp(min=0)  # negative by rounding only


def _response(game: TabularGame, theta: list[Table], agent: int, unseen: tuple[int, ...]) -> Float[Tensor, "P S"]:
    """V of one agent's best responses that may depend on the state and on whoever is not unseen.

    Given Q, the best a_i at (s, a_seen) maximizes Σ_{a_unseen} Π_{j≠i} π_j(a_j | s, a_parents(j)) Q(s, a): the product
    is Pr(a_seen | s), on which a_i has no influence, times the probability of the rest given a_seen and a_i.
    """
    rest = [logits.softmax(2 + other) for other, logits in enumerate(theta) if other != agent]
    whole = theta[agent].new_ones(*theta[agent].shape[:2], *game.choices)
    others_draw = prod(rest, start=whole)

    def improve(q: Float[Tensor, "P S A"]) -> Float[Tensor, "P S A"]:
        mean = total(others_draw * q.unflatten(2, game.choices), unseen)
        return (others_draw * greedy(mean, 2 + agent)).flatten(2)

    at_random = others_draw / game.choices[agent]
    return best_value(game, at_random.flatten(2), improve)
