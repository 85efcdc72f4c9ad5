"""Episodes of planners: rounds from the same starts, success with its interval, and budgets that end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from walkers import log_prob, say, small, toward
from worded_meetings import Meeting

from envs.core import InputError
from envs.world import TensorEnv
from marl.evaluation.episodes import Episodes, play
from marl.output.report import Metric
from marl.training.run import Run, stage_seed
from planners.language.backends.scripted import Scripted
from planners.language.recorded import Budget, Recorded
from planners.language.store import IN_MEMORY, Store
from planners.planning.evaluation import Judge, joined, require_first, succeeded
from planners.planning.recipe import world_of
from planners.read.planner import PlannerConfig, ReadPlanner


def judge(folder: Path, **overrides: Any) -> Judge:
    config = small(**overrides)
    return Judge(config, Run.create(folder, config), world_of(config))


def planner(function: Any = say, model: Any = None) -> ReadPlanner:
    asked = Scripted(function, "test", log_prob) if model is None else model
    return ReadPlanner(Meeting(), asked, None, PlannerConfig(plans="steps"))


def episodes(returns: list[float], lengths: list[int] | None = None) -> Episodes:
    earned = np.array(returns).reshape(-1, 1)
    return Episodes(
        earned, np.array(lengths or [5] * len(earned), dtype=float), agents=2, counts={"queries": earned[:, 0]}
    )


def test_success_is_of_the_first_channel_alone() -> None:
    earned = np.array([[1.0, 0.0], [0.5, 5.0], [1.0, -3.0]])
    played = Episodes(earned, np.full(3, 5.0), agents=2)
    assert succeeded(played, 1.0).tolist() == [True, False, True]


def test_rounds_are_those_of_play_with_a_seed_each(tmp_path: Path) -> None:
    whole = judge(tmp_path / "run").play(planner(), "alone")
    assert whole is not None
    parts = []
    for number in range(2):
        env = TensorEnv(Meeting(), 2, time_limit=3)
        parts.append(play(env, planner(), 2, stage_seed(0, f"evaluation {number}")))
    assert whole.rows == 4
    np.testing.assert_array_equal(whole.returns, np.concatenate([part.returns for part in parts]))
    np.testing.assert_array_equal(whole.lengths, np.concatenate([part.lengths for part in parts]))
    for name, count in whole.counts.items():
        np.testing.assert_array_equal(count, np.concatenate([part.counts[name] for part in parts]))


def test_every_planner_starts_alike(tmp_path: Path) -> None:
    found = judge(tmp_path / "run", env__args={"starts": "anywhere"})
    first, again = found.play(planner(), "one"), found.play(planner(), "two")
    assert first is not None
    assert again is not None
    np.testing.assert_array_equal(first.lengths, again.lengths)


def test_late_rewards_are_joined_where_all_rounds_have_them() -> None:
    one, two = episodes([1, 0]), episodes([0, 0])
    assert joined([one, two]).late is None
    late = Episodes(one.returns, one.lengths, 2, rows=2, late=np.array([0.5, 0.25]))
    np.testing.assert_array_equal(joined([late, late]).late, [0.5, 0.25, 0.5, 0.25])
    assert joined([late]).rows == 2


def test_success_has_the_interval_of_clopper_and_pearson(tmp_path: Path) -> None:
    found = judge(tmp_path / "run").metrics(episodes([1, 0, 1, 1, 0, 1], [2, 8, 4, 3, 8, 3]))
    interval = binomtest(4, 6).proportion_ci(0.95)
    success = found["success"]
    assert (success.value, success.low, success.high, success.n) == (4 / 6, interval.low, interval.high, 6)
    assert found["steps_of_successes"].value == 3
    assert found["steps_above_fewest"].value == 3 - 2
    assert found["count/queries"].value == pytest.approx(4 / 6)


def test_without_any_success_nothing_is_told_of_its_steps(tmp_path: Path) -> None:
    found = judge(tmp_path / "run").metrics(episodes([0, 0]), "alone/")
    assert found["alone/success"].value == 0
    assert found["alone/success"].high > 0.5
    assert not any("steps" in name for name in found)


def of_two(folder: Path, one: list[float], other: list[float], **overrides: Any) -> Metric:
    """What one has above the other, who have played these returns."""
    found = judge(folder, **overrides)
    found.played = {"read": episodes(one), "alone": episodes(other)}
    metric, _ = found.above("read", "alone").values()  # and in queries
    return metric


def test_who_succeeds_where_the_other_fails_is_above_it_with_less_certainty(tmp_path: Path) -> None:
    half = Metric.proportion(10, 20)
    apart = Metric.difference(half, half)
    same = of_two(tmp_path / "same", [1, 0] * 10, [1, 0] * 10)
    against = of_two(tmp_path / "against", [1, 0] * 10, [0, 1] * 10)
    unequal = of_two(tmp_path / "unequal", [1, 0] * 10, [0, 1] * 5)
    assert same == apart
    assert against.value == 0
    assert (against.low, against.high) == (pytest.approx(2 * (half.low - 0.5)), pytest.approx(2 * (half.high - 0.5)))
    assert unequal == Metric.difference(half, Metric.proportion(5, 10))


def test_returns_above_those_of_another_are_as_uncertain_as_both(tmp_path: Path) -> None:
    one, other = [3.0, 5.0, 4.0, 9.0], [1.0, 3.0, 2.5, 8.0]
    found = of_two(tmp_path / "run", one, other, evaluation__goal=None)
    assert found == Metric.difference(Metric.mean(one), Metric.mean(other))
    against = of_two(tmp_path / "against", one, [-x for x in other], evaluation__goal=None)
    wide = Metric.difference(Metric.mean(one), Metric.mean([-x for x in other]))
    assert against.low < wide.low < wide.high < against.high


def test_nothing_is_above_who_has_not_played(tmp_path: Path) -> None:
    found = judge(tmp_path / "run")
    found.play(planner(toward), "read")
    assert found.above("read", "alone") == {}


def test_the_cover_of_differences_where_starts_favor_one_or_the_other(tmp_path: Path) -> None:
    found, generator = judge(tmp_path / "run"), np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        start = generator.random(50)
        found.played = {name: episodes(list(won)) for name, won in (("read", start < 0.5), ("alone", start > 0.6))}
        gap = found.above("read", "alone")["above_alone/success"]
        covered += gap.low <= 0.5 - 0.4 <= gap.high
    assert covered >= 0.92 * 300  # independent samples would make it .84


def test_without_a_goal_nothing_is_a_success(tmp_path: Path) -> None:
    assert "success" not in judge(tmp_path / "run", evaluation__goal=None).metrics(episodes([1, 0]))


def test_a_goal_is_reached_to_rounding() -> None:
    assert succeeded(episodes([0.3, 0.1 + 0.2, 0.29999]), 0.1 + 0.2).tolist() == [True, True, False]
    assert succeeded(episodes([-2.0, -2.1]), -2.0).tolist() == [True, False]


@pytest.mark.parametrize("env", [{"env__args": {"starts": "anywhere"}}, {"env__world": "worded_meetings:Wordless"}])
def test_the_fewest_steps_are_told_of_a_table_whose_start_is_plays(env: Any, tmp_path: Path) -> None:
    found = judge(tmp_path / "run", **env)
    assert found.fewest_steps is None
    metrics = found.metrics(episodes([1, 1]))
    assert "steps_of_successes" in metrics
    assert "steps_above_fewest" not in metrics


def test_what_is_told_of_the_first_state_needs_all_to_begin_there(tmp_path: Path) -> None:
    require_first(Meeting(), Meeting().table(), "this")
    anywhere = Meeting("anywhere")
    with pytest.raises(InputError, match="this is of play from the first state"):
        require_first(anywhere, anywhere.table(), "this")


def test_the_best_planner_needs_the_fewest_steps(tmp_path: Path) -> None:
    found = judge(tmp_path / "run")
    played = found.play(planner(toward), "toward")
    assert played is not None
    metrics = found.metrics(played)
    assert (metrics["success"].value, metrics["steps_above_fewest"].value) == (1, 0)


def test_the_first_episode_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = judge(tmp_path / "run")
    played = found.play(planner(toward), "toward", tell=True)
    assert played is not None
    assert len(found.story) == played.lengths[0] == 2
    told = capsys.readouterr().out
    assert "toward: 2 of 4 episodes" in told
    assert told.count(" → ") == 2  # its steps alone


def limited(queries: int) -> Recorded:
    model = Scripted(toward, "toward", log_prob)
    return Recorded(model, Store(IN_MEMORY, "run"), Budget(queries=queries))


@pytest.mark.parametrize(("queries", "kept"), [(2 * 2 * 2 + 4, 2), (2 * 2 * 2 - 1, 0), (2 * 2 * 2 * 2, 4)])
def test_a_budget_that_ends_keeps_whole_rounds(
    queries: int, kept: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A round is two episodes of two steps with two queries each, none of them asked twice: seeds differ."""
    found, model = judge(tmp_path / "run"), limited(queries)
    played = found.play(planner(model=model), "toward")
    assert (0 if played is None else len(played.returns)) == kept
    assert found.budget_spent is (kept < 4)
    assert model.spent().queries == queries
    if found.budget_spent:
        assert "The budget is spent" in " ".join(capsys.readouterr().out.split())
        assert found.play(planner(toward), "free") is None
