"""What real logs hold beside good rows: rows that count nothing, missing values, labels of any size."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from small_logs import ACTIONS, COLUMNS, bandit, frame, log_of

import recsys
from envs.core import InputError
from recsys.bandit.importance_weights import LoggerInfo
from recsys.config import EstimatorsConfig, IntervalsConfig
from recsys.logs import formats
from recsys.logs.log import Chunk, Columns, Log
from recsys.policies.base import ContextPolicy, TablePolicy

TARGET = TablePolicy("target", bandit().target)
COUNTED = replace(COLUMNS, multiplicity="times", segments=("tab",))
QUICK = IntervalsConfig(method="t")


def judged(log: Log) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[str, str]]]:
    found = recsys.evaluate(log, [TARGET], intervals=QUICK)
    metrics = {name: (m.value, m.low or 0.0, m.high or 0.0) for name, m in found.metrics.items()}
    return metrics, {row["estimate"]: (row["verdict"], row["check"]) for row in found.tables["verdicts"]}


def with_idle_rows(table: pl.DataFrame) -> pl.DataFrame:
    """A log with as many rows of multiplicity 0 among the others, of enormous weight and events."""
    counted = table.with_columns(times=pl.lit(1.0), order=pl.int_range(pl.len()))
    idle = counted.with_columns(p=pl.lit(1e-6), click=pl.lit(1.0), times=pl.lit(0.0), user=pl.col("user") + 10_000)
    return pl.concat([counted, idle]).sort("order", maintain_order=True).drop("order")


@pytest.mark.parametrize("user", [None, "user"])
def test_rows_of_multiplicity_0_leave_no_trace(user: str | None) -> None:
    table = frame(400)
    alone = log_of(table.with_columns(times=pl.lit(1.0)), replace(COUNTED, user=user))
    idle = log_of(with_idle_rows(table), replace(COUNTED, user=user), chunk_rows=64)
    (metrics, verdicts), (wanted, told) = judged(idle), judged(alone)
    assert verdicts == told
    assert metrics.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(metrics[name], wanted[name], rtol=1e-9, err_msg=name)
    assert metrics["rows"][0] == 400


def test_rows_that_are_left_out_are_checked_and_keep_the_others_numbers() -> None:
    table = with_idle_rows(frame(40))  # rows 2, 4, … count nothing
    log = log_of(table, COUNTED, chunk_rows=16)
    numbers = np.concatenate([chunk.row_numbers for chunk in log.chunks()])
    np.testing.assert_array_equal(numbers, np.arange(0, 80, 2))
    blocks = [block.row_numbers for chunk in log.chunks() for block in chunk.blocks(3)]
    np.testing.assert_array_equal(np.concatenate(blocks), np.arange(0, 80, 2))
    spoiled = table.with_columns(click=pl.when(pl.int_range(pl.len()) == 21).then(None).otherwise("click"))
    with pytest.raises(InputError, match=r"click missing or not finite in 1 row \(22\)"):
        list(log_of(spoiled, COUNTED).chunks())

    def wrong(rows: Chunk) -> np.ndarray:
        return np.full((len(rows), ACTIONS), 0.25) * np.where(rows.row_numbers == 50, 2, 1)[:, None]

    with pytest.raises(InputError, match="at row 51 they"):
        ContextPolicy("wrong", ACTIONS, wrong).probability(Chunk.joined(list(log.chunks())))
    with pytest.raises(InputError, match="no rows of a times above 0"):
        list(log_of(table.with_columns(times=pl.lit(0.0)), COUNTED).chunks())


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0.5, 0.0, 0.5], r"other, of data.loggers, not in \(0, 1\] in 1 of 3 rows \(rows 2\)"),
        ([0.5, 0.5, float("nan")], r"in 1 of 3 rows \(rows 3\)"),
        ([0.5, None, None], r"in 2 of 3 rows \(rows 2, 3\)"),
        ([7.0, 0.5, 0.5], r"rows \(rows 1\)"),
        (["a", "b", "c"], r"'other' of data.loggers must hold propensities in \(0, 1\]; it holds String"),
    ],
)
def test_propensities_of_loggers_are_checked(values: list[object], told: str) -> None:
    table = pl.DataFrame({"item": [0, 1, 0], "click": [0.0, 1.0, 1.0], "p": [0.5] * 3, "other": values}, strict=False)
    log = recsys.dataframe(table, action="item", rewards="click", propensity="p", context=("p", "other"))
    how = {"logger": LoggerInfo(loggers={"p": 0.5, "other": 0.5}), "intervals": QUICK}
    with pytest.raises(InputError, match=told):
        recsys.evaluate(log, {"even": "uniform"}, estimators=EstimatorsConfig(names=("balanced_ips",)), **how)


def test_columns_of_loggers_are_context_and_shares_add_up() -> None:
    settings = EstimatorsConfig(names=("balanced_ips",))
    with pytest.raises(InputError, match=r"Missing columns of data\.loggers: 'q'"):
        recsys.evaluate(log_of(frame(40)), [TARGET], logger=LoggerInfo(loggers={"q": 1.0}), estimators=settings)
    with pytest.raises(InputError, match="add up to 1"):
        LoggerInfo(loggers={"p": 0.7})


@pytest.mark.parametrize(
    ("values", "segments"),
    [
        ([1, None, 1, 2], {"1": 2, "missing": 1, "2": 1}),
        ([0.5, float("nan"), None, 0.5], {"0.5": 2, "NaN": 1, "missing": 1}),
        ([True, False, None, True], {"true": 2, "false": 1, "missing": 1}),
        (["a|b", None, "a#b", "a|b"], {"a|b": 2, "a#b": 1, "missing": 1}),
    ],
)
def test_segments_may_be_missing_and_of_any_kind(values: list[object], segments: dict[str, int]) -> None:
    table = pl.DataFrame({"item": [0, 1, 0, 1], "click": [0.0, 1.0, 1.0, 0.0], "p": [0.5] * 4, "s": values})
    log = recsys.dataframe(table, action="item", rewards="click", propensity="p", segments=("s",))
    found = recsys.evaluate(log, {"even": "uniform"}, intervals=QUICK, estimators=EstimatorsConfig(names=("ips",)))
    assert {row["segment"]: row["rows"] for row in found.tables["segments"]} == {
        f"s={value}": rows for value, rows in segments.items()
    }


def test_segments_are_one_value_a_row() -> None:
    table = frame(20).with_columns(tags=pl.lit([1, 2]))
    with pytest.raises(InputError, match="'tags' of segments must hold one value a row"):
        log_of(table, replace(COLUMNS, segments=("tags",)))


def test_users_and_actions_may_be_numbers_of_64_bits_without_sign() -> None:
    far = 2**64 - 1
    table = frame(60).with_columns(pl.col("user").cast(pl.UInt64))
    columns = replace(COLUMNS, user="user")
    wanted = np.concatenate([chunk.cluster for chunk in log_of(table, columns).chunks()])
    moved = table.with_columns(pl.lit(far, pl.UInt64) - pl.col("user"))
    found = np.concatenate([chunk.cluster for chunk in log_of(moved, columns).chunks()])
    assert len({*zip(wanted.tolist(), found.tolist())}) == len({*wanted.tolist()}) == len({*found.tolist()})

    for items in ([far, far - 1, far - 1], [far, 3, 3], [far, far - 5, far - 5]):
        high = pl.DataFrame({"item": pl.Series(items, dtype=pl.UInt64), "click": [0.0] * 3, "p": [0.5] * 3})
        log = recsys.dataframe(high, action="item", rewards="click", propensity="p")
        (chunk,) = log.chunks()
        assert chunk.action.tolist() == [1, 0, 0]
    with pytest.raises(InputError, match=re.escape("item not in the catalog of 2 actions in 3 rows (1, 2, 3)")):
        list(recsys.dataframe(high, action="item", rewards="click", propensity="p", actions=2).chunks())


@pytest.mark.parametrize("kind", [pl.Int64, pl.Float64, pl.String, pl.UInt64])
def test_an_action_that_is_missing_is_told_as_missing(kind: type[pl.DataType]) -> None:
    items = pl.Series([0, 1, None, 1], dtype=pl.Int64).cast(kind)
    items = items.fill_null(float("nan")) if kind == pl.Float64 else items
    table = pl.DataFrame({"item": items, "click": [0.0] * 4, "p": [0.5] * 4})
    log = recsys.dataframe(table, action="item", rewards="click", propensity="p")
    assert log.actions == 2
    with pytest.raises(InputError, match=re.escape("cannot be evaluated: item missing in 1 row (3).")):
        list(log.chunks())


def test_one_user_is_told_in_the_singular() -> None:
    table = frame(400).with_columns(user=pl.lit(1))
    found = recsys.evaluate(log_of(table, replace(COLUMNS, user="user")), [TARGET], intervals=QUICK)
    (told,) = {row["reason"] for row in found.tables["verdicts"] if row["check"] == "clusters"}
    assert told == "The number of independent users (or other clusters) is only 1."


@pytest.mark.parametrize("replications", [1, 99])
def test_a_bootstrap_has_at_least_100_replications(replications: int) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 100"):
        IntervalsConfig(replications=replications)


def test_kinds_of_files_agree_on_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("item,click,p,tab\n0,1,0.5,\n1,0,0.5,x\n")
    log = formats.table(str(tmp_path / "log.csv"), Columns("item", ("click",), "p", segments=("tab",)))
    (chunk,) = log.chunks()
    assert chunk.segments["tab"].tolist() == ["missing", "x"]
