"""Random games and policies, and their values by definitions that share no code with the solutions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import networkx as nx
import torch
from torch import Tensor

from marl.algorithms.bnpg_tabular.game import TabularGame
from marl.algorithms.bnpg_tabular.network import BayesianNetwork

Graph = tuple[tuple[int, int], ...]


def graphs(agents: int) -> list[Graph]:
    """All labelled directed acyclic graphs."""
    pairs = list(itertools.permutations(range(agents), 2))
    subsets = itertools.chain.from_iterable(itertools.combinations(pairs, k) for k in range(len(pairs) + 1))
    return [edges for edges in subsets if nx.is_directed_acyclic_graph(nx.DiGraph(edges))]


def random_game(choices: Sequence[int], states: int, seed: int = 0, discount: float = 0.9) -> TabularGame:
    """Random rewards and transitions; some probability of ending everywhere."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    actions = torch.tensor(choices).prod().item()
    transition = uniform(states, actions, states)
    transition = transition / transition.sum(-1, keepdim=True) * (0.8 + 0.2 * uniform(states, actions, 1))
    start = uniform(states)
    return TabularGame(tuple(choices), transition, uniform(states, actions), start / start.sum(), discount)


def random_policies(game: TabularGame, edges: Graph, policies: int = 2) -> tuple[BayesianNetwork, list[Tensor]]:
    network = BayesianNetwork.of(game, edges)
    return network, network.draw(policies, game.states, 1.0, torch.Generator().manual_seed(1))


def return_by_summing(game: TabularGame, joint: Tensor, steps: int = 600) -> float:
    """J of one joint policy [S,A], reward by reward."""
    transition = game.transition.expand(game.states, -1, -1)
    state, total = game.start, 0.0
    for t in range(steps):
        taken = state.unsqueeze(-1) * joint
        total += game.discount**t * float((taken * game.reward).sum())
        state = torch.einsum("sa,sat->t", taken, transition)
    return total


def joint_by_loops(game: TabularGame, network: BayesianNetwork, theta: list[Tensor]) -> Tensor:
    """π(a | s) of the first policies, one probability at a time, [S,A]."""
    joint = torch.ones(game.states, game.reward.shape[1], dtype=torch.float64)
    for state in range(game.states):
        for number, action in enumerate(itertools.product(*map(range, game.choices))):
            for agent, seen in enumerate(network.parents):
                place = [action[j] if j in (*seen, agent) else 0 for j in range(len(action))]
                place[agent] = slice(None)
                joint[state, number] *= theta[agent][0, state][tuple(place)].softmax(0)[action[agent]]
    return joint


def deviations(game: TabularGame, network: BayesianNetwork, agent: int, sees: tuple[int, ...]) -> Iterator[Tensor]:
    """Logits of every deterministic policy of an agent who sees the state and some others, [1, S, …]."""
    shape = [count if j in (*sees, agent) else 1 for j, count in enumerate(game.choices)]
    situations = game.states * torch.tensor(shape).prod().item() // game.choices[agent]
    rest = [size for j, size in enumerate(shape) if j != agent]
    for choice in itertools.product(range(game.choices[agent]), repeat=situations):
        one_hot = torch.nn.functional.one_hot(torch.tensor(choice), game.choices[agent]).double()
        yield 1e4 * one_hot.view(1, game.states, *rest, game.choices[agent]).movedim(-1, 2 + agent)
