"""Labels stay what is written in a log, of whatever file, part or kind of number it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_logs import COLUMNS, frame, written

import recsys
from envs.core import InputError
from recsys.config import EstimatorsConfig, IntervalsConfig
from recsys.logs import formats
from recsys.logs.files import INFER_ROWS
from recsys.logs.log import Columns, Log

SIMPLE = Columns("item", ("click",), "p", user="user")
QUICK: dict[str, Any] = {
    "intervals": IntervalsConfig(method="t"),
    "estimators": EstimatorsConfig(names=("ips",)),
}


def simple(items: list[str], users: list[str], path: Path) -> Path:
    """A CSV of these labels as they are; every other row has a click."""
    lines = [f"{item},{user},{k % 2},0.25" for k, (item, user) in enumerate(zip(items, users, strict=True))]
    path.write_text("\n".join(["item,user,click,p", *lines]) + "\n")
    return path


def clusters(log: Log) -> int:
    return len({*np.concatenate([chunk.cluster for chunk in log.chunks()]).tolist()})


@pytest.mark.parametrize(
    "labels",
    [
        ["2e1", "20", "1e3", "1000"],
        ["007", "07", "7", "0007"],
        ['"007"', '"07"', '"7"', '"0007"'],
        ["1.0", "1", "01", "1.00"],
        ["+5", "5", " 5", "5 "],
        ["9007199254740992", "9007199254740993", "9007199254740992.0", "1"],
        ["18446744073709551616", "18446744073709551617", "1", "2"],
        ["-0", "0", "00", "-1"],
        ["true", "True", "TRUE", "1"],
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_labels_of_a_csv_that_are_written_apart_stay_apart(labels: list[str], late: bool, tmp_path: Path) -> None:
    before = ["3"] * (INFER_ROWS + 10 if late else 0)  # the first rows look like whole numbers
    mine = [*before, *labels * 3]
    log = formats.table(str(simple(mine, mine, tmp_path / "log.csv")), SIMPLE)
    apart = len(labels) + late
    assert log.actions == apart
    assert sorted(log.catalog.labels.cast(pl.String)) == sorted({*before, *(label.strip('"') for label in labels)})
    assert clusters(log) == apart


@pytest.mark.parametrize("quote", ["", '"'])
def test_plain_whole_numbers_of_a_csv_are_numbers(quote: str, tmp_path: Path) -> None:
    items = [str(k) for k in (10, 9, 0, -1, 10, 9)]
    path = simple([f"{quote}{item}{quote}" for item in items], items, tmp_path / "log.csv")
    log = formats.table(str(path), SIMPLE)
    assert log.catalog.labels.to_list() == [-1, 0, 9, 10]
    (chunk,) = formats.table(str(simple(["0", "3", "9"], ["1", "2", "3"], path)), SIMPLE, 10).chunks()
    assert chunk.action.tolist() == [0, 3, 9]


def test_columns_that_are_segments_and_context_stay_numbers_where_they_are_written_as_such(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("item,click,p,a,b,c,d\n0,1,0.5,1,0.5,True,01\n1,0,0.5,2,1.25,False,1\n")
    names = ("a", "b", "c", "d")
    log = formats.table(str(tmp_path / "log.csv"), Columns("item", ("click",), "p", segments=names, context=names))
    (chunk,) = log.chunks()
    assert [chunk.context[name].tolist() for name in names] == [[1, 2], [0.5, 1.25], [True, False], ["01", "1"]]
    assert [chunk.segments[name].tolist() for name in names] == [
        ["1", "2"],
        ["0.5", "1.25"],
        ["true", "false"],
        ["01", "1"],
    ]


def test_words_that_mean_missing_are_the_callers(tmp_path: Path) -> None:
    path = str(simple(["NA", "a", "-", "b"], ["1", "2", "3", "4"], tmp_path / "log.csv"))
    with pytest.raises(InputError, match=r"item missing in 1 row \(1\)"):
        list(formats.table(path, SIMPLE).chunks())
    assert formats.table(path, SIMPLE, missing=()).actions == 4  # NA is Namibia
    with pytest.raises(InputError, match=r"item missing in 1 row \(3\)"):
        list(formats.table(path, SIMPLE, missing=("-",)).chunks())
    table = pl.DataFrame({"item": ["NA", "a"], "click": [0, 1], "p": [0.5, 0.5]})
    named: dict[str, Any] = {"action": "item", "rewards": "click", "propensity": "p"}
    assert recsys.dataframe(table, **named).actions == 2
    with pytest.raises(InputError, match=r"item missing in 1 row \(1\)"):
        list(recsys.dataframe(table, missing=("NA",), **named).chunks())


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        (pl.Int8, [-100, 0, 100]),
        (pl.Int8, [-128, -127, 127]),
        (pl.UInt8, [0, 128, 255]),
        (pl.Int16, [-20_000, 1, 20_000]),
        (pl.Int16, [-32_768, 0, 32_767]),
        (pl.UInt16, [0, 40_000, 65_535]),
        (pl.Int32, [-(2**31), 0, 2**31 - 1]),
        (pl.Int64, [-(2**63), 0, 2**63 - 1]),
        (pl.UInt64, [0, 1, 2**64 - 1]),
        (pl.Float32, [0, 1, 2**24 - 1]),
        (pl.Float64, [0, 1, 2**53 - 1]),
        (pl.Categorical, ["b", "a", "c"]),
    ],
)
def test_labels_of_every_kind_have_their_places(kind: Any, items: list[Any], tmp_path: Path) -> None:
    column = pl.Series(items * 3).cast(kind) if kind == pl.Categorical else pl.Series(items * 3, dtype=kind)
    table = pl.DataFrame(
        {"item": column, "place": column, "user": column, "click": [0.0, 1.0, 1.0] * 3, "p": [0.5] * 9}
    )
    path = str(written(table, tmp_path / "log.parquet"))
    log = formats.table(path, Columns("item", ("click",), "p", "place", "user"))
    (chunk,) = log.chunks()
    place = np.argsort(np.argsort(items))
    assert chunk.action.tolist() == chunk.position.tolist() == [*place] * 3
    assert clusters(log) == 3
    assert np.isfinite(recsys.evaluate(log, {"even": "uniform"}, **QUICK).metrics["click/even/ips"].value)


def test_whole_narrow_numbers_in_a_row_do_not_wrap() -> None:
    items = pl.int_range(-128, 128, eager=True).cast(pl.Int8)
    table = pl.DataFrame({"item": items, "click": [1.0] * 256, "p": [1 / 256] * 256})
    log = recsys.dataframe(table, action="item", rewards="click", propensity="p")
    (chunk,) = log.chunks()
    assert chunk.action.tolist() == list(range(256))
    assert recsys.evaluate(log, {"even": "uniform"}, **QUICK).metrics["click/even/ips"].value == 1


WIDE = Columns("item", ("click", "watch"), "p", "place", user="user", context=("score0",))


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("other", [pl.Float64, pl.Int8, pl.UInt64, pl.Float32])
def test_parts_of_other_widths_are_one_log(other: Any, folder: bool, tmp_path: Path) -> None:
    table = frame(60)
    whole = list(Log(table.lazy(), WIDE).chunks())
    wide = table.with_columns(pl.col("item", "place", "user").cast(other), pl.col("p", "score0").cast(pl.Float64))
    order = [*wide.columns[::-1]]
    (tmp_path / "parts").mkdir()
    written(table[:25], tmp_path / "parts" / "1.parquet")
    written(wide[25:].select(order), tmp_path / "parts" / "2.parquet")
    path = tmp_path / "parts" if folder else tmp_path / "parts" / "*.parquet"
    log = formats.table(str(path), WIDE)
    assert log.catalog.labels.to_list() == [0, 1, 2, 3]
    parts = list(log.chunks())
    for name in ("action", "position", "propensity", "reward"):
        np.testing.assert_array_equal(getattr(parts[0], name), getattr(whole[0], name))
    pairs = {*zip(parts[0].cluster.tolist(), whole[0].cluster.tolist(), strict=True)}
    assert len(pairs) == clusters(log) == table["user"].n_unique()
    np.testing.assert_array_equal(parts[0].context["score0"], whole[0].context["score0"])


def test_parts_of_whole_numbers_and_fractions_are_no_labels(tmp_path: Path) -> None:
    far = 2**53 + 1
    table = pl.DataFrame({"item": [far, far - 1], "user": [0, 1], "click": [0.0, 1.0], "p": [0.5, 0.5]})
    written(table, tmp_path / "1.parquet")
    written(table.with_columns(item=pl.Series([1.0, 2.0])), tmp_path / "2.parquet")
    log = formats.table(str(tmp_path), SIMPLE)
    assert log.catalog.labels.to_list() == [1, 2, far - 1, far]
    written(table.with_columns(item=pl.Series([1.0, 2.5])), tmp_path / "2.parquet")
    with pytest.raises(InputError, match=r"2\.parquet .* item holds labels as Float64, such as 2\.5, .* \(2\)"):
        formats.table(str(tmp_path), SIMPLE)


def test_parts_of_a_csv_are_read_by_the_names_of_their_columns(tmp_path: Path) -> None:
    table = frame(60)
    written(table[:20], tmp_path / "1.csv")
    written(table[20:].select(table.columns[::-1]), tmp_path / "2.csv")
    (read,), (whole,) = formats.table(str(tmp_path), COLUMNS, 4).chunks(), Log(table.lazy(), COLUMNS).chunks()
    np.testing.assert_array_equal(read.action, whole.action)
    np.testing.assert_array_equal(read.reward, whole.reward)


def test_a_context_that_changes_its_kind_is_named(tmp_path: Path) -> None:
    lines = ["item,user,click,p,age", *["0,a,1,0.5,30"] * INFER_ROWS, "1,b,0,0.5,30.5"]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    log = formats.table(str(tmp_path / "log.csv"), SIMPLE).with_context(["age"])
    with pytest.raises(InputError, match=r"log\.csv, row 10001: column age holds '30\.5', which is no whole number"):
        list(log.chunks())


def test_an_empty_cell_is_missing_in_quotes_too(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text('item,user,click,p,age\n0,a,"",0.5,3\n"",b,1,0.5,""\n1,"",1,"",5\n')
    log = formats.table(str(tmp_path / "log.csv"), SIMPLE).with_context(["age"])
    assert log.schema["age"] == pl.Int64
    with pytest.raises(InputError) as caught:
        list(log.chunks())
    for told in ("item missing in 1 row (2)", "user missing in 1 row (3)", "p missing in 1 row (3)"):
        assert told in str(caught.value)
    assert "click missing or not finite in 1 row (1)" in str(caught.value)
