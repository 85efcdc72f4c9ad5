"""Changes that are told: between the estimates that are told, not of rounding, and of no estimate without interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

import recsys
from envs.core import InputError
from recsys.bandit.evaluate import evaluate
from recsys.config import BoundsConfig, EstimatorsConfig, IntervalsConfig
from recsys.logs.log import Log
from recsys.report.results import changes_to_read
from recsys.statistics.selection import Recommendation, recommend_narrowest
from recsys.statistics.verdict import Level, Verdict

FAST = IntervalsConfig(replications=100)
BOUNDS = BoundsConfig(weight=20.0)


def frame(rows: int = 1_000) -> pl.DataFrame:
    random = np.random.default_rng(3)
    item = random.integers(2, size=rows)
    return pl.DataFrame({"item": item, "p": np.full(rows, 0.5), "click": random.random(rows) < 0.3})


def log(**more: Any) -> Log:
    return recsys.dataframe(frame(), action="item", rewards="click", propensity="p", **more)


def test_what_has_no_interval_is_not_recommended_and_tells_no_rows() -> None:
    method = IntervalsConfig(method="hoeffding", bounds=BOUNDS)
    found = evaluate(log(), {"new": [0.4, 0.6]}, intervals=method, estimators=EstimatorsConfig(names=("sndr", "ips")))
    (read,) = found.tables["recommendations"]
    assert read["estimator"] == "ips"
    assert math.isfinite(read["low"])
    assert {row["rows_to_tell"] for row in found.tables["differences"]} == {math.inf}
    alone = evaluate(log(), {"new": [0.4, 0.6]}, intervals=method, estimators=EstimatorsConfig(names=("sndr",)))
    (read,) = alone.tables["recommendations"]
    assert read["estimator"] is None
    assert "sndr have no interval by this method" in read["sentence"]


def test_rounding_is_no_change() -> None:
    tenths = recsys.dataframe(
        frame().with_columns(p=pl.when(pl.col("item") == 1).then(0.1 + 0.2).otherwise(0.7)),
        action="item",
        rewards="click",
        propensity="p",
    )
    found = evaluate(tenths, {"same": [0.7, 0.3]}, intervals=FAST, estimators=EstimatorsConfig(names=("ips",)))
    (row,) = found.tables["differences"]
    assert [row["value"], row["low"], row["high"]] == [0.0, 0.0, 0.0]


def test_a_small_change_is_one() -> None:
    found = evaluate(log(), {"new": [0.49, 0.51]}, intervals=FAST, estimators=EstimatorsConfig(names=("ips",)))
    (row,) = found.tables["differences"]
    assert row["value"] != 0
    assert row["low"] < row["high"]


@pytest.mark.parametrize(("own", "other"), [("ips", "snips"), ("snips", "snips")])
def test_the_difference_of_two_estimators_is_that_of_their_values(
    own: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter((other, own))

    def reader(*_: Any) -> Any:
        name = next(names)
        return lambda k, intervals: Recommendation(name, f"Read {name}.")

    monkeypatch.setattr("recsys.bandit.evaluate.reader", reader)
    found = evaluate(
        log(),
        {"first": [0.4, 0.6], "second": [0.2, 0.8]},
        intervals=FAST,
        estimators=EstimatorsConfig(names=("ips", "snips")),
    )
    chosen = {(row["signal"], row["policy"]): row["estimator"] for row in found.tables["recommendations"]}
    (row,) = (row for row in changes_to_read(found.tables["differences"], chosen) if row["against"] == "first")
    assert row["estimator"] == (own if own == other else f"{own} - {other}")
    values = [found.metrics[f"click/{name}"].value for name in (f"second/{own}", f"first/{other}")]
    assert row["value"] == pytest.approx(values[0] - values[1], rel=1e-12)
    assert row["low"] < row["value"] < row["high"]


def test_the_narrowest_is_recommended_for_its_own_reason() -> None:
    verdicts = {
        "pdis": Verdict(Level.CAUTION, "ess", "Few rows."),
        "wdr": Verdict(Level.CAUTION, "tail", "A long tail."),
    }
    told = recommend_narrowest(verdicts, {"pdis": 2.0, "wdr": 1.0})
    assert told.estimator == "wdr"
    assert told.sentence.endswith("but with caution: a long tail.")


def test_signals_whose_names_cannot_be_told_apart_are_refused() -> None:
    table = frame().with_columns(pl.col("click").alias("click/new"))
    both = recsys.dataframe(table, action="item", rewards=["click", "click/new"], propensity="p")
    with pytest.raises(InputError, match="'click' and 'click/new' cannot be told apart"):
        evaluate(both, {"new": "uniform"}, intervals=FAST)


@pytest.mark.parametrize("column", ["item", "p", "click"])
def test_what_followed_is_no_segment(column: str) -> None:
    with pytest.raises(InputError, match=f"segments '{column}' is what was done, or what came of it"):
        evaluate(log(segments=[column]), {"new": "uniform"}, intervals=FAST)


def test_sessions_refuse_segments_which_they_do_not_tell() -> None:
    table = frame().with_columns(visit=pl.int_range(1_000), step=pl.lit(0), tab=pl.lit(1))
    named = {"action": "item", "rewards": "click", "propensity": "p", "episode": "visit", "step": "step"}
    with pytest.raises(InputError, match=r"Segments \(tab\) are told of single decisions"):
        recsys.evaluate_sessions(recsys.dataframe(table, **named, segments="tab"), {"new": "uniform"})


def test_an_evaluation_is_told_in_a_line() -> None:
    found = evaluate(log(), {"new": "uniform"}, intervals=FAST, estimators=EstimatorsConfig(names=("ips",)))
    assert repr(found) == "Evaluation of new by 1,000 rows: 1 estimates of click; show() tells them"


def test_settings_may_be_plain_and_wrong_ones_are_told() -> None:
    plain = evaluate(log(), {"new": "uniform"}, intervals={"method": "t", "level": 0.9})
    same = evaluate(log(), {"new": "uniform"}, intervals=IntervalsConfig(method="t", level=0.9))
    assert plain.metrics == same.metrics
    with pytest.raises(InputError, match=r"intervals.method: Input should be 'studentized'"):
        evaluate(log(), {"new": "uniform"}, intervals={"method": "normal"})
