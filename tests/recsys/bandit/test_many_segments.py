"""Sums of segments hold the clusters that occur in them, whatever the log has; nothing else changes."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl
import pytest
from small_logs import COLUMNS, CONTEXTS, bandit, frame, log_of

from envs.core import InputError
from recsys.bandit.evaluate import evaluate
from recsys.bandit.importance_weights import standard
from recsys.bandit.scan import Place, Weigher, scan, sum_up, weigh
from recsys.bandit.segments import require_groups
from recsys.config import EstimatorsConfig, IntervalsConfig
from recsys.models.reward import smoothed_mean
from recsys.policies.base import TablePolicy

TARGET = TablePolicy("target", bandit().target)
KNOWN = standard(EstimatorsConfig())


@pytest.mark.parametrize("user", [None, "user"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_segments_clusters_are_its_own_in_the_order_of_the_log(user: str | None, workers: int) -> None:
    far = pl.col("user") * 10**9
    table = frame(900).with_columns(far)
    log = log_of(table, replace(COLUMNS, user=user, segments=("tab",)), chunk_rows=64)
    model = smoothed_mean(log)
    found = scan(log, [Weigher("target", partial(weigh, policy=TARGET, model=model), KNOWN)], workers)
    for tab in ("0", "1"):
        here = log_of(table.filter(pl.col("tab") == int(tab)), replace(COLUMNS, user=user), chunk_rows=64)
        alone = sum_up(here, [TARGET], model, KNOWN)["target"]
        segment = found[Place("target", segment=("tab", tab))]
        assert len(segment.rows) < 2 * len(segment.clusters[1]) + 64
        assert len(segment.clusters[1]) == len(alone.clusters[1])
        for name in KNOWN:
            mine, wanted = segment.cluster_sums(name), alone.cluster_sums(name)
            np.testing.assert_allclose(mine.value, wanted.value, rtol=1e-12)
            np.testing.assert_allclose(np.sort(mine.numerator, 0), np.sort(wanted.numerator, 0), rtol=1e-9)


def test_any_number_of_workers_gives_the_same_bits_of_segments() -> None:
    log = log_of(frame(900), replace(COLUMNS, user="user", segments=("tab", "place")), chunk_rows=32)
    tables = [evaluate(log, [TARGET], workers=w, intervals=IntervalsConfig(method="t")).tables for w in (1, 2, 3)]
    assert tables[0] == tables[1] == tables[2]
    assert len({row["segment"] for row in tables[0]["segments"]}) == 2 + CONTEXTS


def test_a_thousand_segments_of_few_rows_take_little_memory() -> None:
    table = frame(1500).with_columns(tab=pl.int_range(pl.len()) % 1000)
    log = log_of(table, replace(COLUMNS, segments=("tab",)))
    weigher = Weigher("target", partial(weigh, policy=TARGET, model=smoothed_mean(log)), KNOWN)
    tracemalloc.start()
    sums = scan(log, [weigher])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sums) == 1001
    assert peak < 40e6  # 1,000 segments x 1,500 clusters x 20 columns would be 240 MB


@pytest.mark.parametrize("size", [1, 4, 49])
def test_a_column_of_many_rare_segments_is_refused_before_anything_is_fitted(size: int) -> None:
    rows = 51 * size
    log = log_of(frame(rows).with_columns(tab=pl.int_range(rows) // size), replace(COLUMNS, segments=("tab",)))
    said = rf"'tab' has 51 values in {rows:,} rows, {size} rows of one at most.*the day instead"
    with pytest.raises(InputError, match=said):
        evaluate(log, [TARGET])
    fewer = log_of(frame(50 * size).with_columns(tab=pl.int_range(50 * size) // size), log.columns)
    require_groups(fewer)


def test_segments_of_a_short_log_are_told_as_they_are() -> None:
    few = log_of(frame(30), replace(COLUMNS, segments=("tab",)))
    assert {row["verdict"] for row in evaluate(few, [TARGET]).tables["segments"]} == {"UNRELIABLE"}
