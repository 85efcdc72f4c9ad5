"""The recipe from the command line: what it leaves behind, and one paragraph for what it cannot do."""

import json
from pathlib import Path
from typing import Any

import pytest

from marl.algorithms.bnpg_tabular.game import TabularGame
from marl.output.report import Report
from tests.marl.algorithms.bnpg_tabular.small_games import random_game
from tests.marl.commands.test_cli import concord

QUICK = ["cooperative/coordination_tabular", "env.args.agents=2", "starts=4", "iterations=20"]


def my_game() -> TabularGame:
    return random_game((2, 3), 3, discount=0.95)


def poor_game(agents: int) -> TabularGame:
    game = my_game()
    return TabularGame(game.choices, game.transition, -game.reward, game.start, game.discount)


def test_a_run_leaves_a_report_a_picture_and_the_same_numbers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        assert concord("run", *QUICK, "--out", tmp_path / name, monkeypatch=monkeypatch) == 0
    one, two = (Report.load(tmp_path / name / "report.json") for name in ("one", "two"))
    wanted = {"share_optimal", "ratio_mean", "ratio_min", "nash_gap", "bn_nash_gap", "return_per_agent"}
    assert wanted <= one.metrics.keys()
    assert one.metrics["share_optimal"].n == 4
    assert len(one.tables["starts"]) == 4
    assert sum(row["starts"] for row in one.tables["ends"]) == 4
    assert one.tables == two.tables
    picture = tmp_path / "one" / "learning_curve.png"
    picture.unlink()
    assert concord("render", tmp_path / "one", monkeypatch=monkeypatch) == 0
    assert picture.exists()


def test_graphs_are_swept_by_a_comma_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sweep"
    assert concord("run", *QUICK, "graph=empty,[[1,0]]", "--out", out, monkeypatch=monkeypatch) == 0
    metrics = json.loads((out / "report.json").read_text())["metrics"]
    assert {"graph=empty/share_optimal/min", "ratio_mean/difference/graph=empty-graph=[[1, 0]]"} <= metrics.keys()


def test_a_game_of_one_s_own_needs_only_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [
        f"env.world={__name__}:my_game",
        "env.args={}",
        "starts=3",
        "iterations=1000",
        "step_size=0.5",
        "start=world",
    ]
    words = ["cooperative/coordination_tabular", *own]
    assert concord("run", *words, "--out", tmp_path / "own", monkeypatch=monkeypatch) == 0
    assert Report.load(tmp_path / "own" / "report.json").metrics["share_optimal"].value == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["graph=lin"], "graph: expected empty, line, complete or a list of edges"),
        (["graph=[[0,1,2]]"], "graph: expected empty, line, complete or a list of edges"),
        (["graph=[[0,1],[1,0]]"], "closes the cycle"),
        (["graph=[[0,5]]"], "agents from 0 to 1"),
        (["env.args.horizon=25"], "Set env.args.horizon=null"),
        (["env.args.agents=4"], "is defined for"),
        (["env.args.agents=[2]"], "cannot be made with"),
        (["env.args.agent=2"], "Did you mean env.args.agents?"),
        (["env.world=envs.particles:SimpleSpread", "env.args={}"], "Tables are known of"),
        (["env.world=envs.games", "env.args={}"], "names a world or a function"),
        (["env={pettingzoo: 'mpe2.simple_spread_v3:parallel_env'}"], "Unknown key env.pettingzoo"),
        ([f"env.world={__name__}:poor_game", "env.args={}"], "optimum is positive"),
        (["env.num_envs=4"], "Unknown key env.num_envs"),
        (["train.env_steps=4"], "Unknown key train"),
        (["evaluation.episodes=4"], "Unknown key evaluation"),
        (["compile=true"], "Unknown key compile"),
        (["discount=1"], "discount: expected less than 1"),
        (["estimator=newton"], "estimator: expected 'natural' or 'plain'"),
        (["step_size=0"], "step_size: expected greater than 0"),
        (["step_size=1e308"], "set step_size lower"),
        (["starts=0"], "starts: expected greater than or equal to 1"),
        (["spread=0"], "set starts=1"),
        (["starts=10000000"], "Set starts lower"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_told_in_a_paragraph(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[Any]
) -> None:
    changed = {word.partition("=")[0] for word in words}
    words = [word for word in QUICK if word.partition("=")[0] not in changed] + words
    assert concord("run", *words, "--out", tmp_path / "out", monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
