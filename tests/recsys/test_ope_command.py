"""`concord run` of offline evaluations: what it prints, keeps of a sweep, and leaves behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from small_logs import ACTIONS, frame, table_config, written

from marl.__main__ import main
from marl.commands import sweep
from marl.config.catalog import find_config
from marl.config.load import load_recipe, read_yaml, resolve
from marl.output.report import Report


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise InputError('It needs a column age.')", "It needs a column age."),
        ("raise KeyError('age')", "KeyError: 'age' (mine_bad.py"),
        ("return np.full((len(rows), rows.actions), 0.5)", "must give probabilities ≥ 0 that add up to 1"),
    ],
)
def test_a_policy_that_fails_takes_no_folder(
    body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imports = "import numpy as np\nfrom envs.core import InputError\n"
    body = body.replace("rows.actions", str(ACTIONS))
    (tmp_path / "mine_bad.py").write_text(f"{imports}\ndef policy(rows):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_bad", raising=False)
    raw = table_config(written(frame(50), tmp_path / "log.csv"))
    (tmp_path / "c.yaml").write_text(json.dumps({**raw, "policy": {"target": "mine_bad:policy"}}))
    assert concord(monkeypatch, "run", tmp_path / "c.yaml", "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def concord(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of a command; the points of a sweep run one after the other in this process."""

    def in_this_process(folders: Sequence[Path], processes: int, assignments: Sequence[str]) -> None:
        for folder in folders:
            sweep.resume_folder(folder)

    monkeypatch.setattr(sweep, "_run_processes", in_this_process)
    monkeypatch.setattr(sys, "argv", ["concord", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.parametrize("seeds", ["0", "0,1"])
def test_a_sweep_of_evaluations_keeps_intervals_and_tells_each_verdict_under_its_point(
    seeds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    words = ["data.campaign=women,men", "data.logged_by=bts", "policy.target=random", "intervals.method=t"]
    assert concord(monkeypatch, "run", "ope/open_bandit", *words, f"seed={seeds}", "--out", out) == 0
    told = capsys.readouterr().out
    ending = "" if seeds == "0" else ",seed=0"
    women, men = f"data.campaign=women{ending}", f"data.campaign=men{ending}"
    of_women = told.partition(f"\n{women}\n")[2].partition("\ndata.campaign=")[0]
    of_men = told.partition(f"\n{men}\n")[2].partition("\ndata.campaign=")[0]
    assert "Read none of these estimates. The weights leave an effective sample of 2.1 of 10,000 rows." in of_women
    assert "-0.003" not in of_women
    assert "Read sndr" in of_men
    assert "random  -0.0040 [-0.0057, -0.0023]" in of_men
    assert "inf]" not in told
    found = Report.load(out / "report.json")
    for point in (women, men):
        alone = Report.load(out / point / "report.json")
        of_point = {name.removeprefix(f"{point}/"): m for name, m in found.metrics.items() if name.startswith(point)}
        assert of_point == alone.metrics
        for table in ("verdicts", "recommendations", "differences"):
            rows = [row for row in found.tables[table] if row["point"] == point]
            assert [{"point": point, **row} for row in alone.tables[table]] == rows
            assert rows
    assert concord(monkeypatch, "resume", out) == 0
    assert "Read none" in capsys.readouterr().out


def test_sweeps_tell_what_is_learned_from_what_is_evaluated() -> None:
    """Of what is learned, intervals are over seeds."""
    names = ("ope/learn", "cooperative/spread", "ope/open_bandit", "ope/synthetic", "ope/sequential_oracle")
    assert [load_recipe(resolve(read_yaml(find_config(name)), {}).recipe).learns for name in names] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_segments_are_printed_by_the_estimator_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = frame(4000).with_columns(day=pl.int_range(4000) % 33)
    raw = table_config(written(table, tmp_path / "log.csv"), rewards=["click"], user="user")
    raw["data"]["segments"] = ["tab", "day"]
    (tmp_path / "c.yaml").write_text(json.dumps(raw))
    words = ["intervals.replications=100", "--out", tmp_path / "run"]
    assert concord(monkeypatch, "run", tmp_path / "c.yaml", *words) == 0
    told = capsys.readouterr().out
    report = Report.load(tmp_path / "run" / "report.json")
    read = report.tables["recommendations"][0]["estimator"]
    (first,) = (row for row in report.tables["segments"] if row["segment"] == "tab=0" and row["estimator"] == read)
    _, title, shown = told.partition(f"segments: click, uniform ({read})\n")
    assert title
    line = next(line for line in shown.splitlines() if line.startswith("tab=0 ")).split()
    assert line[1] == f"{first['rows']:,.0f}"
    assert float(line[2]) == pytest.approx(first["difference"], abs=1e-3)
    assert float(line[4]) == pytest.approx(first["value"], abs=1e-3)
    assert line[-1] == first["verdict"]
    readable = [row for row in report.tables["segments"] if row["estimator"] == read and row["verdict"] != "UNRELIABLE"]
    assert sum(line.startswith(("tab=", "day=")) for line in shown.splitlines()) == min(30, len(readable))
    assert f"{len(readable) - 30} with fewer rows" in shown


def test_an_evaluation_that_was_kept_is_not_told_of_a_log_that_changed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = written(frame(300), tmp_path / "log.csv"), tmp_path / "run"
    (tmp_path / "c.yaml").write_text(json.dumps(table_config(path, rewards=["click"])))
    assert concord(monkeypatch, "run", tmp_path / "c.yaml", "intervals.method=t", "--out", out) == 0
    first = Report.load(out / "report.json").metrics
    (out / "report.json").unlink()  # as if it had been killed just before the end
    assert concord(monkeypatch, "resume", out) == 0
    assert Report.load(out / "report.json").metrics == first
    (out / "report.json").unlink()
    written(frame(320), path)
    capsys.readouterr()
    assert concord(monkeypatch, "resume", out) == 2
    told = capsys.readouterr()
    assert "as it was before its files were changed" in told.err + told.out
    assert not (out / "report.json").exists()
