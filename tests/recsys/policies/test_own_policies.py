"""Policies of users' own: what they may do wrong is told in words, from Python and at the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_logs import ACTIONS, COLUMNS, bandit, frame, log_of, written

import recsys
from envs.core import InputError
from marl.__main__ import main
from recsys.config import EstimatorsConfig, IntervalsConfig
from recsys.logs.log import Chunk
from recsys.policies.base import TablePolicy

LOG = log_of(frame(300), replace(COLUMNS, context=("score0",)))
EVEN = [[0.25] * ACTIONS]
CALLS = [0]


def even(rows: Chunk) -> np.ndarray:
    return np.full((len(rows), ACTIONS), 0.25)


def counting(rows: Chunk) -> np.ndarray:
    CALLS[0] += 1
    return np.eye(ACTIONS)[np.full(len(rows), CALLS[0] % ACTIONS)]


def drawing(rows: Chunk) -> np.ndarray:
    return np.random.default_rng().dirichlet(np.ones(ACTIONS), len(rows))


def seeded(rows: Chunk) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(ACTIONS), len(rows))


def mixing(rows: Chunk) -> np.ndarray:
    share = rows.context["score0"] / np.abs(rows.context["score0"]).sum() / 4
    return even(rows) + share[:, None] * np.array([10, -10, 0, 0])


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda rows: 1 / 0, r"mine failed. ZeroDivisionError: division by zero \(test_own_policies.py, line"),
        (lambda rows: rows.context["age"], "mine failed. KeyError: 'age' "),
        (lambda rows: rows.nothing, "mine failed. AttributeError: "),
        (lambda: EVEN, "mine failed. TypeError: .* takes 0 positional arguments but 1 was given"),
        (lambda rows: "uniform", "mine gave str."),
        (lambda rows: [["0.25"] * ACTIONS] * len(rows), "mine gave an array of <U4."),
        (lambda rows: None, "mine gave NoneType."),
        (lambda rows: [[0.5, 0.5]] * (len(rows) - 1) + [[1.0]], r"mine gave no array \(ValueError: "),
        (lambda rows: EVEN, r"mine gave an array \[1, 4\]"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_function_does_wrong_is_told_with_what_is_expected(
    function: Callable[..., Any], told: str, workers: int
) -> None:
    with pytest.raises(InputError, match=told) as caught:
        recsys.evaluate(LOG, {"mine": function}, workers=workers)
    expected = "gives numbers [300 rows, 4 actions], here with the columns score0 in rows.context"
    assert expected in str(caught.value)


@pytest.mark.parametrize("function", [counting, drawing, seeded, mixing])
def test_a_policy_whose_answer_does_not_follow_from_the_row_is_refused(function: Callable[[Chunk], np.ndarray]) -> None:
    with pytest.raises(InputError, match=r"The policy mine gave row \d+ other probabilities when it was asked again"):
        recsys.evaluate(LOG, {"mine": function})


def test_single_precision_and_lists_are_welcome() -> None:
    quick = IntervalsConfig(method="t")
    ways = {"single": lambda rows: even(rows).astype(np.float32), "lists": lambda rows: EVEN * len(rows)}
    found = recsys.evaluate(LOG, {"even": "uniform", **ways}, intervals=quick)
    for name in ways:
        assert found.metrics[f"click/{name}/ips"].value == found.metrics["click/even/ips"].value


def test_the_command_line_tells_it_too(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "of_mine.py").write_text("def policy():\n    return 1\n")
    columns = {"action": "item", "rewards": ["click"], "propensity": "p"}
    raw = {"recipe": "recsys.ope", "data": {"format": "table", "path": "log.parquet", "columns": columns}}
    written(frame(100), tmp_path / "log.parquet")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**raw, "policy": {"target": "of_mine:policy"}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["concord", "run", "mine.yaml", "--out", "run"])
    with pytest.raises(SystemExit, match="2"):
        main()
    told = capsys.readouterr().err
    assert told.startswith("Error: The policy policy failed. TypeError: policy() takes 0 positional arguments")
    assert "Traceback" not in told


def test_names_may_hold_any_sign() -> None:
    log = log_of(frame(300), replace(COLUMNS, segments=("tab",)))
    target = bandit().target
    names = ["a", "a#mrdr", "a|tab=1", "a|tab", "#", "|"]
    shares = {name: target * (1 - 0.1 * k) + 0.025 * k for k, name in enumerate(names)}
    settings = EstimatorsConfig(names=("ips", "mrdr"))
    quick = IntervalsConfig(method="t")
    together = recsys.evaluate(log, shares, intervals=quick, estimators=settings)
    for name in names:
        alone = recsys.evaluate(log, {name: shares[name]}, intervals=quick, estimators=settings)
        of_name = {key: metric for key, metric in together.metrics.items() if key in alone.metrics}
        assert {key: alone.metrics[key] for key in of_name} == of_name
        segments = [row for row in together.tables["segments"] if row["policy"] == name]
        assert segments == alone.tables["segments"]
        assert {row["segment"] for row in segments} == {"tab=0", "tab=1"}


def test_two_policies_have_two_names() -> None:
    with pytest.raises(InputError, match=re.escape("Policies are told by their names; got even, even.")):
        recsys.evaluate(LOG, [TablePolicy("even", np.array(EVEN * 3))] * 2)
