"""`concord run recsys/tabular_tscac`: what it reports, resumes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from marl.output.report import Report
from recsys.problems.base import PROBLEMS
from tests.marl.commands.test_cli import concord

QUICK = ("samples.logs=6", "samples.transitions=[50000]", "samples.slack=[0,3.5]")
FEW = ("samples.logs=2", "samples.transitions=[50000]", "samples.slack=[1.5]", "closeness=[1]", "temperature=0.1")
TABLES = json.loads((PROBLEMS / "cmdp.json").read_text())


def ran(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: Any) -> Report:
    assert concord("run", "recsys/tabular_tscac", *words, "--out", folder, monkeypatch=monkeypatch) == 0
    return Report.load(folder / "report.json")


def test_it_tells_the_best_what_holds_and_what_samples_do_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ran(tmp_path / "out", monkeypatch, *QUICK)
    value = {name: metric.value for name, metric in report.metrics.items()}
    assert value["best"] == pytest.approx(TABLES["lp_optimum"])
    assert value["fixed_point/gap"] < 1e-9
    assert value["fixed_point/compared"] == 5
    assert value["held/share_of_best"] > 0.995
    assert value["held/violation"] < 1e-3
    assert value["samples/50000/slack_0/violate"] > 0.6
    assert value["samples/50000/slack_3.5/violate_by_1_percent"] == 0
    assert value["samples/50000/slack_3.5/share_of_best"] > 0.6
    rows = {row["policy"]: row for row in report.tables["policies"]}
    assert rows["linear program"]["share_of_best"] == pytest.approx(1)
    assert rows["main goal alone"]["main"] == pytest.approx(TABLES["unconstrained_optimum"][0])
    assert rows["uniform"]["auxiliary 2"] == pytest.approx(TABLES["uniform"][2])
    assert rows["tied, λ = 0.3"]["main"] == pytest.approx(TABLES["fixed_point"]["0.3"][0])
    said = capsys.readouterr().out
    assert "held by dual ascent" in said
    assert "below margin" in said
    assert (tmp_path / "out" / "trade_off.png").exists()


def test_the_same_seed_gives_the_same_report_and_another_other_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [
        ran(tmp_path / f"{place}", monkeypatch, *FEW, f"seed={seed}").tables["samples"]
        for place, seed in enumerate((0, 0, 1))
    ]
    assert samples[0] == samples[1] != samples[2]


def test_exact_answers_alone_need_no_chances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {key: TABLES[key] for key in ("transition", "start", "discount")}
    tables |= {"reward": [[[5 * x for x in row] for row in rows] for rows in TABLES["reward"]], "thresholds": [5.0, 0]}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(tables))
    report = ran(tmp_path / "out", monkeypatch, f"data.path={path}", "samples.logs=0", "stage_one_temperature=0.5")
    assert report.metrics["held/violation"].value < 1e-3
    assert "fixed_point/gap" not in report.metrics
    assert report.tables["samples"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data.path=nowhere.json",), "There is no problem at nowhere.json"),
        (("temperature=0",), "temperature: expected"),
        (("closeness=[]",), "closeness"),
        (("samples.level=1.5",), "samples.level: expected"),
        (("samples.transitions=[0]",), "samples.transitions"),
    ],
)
def test_what_means_nothing_is_refused(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = ("--out", tmp_path / "out")
    assert concord("run", "recsys/tabular_tscac", *words, *out, monkeypatch=monkeypatch) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
