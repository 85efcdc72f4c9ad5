"""Planners that are judged beside a run's own: each is what its name says, and a curve and resets are rows too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from walkers import log_prob, open_walker, say, small, walker
from worded_meetings import Meeting

from envs.core import InputError
from marl.commands.run import run_training
from marl.output.report import Metric
from marl.training.run import Run
from planners.baselines.best_of_n import BestOfN
from planners.baselines.react import ReAct
from planners.baselines.reflexion import Reflexion
from planners.language.backends.scripted import Scripted
from planners.language.base import Query
from planners.planning import beside
from planners.planning.beside import WITH_CRITIC, WITHOUT_CRITIC, Ingredients, all_judged
from planners.planning.config import PlannerName
from planners.planning.picture import by_queries
from planners.read.planner import ReadPlanner
from planners.read.reweigh import ReweighingPlanner

NAMES = get_args(PlannerName)


class Anything:
    """A critic to which all is alike."""

    scale = 1.0
    needs_behavior = False

    def values(self, obs: Any, action: Any, given: Any, behavior: Any = None) -> Any:
        return given.sum(-1).double() * 0


def speak(query: Query, number: int) -> str:
    """A plan, after a thought where any text may be written."""
    return say(query, number) if query.choices else "Thought: we should meet.\nleft"


def spoken(query: Query, text: str) -> float:
    return log_prob(query, text) if query.choices else -1.0


def made(**overrides: Any) -> Ingredients:
    return Ingredients(small(**overrides), object.__new__(Run), Meeting(), walker(), Anything())


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def test_every_name_is_a_planner() -> None:
    assert {*WITH_CRITIC, *WITHOUT_CRITIC} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "kind", "critic", "settings"),
    [
        ("alone", ReadPlanner, False, {}),
        ("uniform", ReadPlanner, True, {"rounds": 2}),
        ("asked_again", ReadPlanner, True, {"rounds": 2, "repeats": False}),
        ("blind", ReadPlanner, True, {"rounds": 2, "repeats": True, "tell": False}),
        ("reweighed", ReweighingPlanner, True, {"beta": 0.1}),
        ("best_of_n", BestOfN, True, {"n": 5, "max_tokens": 7}),
        ("central", ReadPlanner, False, {"mode": "joint", "rounds": 1}),
        ("saycan", ReweighingPlanner, False, {"temperature": 0, "probabilities": "whole"}),
        ("twosome", ReweighingPlanner, False, {"temperature": 2, "probabilities": "per_token"}),
        ("react", ReAct, False, {"max_tokens": 7}),
        ("reflexion", Reflexion, False, {"max_tokens": 7}),
    ],
)
def test_each_is_what_its_name_says(name: PlannerName, kind: type, critic: bool, settings: dict[str, Any]) -> None:
    given = made(planner__temperature=2, planner__max_tokens=7)
    planner: Any = (WITH_CRITIC | WITHOUT_CRITIC)[name](given)  # type: ignore[operator]
    assert type(planner) is kind
    assert (planner.critic is not None) is critic
    assert (planner.model is given.model) is (name != "uniform")
    assert {key: getattr(planner.config, key) for key in settings} == settings
    assert planner.config.plans == "steps"


def test_all_are_rows_of_one_report_with_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_walker(monkeypatch, tmp_path / "answers.sqlite", lambda: Scripted(speak, "walker", spoken))
    config = small(
        evaluation__beside=NAMES,
        evaluation__rounds=[1, 2],
        evaluation__resets=[1],
    )
    report = run_training(config, tmp_path / "run")
    names = [row["planner"] for row in report.tables["planners"]]
    curve = ["rounds_1", "blind_1", "rounds_2", "blind_2"]
    others = [name for name in NAMES if name != "asked_again"]  # which is the run's own planner
    assert names == ["read", *others, *curve, "reset_1"]
    assert (tmp_path / "run" / "planners.png").stat().st_size > 1000
    for name in names[1:]:
        gap = report.metrics["success"].value - report.metrics[f"{name}/success"].value
        assert report.metrics[f"above_{name}/success"].value == pytest.approx(gap)
        assert f"above_{name}/count/queries" in report.metrics
    # With as many rounds it is the planner itself; with one proposal nobody is asked again.
    assert report.metrics["success"] == report.metrics["rounds_2/success"]
    assert report.metrics["rounds_1/count/queries"].value < report.metrics["rounds_2/count/queries"].value
    assert report.metrics["rounds_1/count/sent_back"].value == 0
    longest = report.metrics["reset_1/episode_length"]
    assert longest.value > report.metrics["episode_length"].value


def test_who_cannot_plan_is_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(made: Ingredients) -> Any:
        raise InputError("The prompt is too long.")

    open_walker(monkeypatch, tmp_path / "answers.sqlite")
    monkeypatch.setattr(beside, "WITHOUT_CRITIC", {**WITHOUT_CRITIC, "react": refuses})
    report = run_training(small(evaluation__beside=["react", "saycan"]), tmp_path / "run")
    assert [row["planner"] for row in report.tables["planners"]] == ["read", "saycan"]
    assert "react is left out: The prompt is too long." in capsys.readouterr().out


def test_without_a_critic_those_that_need_one_are_left_out() -> None:
    config = small(critic__kind="none", evaluation__beside=["alone", "uniform", "central", "react"])
    assert [judged.name for judged in all_judged(config)] == ["read", "central", "react"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"evaluation__rounds": [2], "planner__kind": "reweigh"}, "planner.kind=read and a critic"),
        ({"evaluation__rounds": [2], "critic__kind": "none"}, "planner.kind=read and a critic"),
        ({"evaluation__rounds": [0]}, "at least 1"),
        ({"evaluation__beside": ["alone", "alone"]}, "has something twice"),
        ({"evaluation__rounds": [2, 2]}, "has something twice"),
        ({"evaluation__resets": [3]}, "steps before env.time_limit"),
        ({"evaluation__resets": [1], "env__time_limit": None}, "steps before env.time_limit"),
        ({"evaluation__beside": ["nobody", "somebody"]}, "somebody"),
    ],
)
def test_what_is_no_comparison_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**overrides)


def test_what_the_planner_is_already_is_no_other_planner() -> None:
    names = ["asked_again", "reweighed"]
    assert [judged.name for judged in all_judged(small(evaluation__beside=names))] == ["read", "reweighed"]
    config = small(evaluation__beside=names, planner__kind="reweigh")
    assert [judged.name for judged in all_judged(config)] == ["reweigh", "asked_again"]


def test_a_world_with_a_horizon_of_its_own_has_no_resets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_walker(monkeypatch, tmp_path / "answers.sqlite")
    with pytest.raises(InputError, match=r"Kitchen ends by its own horizon of 400 steps"):
        run_training(small(env__world="envs.kitchen:Kitchen", evaluation__resets=[1]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_picture_needs_somebody_who_asks(tmp_path: Path) -> None:
    idle = {"success": Metric.exact(1), "count/queries": Metric.exact(0)}
    assert by_queries({"read": idle}, tmp_path / "none.png") is None
    asking = {"return_per_agent": Metric.exact(1), "count/queries": Metric.exact(4)}
    assert by_queries({"read": asking, "blind_2": asking, "idle": idle}, tmp_path / "some.png") is not None
