"""Which probability belongs to which action: by the order of labels, by the label itself, and by position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import recsys
from envs.core import InputError
from recsys.logs import formats
from recsys.logs.log import Columns, Log
from recsys.policies.base import policy_of, stored_table

ITEMS = [1, 2, 10, 9]
COLUMNS = Columns("item", ("click",), "p")


def log_of_items(items: list[Any], **more: Any) -> Log:
    table = {"item": items * 2, "click": [0.0, 1.0] * len(items), "p": [0.25] * 2 * len(items), **more.pop("also", {})}
    return recsys.dataframe(table, action="item", rewards="click", propensity="p", **more)


def test_text_of_whole_numbers_has_the_order_of_numbers() -> None:
    assert log_of_items([str(item) for item in ITEMS]).labels == ["1", "2", "9", "10"]
    assert log_of_items(ITEMS).labels == [1, 2, 9, 10]
    assert log_of_items(["b", "10", "9"]).labels == ["10", "9", "b"]
    assert log_of_items(["01", "1", "0"]).labels == ["0", "01", "1"]


def test_a_list_means_the_same_for_a_csv_and_a_parquet_of_text(tmp_path: Path) -> None:
    table = pl.DataFrame({"item": ITEMS, "click": [0.0, 1.0, 1.0, 0.0], "p": [0.25] * 4})
    table.write_csv(tmp_path / "log.csv")
    table.with_columns(pl.col("item").cast(pl.String)).write_parquet(tmp_path / "log.parquet")
    chances = [0.1, 0.2, 0.3, 0.4]
    found = []
    for name in ("log.csv", "log.parquet"):
        log = formats.table(str(tmp_path / name), COLUMNS)
        (chunk,) = log.chunks()
        found.append(policy_of(chances, log, "new").probability(chunk))
    np.testing.assert_array_equal(found[0], [0.1, 0.2, 0.4, 0.3])  # of items 1, 2, 10, 9
    np.testing.assert_array_equal(found[1], found[0])


def test_probabilities_by_label_go_where_they_belong_and_are_0_elsewhere() -> None:
    log = log_of_items(["shoes", "hats", "socks"])
    np.testing.assert_array_equal(policy_of({"shoes": 0.7, "hats": 0.3}, log, "new").table, [[0.3, 0.7, 0.0]])
    with pytest.raises(InputError, match=r"gives probabilities to 'shoe', which the catalog of the log does not hold"):
        policy_of({"shoe": 1.0}, log, "new")


def test_rounded_probabilities_are_renormalized_and_others_are_refused() -> None:
    log = log_of_items(["a", "b", "c"])
    np.testing.assert_allclose(policy_of([0.333] * 3, log, "new").table, [[1 / 3] * 3], rtol=1e-15)
    with pytest.raises(InputError, match=r"add up to 0\.96"):
        policy_of([0.32] * 3, log, "new")


def test_a_catalog_may_hold_more_than_the_log_shows() -> None:
    log = log_of_items(["a", "b"], actions=["c", "b", "a"])
    assert log.labels == ["a", "b", "c"]
    assert policy_of({"c": 1.0}, log, "new").table.tolist() == [[0.0, 0.0, 1.0]]
    for wrong in (["a", "a"], [], ["a", None]):
        with pytest.raises(InputError, match="actions are how many, or labels, each given once"):
            log_of_items(["a"], actions=wrong)


@pytest.mark.parametrize(
    ("header", "first"),
    [("item,3,1,2", [0.1, 0.2, 0.7]), ("item,x,y,z", [0.7, 0.1, 0.2]), ("item,1,2,3", [0.7, 0.1, 0.2])],
)
def test_headers_that_name_positions_are_obeyed(header: str, first: list[float], tmp_path: Path) -> None:
    log = log_of_items(["a", "b", "c"], also={"place": [1, 2, 3] * 2}, position="place")
    path = tmp_path / "table.csv"
    path.write_text(f"{header}\na,0.7,0.1,0.2\nb,0.2,0.6,0.2\nc,0.1,0.3,0.6\n")
    assert stored_table(log, path).table[:, 0].tolist() == pytest.approx(first)


def test_headers_that_name_some_positions_are_refused(tmp_path: Path) -> None:
    log = log_of_items(["a", "b", "c"], also={"place": [1, 2, 3] * 2}, position="place")
    path = tmp_path / "table.csv"
    path.write_text("item,1,2,x\na,0.7,0.1,0.2\nb,0.2,0.6,0.2\nc,0.1,0.3,0.6\n")
    with pytest.raises(InputError, match="heads its columns 1, 2, x; the positions are 1, 2, 3"):
        stored_table(log, path)


def test_a_log_says_in_which_order_its_actions_are() -> None:
    assert repr(log_of_items(["b", "a"])) == "Log(the log: 2 actions, in the order a, b; rewards click)"
    assert "in the order 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …" in repr(log_of_items([0], actions=12))


def test_misspelled_and_repeated_columns_are_told() -> None:
    with pytest.raises(InputError, match=r"Missing arguments: 'segment' \(did you mean 'segments'\?\)"):
        log_of_items(["a"], segment="click")
    with pytest.raises(InputError, match="rewards names each column once; got click, click, click twice"):
        recsys.dataframe({"item": [1], "click": [1.0]}, action="item", rewards=["click", "click"])
