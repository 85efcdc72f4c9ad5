"""One weight that is far above all others leaves an effective sample of one, however large it is."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import polars as pl
import pytest

import recsys
from recsys.config import EstimatorsConfig, IntervalsConfig
from recsys.statistics.diagnostics import WeightSums, effective_events, weight_sums
from recsys.statistics.intervals import cluster_sums, standard_error, student_t

METHODS = ["bootstrap", "bca", "t", "empirical_likelihood"]
NAMES = ("ips", "snips", "capped_ips", "ncis", "subgaussian_ips", "dm", "dr", "sndr", "switch_dr", "dros", "mrdr")


def verdicts(evaluation: recsys.Evaluation, policy: str) -> set[str]:
    return {row["verdict"] for row in evaluation.tables["verdicts"] if f"/{policy}/" in row["estimate"]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("propensity", [1e-12, 1e-160, 1e-200, 1e-300, 1e-320, 5e-324])
def test_a_row_that_was_hardly_possible_decides_alone(propensity: float, method: Any) -> None:
    rows = pl.int_range(60, eager=True)
    table = pl.DataFrame({"item": rows % 2, "click": (rows % 3 == 0).cast(pl.Float64), "s": rows % 4})
    table = table.with_columns(p=pl.when(rows == 30).then(propensity).otherwise(0.5))
    log = recsys.dataframe(table, action="item", rewards="click", propensity="p", segments="s")
    intervals = IntervalsConfig(method=method, replications=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = recsys.evaluate(
            log, {"even": "uniform", "other": [0.9, 0.1]}, intervals=intervals, estimators=EstimatorsConfig(names=NAMES)
        )
    assert found.metrics["click/even/ess"].value == pytest.approx(1, abs=1e-6)
    assert found.metrics["click/even/max_weight"].value == min(
        0.5 / propensity if propensity > 1e-300 else 1e290, 1e290
    )
    assert verdicts(found, "even") == verdicts(found, "other") == {"UNRELIABLE"}
    assert "UNRELIABLE" in found._repr_html_()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("steps", "propensity"), [(200, 0.1), (400, 0.1), (20, 1e-200), (3, 1e-320)])
def test_a_session_that_agrees_in_every_step_decides_alone(steps: int, propensity: float, method: Any) -> None:
    visits = 12
    visit, n = np.repeat(np.arange(visits), steps), np.tile(np.arange(steps), visits)
    item = np.where(visit == 3, 1, n % 2)
    columns = {"visit": visit, "n": n, "item": item, "page": n % 3, "click": (visit + n) % 2.0}
    table = pl.DataFrame(columns).with_columns(p=propensity)
    log = recsys.dataframe(
        table, action="item", rewards="click", propensity="p", episode="visit", step="n", state="page"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = recsys.evaluate_sessions(
            log, {"one": [0.0, 1.0]}, intervals=IntervalsConfig(method=method, replications=100)
        )
    assert found.metrics["click/one/ess"].value == 1
    assert found.metrics["click/one/max_weight"].value <= 1e290 * (1 + 1e-12)
    told = {row["verdict"] for row in found.tables["verdicts"] if row["estimate"].endswith(("is", "dr"))}
    assert told == {"UNRELIABLE"}


@pytest.mark.parametrize("power", [0, 80, 160, 250])
def test_facts_of_weights_do_not_depend_on_their_unit(power: int) -> None:
    weight, reward = np.array([1.0, 2.0, 3.0, 0.0]), np.array([[1.0], [0.0], [1.0], [1.0]])
    large = weight * 2.0 ** (3 * power)
    plain, sums = weight_sums(weight), weight_sums(large)
    assert sums.ess == plain.ess == 36 / 14
    assert effective_events(large, reward).tolist() == effective_events(weight, reward).tolist() == [16 / 10]
    errors = [standard_error(cluster_sums(x[:, None] * reward)) for x in (weight, large)]
    assert errors[1][0] == errors[0][0] * 2.0 ** (3 * power)
    assert math.isfinite(sums.mean_z)


def test_signals_of_other_sizes_keep_their_errors() -> None:
    both = student_t(cluster_sums(np.array([[1e200, 1.0], [3e200, 2.0], [2e200, 4.0]])))
    alone = student_t(cluster_sums(np.array([[1.0], [2.0], [4.0]])))
    assert (both.low[1], both.high[1]) == (alone.low[0], alone.high[0])
    assert np.isfinite(both.high).all()


def test_no_weight_at_all_is_no_sample() -> None:
    assert WeightSums(3, 0.0, 0.0, np.zeros(3)).ess == 0
