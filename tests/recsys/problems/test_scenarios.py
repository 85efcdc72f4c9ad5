"""Scenarios of known truth: their logs say it, and their configs are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.core import InputError
from marl.config.load import read_yaml, resolve
from marl.training.run import Run
from recsys.problems.scenarios import AMOUNTS, RowsScenario, SessionsScenario
from recsys.sequential.estimators import pdis
from recsys.sequential.log import read_sessions
from recsys.verdict_calibration import READ, outcomes_of, recipe

ROWS: dict[str, Any] = {"name": "r", "healthy": True, "generator": "rows", "rows": 40_000, "rate": 0.2}
SESSIONS: dict[str, Any] = {"name": "s", "healthy": False, "generator": "sessions", "actions": 3, "groups": 4}
CONFIG = Path(__file__).parents[3] / "configs" / "ope" / "verdict_calibration.yaml"


def config(*scenarios: dict[str, Any], **more: Any) -> Any:
    return resolve({"recipe": "recsys.verdict_calibration", "logs": 2, "scenarios": list(scenarios)}, more)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"amount": "gamma", "shape": 2.0},
        {"users": 4000, "activity": 2.5, "taste": 3.0},
        {"rare": (0.05, 0.4)},
    ],
)
def test_the_mean_of_weighted_rewards_is_the_truth(more: dict[str, Any]) -> None:
    problem = RowsScenario(**ROWS | more).problem()
    (rows,) = problem.log(0).chunks()
    earned = problem.policy().probability(rows) / rows.propensity * rows.reward[:, 0]
    assert abs(earned.mean() - problem.truth) < 4 * earned.std() / len(rows) ** 0.5


def test_what_no_log_shows_is_missing_from_it_and_counts_in_the_truth() -> None:
    problem = RowsScenario(**ROWS | {"unshown": 0.3}).problem()
    (rows,) = problem.log(0).chunks()
    assert rows.action.max() == 9
    assert problem.log(0).actions == 11
    earned = problem.policy().probability(rows) / rows.propensity * rows.reward[:, 0]
    assert problem.truth > earned.mean() + 10 * earned.std() / len(rows) ** 0.5


def test_the_truth_of_sessions_is_what_weighted_sessions_earn() -> None:
    problem = SessionsScenario(**SESSIONS | {"sessions": 20_000, "rate": 0.2, "horizon": 3, "leave": 0.3}).problem()
    sessions = read_sessions(problem.log(0))
    earned = pdis(sessions.trajectories(problem.policy()), 1.0)[:, 0]
    assert abs(earned.mean() - problem.truth) < 4 * earned.std() / len(earned) ** 0.5
    assert set(sessions.lengths.tolist()) == {1, 2, 3}


@pytest.mark.parametrize(
    ("amount", "shape"), [("gamma", 2), ("poisson", 3), ("lognormal", 0.5), ("pareto", 5), ("whales", 0.2)]
)
def test_amounts_have_a_mean_of_one(amount: str, shape: float) -> None:
    paid = AMOUNTS[amount](np.random.default_rng(0), shape, 200_000)
    assert paid.mean() == pytest.approx(1, abs=5 * paid.std() / 200_000**0.5)


def test_a_calibration_counts_what_is_reliable_and_what_misses(tmp_path: Path) -> None:
    rows = {**ROWS, "rows": 3000}
    asked = config(rows, {**SESSIONS, "sessions": 200}, workers=1, intervals={"method": "t"})
    report = recipe.run(asked, Run.create(tmp_path / "run", asked))
    table = report.tables["scenarios"]
    named = {row["estimator"] for row in table if row["scenario"] == "r"}
    estimates = {"ips", "snips", "dr", "sndr", READ}
    assert named == estimates | {f"{name}, change" for name in estimates}
    assert {row["estimator"] for row in table if row["scenario"] == "s"} >= {"pdis", "seq_dr", "wdr"}
    assert report.metrics["r/reliable"].value == 1
    assert report.metrics["reliable/least_of_healthy"].value == 1


def test_a_change_is_held_against_what_policies_earn_apart_and_an_estimate_against_the_truth() -> None:
    asked = config(ROWS, workers=1, intervals={"method": "t"})
    (scenario,) = asked.kinds()
    told = {outcome.estimator: outcome for outcome in outcomes_of(0, scenario, asked)}
    assert not told["ips"].missed
    assert not told["ips, change"].missed
    assert abs(scenario.problem().change) < scenario.problem().truth / 2  # so that one's interval is not the other's


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ({**ROWS, "generator": "rain"}, "expected generator rows or sessions"),
        ({"name": "r", "healthy": True}, "expected generator rows or sessions"),
        ({**ROWS, "amount": "pareto", "shape": 0.9}, "for shapes above 1 only"),
        ({**ROWS, "amount": "whales", "shape": 1.5}, "a share in"),
        ({**ROWS, "rows": 1}, "rows"),
        ({**ROWS, "horizon": 3}, "horizon"),
    ],
)
def test_wrong_scenarios_are_refused(scenario: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(scenario)


def test_the_change_is_what_target_and_logger_earn_apart() -> None:
    rows = RowsScenario(**ROWS | {"rare": (0.05, 0.4)}).problem()
    by_hand = (0.4 - 0.05) * (rows.chance[:, 1] - rows.chance[:, 0]).mean()
    assert rows.change == pytest.approx(by_hand)
    sessions = SessionsScenario(**SESSIONS | {"beta": 1.0, "sharpness": 1.0, "horizon": 1}).problem()
    both = ((sessions.target - sessions.logging) * sessions.chance).sum(1).mean()
    assert sessions.change == pytest.approx(both)


def test_names_of_scenarios_differ() -> None:
    with pytest.raises(InputError, match="a name of its own"):
        config(ROWS, ROWS)


def test_the_config_that_comes_along_has_at_least_six_of_each_kind() -> None:
    told = resolve(read_yaml(CONFIG), {})
    healthy = [scenario.healthy for scenario in told.kinds()]
    assert sum(healthy) >= 6
    assert len(healthy) - sum(healthy) >= 6
    assert told.logs >= 300
