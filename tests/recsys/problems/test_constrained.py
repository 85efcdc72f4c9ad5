"""Constrained processes: values by hand, the linear program, and what is no such problem."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_constrained import random_problem

from envs.core import InputError
from recsys.problems.base import PROBLEMS
from recsys.problems.constrained import ConstrainedProblem
from recsys.problems.counts import Counts
from recsys.problems.decision_process import DecisionProcess, soft_max

SHIPPED = PROBLEMS / "cmdp.json"
TABLES = json.loads(SHIPPED.read_text())


def toy() -> DecisionProcess:
    """State 0: stay and earn (1, 0), or leave to state 1, where all earn (0, 1) for ever. γ = 1/2."""
    transition = torch.zeros(2, 2, 2, dtype=torch.float64)
    transition[0, 0, 0] = transition[0, 1, 1] = transition[1, :, 1] = 1.0
    reward = torch.zeros(2, 2, 2, dtype=torch.float64)
    reward[0, 0, 0] = reward[1, :, 1] = 1.0
    return DecisionProcess(transition, reward, torch.tensor([1.0, 0.0], dtype=torch.float64), 0.5)


def test_values_and_visits_by_hand() -> None:
    policy = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    # V_0(0) = (1 + V_0(0) / 2) / 2, so 2/3; V_1(1) = 2, and V_1(0) = V_1(0) / 4 + 2 / 4, so 2/3.
    assert torch.allclose(toy().value(policy), torch.tensor([[2 / 3, 2 / 3], [0.0, 2.0]], dtype=torch.float64))
    assert torch.allclose(toy().visits(policy), torch.tensor([4 / 3, 2 / 3], dtype=torch.float64))
    advantage, returns = toy().advantage(policy)
    assert returns.tolist() == pytest.approx([2 / 3, 2 / 3])
    assert advantage[0, :, 0].tolist() == pytest.approx([1 + 1 / 3 - 2 / 3, -2 / 3])
    assert torch.allclose((policy.unsqueeze(-1) * advantage).sum(1), torch.zeros(2, 2, dtype=torch.float64))


def test_many_policies_at_once_are_each_alone() -> None:
    problem = random_problem(0)
    policies = torch.from_numpy(np.random.default_rng(1).dirichlet(np.ones(4), size=(3, 5)))
    together = problem.process.returns(policies)
    for policy, returns in zip(policies, together, strict=True):
        assert torch.allclose(problem.process.returns(policy), returns)


def test_soft_values_are_between_the_mean_and_the_largest() -> None:
    q = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    assert float(soft_max(q, 0.0)) == 3
    assert float(soft_max(q, 1.0)) == pytest.approx(math.log((math.e + math.e**3) / 2))
    assert float(soft_max(q, 1e6)) == pytest.approx(2.0, abs=1e-5)


def test_stage_one_is_that_of_the_file() -> None:
    process = ConstrainedProblem.read(SHIPPED).process
    policies, _ = process.soft_optimal(torch.eye(3, dtype=torch.float64)[1:], TABLES["stage_one"]["tau"])
    assert np.abs(policies.numpy() - TABLES["stage_one"]["policies"]).max() < 1e-12


def test_the_linear_program_gives_the_answer_and_the_duals_of_the_file() -> None:
    problem = ConstrainedProblem.read(SHIPPED)
    best = problem.best()
    assert float(best.returns[0]) == pytest.approx(TABLES["lp_optimum"], rel=1e-9)
    assert best.returns[1:].tolist() == pytest.approx(TABLES["thresholds"], rel=1e-9)
    assert best.duals.tolist() == pytest.approx(TABLES["lp_duals"], rel=1e-9)
    assert problem.largest()[0] == pytest.approx(TABLES["unconstrained_optimum"][0], rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_no_policy_at_random_that_holds_beats_the_program(seed: int) -> None:
    problem = random_problem(seed, 0.4)
    best = problem.best().returns
    assert bool((best[1:] >= problem.thresholds - 1e-9).all())
    policies = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(4, 0.3), size=(3000, 5)))
    returns = problem.process.returns(policies)
    holds = (returns[:, 1:] >= problem.thresholds).all(1)
    assert holds.any()
    assert float(returns[holds, 0].max()) <= float(best[0]) + 1e-9


def test_an_infeasible_problem_says_the_most_that_is_feasible() -> None:
    problem = ConstrainedProblem.read(SHIPPED)
    wanted = ConstrainedProblem(problem.process, torch.tensor([1.3, 0.8], dtype=torch.float64))
    with pytest.raises(InputError, match=r"1\.3, 0\.8: .* each alone is 1\.48801, 0\.830975, and of all at once 1\.27"):
        wanted.best()
    most = wanted.most_feasible()
    span = (problem.largest() - problem.least())[1:]
    short = (wanted.thresholds - most) / span
    assert short[0] == pytest.approx(float(short[1]), rel=1e-6)  # both as short as each other
    ConstrainedProblem(problem.process, most - 1e-9).best()
    with pytest.raises(InputError):
        ConstrainedProblem(problem.process, most + 1e-5 * span).best()


def test_logs_are_of_the_process() -> None:
    problem = random_problem(3)
    logs = problem.draw(200_000, 20, np.random.default_rng(0))
    assert torch.equal(logs.tried.sum((1, 2)), torch.full((20,), 200_000.0, dtype=torch.float64))
    assert float((logs.process.transition - problem.process.transition).abs().max()) < 0.03
    policy = torch.from_numpy(np.random.default_rng(1).dirichlet(np.ones(4), size=5)).expand(20, -1, -1)
    z = (logs.process.returns(policy) - problem.process.returns(policy)) / logs.standard_error(policy)
    assert 0.7 < float(z.square().mean().sqrt()) < 1.3


def test_logged_states_are_those_that_the_logger_visits() -> None:
    problem = random_problem(3)
    visits = problem.process.visits(problem.uniform())
    share = problem.draw(1_000_000, 1, np.random.default_rng(0)).tried[0].sum(-1) / 1_000_000
    assert torch.allclose(share, visits / visits.sum(), atol=3e-3)
    assert float((visits / visits.sum() - 0.2).abs().max()) > 0.03


def test_standard_errors_by_hand() -> None:
    source = toy()
    following = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    following[0, 0, 0] = 50.0  # half of a hundred stay in state 0, half go to state 1 for ever
    following[0, 1, 0, 1] = 400.0
    earned = torch.tensor([[[[25.0, 0.0]], [[0.0, 400.0]]]], dtype=torch.float64)
    logs = Counts(following, earned, source)
    # d(0) = 4/3. Signal 0: a chance of 1/4 in state 0, worth 1/3 there, so (4/3)² (3/16 + (1/4) (1/4) (1/3)²) / 100.
    # Signal 1: V = 2/3 and 2, so (4/3)² (1/4) (1/4) (4/3)² / 100; state 1 never varies.
    variance = [(4 / 3) ** 2 * (3 / 16 + 1 / 144) / 100, (4 / 3) ** 2 / 16 * (4 / 3) ** 2 / 100]
    only = torch.ones(1, 2, 1, dtype=torch.float64)
    assert logs.standard_error(only)[0].tolist() == pytest.approx([math.sqrt(x) for x in variance])


def test_shortfalls_are_shares_of_thresholds_or_of_the_range_where_one_is_0() -> None:
    problem = ConstrainedProblem(toy(), torch.tensor([2.0], dtype=torch.float64))
    assert float(problem.missed(torch.tensor([1.0, 1.5], dtype=torch.float64))) == pytest.approx(0.25)
    at_zero = ConstrainedProblem(toy(), torch.tensor([0.0], dtype=torch.float64))  # signal 1 earns 0 to 1 from state 0
    assert float(at_zero.missed(torch.tensor([1.0, -0.5], dtype=torch.float64))) == pytest.approx(0.5)


def test_a_policy_that_does_what_was_never_tried_has_no_standard_error() -> None:
    logs = random_problem(3).draw(5_000, 1, np.random.default_rng(0))
    logs.following[0, 2, 1] = 0
    uniform = torch.full((1, 5, 4), 0.25, dtype=torch.float64)
    assert torch.isinf(logs.standard_error(uniform)).all()
    avoids = uniform.clone()
    avoids[0, 2] = torch.tensor([0.5, 0.0, 0.25, 0.25], dtype=torch.float64)
    assert torch.isfinite(logs.standard_error(avoids)).all()


def broken(folder: Path, **changed: Any) -> Path:
    path = folder / "mine.json"
    path.write_text(json.dumps({**TABLES, **changed}))
    return path


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reward": TABLES["reward"][:1]}, "at least one more signal"),
        ({"reward": [1.0, 2.0]}, r"reward must be \[K,S,A\]"),
        ({"thresholds": [1.0]}, r"thresholds must be \[K-1\]"),
        ({"discount": 1.0}, "no horizon"),
        ({"discount": [0.9, 0.9, 0.9]}, "one number"),
        ({"transition": TABLES["transition"][:5]}, r"transition must be \[S,A,S\]"),
        ({"start": [0.5] * 12}, "sum to 1"),
        ({"thresholds": [2.0, 0.4]}, "No policy holds the thresholds 2, 0.4"),
        ({"thresholds": [math.nan, 0.4]}, "finite numbers"),
        ({"uniform": [1.0, 1.0, 1.0]}, "uniform, but its tables give another answer"),
        ({"stage_one": {"tau": 0.03, "policies": TABLES["stage_one"]["policies"]}}, "stage_one.policies, but its"),
        ({"lp_optimum": 13.0}, "lp_optimum, but its tables give another answer"),
        ({"unconstrained_optimum": [17.0, 0.4, 0.04]}, "another answer"),
    ],
)
def test_what_is_no_such_problem_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        ConstrainedProblem.read(broken(tmp_path, **changed))


def test_logs_of_rewards_that_are_no_chances_are_refused(tmp_path: Path) -> None:
    larger = (2 * np.array(TABLES["reward"])).tolist()
    known = dict.fromkeys(("lp_optimum", "unconstrained_optimum", "uniform", "stage_one", "fixed_point"))
    tables = {key: value for key, value in {**TABLES, **known, "reward": larger}.items() if value is not None}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(tables))
    problem = ConstrainedProblem.read(path)
    with pytest.raises(InputError, match=r"chances in .* Set samples.logs=0"):
        problem.draw(100, 1, np.random.default_rng(0))
