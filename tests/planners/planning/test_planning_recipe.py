"""The recipe of planning from a config to a report: every critic, budgets, and runs that are killed or repeated."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from walkers import RANDOM, log_prob, open_walker, say, small

from envs.core import InputError
from marl.commands.run import follow, run_training
from marl.commands.sweep import resume_folder
from marl.output.report import Report
from marl.training.run import Run
from planners.language.backends.scripted import Scripted
from planners.language.store import Store
from planners.planning.recipe import recipe

FREE = {name.replace(".", "__"): value for name, value in RANDOM.items()}
TIMES = ("seconds", "cpu_seconds")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def cache(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite"


def told(report: Report) -> dict[str, Any]:
    """Metrics that do not depend on time."""
    return {name: metric for name, metric in report.metrics.items() if name.split("/")[-1] not in TIMES}


def queries_of(tmp_path: Path, folder: Path) -> int:
    """Queries in the ledger of a run."""
    store = Store(cache(tmp_path), str(folder.resolve()))
    spent = store.spent()
    store.close()
    return spent.queries


@pytest.mark.parametrize("kind", ["learned", "counted", "exact", "none"])
def test_a_function_plans_with_each_critic_of_random_play(kind: str, tmp_path: Path) -> None:
    report = run_training(small(critic__kind=kind, **FREE), tmp_path / "run")
    names = [row["planner"] for row in report.tables["planners"]]
    assert names == (["read"] if kind == "none" else ["read", "alone", "uniform"])
    assert report.metrics["success"].n == 4
    assert report.metrics["budget_spent"].value == 0
    assert ("above_alone/success" in report.metrics) is (kind != "none")
    assert ("critic/updates" in report.metrics) is (kind == "learned")
    for name in recipe.files.values():
        if name.endswith(("html", "jsonl")):
            assert name == "transcript.jsonl" or (tmp_path / "run" / name).is_file()
    assert Report.load(tmp_path / "run" / "report.json").metrics == report.metrics


def test_nobody_plans_by_a_critic_of_random_play_and_asks_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_walker(monkeypatch, cache(tmp_path))
    beside = {"evaluation__beside": ["nobody"]}
    report = run_training(small(**beside), tmp_path / "one")
    assert [row["planner"] for row in report.tables["planners"]] == ["read", "nobody"]
    # Whoever the model is and whatever it plays, nobody plans alike.
    other = run_training(small(critic__log__play="random", planner__rounds=2, **beside), tmp_path / "two")
    shared = [name for name in report.metrics if name.startswith("nobody/")]
    assert shared
    assert all(report.metrics[name] == other.metrics[name] for name in shared)


def test_the_exact_critic_makes_anybody_meet(tmp_path: Path) -> None:
    config = small(critic__kind="exact", planner__rounds=15, env__time_limit=8, **FREE)
    report = run_training(config, tmp_path / "run")
    assert report.metrics["success"].value == 1
    assert report.metrics["steps_above_fewest"].value < 1


@pytest.mark.parametrize(("kind", "mode"), [("read", "joint"), ("reweigh", "sequential")])
def test_a_model_that_scores_plans_with_a_critic_of_its_own_play(
    kind: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_walker(monkeypatch, cache(tmp_path))
    report = run_training(small(planner__kind=kind, planner__mode=mode), tmp_path / "run")
    assert report.metrics["critic/updates"].value == 6
    assert [row["planner"] for row in report.tables["planners"]] == [kind, "alone", "uniform"]


def test_planners_are_shown_side_by_side(tmp_path: Path) -> None:
    report = run_training(small(critic__kind="none", **FREE), tmp_path / "run")
    console = Console(width=200)
    with console.capture() as captured:
        recipe.show(report.tables, console)
    assert "success" in captured.get()
    recipe.show({}, console)


def test_a_repeated_run_with_the_same_cache_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_walker(monkeypatch, cache(tmp_path))
    first, again = (run_training(small(), tmp_path / name) for name in ("one", "two"))
    assert first.metrics["model/queries"].value > 0
    assert queries_of(tmp_path, tmp_path / "one") > 0
    assert queries_of(tmp_path, tmp_path / "two") == 0
    spent = ("queries", "prompt_tokens", "completion_tokens", "price")
    assert all(again.metrics[f"model/{name}"].value == 0 for name in spent)
    assert told(again).keys() == told(first).keys()
    for name, metric in told(first).items():
        if name.endswith(("asked", "cached")):
            continue
        assert name.removeprefix("critic/").removeprefix("model/") in spent or told(again)[name] == metric, name


def killed_at(number: int) -> Any:
    """A model that ends its process before it answers or scores the query of this number."""
    left = iter(range(number))

    def die(query: Any, place: Any) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_say(query: Any, place: int) -> str:
        die(query, place)
        return say(query, place)

    def dying_log_prob(query: Any, text: str) -> float:
        die(query, text)
        return log_prob(query, text)

    return Scripted(dying_say, "walker", dying_log_prob)


def begun_and_killed(folder: Path, config: Any) -> None:
    """Run it in a process of its own, in which the model kills it."""
    child = os.fork()
    if child == 0:
        run_training(config, folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("number", [100, 180], ids=["in the log", "in an evaluation"])
def test_a_killed_run_pays_nothing_twice_and_comes_to_the_same_report(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(evaluation__beside=["alone"])
    with monkeypatch.context() as inner:
        open_walker(inner, tmp_path / "other.sqlite")
        whole = run_training(config, tmp_path / "whole")
    folder = tmp_path / "run"
    with monkeypatch.context() as inner:
        open_walker(inner, cache(tmp_path), lambda: killed_at(number))
        begun_and_killed(folder, config)
    before = queries_of(tmp_path, folder)
    assert before > 0
    assert (folder / "checkpoints").exists() is (number > 150)
    open_walker(monkeypatch, cache(tmp_path))
    resumed = follow(config, Run.open(folder))
    assert told(resumed) == told(whole)
    assert before < queries_of(tmp_path, folder)
    assert (folder / "episode.html").read_text() == (tmp_path / "whole" / "episode.html").read_text()


@pytest.mark.parametrize("queries", [20, 50], ids=["in the log", "in the first round"])
def test_a_budget_that_ends_is_reported_and_can_be_raised(
    queries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_walker(monkeypatch, cache(tmp_path))
    report = run_training(small(model__budget__queries=queries), tmp_path / "run")
    assert report.metrics["budget_spent"].value == 1
    assert report.tables == {}
    assert queries_of(tmp_path, tmp_path / "run") == queries
    resumed = resume_folder(tmp_path / "run", ["model.budget.queries=null"])
    assert resumed.metrics["budget_spent"].value == 0
    assert [row["planner"] for row in resumed.tables["planners"]] == ["read", "alone", "uniform"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"env__world": "worlds:TabularGame"}, "needs a world with the methods words, plans and parse"),
        ({"model__scripted": "walkers:say"}, r"critic\.log\.play=random"),
        ({"critic__weights": [1, 2], **FREE}, r"critic\.weights: expected a number for each of meeting"),
        ({"critic__kind": "exact", "env__world": "worded_meetings:Wordless", **FREE}, "has no table"),
    ],
)
def test_what_cannot_be_planned_is_refused(overrides: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run_training(small(**overrides), tmp_path / "run")


def test_a_refused_model_takes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        run_training(small(model__scripted="walkers:say"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_small_model_plans_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planners.tiny.recipe.ASKED", 6)
    tiny = {"lessons": 90, "rows": 8, "updates": 12, "hidden": 8, "layers": 1, "vocabulary": 700}
    overrides = {f"model__tiny__{name}": value for name, value in tiny.items()}
    config = small(critic__kind="none", evaluation__episodes=2, evaluation__num_envs=2, env__time_limit=2, **overrides)
    report = run_training(config, tmp_path / "run")
    assert report.metrics["model/queries"].value > 0
    assert json.loads((tmp_path / "run" / "report.json").read_text())["config"]["model"]["tiny"]["updates"] == 12
