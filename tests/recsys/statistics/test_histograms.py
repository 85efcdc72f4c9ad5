"""Histograms of weights and propensities: every row in one bin, as often as it counts, whoever scans it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from small_logs import COLUMNS, bandit, frame, log_of

from recsys.bandit.importance_weights import standard
from recsys.bandit.scan import Sums, sum_up
from recsys.config import EstimatorsConfig
from recsys.logs.log import Log
from recsys.models.reward import smoothed_mean
from recsys.policies.base import TablePolicy
from recsys.statistics.histograms import histograms, overlap_table, weight_table

TARGET = TablePolicy("target", bandit().target)


def scanned(log: Log, workers: int = 1) -> dict[str, Sums]:
    return sum_up(log, [TARGET], smoothed_mean(log), {"ips": standard(EstimatorsConfig())["ips"]}, workers)


def test_each_bin_holds_the_rows_between_its_edges_and_0_stands_alone() -> None:
    weight = np.array([0.0, 0.0, 5e-324, 1e-30, 0.5, 0.999, 1.0, 1.5, 2.0, 1e30])
    propensity = np.array([1.0, 0.5, 0.25, 0.26, 1e-30, 0.9, 0.9, 0.9, 0.9, 1.0])
    found = weight_table({"a": histograms(weight, propensity)})
    told = [(row["low"], row["high"], row["rows"]) for row in found]
    assert told[0] == (0, 0, 2)
    assert told[1][0] == 0
    assert told[1][2] == 2
    assert told[2:-1] == [(0.5, 1, 2), (1, 2, 2), (2, 4, 1)]
    assert told[-1][1:] == (np.inf, 1)
    overlap = overlap_table({"a": histograms(weight, propensity)})
    assert [(row["low"], row["rows"]) for row in overlap] == [(0, 1), (0.25, 2), (0.5, 5), (1, 2)]
    assert overlap[-1]["weight_share"] == pytest.approx(1)


def test_shares_are_those_of_rows_and_of_weight_for_each_policy() -> None:
    rng = np.random.default_rng(0)
    weight, propensity = rng.lognormal(0, 2, 1000), rng.uniform(0.001, 1, 1000)
    found = histograms(weight, propensity)
    for table, by in ((weight_table, weight), (overlap_table, propensity)):
        rows = table({"a": found, "b": found})
        assert {row["policy"] for row in rows} == {"a", "b"}
        for row in rows:
            inside = (by >= row["low"]) & (by < row["high"])
            assert row["rows"] == inside.sum()
            assert row["rows_share"] == pytest.approx(inside.mean())
            assert row["weight_share"] == pytest.approx(weight[inside].sum() / weight.sum())


def test_a_target_that_never_does_what_was_logged_has_no_weight() -> None:
    (row,) = weight_table({"a": histograms(np.zeros(3), np.full(3, 0.5))})
    assert (row["low"], row["high"], row["rows_share"], row["weight_share"]) == (0, 0, 1, 0)


def test_a_scan_adds_up_chunks_and_any_number_of_workers_gives_the_same_bits() -> None:
    table = frame(1000)
    log = log_of(table, replace(COLUMNS, segments=("tab",)), chunk_rows=64)
    found = [scanned(log, workers)["target"].histograms for workers in (1, 2, 5)]
    weight = bandit().target[table["place"], table["item"]] / table["p"].to_numpy()
    whole = histograms(weight, table["p"].to_numpy())
    for of in found:
        assert of.weights.tobytes() == found[0].weights.tobytes()
        assert of.overlap.tobytes() == found[0].overlap.tobytes()
        np.testing.assert_allclose(of.weights, whole.weights, rtol=1e-12)
        np.testing.assert_allclose(of.overlap, whole.overlap, rtol=1e-12)


def test_rows_count_as_often_as_their_multiplicity() -> None:
    table = frame(100)
    counted = log_of(table.with_columns(times=pl.int_range(100) % 3), replace(COLUMNS, multiplicity="times"))
    repeated = pl.concat([table[i] for i in range(100) for _ in range(i % 3)])
    one, other = (scanned(log)["target"].histograms for log in (counted, log_of(repeated)))
    np.testing.assert_allclose(one.weights, other.weights, rtol=1e-12)
    np.testing.assert_allclose(one.overlap, other.overlap, rtol=1e-12)
