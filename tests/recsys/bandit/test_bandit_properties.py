"""What must not matter does not: the order of rows, files, chunks and workers; and what must, does."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_logs import ACTIONS, COLUMNS, CONTEXTS, bandit, frame, log_of, written

from recsys.bandit.importance_weights import standard
from recsys.bandit.scan import Place, Sums, Weigher, scan, sum_up, weigh
from recsys.config import EstimatorsConfig
from recsys.logs import formats
from recsys.logs.log import ROW_CLUSTERS, Log
from recsys.models.reward import smoothed_mean
from recsys.policies.base import TablePolicy
from recsys.statistics.intervals import standard_error

KNOWN = standard(EstimatorsConfig(cap=1.5, threshold=1.5, shrinkage=2.0))
TARGET = TablePolicy("target", bandit().target)
USERS = replace(COLUMNS, user="user")


def summed(log: Log, policy: TablePolicy = TARGET, workers: int = 1) -> Sums:
    return sum_up(log, [policy], smoothed_mean(log), KNOWN, workers)[policy.name]


def estimates(sums: Sums) -> np.ndarray:
    return np.stack([sums.estimate(name) for name in sums.slots])


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**30), st.integers(1, 40))
def test_the_order_of_rows_and_the_size_of_chunks_do_not_matter(rows: int, seed: int, chunk: int) -> None:
    table = frame(max(rows, 4), seed % 1000)
    mixed = table.sample(fraction=1.0, shuffle=True, seed=seed)
    one, other = summed(log_of(table, USERS)), summed(log_of(mixed, USERS, chunk_rows=chunk))
    np.testing.assert_allclose(estimates(one), estimates(other), rtol=1e-12, atol=1e-15)
    assert one.weights.ess == pytest.approx(other.weights.ess, rel=1e-12)
    assert one.weights.max_weight == other.weights.max_weight
    np.testing.assert_allclose(sorted(one.clusters[0][:, 0]), sorted(other.clusters[0][:, 0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cut", [1, 37, 99])
def test_splitting_files_does_not_matter(cut: int, tmp_path: Path) -> None:
    table = frame(100)
    written(table[:cut], tmp_path / "a.parquet")
    written(table[cut:], tmp_path / "b.parquet")
    split = formats.table(str(tmp_path), COLUMNS, ACTIONS)
    np.testing.assert_array_equal(estimates(summed(split)), estimates(summed(log_of(table))))


def test_rows_that_count_nothing_change_nothing_and_repeated_rows_count_twice() -> None:
    table, more = frame(200), frame(50, seed=9)
    counted = replace(COLUMNS, multiplicity="times")
    plain = estimates(summed(log_of(table)))
    nothing = pl.concat([table.with_columns(times=1.0), more.with_columns(times=0.0)])
    np.testing.assert_allclose(estimates(summed(log_of(nothing, counted))), plain, rtol=1e-12)
    twice = pl.concat([table, more, more])
    short = pl.concat([table.with_columns(times=1.0), more.with_columns(times=2.0)])
    repeated, counted_twice = summed(log_of(twice)), summed(log_of(short, counted))
    np.testing.assert_allclose(estimates(counted_twice), estimates(repeated), rtol=1e-12)
    assert counted_twice.weights.ess == pytest.approx(repeated.weights.ess, rel=1e-12)
    assert counted_twice.n == 300


def test_rows_that_the_target_would_never_show_leave_what_is_normalized_by_weights() -> None:
    never = bandit().target.copy()
    never[:, 0] = 0
    policy = TablePolicy("never", never / never.sum(1, keepdims=True))
    table = frame(300)
    shown = table.filter(pl.col("item") != 0)
    one, other = summed(log_of(table), policy), summed(log_of(shown), policy)
    for name in ("snips", "ncis"):
        np.testing.assert_allclose(one.estimate(name), other.estimate(name), rtol=1e-12)
    assert one.weights.ess == pytest.approx(other.weights.ess, rel=1e-12)


@pytest.mark.parametrize("factor", [0.01, 7.0])
def test_scaling_a_signal_scales_its_estimates_and_no_others(factor: float) -> None:
    table = frame(300)
    scaled = table.with_columns(pl.col("watch") * factor)
    one, other = estimates(summed(log_of(table))), estimates(summed(log_of(scaled)))
    np.testing.assert_allclose(other[:, 0], one[:, 0], rtol=1e-12)
    np.testing.assert_allclose(other[:, 1], factor * one[:, 1], rtol=1e-12)


def test_the_logging_policy_itself_earns_the_mean_with_weights_of_1() -> None:
    table = frame(300)
    sums = summed(log_of(table), TablePolicy("logging", bandit().logging))
    mean = table["click", "watch"].to_numpy().mean(0)
    for name in ("ips", "snips", "capped_ips", "ncis", "subgaussian_ips"):
        np.testing.assert_allclose(sums.estimate(name), mean, rtol=1e-12)
    assert sums.weights.mean == sums.weights.max_weight == 1
    assert sums.weights.ess == pytest.approx(300, rel=1e-12)


def test_any_number_of_workers_gives_the_same_bits() -> None:
    log = log_of(frame(1000), USERS, chunk_rows=64)
    found = [summed(log, workers=workers) for workers in (1, 2, 5)]
    for other in found[1:]:
        assert other.total.tobytes() == found[0].total.tobytes()
        assert other.by_cluster.tobytes() == found[0].by_cluster.tobytes()
        assert (other.weight, other.squared_weight) == (found[0].weight, found[0].squared_weight)


@pytest.mark.parametrize("order", ["mixed", "sorted", "far apart"])
def test_sums_by_cluster_are_those_of_each_users_rows(order: str) -> None:
    table = frame(500)
    table = table.sort("user") if order == "sorted" else table
    table = table.with_columns(pl.col("user") * 10**9) if order == "far apart" else table
    sums = summed(log_of(table, USERS, chunk_rows=64))
    by_cluster, rows = sums.clusters
    weights = bandit().target[table["place"], table["item"]] / table["p"].to_numpy()
    alone = (
        table.with_columns(wr=pl.Series(weights) * table["click"]).group_by("user").agg(pl.len(), pl.col("wr").sum())
    )
    found = sorted(zip(rows, by_cluster[:, 0]))
    np.testing.assert_allclose(found, sorted(alone["len", "wr"].iter_rows()), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(by_cluster.sum(0), sums.total, rtol=1e-12)
    assert rows.sum() == sums.n == 500


def test_the_largest_weights_are_kept_with_the_row_of_the_very_largest() -> None:
    table = frame(500)
    sums = summed(log_of(table, chunk_rows=64))
    weights = bandit().target[table["place"], table["item"]] / table["p"].to_numpy()
    np.testing.assert_array_equal(sums.largest, np.sort(weights)[::-1])
    assert weights[sums.largest_row - 1] == sums.weights.max_weight == weights.max()


def test_segments_are_what_their_rows_alone_would_give() -> None:
    table = frame(400)
    log = log_of(table, replace(COLUMNS, segments=("tab",)), chunk_rows=64)
    model = smoothed_mean(log)
    found = scan(log, [Weigher("target", partial(weigh, policy=TARGET, model=model), KNOWN)])
    for tab in (0, 1):
        alone = sum_up(log_of(table.filter(pl.col("tab") == tab)), [TARGET], model, KNOWN)["target"]
        segment = found[Place("target", segment=("tab", str(tab)))]
        np.testing.assert_allclose(estimates(segment), estimates(alone), rtol=1e-12)
        assert segment.n == alone.n
    assert found[Place("target")].n == 400


def test_one_scan_serves_several_policies_as_scans_of_their_own() -> None:
    log = log_of(frame(300))
    uniform = TablePolicy("uniform", np.full((CONTEXTS, ACTIONS), 1 / ACTIONS))
    both = sum_up(log, [TARGET, uniform], smoothed_mean(log), KNOWN)
    for policy in (TARGET, uniform):
        assert both[policy.name].total.tobytes() == summed(log, policy).total.tobytes()


def test_csv_and_parquet_give_the_same(tmp_path: Path) -> None:
    table = frame(200)
    found = [formats.table(str(written(table, tmp_path / name)), COLUMNS, ACTIONS) for name in ("a.csv", "a.parquet")]
    np.testing.assert_array_equal(*(estimates(summed(log)) for log in found))


def test_rows_without_users_are_dealt_into_clusters_that_are_as_sure_as_the_rows() -> None:
    table = frame(40_000)
    sums = summed(log_of(table))
    weights = bandit().target[table["place"], table["item"]] / table["p"].to_numpy()
    by_row = weights[:, None] * table["click", "watch"].to_numpy()
    assert len(sums.clusters[1]) == ROW_CLUSTERS
    assert set(sums.clusters[1]) == {2, 3}
    np.testing.assert_allclose(sums.estimate("ips"), by_row.mean(0), rtol=1e-12)
    error = by_row.std(0, ddof=1) / np.sqrt(len(by_row))
    np.testing.assert_allclose(standard_error(sums.cluster_sums("ips")), error, rtol=0.03)
