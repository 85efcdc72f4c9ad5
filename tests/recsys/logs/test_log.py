"""Logs are read in chunks, and what is wrong with them is told with rows and counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from small_logs import COLUMNS, frame, log_of, written

from envs.core import InputError
from recsys.logs import formats
from recsys.logs.catalog import Catalog
from recsys.logs.clusters import Clusters
from recsys.logs.log import Columns, Log

WITH_USERS = replace(COLUMNS, user="user", segments=("tab",), context=("score0",))


def joined(log: Log) -> dict[str, np.ndarray]:
    chunks = list(log.chunks())
    names = ("action", "position", "propensity", "reward", "cluster")
    return {name: np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in names}


def test_chunks_are_the_rows_in_order_and_of_one_size() -> None:
    table = frame(100)
    log = log_of(table, WITH_USERS, chunk_rows=32)
    chunks = list(log.chunks())
    assert [len(chunk) for chunk in chunks] == [32, 32, 32, 4]
    assert [chunk.first for chunk in chunks] == [0, 32, 64, 96]
    rows = joined(log)
    np.testing.assert_array_equal(rows["action"], table["item"])
    np.testing.assert_array_equal(rows["position"], table["place"])
    np.testing.assert_array_equal(rows["propensity"], table["p"])
    np.testing.assert_array_equal(rows["reward"], table["click", "watch"].to_numpy())
    np.testing.assert_array_equal(chunks[1].segments["tab"], table["tab"][32:64].cast(pl.String))
    np.testing.assert_array_equal(chunks[1].context["score0"], table["score0"][32:64])
    assert [block.first for block in chunks[1].blocks(20)] == [32, 52]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_files_split_anywhere_give_the_same_chunks(suffix: str, tmp_path: Path) -> None:
    table = frame(100)
    whole = formats.table(str(written(table, tmp_path / f"whole.{suffix}")), COLUMNS, 4)
    (tmp_path / "parts").mkdir()
    for number, (start, end) in enumerate([(0, 7), (7, 50), (50, 100)]):
        written(table[start:end], tmp_path / "parts" / f"{number}.{suffix}")
    for path in ("parts", f"parts/*.{suffix}"):
        split = formats.table(str(tmp_path / path), COLUMNS, 4)
        for name, column in joined(whole).items():
            np.testing.assert_array_equal(joined(split)[name], column)


def test_users_are_clusters_and_without_users_rows_are() -> None:
    table = frame(100)
    numbers = joined(log_of(table, WITH_USERS, chunk_rows=32))["cluster"]
    names = joined(log_of(table.with_columns(user=pl.format("u{}", "user")), WITH_USERS, chunk_rows=32))["cluster"]
    assert len(set(zip(numbers, names))) == len(set(names))  # the same users under other numbers
    for user in table["user"].unique():
        assert len(set(numbers[(table["user"] == user).to_numpy()])) == 1
    assert len(set(numbers)) == table["user"].n_unique() == numbers.max() + 1
    np.testing.assert_array_equal(joined(log_of(table, chunk_rows=32))["cluster"], np.arange(100))


@pytest.mark.parametrize("far", [0, 10**12])
def test_a_user_keeps_the_number_of_the_first_chunk(far: int) -> None:
    users = Clusters()
    assert users.encode(np.array([9, 9, 2 - far])).tolist() == [1, 1, 0]
    assert users.encode(np.array([5, 2 - far, 7, 9, 1])).tolist() == [3, 0, 4, 1, 2]


def test_labels_may_be_names_and_need_not_be_numbered() -> None:
    table = frame(60).with_columns(item=pl.format("item {}", "item"), place=pl.lit("top"))
    log = Log(table.lazy(), COLUMNS)
    assert log.catalog.labels.to_list() == ["item 0", "item 1", "item 2", "item 3"]
    assert log.positions == 1
    np.testing.assert_array_equal(joined(log)["action"], frame(60)["item"])
    gaps = Catalog(pl.Series([3, 7, 50]))
    found = pl.DataFrame({"a": [7, 3, 4, None, 50]}).select(gaps.index("a", pl.Int64()))
    assert found.to_series().to_list() == [1, 0, -1, -2, 2]


def spoiled(column: str, rows: list[int], value: object) -> pl.DataFrame:
    table = frame(100)
    values = table[column].to_list()
    for row in rows:
        values[row] = value
    return table.with_columns(pl.Series(column, values, dtype=table.schema[column]))


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("p", 0.0, r"p not in \(0, 1\]"),
        ("p", 1.5, r"p not in \(0, 1\]"),
        ("p", -0.1, r"p not in \(0, 1\]"),
        ("p", float("nan"), "p missing"),
        ("p", None, "p missing"),
        ("click", float("nan"), "click missing or not finite"),
        ("watch", float("inf"), "watch missing or not finite"),
        ("watch", None, "watch missing or not finite"),
        ("item", 4, "item not in the catalog of 4 actions"),
        ("item", -1, "item not in the catalog of 4 actions"),
        ("item", None, "item missing"),
        ("place", 3, "place not among the 3 positions"),
        ("user", None, "user missing"),
    ],
)
def test_bad_rows_are_refused_with_their_numbers_and_counts(column: str, value: object, told: str) -> None:
    rows = [3, 40, 41, 50, 60, 90]
    log = log_of(spoiled(column, rows, value), WITH_USERS, chunk_rows=32)
    with pytest.raises(InputError, match=rf"{told} in 6 rows \(4, 41, 42, 51, 61, …\)"):
        list(log.chunks())
    with pytest.raises(InputError, match=rf"{told} in 1 row \(4\)"):
        list(log_of(spoiled(column, [3], value), WITH_USERS).chunks())


def test_several_kinds_of_bad_rows_are_told_together() -> None:
    table = spoiled("p", [5], 0.0).with_columns(item=pl.Series(spoiled("item", [6, 7], 9)["item"]))
    with pytest.raises(InputError, match=r"item .* in 2 rows \(7, 8\); p .* in 1 row \(6\)"):
        list(log_of(table).chunks())


def test_a_step_that_occurs_twice_in_an_episode_is_refused() -> None:
    table = frame(100).with_columns(episode=pl.int_range(100) // 10, step=pl.int_range(100) % 10)
    columns = replace(COLUMNS, episode="episode", step="step")
    assert sum(len(chunk) for chunk in log_of(table, columns).chunks()) == 100
    twice = table.with_columns(step=pl.when(pl.int_range(100).is_in([17, 99])).then(3).otherwise("step"))
    with pytest.raises(InputError, match=r"episode and step as in an earlier row in 2 rows \(18, 100\)"):
        list(log_of(twice, columns).chunks())


def test_a_missing_column_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match="'clicks' \\(did you mean 'click'\\?\\)"):
        log_of(frame(10), replace(COLUMNS, rewards=("clicks",)))
    with pytest.raises(InputError, match="'p' of the log must hold numbers; it holds String"):
        log_of(frame(10).with_columns(p=pl.lit("x")))
    with pytest.raises(InputError, match="'item' must hold action labels"):
        list(log_of(frame(10).with_columns(item=pl.lit("x"))).chunks())


def test_files_that_are_no_logs_are_refused(tmp_path: Path) -> None:
    for path in ("nowhere.csv", "*.parquet"):
        with pytest.raises(InputError, match=r"no log|no file"):
            formats.table(str(tmp_path / path), COLUMNS)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"\.csv"):
        formats.table(str(tmp_path / "a.txt"), COLUMNS)
    (tmp_path / "b.parquet").write_text("no parquet at all")
    with pytest.raises(InputError, match=r"b\.parquet cannot be read"):
        formats.table(str(tmp_path / "b.parquet"), COLUMNS)
    (tmp_path / "c.csv").write_text("item,click,watch,p,place\n" + "1,0,0,0.5,0\n" * 10_001 + "1,0,?,0.5,0\n")
    with pytest.raises(InputError, match=r"c\.csv, row 10002: column watch holds '\?', which is no number"):
        list(formats.table(str(tmp_path / "c.csv"), COLUMNS, 4).chunks())


def test_an_empty_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows"):
        list(log_of(frame(10)[:0]).chunks())


def test_whole_numbers_may_be_followed_by_fractions(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item,click,watch,p,place\n" + "1,0,0,1,0\n" * 10_001 + "1,1,0.5,0.25,0\n")
    rows = joined(formats.table(str(tmp_path / "a.csv"), COLUMNS, 4))
    assert rows["reward"][-1].tolist() == [1, 0.5]
    assert rows["propensity"][-1] == 0.25


@pytest.mark.parametrize("version", ["pure", "1k", "27k"])
def test_kuairand_is_read_by_its_published_names_and_columns(version: str, tmp_path: Path) -> None:
    rows = 6
    columns = {name: [0] * rows for name in formats.KUAIRAND_COLUMNS}
    columns |= {"user_id": [1, 1, 2, 2, 3, 3], "video_id": [10, 40, 10, 7000, 40, 10], "tab": [1, 1, 1, 0, 1, 1]}
    columns |= {"is_click": [1, 0, 1, 0, 0, 1], "play_time_ms": [9000, 0, 8000, 10, 0, 7000], "is_rand": [1] * rows}
    table = pl.DataFrame(columns)
    written(table, tmp_path / f"log_random_4_22_to_5_08_{version}.csv")
    log = formats.kuairand(tmp_path, version, "random", ("is_click", "play_time_ms"), ("tab",))  # type: ignore[arg-type]
    (chunk,) = log.chunks()
    assert log.catalog.labels.to_list() == [10, 40, 7000]
    np.testing.assert_allclose(chunk.propensity, 1 / 7583)
    assert chunk.reward.tolist() == [[1, 9000], [0, 0], [1, 8000], [0, 10], [0, 0], [1, 7000]]
    assert chunk.cluster.tolist() == [0, 0, 1, 1, 2, 2]
    assert chunk.segments["tab"].tolist() == ["1", "1", "1", "0", "1", "1"]

    with pytest.raises(InputError, match=f"lacks log_standard_4_08_to_4_21_{version}"):
        formats.kuairand(tmp_path, version, "standard")  # type: ignore[arg-type]
    parts = ["_part1", "_part2"] if version == "27k" else [""]
    for base in formats.KUAIRAND_LOGS["standard"]:
        for part in parts:
            written(table, tmp_path / f"{base}_{version}{part}.csv")
    standard = formats.kuairand(tmp_path, version, "standard")  # type: ignore[arg-type]
    assert sum(len(chunk) for chunk in standard.chunks()) == 2 * rows * len(parts)
    assert all(np.isnan(chunk.propensity).all() for chunk in standard.chunks())

    written(table.rename({"is_click": "click"}), tmp_path / f"log_random_4_22_to_5_08_{version}.csv")
    with pytest.raises(InputError, match="'is_click'"):
        formats.kuairand(tmp_path, version, "random")  # type: ignore[arg-type]


def test_open_bandit_is_read_as_published_too(tmp_path: Path) -> None:
    sample = formats.open_bandit(None, "men", "random")
    folder = tmp_path / "random" / "men"
    folder.mkdir(parents=True)
    written(pl.read_csv(formats.SAMPLE / "random_men.csv.gz"), folder / "men.csv")
    own = formats.open_bandit(tmp_path, "men", "random")
    for name, column in joined(sample).items():
        np.testing.assert_array_equal(joined(own)[name], column)
    assert (sample.actions, sample.positions) == (34, 3)
    with pytest.raises(InputError, match="no log of women"):
        formats.open_bandit(tmp_path, "women", "random")


def test_columns_are_named_once() -> None:
    assert Columns("a", ("r", "a"), "p").named() == ["a", "p", "r"]
