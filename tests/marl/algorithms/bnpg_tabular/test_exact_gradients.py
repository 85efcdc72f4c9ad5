"""Values and gradients against their definitions, on every graph of three agents."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor

from envs.core import InputError
from envs.dags import named_edges
from marl.algorithms.bnpg_tabular.exact import expected_return, occupancy, optimum
from marl.algorithms.bnpg_tabular.game import TabularGame
from marl.algorithms.bnpg_tabular.network import BayesianNetwork, advantages, ascent, evaluate, gradient
from tests.marl.algorithms.bnpg_tabular.small_games import (
    Graph,
    graphs,
    joint_by_loops,
    random_game,
    random_policies,
    return_by_summing,
)

every_graph = pytest.mark.parametrize("edges", graphs(3), ids=str)


def score(game: TabularGame, theta: list[Tensor]) -> Tensor:
    return expected_return(game, evaluate(game, theta).value)


@every_graph
def test_the_joint_policy_and_its_return_are_those_of_the_definition(edges: Graph) -> None:
    game = random_game((2, 3, 2), 3)
    network, theta = random_policies(game, edges)
    now = evaluate(game, theta)
    joint = joint_by_loops(game, network, theta)
    torch.testing.assert_close(now.joint.flatten(2)[0], joint, atol=1e-12, rtol=0)
    assert float(score(game, theta)[0]) == pytest.approx(return_by_summing(game, joint), abs=1e-9)


@every_graph
def test_the_gradient_in_closed_form_is_autograd_s(edges: Graph) -> None:
    game = random_game((2, 3, 2), 4)
    network, theta = random_policies(game, edges)
    theta = [logits.requires_grad_() for logits in theta]
    slopes = torch.autograd.grad(score(game, theta).sum(), theta)
    theta = [logits.detach() for logits in theta]
    for found, slope in zip(gradient(game, network, evaluate(game, theta)), slopes, strict=True):
        torch.testing.assert_close(found, slope, atol=1e-8, rtol=0)


@every_graph
def test_advantages_are_the_natural_gradient(edges: Graph) -> None:
    """The Fisher information times A/(1-γ) is the gradient: F = Σ_s d(s) Σ_a π(a|s) ∇log π ∇log πᵀ."""
    game = random_game((2, 2, 2), 2)
    network, theta = random_policies(game, edges, policies=1)
    sizes = [logits.numel() for logits in theta]

    def log_joint(flat: Tensor) -> Tensor:
        parts = [part.view_as(old) for part, old in zip(flat.split(sizes), theta, strict=True)]
        return evaluate(game, parts).log_joint.flatten()

    now = evaluate(game, theta)
    slopes = torch.autograd.functional.jacobian(log_joint, torch.cat([logits.flatten() for logits in theta]))
    visits = (1 - game.discount) * occupancy(game, now.joint.flatten(2))
    weight = (visits.unsqueeze(-1) * now.joint.flatten(2)).flatten()
    fisher = torch.einsum("x,xi,xj->ij", weight, slopes, slopes)
    natural = torch.cat([a.flatten() for a in advantages(game, network, now)]) / (1 - game.discount)
    plain = torch.cat([g.flatten() for g in gradient(game, network, now)])
    torch.testing.assert_close(fisher @ natural, plain, atol=1e-9, rtol=0)


def test_advantages_stay_finite_where_parents_actions_have_become_impossible() -> None:
    game = random_game((2, 2, 2), 2)
    network, theta = random_policies(game, ((0, 1), (0, 2), (1, 2)))
    now = evaluate(game, [5000 * logits for logits in theta])
    assert (now.joint == 0).any()
    assert all(bool(a.isfinite().all()) for a in advantages(game, network, now))


def test_a_start_ascends_alone_as_among_others() -> None:
    game = random_game((2, 3), 3)
    network, theta = random_policies(game, ((1, 0),), policies=5)
    together = next(islice(ascent(game, network, theta, advantages, 0.1), 50, None))
    alone = next(islice(ascent(game, network, [t[2:3] for t in theta], advantages, 0.1), 50, None))
    torch.testing.assert_close(together.expected_return[2:3], alone.expected_return, atol=1e-10, rtol=0)


@pytest.mark.parametrize("estimator", [advantages, gradient])
def test_small_steps_never_lose_return(estimator: object) -> None:
    game = random_game((2, 2, 2), 3)
    network, theta = random_policies(game, ((0, 1),))
    points = islice(ascent(game, network, theta, estimator, 0.05), 100)  # type: ignore[arg-type]
    returns = torch.stack([point.expected_return for point in points])
    assert (returns.diff(dim=0) > -1e-12).all()
    assert returns.max() <= optimum(game) + 1e-12


def test_a_line_reaches_its_last_agent() -> None:
    game = random_game((2, 2), 1)
    assert BayesianNetwork.of(game, named_edges("line", 2)).parents == ((), (0,))
    game = random_game((2, 2, 2), 1)
    assert BayesianNetwork.of(game, named_edges("line", 3)).parents == ((), (0,), (1,))
    assert BayesianNetwork.of(game, named_edges("complete", 3)).parents == ((), (0,), (0, 1))
    assert BayesianNetwork.of(game, named_edges("empty", 3)).parents == ((), (), ())


def test_a_graph_with_a_cycle_is_refused() -> None:
    with pytest.raises(InputError, match="cycle"):
        BayesianNetwork.of(random_game((2, 2), 1), ((0, 1), (1, 0)))
