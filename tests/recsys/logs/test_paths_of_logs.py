"""A path names a file of that very name, a folder, or a pattern, and ~ is the home."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_logs import frame, table_config, written

from envs.core import InputError
from marl.commands.run import run_training
from marl.config.load import resolve
from recsys.logs.paths import matching, one_file


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for day in ("1", "2[a]"):
        (tmp_path / "logs" / day).mkdir(parents=True)
        for part in ("a", "b"):
            written(frame(20), tmp_path / "logs" / day / f"part-{part}.csv")
    written(frame(20), tmp_path / "log[1].csv")
    written(frame(20), tmp_path / "log1.csv")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("log[1].csv", ["log[1].csv"]),
        ("log[12].csv", ["log1.csv"]),
        ("~/log1.csv", ["log1.csv"]),
        ("log?.csv", ["log1.csv"]),
        ("logs/1", ["logs/1/part-a.csv", "logs/1/part-b.csv"]),
        ("logs/*/part-a.csv", ["logs/1/part-a.csv", "logs/2[a]/part-a.csv"]),
        ("logs/2[a]/part-*.csv", ["logs/2[a]/part-a.csv", "logs/2[a]/part-b.csv"]),
        ("~/l*/[2]*", ["logs/2[a]/part-a.csv", "logs/2[a]/part-b.csv"]),
        ("logs/**/part-b.csv", ["logs/1/part-b.csv", "logs/2[a]/part-b.csv"]),
    ],
)
def test_a_path_names_files(path: str, found: list[str], home: Path) -> None:
    for start in ("", f"{home}/" if not path.startswith("~") else ""):
        told = [file.resolve().relative_to(home.resolve()).as_posix() for file in matching(start + path)]
        assert told == found


@pytest.mark.parametrize("path", ["nowhere.csv", "nowhere/*.csv", "log[2].csv", "~nobody-of-that-name/log.csv", "logs"])
def test_a_path_of_nothing_is_told(path: str, home: Path) -> None:
    with pytest.raises(InputError, match=path.partition("[")[0].replace("*", r"\*").partition("/")[0]):
        matching(path)
    with pytest.raises(InputError, match="no table"):
        one_file("nowhere.csv", "table")
    with pytest.raises(InputError, match=r"must name one table; it names 4 files"):
        one_file("logs/*/*.csv", "table")


@pytest.mark.parametrize("prefix", ["~/", ""])
def test_every_path_of_a_config_is_such_a_path(prefix: str, home: Path) -> None:
    (home / "table[x].csv").write_text("item,chance\n2,.25\n0,.25\n1,.25\n3,.25\n")
    (home / "kinds[x].csv").write_text("item,kind\n0,a\n1,b\n2,a\n3,b\n")
    written(frame(20).with_columns(p=0.25), home / "log[1].csv")
    raw: dict[str, Any] = table_config(Path(f"{prefix}log[1].csv"), position=None)
    raw["data"] |= {"logging": f"{prefix}table[x].csv", "categories": f"{prefix}kinds[x].csv"}
    raw["policy"] = {"target": ["table", "uniform"], "table": f"{prefix}table[x].csv"}
    raw["estimators"] = {"names": ["ips", "mips"]}
    raw["intervals"] = {"method": "t"}
    found = run_training(resolve(raw, {}), home / "run")
    assert found.metrics["rows"].value == 20
    assert "click/table/mips" in found.metrics
    steps = frame(20).with_columns(visit=0).with_row_index("n")
    written(steps, home / "steps[1].csv")
    columns = {"episode": "visit", "step": "n", "action": "item", "rewards": ["click"], "propensity": "p"}
    data = {"format": "table", "path": f"{prefix}steps[1].csv", "columns": columns}
    sessions = {
        "recipe": "recsys.sessions",
        "data": data,
        "policy": {"target": "uniform"},
        **{"intervals": {"method": "t"}},
    }
    assert run_training(resolve(sessions, {}), home / "sessions").metrics["steps"].value == 20
