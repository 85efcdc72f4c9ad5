"""Entropic values against closed forms, tables, and searches that share no code with them; the budget game."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from envs.core import InputError
from envs.games import BudgetGame, MatrixGame, chain, climbing, disagreement, entropic_value, frustrated_triangle
from envs.world import TensorEnv

LINE = [(i, i + 1) for i in range(4)]
COMPLETE = list(itertools.combinations(range(3), 2))


@pytest.mark.parametrize(
    ("temperature", "product", "edge"),
    [(0.1, 1.00000, 1.06932), (0.25, 1.00983, 1.17782), (0.5, 1.19315, 1.41004), (1.0, 1.88629, 2.00641)],
)
def test_disagreement_at_every_temperature(temperature: float, product: float, edge: float) -> None:
    world = disagreement()
    assert entropic_value(world, [], temperature) == pytest.approx(product, abs=1e-5)
    for graph in ([(0, 1)], [(1, 0)]):
        assert entropic_value(world, graph, temperature) == pytest.approx(edge, abs=1e-5)
        closed_form = temperature * math.log(2 + 2 * math.exp(1 / temperature))
        assert entropic_value(world, graph, temperature) == pytest.approx(closed_form, abs=1e-10)


@pytest.mark.parametrize("coupling", [1.0, 0.3])
def test_on_a_chain_the_line_is_as_good_as_everything(coupling: float) -> None:
    everything = list(itertools.combinations(range(5), 2))
    closed_form = math.log(2 * (1 + math.exp(coupling)) ** 4)
    for graph in (LINE, everything, [(j, i) for i, j in LINE], [(2, 1), (1, 0), (2, 3), (3, 4)]):
        assert entropic_value(chain(coupling=coupling), graph, 1.0) == pytest.approx(closed_form, abs=1e-10)
    collider = entropic_value(chain(coupling=coupling), [(0, 1), (1, 2), (3, 2), (4, 3)], 1.0)
    assert collider < closed_form - 1e-4


def test_the_chain_has_the_tabulated_values() -> None:
    assert entropic_value(chain(), [], 1.0) == pytest.approx(5.46574, abs=1e-5)
    assert entropic_value(chain(), LINE, 1.0) == pytest.approx(5.94619, abs=1e-5)


@pytest.mark.parametrize(
    ("graph", "value"),
    [
        ([], 3.57944),
        ([(0, 1)], 3.69956),
        ([(0, 1), (1, 2)], 3.74406),
        ([(0, 1), (0, 2)], 3.74406),
        ([(0, 2), (1, 2)], 3.79633),
        (COMPLETE, 3.83588),
    ],
    ids=["empty", "one edge", "chain", "fork", "collider", "complete"],
)
def test_every_edge_relieves_the_frustrated_triangle(graph: list[tuple[int, int]], value: float) -> None:
    assert entropic_value(frustrated_triangle(), graph, 1.0) == pytest.approx(value, abs=1e-5)


def random_game(seed: int, *choices: int) -> MatrixGame:
    return MatrixGame(3 * torch.randn(*choices, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0.02, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_without_edges_no_pair_of_policies_on_a_fine_grid_does_better(seed: int, temperature: float) -> None:
    world = random_game(seed, 2, 2)
    p = torch.linspace(1e-9, 1 - 1e-9, 1501, dtype=torch.float64)
    policy = torch.stack([p, 1 - p], -1)
    entropy = -(policy * policy.log()).sum(-1)
    grid = policy @ world.payoff @ policy.T + temperature * (entropy.unsqueeze(1) + entropy)
    value = entropic_value(world, [], temperature)
    assert value >= grid.max().item() - 1e-9
    assert value == pytest.approx(grid.max().item(), abs=1e-4)


@pytest.mark.parametrize("graph", [[], [(0, 1)], [(0, 2), (1, 2)], [(0, 1), (0, 2)]])
def test_gradient_ascent_from_many_starts_does_no_better(graph: list[tuple[int, int]]) -> None:
    world, temperature = random_game(7, 2, 3, 2), 0.7
    torch.manual_seed(0)
    logits = []
    for agent in range(3):
        near = {agent, *(i for i, j in graph if j == agent)}
        shape = [n if i in near else 1 for i, n in enumerate(world.payoff.shape)]
        logits.append((3 * torch.randn(64, *shape, dtype=torch.float64)).requires_grad_())
    optimizer = torch.optim.Adam(logits, lr=0.05)
    best = -math.inf
    for _ in range(800):
        joint = sum(table.log_softmax(1 + agent) for agent, table in enumerate(logits))
        values = (joint.exp() * (world.payoff - temperature * joint)).flatten(1).sum(1)
        optimizer.zero_grad()
        (-values.sum()).backward()
        optimizer.step()
        best = max(best, values.max().item())
    value = entropic_value(world, graph, temperature)
    assert value >= best - 1e-9
    assert value == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_more_edges_never_cost_anything_and_all_edges_give_log_sum_exp(seed: int) -> None:
    world, temperature = random_game(seed, 3, 2, 3), 0.8
    values = [entropic_value(world, COMPLETE[:count], temperature) for count in range(4)]
    assert values == sorted(values)
    log_sum = temperature * (world.payoff / temperature).flatten().logsumexp(0).item()
    assert values[-1] == pytest.approx(log_sum, abs=1e-10)
    assert values[0] < values[-1]


def test_a_low_temperature_leaves_the_best_joint_action() -> None:
    for graph in ([], [(0, 1)]):
        assert entropic_value(climbing(), graph, 1e-3) == pytest.approx(climbing().optimal_value(graph), abs=1e-3)


def test_the_payoffs_are_what_is_said_of_them() -> None:
    assert chain(3, 0.5).payoff[0].tolist() == [[1, 0.5], [0, 0.5]]
    triangle = frustrated_triangle().payoff
    assert [triangle[0, 0, 0], triangle[0, 1, 0], triangle[1, 1, 0], triangle[1, 1, 1]] == [0, 2, 2, 0]


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: entropic_value(climbing(), [], 0.0), "positive and finite; got 0"),
        (lambda: entropic_value(climbing(), [], math.inf), "positive and finite; got inf"),
        (lambda: entropic_value(climbing(), [(0, 2)], 1.0), r"Edge \(0, 2\)"),
        (lambda: entropic_value(chain(13), [], 1.0), "at most 4096; this game has 8192"),
        (lambda: chain(1), "got agents=1"),
        (lambda: BudgetGame(1.5), "got 1.5"),
        (lambda: BudgetGame().optimal_value([(1, 1)]), r"Edge \(1, 1\)"),
    ],
)
def test_impossible_questions_are_input_errors(attempt: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attempt()


@pytest.mark.parametrize(("share", "product"), [(0.5, 0.5), (0.2, 0.68)])
def test_a_budget_is_kept_together_with_an_edge_and_by_chance_without(share: float, product: float) -> None:
    world = BudgetGame(share)
    assert world.optimal_value([]) == pytest.approx(product)
    assert world.optimal_value([(0, 1)]) == world.optimal_value([(1, 0)]) == 1
    rows = 40_000
    drawn = (torch.rand(rows, 2, 1, generator=torch.Generator().manual_seed(0)) < share).long()
    for action, value in ((drawn, product), (drawn[:, :1].expand(-1, 2, -1), 1.0)):
        env = TensorEnv(world, rows)
        env.reset(0)
        step = env.step(action)
        assert step.reward[..., 0].mean().item() == pytest.approx(value, abs=0.01)
        assert world.deviation(step.reward).tolist() == pytest.approx([0, 0], abs=0.01)
    env.reset(0)
    always = world.deviation(env.step(torch.ones_like(drawn)).reward)
    assert always.tolist() == pytest.approx([1 - share] * 2)
