"""Prices: kernel weights from a config, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from envs.core import InputError
from marl.commands.run import run_training
from marl.config.load import resolve
from recsys.bandit.evaluate import evaluate
from recsys.bandit.kernel import RealPolicy, real_log
from recsys.logs.log import Columns

DRAWN = Columns("price", ("sold",), "density", user="user")


def prices(rows: int = 20_000, seed: int = 0) -> pl.DataFrame:
    """Prices drawn from a normal around 5, which sell with probability 1 - price / 10; the policy sets 4."""
    rng = np.random.default_rng(seed)
    price = rng.normal(5, 1, rows).clip(0.5, 9.5)
    density = np.exp(-((price - 5) ** 2) / 2) / math.sqrt(2 * math.pi)
    sold = (rng.random(rows) < 1 - price / 10).astype(float)
    users = rng.integers(rows // 4, size=rows)
    return pl.DataFrame({"price": price, "density": density, "sold": sold, "low": 4.0, "same": price, "user": users})


def test_a_price_that_was_never_set_is_judged_by_those_near_it() -> None:
    policy = RealPolicy("low", DRAWN, bandwidth=0.5)
    found = evaluate(real_log(prices().lazy(), DRAWN).with_context(["low"]), [policy])
    for name in ("kernel_ips", "sn_kernel_ips"):
        metric = found.metrics[f"sold/low/{name}"]
        assert metric.low < 0.6 < metric.high
        assert metric.high - metric.low < 0.06
    assert found.metrics["sold/low/mean_weight"].value == pytest.approx(1, abs=0.04)
    assert {row["verdict"] for row in found.tables["verdicts"]} == {"RELIABLE"}


def test_a_kernel_that_is_too_wide_is_found_out() -> None:
    noise = pl.Series(np.random.default_rng(1).normal(size=20_000))
    table = prices().with_columns(sold=(pl.col("price") - 4) ** 2 + noise)  # bends
    for bandwidth, level in ((0.2, "RELIABLE"), (2.0, "UNRELIABLE")):
        found = evaluate(real_log(table.lazy(), DRAWN).with_context(["low"]), [RealPolicy("low", DRAWN, bandwidth)])
        told = {row["estimate"]: row["verdict"] for row in found.tables["verdicts"]}
        assert set(told) == {"sold/low/kernel_ips", "sold/low/sn_kernel_ips"}
        assert told["sold/low/kernel_ips"] == level


def config(path: Path, **data: Any) -> dict[str, Any]:
    columns = {"action": "price", "rewards": ["sold"], "propensity": "density", "user": "user"}
    told = {"format": "table", "path": str(path), "columns": columns, "bandwidth": 0.5, **data}
    return {"recipe": "recsys.ope", "data": told, "policy": {"target": "column:low"}}


def test_the_config_does_the_same(tmp_path: Path) -> None:
    prices(3000).write_parquet(tmp_path / "log.parquet")
    found = run_training(resolve(config(tmp_path / "log.parquet"), {}), tmp_path / "run").metrics
    ours = evaluate(real_log(prices(3000).lazy(), DRAWN).with_context(["low"]), [RealPolicy("low", DRAWN, 0.5)]).metrics
    assert found["sold/low/kernel_ips"].value == ours["sold/low/kernel_ips"].value


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"policy.target": "uniform"}, "belong together"),
        ({"data.bandwidth": None}, "belong together"),
        ({"data.bandwidth": 0}, "data.bandwidth"),
        ({"estimators.names": ["dr"]}, "expected kernel_ips"),
    ],
)
def test_configs_that_make_no_sense_are_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        resolve(json.loads(json.dumps(config(tmp_path / "log.parquet"))), change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"density": 0.0}, "no density > 0 in 300 of 300 rows"),
        ({"low": math.nan}, "low or price is no number"),
        ({"low": "four"}, "must hold numbers"),
    ],
)
def test_bad_rows_are_named(change: dict[str, Any], told: str) -> None:
    log = prices(300).with_columns(**{name: pl.lit(value) for name, value in change.items()})
    with pytest.raises(InputError, match=told):
        evaluate(real_log(log.lazy(), DRAWN).with_context(["low"]), [RealPolicy("low", DRAWN, 0.5)])
