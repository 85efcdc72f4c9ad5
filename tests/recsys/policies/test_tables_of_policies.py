"""Tables of actions are matched by what is written there, and every wrong form of a policy gets a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_logs import frame, table_config, written

import recsys
from envs.core import InputError
from marl.commands.run import run_training
from marl.config.load import resolve
from recsys.config import EstimatorsConfig, IntervalsConfig
from recsys.logs import formats
from recsys.logs.log import Chunk, Log
from recsys.policies import base as policies
from recsys.policies.base import ContextPolicy, TablePolicy, policies_of

QUICK: dict[str, Any] = {"intervals": IntervalsConfig(method="t"), "estimators": EstimatorsConfig(names=("ips",))}


def log_with(items: pl.Series) -> Log:
    table = pl.DataFrame({"item": items, "click": [0.0, 1.0] * (len(items) // 2), "p": [0.25] * len(items)})
    return recsys.dataframe(table, action="item", rewards="click", propensity="p")


LABELS: dict[str, list[Any]] = {
    "text that looks like numbers": ["0", "1", "2", "3"],
    "leading zeros": ["000", "00", "0", "1"],
    "exponents": ["1e3", "1000", "2e1", "20"],
    "words": ["a", "NA", "null", "d, or e"],
    "whole numbers": [-7, 0, 12, 2**60],
    "floats": [0.0, 1.0, 2.0, 3.0],
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_a_table_is_matched_by_its_labels_of_whatever_kind(labels: list[Any], tmp_path: Path) -> None:
    log = log_with(pl.Series(labels * 2))
    order = [2, 0, 3, 1]
    written_as = [int(label) if isinstance(label, float) else label for label in labels]
    chances = [0.1, 0.2, 0.3, 0.4]
    table = pl.DataFrame({"item": [str(written_as[k]) for k in order], "prob": [chances[k] for k in order]})
    written(table, tmp_path / "table.csv")
    policy = policies.stored_table(log, tmp_path / "table.csv")
    place = log.catalog.labels.to_list()
    np.testing.assert_allclose(policy.table[0], [chances[labels.index(label)] for label in place])
    written(table.select("item", kind=pl.Series(["x", "y", "x", "y"])), tmp_path / "kinds.csv")
    kinds = dict(zip(order, "xyxy", strict=True))
    found = formats.categories(log, tmp_path / "kinds.csv")
    assert found.tolist() == ["xy".index(kinds[labels.index(label)]) for label in place]


TABLES: dict[str, tuple[list[str], str]] = {
    "percent": (
        ["0,10%", "1,20%", "2,30%", "3,40%"],
        r"table\.csv, row 1: column prob holds '10%', which is no number",
    ),
    "text": (["0,.1", "1,.2", "2,much", "3,.4"], r"table\.csv, row 3: column prob holds 'much'"),
    "empty": (["0,.1", "1,", "2,.3", "3,.4"], r"table\.csv, row 2: column prob holds nothing"),
    "comma": (["0,.1", "1,0,2", "2,.3", "3,.4"], r"table\.csv, row 2: 3 cells, where there are 2 columns"),
    "negative": (["0,-.1", "1,.4", "2,.3", "3,.4"], r"table\.csv must give probabilities ≥ 0"),
    "sum": (["0,.1", "1,.1", "2,.1", "3,.1"], r"table\.csv must give probabilities .* add up to 0\.4"),
    "percent points": (["0,10", "1,20", "2,30", "3,40"], r"table\.csv must give probabilities .* add up to 100"),
    "nan": (["0,nan", "1,.4", "2,.3", "3,.3"], r"table\.csv must give probabilities"),
    "unknown": (["0,.1", "1,.2", "2,.3", "x,.4"], r"not in it: 'x' \(row 4\); 1 more are needed: '3'"),
    "twice": (["0,.1", "1,.2", "2,.2", "2,.1", "3,.4"], r"stand there already: '2' \(row 4\)"),
    "few": (["0,.1", "1,.9"], r"2 more are needed: '2', '3'"),
    "zeros": (["00,.1", "01,.2", "02,.3", "03,.4"], r"not in it: '00' \(row 1\)"),
    "none": ([], "4 more are needed"),
}


@pytest.mark.parametrize("key", ["policy.table", "data.logging"])
@pytest.mark.parametrize(("lines", "told"), TABLES.values(), ids=TABLES)
def test_a_table_that_is_no_policy_is_named(lines: list[str], told: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["item,prob", *lines]) + "\n")
    raw = table_config(written(frame(40), tmp_path / "log.csv"), position=None)
    raw["policy"] = {"target": "table", "table": str(path)} if key == "policy.table" else {"target": "uniform"}
    raw["data"] |= {} if key == "policy.table" else {"logging": str(path)}
    with pytest.raises(InputError, match=told):
        run_training(resolve(raw, {"intervals.method": "t"}), tmp_path / "run")


def test_tables_of_other_shapes_are_named(tmp_path: Path) -> None:
    log = log_with(pl.Series([0, 1, 2, 3] * 2))
    path = tmp_path / "table.csv"
    path.write_text("item,a,b\n0,.1,.1\n1,.2,.2\n2,.3,.3\n3,.4,.4\n")
    with pytest.raises(InputError, match=r"table\.csv must have .* each of 1 positions; it has item, a, b"):
        policies.stored_table(log, path)
    path.write_text("")
    with pytest.raises(InputError, match=r"table\.csv is empty"):
        policies.stored_table(log, path)


class Other:
    """A policy of a class of its own that answers as it is told."""

    name = "other"
    table = None

    def __init__(self, answer: Any, actions: int = 4):
        self.answer, self.actions = answer, actions

    def distribution(self, rows: Chunk) -> Any:
        return self.answer(rows)

    def probability(self, rows: Chunk) -> Any:
        return self.answer(rows)[:, 0]


def raises(rows: Chunk) -> Any:
    raise KeyError("age")


EVEN = [0.25] * 4
POLICIES: dict[str, tuple[Any, str]] = {
    "too few": ([0.5, 0.5], r"each of 4 actions a probability.*got an array \[1, 2\]"),
    "too many": ([0.2] * 5, r"got an array \[1, 5\]"),
    "too deep": ([[EVEN]], r"got an array \[1, 1, 4\]"),
    "positions": ([EVEN, EVEN], r"got an array \[2, 4\]"),
    "ragged": ([[0.5, 0.5], [1.0]], "given as 4 probabilities"),
    "text": (["a", "b", "c", "d"], "given as 4 probabilities"),
    "numbers as text": (["0.25"] * 4, "given as 4 probabilities"),
    "labels": ({0: 0.25, "1": 0.75}, r"gives probabilities to '1', which the catalog of the log does not hold"),
    "none": (None, "given as 4 probabilities"),
    "complex": ([0.25j] * 4, "given as 4 probabilities"),
    "one number": (0.5, r"got an array \[1, 1\]"),
    "negative": ([-0.5, 0.5, 0.5, 0.5], "probabilities ≥ 0 that add up to 1"),
    "sum": ([0.5] * 4, "add up to 2"),
    "nan": ([float("nan"), 0.5, 0.5, 0.0], "probabilities ≥ 0 that add up to 1"),
    "a table of text": (pl.DataFrame({"item": ["0", "1"], "p": [0.5, 0.5]}), "given as 4 probabilities"),
    "an unknown name": ("unifrom", "expected uniform, popularity"),
    "an unknown module": ("nowhere_at_all:policy", "Cannot import nowhere_at_all"),
    "a function that raises": (raises, "new failed. KeyError"),
    "a function of nothing": (lambda: EVEN, "new failed. TypeError"),
    "gives none": (lambda rows: None, "new gave NoneType"),
    "gives one": (lambda rows: EVEN, r"new gave an array \[4\]"),
    "gives others": (lambda rows: np.full((len(rows), 3), 1 / 3), r"new gave an array \[8, 3\]"),
    "gives text": (lambda rows: [["a"] * 4] * len(rows), "new gave an array of <U1"),
    "gives nan": (lambda rows: np.full((len(rows), 4), np.nan), "probabilities ≥ 0 that add up to 1"),
    "gives negative": (lambda rows: np.tile([-1.0, 1, 0.5, 0.5], (len(rows), 1)), "probabilities ≥ 0"),
    "draws": (lambda rows: np.random.default_rng().dirichlet(np.ones(4), len(rows)), "when it was asked again"),
    "of another catalog": (TablePolicy("x", np.full((1, 3), 1 / 3)), "has 4 actions at 1 positions"),
    "of other positions": (TablePolicy("x", np.full((2, 4), 1 / 4)), "has 4 actions at 1 positions"),
    "of another size": (ContextPolicy("x", 3, lambda rows: np.full((len(rows), 3), 1 / 3)), "is of 3 actions"),
    "another class, nan": (Other(lambda rows: np.full((len(rows), 4), np.nan)), "probability of its logged action"),
    "another class, more": (Other(lambda rows: np.full((len(rows), 4), 2.0)), "probability of its logged action"),
    "another class, raises": (Other(raises), "failed. KeyError"),
    "another class, shape": (Other(lambda rows: np.full((2, 4), 0.25)), "probability of its logged action"),
    "another class, actions": (Other(lambda rows: EVEN, 3), "is of 3 actions"),
}


@pytest.mark.parametrize(("what", "told"), POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("evaluate", [recsys.evaluate, recsys.evaluate_sessions])
def test_every_wrong_form_of_a_policy_gets_a_sentence(what: Any, told: str, evaluate: Any) -> None:
    table = pl.DataFrame({"item": [0, 1, 2, 3] * 2, "click": [0.0, 1.0] * 4, "p": [0.25] * 8, "n": [0, 1] * 4})
    table = table.with_columns(visit=pl.int_range(8) // 2)
    log = recsys.dataframe(table, action="item", rewards="click", propensity="p", episode="visit", step="n")
    with pytest.raises(InputError, match=told):
        evaluate(log, {"new": what})


def test_a_policy_of_another_class_counts_as_one(tmp_path: Path) -> None:
    log = log_with(pl.Series([0, 1, 2, 3] * 2))
    (policy,) = policies_of([Other(lambda rows: np.full((len(rows), 4), 0.25))], log)
    found = recsys.evaluate(log, [policy], **QUICK).metrics["click/other/ips"].value
    assert found == recsys.evaluate(log, {"other": EVEN}, **QUICK).metrics["click/other/ips"].value


def test_scores_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    table = frame(40).with_columns(score1=pl.lit("high"))
    raw = table_config(written(table, tmp_path / "log.csv"))
    raw["policy"] = {"target": "softmax", "scores": "score"}
    with pytest.raises(InputError, match=r"Column 'score1' .* must hold scores, one number a row; it holds String"):
        run_training(resolve(raw, {}), tmp_path / "run")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def policy(rows): return 1 / 0", "ZeroDivisionError"),
        ("policy = 3", "is no such thing"),
        ("x = undefined_name", "Cannot import the policy .*NameError"),
        ("def policy(rows) return 1", "Cannot import the policy .*SyntaxError"),
        ("def other(rows): return 1", "has no policy"),
    ],
)
def test_modules_that_hold_no_policy_are_told(
    source: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"policy_of_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    raw = table_config(written(frame(40), tmp_path / "log.csv"))
    raw["policy"] = {"target": f"{name}:policy"}
    with pytest.raises(InputError, match=told):
        run_training(resolve(raw, {}), tmp_path / "run")
