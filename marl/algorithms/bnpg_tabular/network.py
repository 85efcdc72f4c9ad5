"""Tabular softmax Bayesian networks, π(a | s) = Π_i π_i(a_i | s, a_parents(i)), and exact gradients of their return.

Every table over joint actions is laid out as [P, S, A_1, …, A_N], with length 1 on the axes of agents that it does not
depend on, so that tables of different agents multiply by broadcasting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from envs.dags import Edges, parents
from marl.algorithms.bnpg_tabular.exact import action_value, expected_return, occupancy, state_value
from marl.algorithms.bnpg_tabular.game import TabularGame

Table = Float[Tensor, "P S ..."]


@dataclass(frozen=True)
class BayesianNetwork:
    """Axes of each agent's table. choices: number of actions of each agent. parents: of each agent, by index."""

    choices: tuple[int, ...]
    parents: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, game: TabularGame, edges: Edges) -> BayesianNetwork:
        """The network of a graph over the game's agents. Raises InputError for one with a cycle or unknown agents."""
        found = parents(edges, len(game.choices))
        return cls(game.choices, tuple(found[agent] for agent in range(len(game.choices))))

    def shape(self, agent: int) -> tuple[int, ...]:
        """The axes of an agent's table after [P, S]: its parents' choices and its own."""
        sees = {agent, *self.parents[agent]}
        return tuple(count if other in sees else 1 for other, count in enumerate(self.choices))

    def unseen(self, agent: int) -> tuple[int, ...]:
        """The axes of those whom an agent does not see: all but itself and its parents."""
        return others(self.choices, agent, *self.parents[agent])

    def draw(self, policies: int, states: int, spread: float, generator: torch.Generator) -> list[Table]:
        """Logits θ_i of all agents, normal with standard deviation `spread`, on the generator's device."""
        shapes = [(policies, states, *self.shape(agent)) for agent in range(len(self.choices))]
        device = generator.device
        normal = [torch.randn(shape, generator=generator, device=device, dtype=torch.float64) for shape in shapes]
        return [spread * table for table in normal]


class Evaluation(NamedTuple):
    """Everything about P joint policies. policies: π_i. joint: π(a | s). value: V. action_value: Q."""

    policies: list[Table]
    log_joint: Table
    value: Float[Tensor, "P S"]
    action_value: Table

    @property
    def joint(self) -> Table:
        """π(a | s)."""
        return self.log_joint.exp()


# From policies to the direction in which their logits move.
Estimator = Callable[[TabularGame, BayesianNetwork, Evaluation], list[Table]]


def evaluate(game: TabularGame, theta: list[Table]) -> Evaluation:
    """The exact values of softmax policies with logits θ_i."""
    log_policies = [logits.log_softmax(2 + agent) for agent, logits in enumerate(theta)]
    log_joint = sum(log_policies[1:], log_policies[0])
    value = state_value(game, log_joint.exp().flatten(2))
    q = action_value(game, value).unflatten(2, game.choices)
    return Evaluation([log.exp() for log in log_policies], log_joint, value, q)


def advantages(game: TabularGame, network: BayesianNetwork, now: Evaluation) -> list[Table]:
    """A_i = Q_i - Σ_{a_i} π_i Q_i with Q_i(s, a_P, a_i) = E[Q(s, a) | s, a_P, a_i], the others' actions drawn from π.

    The natural gradient of J is A_i / (1 - γ): the Fisher information of π has a block
    d(s) Pr(a_P | s) (diag π_i - π_i π_iᵀ) for each agent, state and parents' actions (Kakade, 2001; Agarwal et al.,
    2021, Lemma 5.1, of a single agent).
    """
    found = []
    for agent, policy in enumerate(now.policies):
        unseen = network.unseen(agent)
        # In logarithms, for the parents' actions may have become too improbable for a float.
        given = now.log_joint - log_total(now.log_joint, unseen)
        q = total(given.exp() * now.action_value, unseen)
        found.append(q - total(policy * q, (2 + agent,)))
    return found


def gradient(game: TabularGame, network: BayesianNetwork, now: Evaluation) -> list[Table]:
    """dJ/dθ_i(s, a_P, a_i) = d(s)/(1 - γ) · Pr(a_P | s) · π_i(a_i | s, a_P) · A_i(s, a_P, a_i)."""
    joint = now.joint
    visits = occupancy(game, joint.flatten(2)).unflatten(1, (game.states, *(1 for _ in game.choices)))
    return [
        visits * total(joint, network.unseen(agent)) * advantage
        for agent, advantage in enumerate(advantages(game, network, now))
    ]


class Point(NamedTuple):
    """One point of an ascent: logits θ_i and J of each policy."""

    theta: list[Table]
    expected_return: Float[Tensor, " P"]


def ascent(
    game: TabularGame, network: BayesianNetwork, theta: list[Table], estimator: Estimator, step_size: float
) -> Iterator[Point]:
    """θ_i ← θ_i + η · estimate, without end; the first point is the start."""
    while True:
        now = evaluate(game, theta)
        yield Point(theta, expected_return(game, now.value))
        steps = estimator(game, network, now)
        theta = [logits + step_size * step for logits, step in zip(theta, steps, strict=True)]


def others(choices: tuple[int, ...], *agents: int) -> tuple[int, ...]:
    """The axes of all agents but these, in a table [P, S, A_1, …, A_N]."""
    return tuple(2 + other for other in range(len(choices)) if other not in agents)


def total(table: Table, axes: tuple[int, ...]) -> Table:
    """The sum over these axes, which stay with length 1."""
    return table.sum(axes, keepdim=True) if axes else table  # torch takes no axes for all


def log_total(table: Table, axes: tuple[int, ...]) -> Table:
    """As `total`, of logarithms."""
    return table.logsumexp(axes, keepdim=True) if axes else table
