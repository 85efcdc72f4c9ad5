"""What would change of a log: how few rows may decide it, by single decisions, by sessions and by segments."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

import recsys
from recsys.config import EstimatorsConfig, IntervalsConfig
from recsys.sequential.config import SessionEstimatorsConfig

FAST = IntervalsConfig(replications=100)
LONG = 4_000


def rare_action(times: int) -> tuple[pl.DataFrame, float]:
    """A log of clicks in which one action was taken so often, and its share."""
    place = np.arange(LONG)
    chosen, share = place % (LONG // times) == 0, times / LONG
    clicked = np.random.default_rng(1).random(LONG) < 0.2
    table = pl.DataFrame({"item": chosen.astype(int), "p": np.where(chosen, share, 1 - share), "click": clicked})
    return table, share


@pytest.mark.parametrize(("times", "verdict"), [(10, "CAUTION"), (400, "RELIABLE")])
@pytest.mark.parametrize("sessions", [False, True])
def test_a_policy_that_changes_a_rare_action_alone_is_told_with_caution(
    times: int, verdict: str, sessions: bool
) -> None:
    table, share = rare_action(times)
    target = {"new": [1 - 3 * share, 3 * share]}
    if sessions:
        table = table.with_columns(visit=pl.int_range(LONG), step=pl.lit(0))
        log = recsys.dataframe(table, action="item", rewards="click", propensity="p", episode="visit", step="step")
        found = recsys.evaluate_sessions(
            log, target, intervals=FAST, estimators=SessionEstimatorsConfig(names=("pdis",))
        )
    else:
        log = recsys.dataframe(table, action="item", rewards="click", propensity="p")
        found = recsys.evaluate(log, target, intervals=FAST, estimators=EstimatorsConfig(names=("ips",)))
    (told,) = (row for row in found.tables["verdicts"] if row["estimate"].endswith(("/ips", "/pdis")))
    assert told["verdict"] == verdict
    assert told["check"] == ("change" if verdict == "CAUTION" else "")


def test_a_difference_is_no_better_than_the_policy_that_it_is_against() -> None:
    place = np.arange(LONG)
    table = pl.DataFrame({"item": (place % 100 == 0).astype(int), "click": place % 3 == 0}).with_columns(
        p=pl.when(pl.col("item") == 1).then(0.01).otherwise(0.99)
    )
    log = recsys.dataframe(table, action="item", rewards="click", propensity="p")
    policies = {"rare": [0.0, 1.0], "nearly as logged": [0.98, 0.02]}
    found = recsys.evaluate(log, policies, intervals=FAST, estimators=EstimatorsConfig(names=("ips",)))
    verdicts = {row["estimate"].split("/")[1]: row["verdict"] for row in found.tables["verdicts"]}
    assert verdicts == {"rare": "UNRELIABLE", "nearly as logged": "CAUTION"}
    (row,) = (row for row in found.tables["differences"] if row["against"] == "rare")
    assert row["verdict"] == "UNRELIABLE"


def test_a_segment_to_be_read_with_caution_is_not_tested() -> None:
    random = np.random.default_rng(2)
    rows = 2 * 300
    table = pl.DataFrame(
        {
            "item": random.integers(2, size=rows),
            "p": np.full(rows, 0.5),
            "watch": random.normal(5.0, 1.0, size=rows),
            "tab": np.arange(rows) % 2,
        }
    )
    log = recsys.dataframe(table, action="item", rewards="watch", propensity="p", segments=["tab"])
    found = recsys.evaluate(log, {"new": [0.93, 0.07]}, intervals=FAST, estimators=EstimatorsConfig(names=("ips",)))
    assert {row["verdict"] for row in found.tables["segments"]} == {"CAUTION"}  # an effective sample below 200
    assert {row["adjusted"] for row in found.tables["segments"]} == {None}
