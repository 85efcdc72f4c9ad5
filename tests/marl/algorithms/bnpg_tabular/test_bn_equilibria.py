"""Nash gaps against all deterministic deviations, and against games whose equilibria are known."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor

from envs.dags import named_edges
from envs.games import CoordinationGame, climbing, penalty
from marl.algorithms.bnpg_tabular.equilibria import bn_nash_gap, nash_gap
from marl.algorithms.bnpg_tabular.exact import expected_return, optimum
from marl.algorithms.bnpg_tabular.game import tabulate
from marl.algorithms.bnpg_tabular.network import BayesianNetwork, advantages, ascent, evaluate, gradient
from tests.marl.algorithms.bnpg_tabular.small_games import Graph, deviations, random_game, random_policies

CERTAIN = 1e4


@pytest.mark.parametrize(
    "edges", [(), ((0, 1),), ((2, 0),), ((0, 1), (1, 2)), ((0, 2), (1, 2)), ((0, 1), (0, 2), (1, 2))], ids=str
)
def test_gaps_are_the_best_of_all_deterministic_deviations(edges: Graph) -> None:
    game = random_game((2, 2, 2), 2)
    network, theta = random_policies(game, edges, policies=1)

    def gain(sees: list[tuple[int, ...]]) -> float:
        now = expected_return(game, evaluate(game, theta).value)
        best = -float("inf")
        for agent in range(3):
            for logits in deviations(game, network, agent, sees[agent]):
                changed = [logits if j == agent else old for j, old in enumerate(theta)]
                best = max(best, float(expected_return(game, evaluate(game, changed).value) - now))
        return best

    assert float(nash_gap(game, theta)) == pytest.approx(gain([(), (), ()]), abs=1e-9)
    assert float(bn_nash_gap(game, network, theta)) == pytest.approx(gain(list(network.parents)), abs=1e-9)


def certain(table: list[list[float]] | list[float], *shape: int) -> Tensor:
    return CERTAIN * torch.tensor(table, dtype=torch.float64).view(1, 1, *shape)


def test_at_7_of_the_climbing_game_nobody_gains_alone_unless_another_reacts() -> None:
    game = tabulate(climbing(), 0.95)
    middle = certain([0, 1, 0], 3, 1)
    alone = [middle, certain([0, 1, 0], 1, 3)]
    assert float(nash_gap(game, alone)) == pytest.approx(0)
    # Agent 1 answers agent 0's action by the best of its row: 0 by 0, 1 by 1, 2 by 2. Then 0 is worth 11, not 7.
    reacts = [middle, certain([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 3, 3)]
    network = BayesianNetwork.of(game, ((0, 1),))
    assert float(nash_gap(game, reacts)) == pytest.approx(4)
    assert float(bn_nash_gap(game, network, reacts)) == pytest.approx(4)


@pytest.mark.parametrize(("agents", "ratio"), [(2, 0.682), (3, 0.778), (5, 0.7)])
def test_all_ones_is_a_nash_equilibrium_short_of_the_optimum(agents: int, ratio: float) -> None:
    game = tabulate(CoordinationGame(agents, horizon=None), 0.95).with_uniform_start()
    network = BayesianNetwork.of(game, ())
    ones = [torch.zeros(1, game.states, *network.shape(agent), dtype=torch.float64) for agent in range(agents)]
    for agent, logits in enumerate(ones):
        logits.select(2 + agent, 1).fill_(CERTAIN)
    found = float(expected_return(game, evaluate(game, ones).value)) / optimum(game)
    assert found == pytest.approx(ratio, abs=5e-3)
    assert float(nash_gap(game, ones)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("graph", "end"), [("empty", 7), ("complete", 11)])
def test_plain_gradients_from_uniform_climb_to_7_without_an_edge_and_to_11_with_one(graph: str, end: float) -> None:
    game = tabulate(climbing(), 0.95)
    network = BayesianNetwork.of(game, named_edges(graph, 2))
    uniform = network.draw(1, 1, 0.0, torch.Generator())
    last = next(islice(ascent(game, network, uniform, gradient, 0.5), 4000, None))
    assert float(last.expected_return) == pytest.approx(end, abs=5e-3)


def share_optimal(world: object, graph: str, starts: int, step_size: float, iterations: int) -> tuple[float, float]:
    """The share of random starts that natural gradients take to the optimum, and the mean of J/J*."""
    game = tabulate(world, 0.95).with_uniform_start()
    network = BayesianNetwork.of(game, named_edges(graph, len(game.choices)))
    theta = network.draw(starts, game.states, 1.0, torch.Generator().manual_seed(0))
    last = next(islice(ascent(game, network, theta, advantages, step_size), iterations, None))
    ratio = last.expected_return / optimum(game)
    return float((ratio >= 0.999).double().mean()), float(ratio.mean())


@pytest.mark.parametrize("world", [climbing(), penalty()], ids=["climbing", "penalty"])
def test_natural_gradients_always_solve_one_shot_games_along_an_edge_and_not_without(world: object) -> None:
    assert share_optimal(world, "complete", 100, 0.1, 1500)[0] == 1
    assert 0.1 < share_optimal(world, "empty", 100, 0.1, 1500)[0] < 0.8


@pytest.mark.parametrize(("agents", "most"), [(2, 0.6), (3, 0.1), (5, 0.05)])
def test_the_more_edges_the_closer_to_the_optimum_and_a_complete_graph_always_reaches_it(
    agents: int, most: float
) -> None:
    world, starts = CoordinationGame(agents, horizon=None), 60 if agents < 5 else 8
    found = {graph: share_optimal(world, graph, starts, 0.05, 1000) for graph in ("empty", "line", "complete")}
    assert found["complete"][0] == 1
    assert found["empty"][0] < most
    assert found["empty"][1] < found["line"][1] <= found["complete"][1] + 1e-9
