"""Evaluations from Python: the examples of the docs as they stand there, tables, pages and notebooks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import polars as pl
import pytest

import recsys
from envs.core import InputError
from recsys.config import BoundsConfig, EstimatorsConfig, IntervalsConfig
from recsys.sequential.config import SessionEstimatorsConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"
COLUMNS = ["signal", "policy", "estimator", "value", "low", "high", "n", "verdict"]
QUICK = IntervalsConfig(method="t")
EVEN = {"even": "uniform"}


def frame(rows: int = 1200) -> pl.DataFrame:
    """Uniform choices of three items in visits of three steps, two visits a user."""
    rng, row = np.random.default_rng(0), np.arange(rows)
    item = rng.integers(3, size=rows)
    columns = {"item": item, "p": np.full(rows, 1 / 3), "click": (rng.random(rows) < 0.2 + 0.2 * item) * 1.0}
    columns |= {"watch": rng.normal(size=rows), "user_id": row // 6, "visit": row // 3, "n": row % 3, "page": row % 2}
    return pl.DataFrame(columns)


def sessions(**more: Any) -> Any:
    visits = {"episode": "visit", "step": "n", "user": "user_id", **more}
    return recsys.dataframe(frame(), action="item", rewards="click", propensity="p", **visits)


@pytest.mark.parametrize(("page", "log"), [("ope", "log"), ("ope_sequential", "steps")])
def test_the_example_in_the_docs_runs_and_prints_nothing(
    page: str, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table = frame()
    if page == "ope":
        table = table.with_columns(pl.col("item").replace_strict({0: "shoes", 1: "hats", 2: "socks"}))
    table.write_parquet(f"{log}.parquet")
    example = next(code for code in re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.S))
    names: dict[str, Any] = {}
    exec(example, names)
    assert capsys.readouterr() == ("", "")
    evaluation = names["evaluation"]
    assert evaluation.table().columns == COLUMNS
    assert set(evaluation.table()["policy"]) == {"new", "even"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{log}.parquet", "report.html"])
    assert "even" in Path("report.html").read_text()


def test_the_table_has_every_estimate_with_its_interval_and_verdict() -> None:
    evaluation = recsys.evaluate(sessions(), {"new": [0.2, 0.3, 0.5]}, intervals=QUICK)
    told = {row["estimate"]: row["verdict"] for row in evaluation.tables["verdicts"]}
    assert len(evaluation.table()) == len(told)
    for row in evaluation.table().to_dicts():
        name = f"{row['signal']}/{row['policy']}/{row['estimator']}"
        metric = evaluation.metrics[name]
        assert (row["value"], row["low"], row["high"], row["n"]) == (metric.value, metric.low, metric.high, metric.n)
        assert row["verdict"] == told[name]


@pytest.mark.parametrize("evaluate", [recsys.evaluate, recsys.evaluate_sessions])
def test_a_notebook_shows_what_to_read_and_escapes_names(evaluate: Any) -> None:
    evaluation = evaluate(sessions(), {"<new>": [0.3, 0.3, 0.4]}, intervals=QUICK)
    shown = evaluation._repr_html_()
    (row,) = evaluation.tables["recommendations"]
    assert row["sentence"] in shown
    assert "&lt;new&gt;" in shown
    assert "<new>" not in shown
    assert "RELIABLE" in shown


def test_an_evaluation_is_saved_as_a_page_or_as_numbers(tmp_path: Path) -> None:
    evaluation = recsys.evaluate(sessions(), {"even": "uniform"}, intervals=QUICK)
    evaluation.save(tmp_path / "numbers.json")
    assert '"click/even/ips"' in (tmp_path / "numbers.json").read_text()
    with pytest.raises(InputError, match=r"\.html, or as numbers, \.json; got report\.pdf"):
        evaluation.save(tmp_path / "report.pdf")


def test_sessions_earn_their_discounted_return_and_states_allow_more_estimators() -> None:
    policies = {"even": "uniform"}
    evaluation = recsys.evaluate_sessions(sessions(), policies, discount=0.5, intervals=QUICK)
    returns = frame().group_by("visit").agg((pl.col("click") * 0.5 ** pl.col("n")).sum())["click"].mean()
    for name in ("click/logged", "click/even/tis", "click/even/pdis"):
        assert evaluation.metrics[name].value == pytest.approx(returns)
    assert "click/even/wdr" not in evaluation.metrics
    stated = recsys.evaluate_sessions(sessions(state="page"), policies, discount=[0.5], intervals=QUICK)
    assert stated.metrics["click/even/pdis"] == evaluation.metrics["click/even/pdis"]
    assert np.isfinite(stated.metrics["click/even/wdr"].value)


def test_what_is_no_log_of_sessions_is_refused() -> None:
    rows = recsys.dataframe(frame(), action="item", rewards="click", propensity="p")
    with pytest.raises(InputError, match="names no episode and no step"):
        recsys.evaluate_sessions(rows, {"even": "uniform"})
    with pytest.raises(InputError, match="user_id says: repeat the sessions"):
        recsys.evaluate_sessions(sessions(multiplicity="user_id", user=None), {"even": "uniform"})
    with pytest.raises(InputError, match=r"got wdr\. Those with fitted values"):
        recsys.evaluate_sessions(
            sessions(), {"even": "uniform"}, estimators=SessionEstimatorsConfig(names=("wdr",)), intervals=QUICK
        )
    bounded = IntervalsConfig(method="hoeffding", bounds=BoundsConfig(weight=3))
    with pytest.raises(InputError, match=r"intervals\.method=hoeffding needs bounds"):
        recsys.evaluate_sessions(sessions(), {"even": "uniform"}, intervals=bounded)
    with pytest.raises(InputError, match="give at least one policy"):
        recsys.evaluate_sessions(sessions(), {})


@pytest.fixture
def untyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are not checked, as they are not outside of tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("evaluate", [recsys.evaluate, recsys.evaluate_sessions])
@pytest.mark.parametrize(
    ("policies", "told"),
    [
        ({}, "at least one policy"),
        (["uniform"], "Expected policies by name"),
        ("uniform", "Expected policies by name"),
        ({"new": "unifrom"}, "expected uniform, popularity, or a function"),
        ({"": "uniform"}, "has a name of its own"),
        ({"logged": "uniform"}, "not logged or truth; got 'logged'"),
        ({"a/b": "uniform"}, "without /"),
        ({3: "uniform"}, "got 3"),
    ],
)
def test_what_is_no_policy_with_a_name_of_its_own_is_refused(evaluate: Any, policies: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        evaluate(sessions(), policies, intervals=QUICK)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("evaluate", [recsys.evaluate, recsys.evaluate_sessions])
def test_what_is_no_log_is_refused(evaluate: Any) -> None:
    with pytest.raises(InputError, match=r"recsys\.dataframe\(frame.*got a DataFrame"):
        evaluate(frame(), {"even": "uniform"})


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: recsys.evaluate(sessions(), EVEN, estimators=EstimatorsConfig(names=("foo",))), "got 'foo'"),
        (lambda: recsys.evaluate_sessions(sessions(), EVEN, estimators=SessionEstimatorsConfig(names=("x",))), "'x'"),
        (lambda: recsys.evaluate(sessions(), EVEN, seed=-1), "seed: "),
        (lambda: recsys.evaluate(sessions(), EVEN, workers=0), "workers: "),
        (lambda: recsys.evaluate_sessions(sessions(), EVEN, seed=-1), "seed: "),
        (lambda: recsys.evaluate_sessions(sessions(), EVEN, discount="x"), r"in \[0, 1\]"),
        (lambda: recsys.evaluate_sessions(sessions(), EVEN, discount=[0.9, 0.8]), "each of 1 signals"),
        (lambda: recsys.evaluate_sessions(sessions(), EVEN, discount=1.5), "got 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(call: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        call()
