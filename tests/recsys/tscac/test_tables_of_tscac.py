"""Fixed points and dual ascent in tables, against the file's answers, the linear program, and other problems."""

from __future__ import annotations

import json

import pytest
import torch
from small_constrained import random_problem

from recsys.problems.base import PROBLEMS
from recsys.problems.constrained import ConstrainedProblem
from recsys.tscac.closed_form import product, tied
from recsys.tscac.tables import dual_ascent, fixed_point

SHIPPED = PROBLEMS / "cmdp.json"


def anchored(problem: ConstrainedProblem) -> torch.Tensor:
    """log-probabilities of the product of both soft-optimal policies, [S,A]."""
    policies, _ = problem.process.soft_optimal(torch.eye(3, dtype=torch.float64)[1:], 0.02)
    return product(policies.log(), torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_the_fixed_points_are_those_of_the_file() -> None:
    problem = ConstrainedProblem.read(SHIPPED)
    known = json.loads(SHIPPED.read_text())["fixed_point"]
    assert len(known) == 5
    closeness = torch.tensor([float(key) for key in known], dtype=torch.float64)
    policies = fixed_point(problem.process, anchored(problem).expand(5, -1, -1), 2 * closeness)
    gap = problem.process.returns(policies) - torch.tensor(list(known.values()), dtype=torch.float64)
    assert float(gap.abs().max()) < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_a_fixed_point_is_tied_to_its_own_advantage_and_the_main_goal_rises_as_the_tie_loosens(seed: int) -> None:
    problem = random_problem(seed)
    base, closeness = anchored(problem), torch.tensor([3.0, 1.0, 0.3, 0.1, 0.03], dtype=torch.float64)
    policies = fixed_point(problem.process, base.expand(5, -1, -1), closeness)
    for policy, temperature in zip(policies, closeness.tolist(), strict=True):
        advantage, _ = problem.process.advantage(policy)
        assert torch.allclose(tied(base, advantage[..., 0], temperature).log_probs.exp(), policy, atol=1e-10)
    main = problem.process.returns(policies)[:, 0].tolist()
    assert main == sorted(main)


@pytest.mark.parametrize(("temperature", "share"), [(0.05, 0.977), (0.02, 0.998), (0.01, 0.9998)])
def test_dual_ascent_holds_thresholds_and_reaches_the_program(temperature: float, share: float) -> None:
    problem = ConstrainedProblem.read(SHIPPED)
    span = problem.largest() - problem.least()
    held = dual_ascent(problem.process, anchored(problem)[None], temperature, problem.thresholds[None], span)
    returns = problem.process.returns(held.policy)[0]
    assert returns[1:].tolist() == pytest.approx(problem.thresholds.tolist(), rel=1e-6)  # both bind
    assert share <= float(returns[0] / problem.best().returns[0]) <= 1 + 1e-6


@pytest.mark.parametrize("seed", [4, 5, 13])
@pytest.mark.parametrize("slack", [False, True])
def test_it_holds_them_in_other_problems_where_no_round_settles_too(seed: int, slack: bool) -> None:
    """Close to Λ = 0 policies jump; with `slack` any policy holds the second threshold."""
    problem = random_problem(seed, 0.55)
    if slack:
        problem.thresholds[1] = problem.least()[2]
    best, span = problem.best(), problem.largest() - problem.least()
    held = dual_ascent(problem.process, anchored(problem)[None], 0.005, problem.thresholds[None], span, rounds=1000)
    returns = problem.process.returns(held.policy)[0]
    assert bool((returns[1:] >= problem.thresholds - 1e-6 * span[1:]).all())
    assert 0.97 <= float(returns[0] / best.returns[0]) <= 1 + 1e-6
    assert not slack or held.multipliers[0, 1] == 0


def test_many_thresholds_at_once_are_each_alone() -> None:
    problem = random_problem(7)
    base, span = anchored(problem)[None], problem.largest() - problem.least()
    low = problem.least()[1:]
    wanted = torch.stack([low + share * (problem.thresholds - low) for share in (0.5, 0.9)])
    together = dual_ascent(problem.process, base.expand(2, -1, -1), 0.05, wanted, span)
    for place in range(2):
        alone = dual_ascent(problem.process, base, 0.05, wanted[place, None], span)
        assert torch.allclose(together.multipliers[place], alone.multipliers[0], atol=1e-6)


def test_a_signal_that_never_varies_neither_binds_nor_breaks() -> None:
    problem = random_problem(8)
    problem.process.reward[..., 2] = 0.5
    problem.thresholds[1] = 5.0  # exactly what every policy earns: 0.5 / (1 - γ)
    span = problem.largest() - problem.least()
    held = dual_ascent(problem.process, anchored(problem)[None], 0.05, problem.thresholds[None], span)
    assert torch.isfinite(held.policy).all()
    assert held.multipliers[0, 1] == 0
