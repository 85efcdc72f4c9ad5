"""Slate estimators: every slate enumerated, and where their assumptions hold and break."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from recsys.problems.base import PROBLEMS, judge
from recsys.problems.slate import MEANS, RATIOS, SlateProblem, expectations
from recsys.sequential.estimators import Trajectories

CASCADE, TOLD = SlateProblem.read(PROBLEMS / "slate.json")
SLOTS = np.arange(3)

# What slot k earns: of its own item; or of the items below it too, as if users read from the bottom.
ADDITIVE = replace(CASCADE, reward=np.random.default_rng(0).random((3, 4, 1))[SLOTS, CASCADE.slates])
UPWARD = replace(
    CASCADE, reward=(CASCADE.slates[:, :1] == CASCADE.slates[:, 1:2])[:, None] * np.array([[1.0], [0.0], [0.0]])
)

Weigh = Callable[[SlateProblem], Trajectories]


def right(problem: SlateProblem) -> Trajectories:
    return problem.log


def wrong(problem: SlateProblem) -> Trajectories:
    """As if the logging policy were uniform."""
    return replace(problem, logging=np.full_like(problem.logging, 0.25)).log


HOLDS = {
    "sips": [ADDITIVE, CASCADE, UPWARD],
    "iips": [ADDITIVE],
    "rips": [ADDITIVE, CASCADE],
    "cascade_dr": [ADDITIVE, CASCADE],
    "pseudo_inverse": [ADDITIVE],
}
BREAKS = {
    "sips": (CASCADE, wrong),
    "iips": (CASCADE, right),
    "rips": (UPWARD, right),
    "cascade_dr": (UPWARD, right),
    "pseudo_inverse": (UPWARD, right),
}


def noisy_q(problem: SlateProblem) -> tuple[np.ndarray, np.ndarray]:
    return problem.cascade_q(0.5, np.random.default_rng(1))


def z_of(name: str, problem: SlateProblem, weigh: Weigh = right) -> float:
    estimator, every, q = (MEANS | RATIOS)[name], weigh(problem), noisy_q(problem)
    probability = problem.slot_probability(problem.logging).prod(1)
    samples = []
    for replication in range(100):
        rows = np.random.default_rng([3, replication]).choice(len(probability), 3000, p=probability)
        log = Trajectories.of(every.weight[rows], every.reward[rows])
        samples.append(float(estimator(log, (q[0][rows], q[1][rows])).mean()))
    return judge(np.array(samples), problem.truth)["z"]


@pytest.mark.parametrize("name", HOLDS)
def test_where_the_assumption_holds_the_expectation_is_exact(name: str) -> None:
    for problem in HOLDS[name]:
        assert abs(expectations(problem, noisy_q(problem))[name]["gap"]) < 1e-12


@pytest.mark.parametrize("name", HOLDS)
@pytest.mark.parametrize("prefix", ["", "sn_"])
def test_where_it_holds_the_bias_of_drawn_logs_is_within_4_standard_errors(prefix: str, name: str) -> None:
    for problem in HOLDS[name]:
        assert abs(z_of(prefix + name, problem)) < 4


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.parametrize("prefix", ["", "sn_"])
def test_where_the_assumption_breaks_the_bias_is_seen(prefix: str, name: str) -> None:
    assert abs(z_of(prefix + name, *BREAKS[name])) > 4


@pytest.mark.parametrize("name", ["sips", "iips", "rips", "pseudo_inverse"])
def test_expectation_and_spread_are_those_of_the_file(name: str) -> None:
    found = expectations(CASCADE, noisy_q(CASCADE))[name]
    assert found["expectation"] == pytest.approx(TOLD["expectation"][name], abs=1e-12)
    assert found["sd"] == pytest.approx(TOLD["sd"][name], abs=1e-12)


def test_cascade_dr_with_exact_q_varies_less_than_rips() -> None:
    found = expectations(CASCADE, CASCADE.cascade_q(0.0, np.random.default_rng(0)))
    assert found["cascade_dr"]["sd"] < found["rips"]["sd"]


def test_two_slates_by_hand() -> None:
    """The second has one slot."""
    weight, reward = np.array([[2.0, 0.5], [0.5, 7.0]]), np.array([[[1.0], [3.0]], [[4.0], [7.0]]])
    log = Trajectories.of(weight, reward, np.array([[True, True], [True, False]]))
    q = (np.full((2, 2, 1), 2.0), np.full((2, 2, 1), 1.0))
    expected = {
        "sips": [1 * 4, 0.5 * 4],
        "iips": [2 * 1 + 0.5 * 3, 0.5 * 4],
        "rips": [2 * 1 + 1 * 3, 0.5 * 4],
        "cascade_dr": [1 + 2 * (1 - 2) + 2 * 1 + 1 * (3 - 2), 1 + 0.5 * (4 - 2)],
        "pseudo_inverse": [1.5 * 4, 0.5 * 4],
    }
    for name, contributions in expected.items():
        np.testing.assert_allclose(MEANS[name](log, q)[:, 0], contributions, rtol=1e-14, err_msg=name)
    ratios = {
        "sn_sips": (1 * 4 + 0.5 * 4) / 1.5,
        "sn_iips": (2 * 1 + 0.5 * 4) / 2.5 + 0.5 * 3 / 1.5,
        "sn_rips": (2 * 1 + 0.5 * 4) / 2.5 + 1 * 3 / 1.5,
        "sn_cascade_dr": 1 + (2 * (1 - 2) + 0.5 * (4 - 2)) / 2.5 + 2 * 1 / 2.5 + 1 * (3 - 2) / 1.5,
        "sn_pseudo_inverse": (1.5 * 4 + 0.5 * 4) / 2.0,
    }
    for name, ratio in ratios.items():
        assert RATIOS[name](log, q).mean() == pytest.approx(ratio), name
