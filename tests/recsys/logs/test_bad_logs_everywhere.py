"""Every way in refuses every bad log with a sentence that names what is wrong, and gives no number of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import recsys
from envs.core import InputError
from marl.commands.run import run_training
from marl.config.load import resolve
from recsys.learn import learn
from recsys.logs import formats
from recsys.logs.log import Columns, Log

NAMED = {
    "action": "item",
    "rewards": ["click"],
    "propensity": "p",
    "position": "place",
    "user": "user",
    "episode": "visit",
    "step": "n",
}
HEADER = ["visit", "n", "item", "place", "user", "p", "click"]
STATE = {"state": "page"}
UNIFORM = {"new": "uniform"}
ROW = 17  # that is bad, counted from 1


def rows() -> list[list[str]]:
    """Ten visits of four steps, as they are written."""
    return [
        [str(k // 4), str(k % 4), str(k % 3), str(k % 2), f"u{k // 4}", "0.5", str(k % 2), f"page{k % 4}"]
        for k in range(40)
    ]


def columns_of(kind: str) -> dict[str, Any]:
    return {**NAMED, **(STATE if kind == "sessions" else {})}


def columns(kind: str) -> Columns:
    named = columns_of(kind)
    return Columns(**{**named, "rewards": tuple(named["rewards"])})


def by_config(recipe: str, kind: str, **more: Any) -> Callable[[Path, Path, int | None], object]:
    def enter(path: Path, folder: Path, actions: int | None) -> object:
        data = {"format": "table", "path": str(path), "columns": columns_of(kind), "actions": actions}
        return run_training(resolve({"recipe": recipe, "data": data, **more}, {}), folder / "run")

    return enter


def evaluated(path: Path, folder: Path, actions: int | None) -> object:
    return recsys.evaluate(formats.table(str(path), columns("rows"), actions), UNIFORM)


def evaluated_sessions(path: Path, folder: Path, actions: int | None) -> object:
    return recsys.evaluate_sessions(formats.table(str(path), columns("sessions"), actions), UNIFORM)


def learned(path: Path, folder: Path, actions: int | None) -> object:
    return learn(formats.table(str(path), columns("rows"), actions), rows=100)


WAYS: dict[str, Callable[[Path, Path, int | None], object]] = {
    "a run of rows": by_config("recsys.ope", "rows", policy={"target": "uniform"}),
    "a run of sessions": by_config("recsys.sessions", "sessions", policy={"target": "uniform"}),
    "a run that learns": by_config("recsys.learn", "rows"),
    "evaluate": evaluated,
    "evaluate_sessions": evaluated_sessions,
    "learn": learned,
}


@dataclass(frozen=True)
class Bad:
    """A cell of one column, what an error tells of it, and how many actions the reader is told there are."""

    column: str
    cell: str
    told: str
    actions: int | None = None


CELLS = [
    Bad("p", "x", "log.csv, row 17: column p holds 'x', which is no number"),
    Bad("p", "10%", "log.csv, row 17: column p holds '10%', which is no number"),
    Bad("p", "NA", "p missing in 1 row (17)"),
    Bad("p", "0", "p not in (0, 1] in 1 row (17): 0"),
    Bad("click", "yes", "log.csv, row 17: column click holds 'yes', which is no number"),
    Bad("click", "None", "click missing or not finite in 1 row (17)"),
    Bad("click", "inf", "click missing or not finite in 1 row (17)"),
    Bad("n", "x", "log.csv, row 17: column n holds 'x', which is no whole number"),
    Bad("n", "NA", "n missing in 1 row (17)"),
    Bad("visit", "", "visit missing in 1 row (17)"),
    Bad("item", "NA", "item missing in 1 row (17)"),
    Bad("item", "x", "log.csv it holds String, such as 'x' in row 17", 3),
    Bad("item", "01", "log.csv it holds String, such as '01' in row 17", 3),
    Bad("item", "3", "item not in the catalog of 3 actions in 1 row (17)", 3),
    Bad("user", "NULL", "user missing in 1 row (17)"),
    Bad("place", "null", "place missing in 1 row (17)"),
]


def csv_of(cells: list[list[str]], path: Path, header: list[str] | None = None) -> Path:
    path.write_text("\n".join(",".join(row) for row in [header or [*HEADER, "page"], *cells]) + "\n")
    return path


def refused(way: str, path: Path, folder: Path, actions: int | None = None) -> str:
    with pytest.raises(InputError) as caught:
        WAYS[way](path, folder, actions)
    assert not (folder / "run").exists()
    return str(caught.value)


def test_the_log_without_a_bad_cell_is_taken_by_every_way_of_evaluation(tmp_path: Path) -> None:
    path = csv_of(rows(), tmp_path / "log.csv")
    for way in ("evaluate", "evaluate_sessions"):
        assert WAYS[way](path, tmp_path, 3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", CELLS, ids=lambda bad: f"{bad.column}={bad.cell}")
def test_a_bad_cell_is_named_with_its_row(bad: Bad, way: str, tmp_path: Path) -> None:
    cells = rows()
    cells[ROW - 1][HEADER.index(bad.column)] = bad.cell
    assert bad.told in refused(way, csv_of(cells, tmp_path / "log.csv"), tmp_path, bad.actions)


@pytest.mark.parametrize("way", ["a run of sessions", "evaluate_sessions"])
def test_a_missing_state_is_named_with_its_row(way: str, tmp_path: Path) -> None:
    cells = rows()
    cells[ROW - 1][-1] = "NA"
    assert "page missing in 1 row (17)" in refused(way, csv_of(cells, tmp_path / "log.csv"), tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_no_table_is_named(way: str, tmp_path: Path) -> None:
    cells = rows()
    cells[ROW - 1].append("1")
    path = csv_of(cells, tmp_path / "long.csv")
    assert "long.csv, row 17: 9 cells, where there are 8 columns" in refused(way, path, tmp_path)
    (tmp_path / "empty.csv").write_text("")
    assert "empty.csv is empty" in refused(way, tmp_path / "empty.csv", tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"visit,n,item,place,user,p,click,page\n0,0,\xff\xfe,0,u,0.5,1,a\n")
    assert "bytes.csv" in refused(way, tmp_path / "bytes.csv", tmp_path)
    (tmp_path / "words.parquet").write_text("words")
    assert "words.parquet cannot be read" in refused(way, tmp_path / "words.parquet", tmp_path)
    (tmp_path / "words.csv.gz").write_text("words")
    assert "words.csv.gz cannot be read" in refused(way, tmp_path / "words.csv.gz", tmp_path)
    header = ["visit", "n", "item", "place", "user", "p", "click", "click"]
    path = csv_of(rows(), tmp_path / "twice.csv", header)
    assert "twice.csv has 2 columns 'click'" in refused(way, path, tmp_path)
    assert "There is no log" in refused(way, tmp_path / "nowhere.csv", tmp_path)
    assert "matches no file" in refused(way, tmp_path / "nowhere" / "*.csv", tmp_path)


def table() -> pl.DataFrame:
    return pl.DataFrame(rows(), schema=[*HEADER, "page"], orient="row").with_columns(
        pl.col("visit", "n", "item", "place").cast(pl.Int64), pl.col("p", "click").cast(pl.Float64)
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("column", ["item", "place", "user", "visit"])
@pytest.mark.parametrize("value", [2.0**53, 0.5, float("inf")])
def test_labels_in_floats_that_cannot_tell_them_apart_are_refused(
    value: float, column: str, way: str, tmp_path: Path
) -> None:
    at = pl.int_range(40) == ROW - 1
    whole = table().with_columns(pl.col(column).str.strip_prefix("u").cast(pl.Float64) if column == "user" else column)
    spoiled = whole.with_columns(pl.when(at).then(value).otherwise(pl.col(column)).cast(pl.Float64).alias(column))
    spoiled.write_parquet(tmp_path / "log.parquet")
    told = refused(way, tmp_path / "log.parquet", tmp_path)
    assert f"{column} holds labels as Float64, such as {value}, that are no whole numbers below 2^53" in told
    assert "in 1 row (17)" in told


@pytest.mark.parametrize("way", WAYS)
def test_parts_that_do_not_fit_are_named(way: str, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    table()[:20].write_parquet(parts / "1.parquet")
    table()[20:].drop("p").write_parquet(parts / "2.parquet")
    assert "2.parquet has no column 'p', which other parts of the log have" in refused(way, parts, tmp_path)
    table()[20:].with_columns(pl.col("item").cast(pl.String)).write_parquet(parts / "2.parquet")
    told = refused(way, parts, tmp_path)
    assert "'item' is Int64 in" in told
    assert "2.parquet" in told
    for name in ("1", "2"):
        (parts / f"{name}.parquet").unlink()
    csv_of(rows()[:20], parts / "1.csv")
    csv_of([row[:-2] for row in rows()[20:]], parts / "2.csv", HEADER[:-1])
    told = refused(way, parts / "*.csv", tmp_path)
    assert "2.csv has no column 'click'" in told or "2.csv has no column 'page'" in told


FRAMES: list[tuple[dict[str, Any], str]] = [
    ({"item": None}, "has no rows with an action in column 'item'"),
    ({"user": None}, "user missing in 40 rows"),
    ({"place": None}, "has no rows with a position in column 'place'"),
    ({"p": "half"}, "Column 'p' of the log must hold numbers; it holds String"),
    ({"p": 0.0}, r"p not in \(0, 1\] in 40 rows"),
    ({"p": None}, "p missing|must hold numbers"),
    ({"click": float("nan")}, "click missing or not finite in 40 rows"),
    ({"item": [1, 2]}, "Column 'item' of labels must hold one value a row"),
    ({"user": b"a"}, "Column 'user' of labels must hold one value a row"),
    ({"item": 0.5}, "item holds labels as Float64, such as 0.5"),
    ({"user": 1e300}, r"user holds labels as Float64, such as 1e\+300"),
    ({"visit": 0, "n": 0}, "visit and n as in an earlier row in 39 rows"),
]


@pytest.mark.parametrize("evaluate", [recsys.evaluate, recsys.evaluate_sessions])
@pytest.mark.parametrize("made", ["polars", "lazy", "dict"])
@pytest.mark.parametrize(("changed", "told"), FRAMES, ids=lambda x: str(x)[:30])
def test_bad_tables_of_python_are_refused(changed: dict[str, Any], told: str, made: str, evaluate: Any) -> None:
    spoiled = table().with_columns(**{name: pl.lit(value) for name, value in changed.items()})
    spoiled = spoiled.with_columns(pl.col(name).cast(table().schema[name]) for name in changed if changed[name] is None)
    given: Any = {"polars": spoiled, "lazy": spoiled.lazy(), "dict": spoiled.to_dict(as_series=False)}[made]
    if made == "dict" and None in changed.values():
        pytest.skip("a list of None has no kind")
    with pytest.raises(InputError, match=told):
        evaluate(recsys.dataframe(given, **NAMED), UNIFORM)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"item": [0, "a"], "click": [0, 1], "p": [0.5, 0.5]}, "A log is a DataFrame or a dict"),
        ({"item": [0, 1, 2], "click": [0, 1], "p": [0.5, 0.5]}, "A log is a DataFrame or a dict"),
        ({"item": [object()] * 2, "click": [0, 1], "p": [0.5, 0.5]}, "must hold one value a row"),
        ({"item": [None, None], "click": [0, 1], "p": [0.5, 0.5]}, "has no rows with an action"),
        ({"item": [0, 1], "click": [0, 1]}, "'p'"),
        ({}, "Missing columns"),
        ([1, 2], "A log is a DataFrame or a dict"),
        (None, "A log is a DataFrame or a dict"),
        ("log.csv", "A log is a DataFrame or a dict"),
    ],
)
def test_what_is_no_table_of_python_is_refused(given: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        recsys.evaluate(recsys.dataframe(given, action="item", rewards="click", propensity="p"), UNIFORM)


def test_the_published_readers_name_bad_cells_too(tmp_path: Path) -> None:
    sample = pl.read_csv(formats.SAMPLE / "random_men.csv.gz", infer_schema=False).head(100)
    at = pl.int_range(100) == ROW - 1

    def open_bandit(column: str, cell: str) -> Log:
        spoiled = sample.with_columns(pl.when(at).then(pl.lit(cell)).otherwise(pl.col(column)).alias(column))
        spoiled.write_csv(tmp_path / "random_men.csv")
        return formats.open_bandit(tmp_path, "men", "random")

    for column, cell, told in (
        ("click", "x", "random_men.csv, row 17: column click holds 'x', which is no number"),
        ("item_id", "NA", "item_id missing in 1 row (17)"),
        ("item_id", "007", "such as '007' in row 17"),
        ("position", "x", "such as 'x' in row 17"),
    ):
        with pytest.raises(InputError) as caught:
            list(open_bandit(column, cell).chunks())
        assert told in str(caught.value)

    zeros = {name: ["0"] * 40 for name in formats.KUAIRAND_COLUMNS}
    for column, cell, told in (
        ("is_click", "x", "row 17: column is_click holds 'x', which is no number"),
        ("user_id", "NULL", "user_id missing in 1 row (17)"),
        ("video_id", "NULL", "video_id missing in 1 row (17)"),
    ):
        cells = [*["0"] * (ROW - 1), cell, *["0"] * (40 - ROW)]
        pl.DataFrame({**zeros, column: cells}).write_csv(tmp_path / "log_random_4_22_to_5_08_pure.csv")
        with pytest.raises(InputError) as caught:
            list(formats.kuairand(tmp_path, "pure", "random", ("is_click",)).chunks())
        assert told in str(caught.value)
