"""Steps that were logged twice are found whatever the order, holding few rows at a time."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from recsys.logs import duplicate_steps
from recsys.logs.duplicate_steps import repeated_steps


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicate_steps, "PASS_ROWS", 64)
    monkeypatch.setattr(duplicate_steps, "BATCH_ROWS", 32)


def never(*_: object) -> None:
    raise AssertionError("a log that rises needs one pass")


@pytest.mark.parametrize("kind", ["numbers", "names", "missing", "one episode"])
@pytest.mark.parametrize("order", ["mixed", "sorted"])
def test_every_row_that_is_as_an_earlier_one_is_counted(kind: str, order: str) -> None:
    rng = np.random.default_rng(3)
    table = pl.DataFrame({"episode": rng.integers(40, size=600), "step": rng.integers(30, size=600)})
    if kind == "names":
        table = table.with_columns(pl.format("e{}", "episode"))
    if kind == "missing":
        table = table.with_columns(pl.when(pl.col("step") > 2).then("step"))
    if kind == "one episode":
        table = table.with_columns(episode=1)
    table = table.sort("episode", "step") if order == "sorted" else table
    seen: set[tuple[object, ...]] = set()
    again = [i for i, row in enumerate(table.iter_rows()) if row in seen or seen.add(row)]  # type: ignore[func-returns-value]
    count, first = repeated_steps(table.lazy(), 5)
    assert count == len(again) > 5
    assert first.tolist() == again[:5]


def test_a_log_that_rises_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pl.DataFrame({"episode": np.repeat(np.arange(50), 7), "step": np.tile(np.arange(7), 50)})
    with monkeypatch.context() as patch:
        patch.setattr(duplicate_steps, "_repeated", never)
        assert repeated_steps(table.lazy(), 5)[0] == 0
        with pytest.raises(AssertionError):
            repeated_steps(table.reverse().lazy(), 5)
    assert repeated_steps(table.reverse().lazy(), 5)[0] == 0
    twice = pl.concat([table, table[-1:]])
    count, first = repeated_steps(twice.lazy(), 5)
    assert (count, first.tolist()) == (1, [350])


def test_no_pass_holds_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    sort = pl.DataFrame.sort

    def counted(frame: pl.DataFrame, *by: str) -> pl.DataFrame:
        held.append(len(frame))
        return sort(frame, *by)

    rng = np.random.default_rng(0)
    table = pl.DataFrame({"episode": np.zeros(6400, np.int64), "step": rng.permutation(6400)})
    monkeypatch.setattr(pl.DataFrame, "sort", counted)
    assert repeated_steps(table.lazy(), 5)[0] == 0
    assert sum(held) == 6400
    assert len(held) == 100
    assert max(held) < 2 * 64
