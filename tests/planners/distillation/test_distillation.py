"""Rounds of distillation: what they leave, that they go on, and what they tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from first_meeting import PRIZE, FirstMeeting, save_small_model
from matplotlib.axes import Axes
from pydantic import ValidationError
from torch import Tensor

from envs.core import InputError
from envs.tabular import Table
from marl.output.report import REPORT, Metric
from marl.training.run import Run
from planners.baselines import uniform_prior
from planners.distillation.config import Config
from planners.distillation.exact import AskedPolicy, Exact, earned_once, follow
from planners.distillation.picture import by_round
from planners.distillation.recipe import Judges, ratio, recipe, summary, table_row
from planners.language.backends.local import Local

WORLD = FirstMeeting()


def raw(folder: Path | None = None, **sections: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "recipe": "planners.distillation.recipe",
        "device": "cpu",
        "env": {"world": "first_meeting:FirstMeeting", "time_limit": 2},
        "planner": {"beta": 0.1},
        "critic": {"kind": "exact"},
        "evaluation": {"episodes": 4, "num_envs": 4, "goal": PRIZE},
        "distillation": {"rounds": 1, "num_envs": 8, "steps": 3, "rows": 8, "updates": 3, "exact": True},
    }
    if folder is not None:
        chosen["model"] = {"local": str(folder)}
    for name, section in sections.items():
        chosen[name] = chosen.get(name, {}) | section
    return chosen


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_small_model(tmp_path / "model")
    return tmp_path / "model"


def test_a_run_leaves_a_model_of_each_round_and_figures_of_all(tmp_path: Path, model: Path) -> None:
    config = Config.model_validate(raw(model))
    run = Run.create(tmp_path / "run", config)
    report = recipe.run(config, run)
    assert Local(str(run.folder / "round-1")).scores
    assert [row["round"] for row in report.tables["rounds"]] == [0, 1]
    for number in (0, 1):
        named = {f"{who}/success" for who in ("alone", "planner", "exact")} | {"exact/discounted", "exact/return"}
        assert {f"round_{number}/{name}" for name in named} <= set(report.metrics)
        episodes = report.metrics[f"round_{number}/alone/episode_length"].value
        assert report.metrics[f"round_{number}/alone/count/queries"].value == 2 * episodes  # one for each decision
    assert report.metrics["alone/success"] == report.metrics["round_1/alone/success"]
    assert (run.folder / "rounds.png").stat().st_size > 0
    report.save(run.folder / REPORT)
    assert recipe.pictures(run) == [run.folder / "rounds.png"]


def timeless(report: Report) -> dict[str, Metric]:
    """Metrics that do not tell how long something took."""
    return {name: metric for name, metric in report.metrics.items() if not name.endswith("seconds")}


def test_rounds_that_are_done_are_not_done_again(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.model_validate(raw(model))
    first = recipe.run(config, Run.create(tmp_path / "run", config))
    done: list[int] = []
    play = Judges.round
    monkeypatch.setattr(Judges, "round", lambda self, number: done.append(number) or play(self, number))
    (tmp_path / "run" / "once" / "round 1.json").unlink()  # as if it had been killed in the last round
    again = recipe.run(config, Run.open(tmp_path / "run"))
    assert done == [1]
    assert timeless(again) == timeless(first)


def test_equal_seeds_teach_equal_models(tmp_path: Path, model: Path) -> None:
    reports = []
    for name in ("one", "other"):
        config = Config.model_validate(raw(model))
        reports.append(recipe.run(config, Run.create(tmp_path / name, config)))
    assert timeless(reports[0]) == timeless(reports[1])
    one, other = (Local(str(tmp_path / name / "round-1")) for name in ("one", "other"))
    assert one.identity == other.identity  # a hash of its weights


def test_a_learned_critic_is_fitted_anew_in_each_round(tmp_path: Path, model: Path) -> None:
    critic = {
        "kind": "learned",
        "log": {"num_envs": 4, "steps": 16, "starts": 8, "start_steps": 2},
        "learner": {"rows": 32, "steps": 16},
        "network": {"hidden": [8]},
        "updates": 2,
    }
    config = Config.model_validate(raw(model, critic=critic, distillation={"exact": False}))
    run = Run.create(tmp_path / "run", config)
    recipe.run(config, run)
    stages = {path.name for path in (run.folder / "checkpoints").iterdir()}
    assert stages == {"critic 0", "critic 1", "lessons 1"}


def test_with_the_exact_critic_the_model_learns_to_meet(tmp_path: Path, model: Path) -> None:
    lessons = {"num_envs": 32, "rows": 32, "updates": 100, "learning_rate": 2e-2}
    config = Config.model_validate(raw(model, distillation=lessons))
    report = recipe.run(config, Run.create(tmp_path / "run", config))
    assert report.metrics["exact/rises"].value == 1
    assert report.metrics["round_0/exact/success"].value < 0.5
    assert report.metrics["round_1/exact/success"].value > 0.9


def test_exact_figures_enclose_those_of_the_table() -> None:
    config = Config.model_validate(raw())
    found = Exact(config, WORLD).judge(uniform_prior())
    table = WORLD.table()
    policy = torch.full((len(table), 9), 1 / 9, dtype=torch.float64)
    discounted = found["exact/discounted"]
    assert discounted.low - 1e-9 <= float(table.evaluate(policy, 0.97)[0]) <= discounted.high + 1e-9
    assert discounted.high - discounted.low < 1e-5
    assert found["exact/return"].value == pytest.approx(float(table.within(policy, 2)[0]))
    assert found["exact/return"].value == pytest.approx(PRIZE * found["exact/success"].value)
    # In the first step they meet in the middle alone, 1 of 9; meeting ends it, so that six of nine states are left.
    once = Exact(Config.model_validate(raw(env={"time_limit": 1})), WORLD).judge(uniform_prior())
    assert once["exact/success"].value == pytest.approx(1 / 9)
    assert once["exact/asked"].value <= 6


def test_what_is_not_followed_widens_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.model_validate(raw(env={"time_limit": 5}))
    sure = Exact(config, WORLD).judge(uniform_prior())
    monkeypatch.setattr("planners.distillation.exact.LEAST", 0.08)
    vague = Exact(config, WORLD).judge(uniform_prior())
    for name in ("exact/discounted", "exact/return", "exact/success"):
        assert vague[name].low < sure[name].low <= sure[name].high < vague[name].high
    assert vague["exact/asked"].value < sure["exact/asked"].value


def test_the_rest_of_play_that_is_followed_no_further_is_enclosed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.model_validate(raw(env={"time_limit": 5}))
    policy = torch.full((len(WORLD.table()), 9), 1 / 9, dtype=torch.float64)
    success = float(WORLD.table().within(policy, 5)[0]) / PRIZE
    for least in (0.95, 0.5, 0.2):  # after one step 8 of 9 are left
        monkeypatch.setattr("planners.distillation.exact.LEAST", least)
        found = Exact(config, WORLD).judge(uniform_prior())["exact/success"]
        assert found.low <= success <= found.high


def test_success_is_exact_only_where_the_goal_is_earned_at_once_and_but_once() -> None:
    def table(successor: int, reward: float) -> Table:
        return Table(
            torch.zeros(1, 1), torch.zeros(1).long(), torch.tensor([[successor]]), torch.tensor([[reward]]), 1, 1
        )

    over, stays = 1, 0
    assert earned_once(table(over, 5.0), 5.0, 10)
    assert not earned_once(table(stays, 5.0), 5.0, 10)
    assert earned_once(table(stays, 5.0), 5.0, 1)
    assert not earned_once(table(over, 2.0), 5.0, 10)
    assert not earned_once(table(over, 0.0), 0.0, 10)


def test_a_world_without_a_table_has_no_exact_figures() -> None:
    class Endless(FirstMeeting):
        table = None  # type: ignore[assignment]

    with pytest.raises(InputError, match="has none"):
        Exact(Config.model_validate(raw()), Endless())


def test_a_world_that_begins_in_several_states_has_no_exact_figures() -> None:
    class Anywhere(FirstMeeting):
        def initial(self, noise: torch.Tensor) -> torch.Tensor:
            state = super().initial(noise)
            state[1::2, 0] = 1
            return state

    with pytest.raises(InputError, match="from the first state"):
        Exact(Config.model_validate(raw()), Anywhere())


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"server": "http://localhost:1/v1", "name": "x"}}, "cannot be taught"),
        ({"model": {"cache": "none"}}, "leave them out"),
        ({"model": {"budget": {"queries": 5}}}, "leave them out"),
        ({"critic": {"kind": "none"}}, "nothing to teach"),
        ({"planner": {"probabilities": "whole"}}, "leave it constrained"),
        ({"evaluation": {"beside": ["uniform"]}}, "leave it empty"),
    ],
)
def test_options_that_do_not_fit_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(raw(**sections))


def rounds(*success: float, discounted: tuple[float, ...] = ()) -> list[dict[str, Metric]]:
    found = []
    for number, share in enumerate(success):
        row = {
            "alone/success": Metric.proportion(round(100 * share), 100),
            "planner/success": Metric.proportion(90, 100),
            "alone/count/queries": Metric.exact(40),
        }
        if discounted:
            row["exact/discounted"] = Metric.exact(discounted[number])
        found.append(row)
    return found


def test_the_summary_compares_the_last_model_with_the_first_and_with_its_planner() -> None:
    found = summary(rounds(0.0, 0.3, 0.81, discounted=(1.0, 2.0, 3.0)))
    assert found["alone/success"].value == 0.81
    assert found["above_first/success"].value == pytest.approx(0.81)
    assert found["share_of_planner"].value == pytest.approx(0.9)
    assert found["exact/rises"].value == 1
    assert summary(rounds(0.0, 0.3, discounted=(2.0, 2.0)))["exact/rises"].value == 0
    unsure = rounds(0.0, 0.3, discounted=(1.0, 2.0))
    unsure[1]["exact/discounted"] = Metric(2.0, 0.9, 3.1)
    assert summary(unsure)["exact/rises"].value == 0
    assert "exact/rises" not in summary(rounds(0.0, 0.3))


def test_a_ratio_is_as_uncertain_as_both() -> None:
    found = ratio(Metric(0.8, 0.7, 0.9, 50), Metric(0.5, 0.4, 0.6, 100))
    assert (found.value, found.low, found.high, found.n) == pytest.approx((1.6, 0.7 / 0.6, 0.9 / 0.4, 50))


def test_a_ratio_of_what_may_be_below_0_is_no_narrower() -> None:
    found = ratio(Metric(1.0, -1.0, 3.0, 50), Metric(1.0, 0.5, 2.0, 50))
    assert (found.low, found.high) == (-2.0, 6.0)
    loss = ratio(Metric(-2.0, -3.0, -1.0, 50), Metric(1.0, 0.5, 2.0, 50))
    assert (loss.low, loss.high) == (-6.0, -0.5)


def test_the_table_has_a_row_for_each_round() -> None:
    row = table_row(2, rounds(0.3, discounted=(1.5,))[0])
    assert list(row) == ["round", "success", "queries", "planner's success", "exact J"]
    assert row["round"] == 2
    assert row["success"].startswith("0.3")


def test_the_picture_is_drawn_of_what_is_known(tmp_path: Path) -> None:
    for found in (rounds(0.0, 0.5), [{"alone/success": Metric.exact(0.1)}]):
        assert by_round(found, "success", tmp_path / "rounds.png").stat().st_size > 0


def test_the_share_of_the_planner_is_of_the_first_one() -> None:
    found = rounds(0.0, 0.45)
    found[1]["planner/success"] = Metric.proportion(50, 100)
    assert summary(found)["share_of_planner"].value == pytest.approx(0.5)


def test_bars_in_the_picture_reach_from_low_to_high(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    draw = Axes.errorbar

    def spied(self: Axes, x: Any, y: Any, bars: Any, **given: Any) -> Any:
        drawn.extend((y, *bars))
        return draw(self, x, y, bars, **given)

    monkeypatch.setattr(Axes, "errorbar", spied)
    by_round([{"alone/success": Metric(0.5, 0.2, 0.6)}], "success", tmp_path / "rounds.png")
    assert [number for (number,) in drawn] == pytest.approx([0.5, 0.3, 0.1])


def test_what_is_left_open_counts_as_much_as_the_step_at_which_it_is_left() -> None:
    class FirstKnown(AskedPolicy):
        """Knows what is done in the first of two states, which leads to the second."""

        def __init__(self) -> None:
            self.known, self.joint = torch.tensor([True, False]), torch.tensor([[1.0], [0.0]]).double()

        def ask(self, wanted: Tensor) -> None:
            """Nobody answers."""

    reward = torch.tensor([[3.0], [5.0]]).double()
    table = Table(torch.arange(2), torch.zeros(2).long(), torch.tensor([[1], [1]]), reward, 1, 1)
    assert follow(table, FirstKnown(), 0.5, None) == (3.0, 0.5)
