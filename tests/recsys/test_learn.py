"""From a log to a better policy."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_logs import frame, log_of, written

from envs.core import InputError
from marl.commands.run import run_training
from marl.config.catalog import find_config
from marl.config.load import read_yaml, resolve
from marl.output.report import Report
from recsys.learn import columns_of, learn
from recsys.logs.splits import Split
from recsys.policies.from_run import View
from recsys.problems.bandit import synthetic_bandit

LEARN = read_yaml(find_config("ope/learn"))
QUICK = {"intervals.method": "t", "train.env_steps": 100_000, "learner.learning_rate": 0.01}


def ran(folder: Path, **overrides: Any) -> Report:
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    return run_training(resolve(LEARN, {**QUICK, **changed}), folder)


@pytest.mark.parametrize("gradient", [pytest.param("ips", marks=pytest.mark.slow), "dr"])
def test_what_is_learned_is_nine_tenths_of_the_way_to_the_best_policy(gradient: str) -> None:
    log, problem = synthetic_bandit(rows=20_000, seed=2)
    policy = learn(log, rows=150_000, gradient=gradient, learning_rate=0.01, critic_learning_rate=0.01)
    start, found, best = (problem.value(each).value[0] for each in (problem.logging, policy, problem.best()))
    assert best - start > 0.2
    assert (found - start) / (best - start) > 0.9


def test_weights_say_which_signal_is_worth_what() -> None:
    signals = {"click": 0.3, "hate": 0.3}
    log, problem = synthetic_bandit(rows=20_000, signals=signals, seed=0)
    settings = {"rows": 60_000, "learning_rate": 0.02, "critic_learning_rate": 0.02}
    clicks, hates, both = (problem.value(learn(log, weights=w, **settings)).value for w in ((1, 0), (1, -1), (0, 1)))  # type: ignore[arg-type]
    assert clicks[0] > max(hates[0], both[0])
    assert hates[1] < clicks[1] < both[1]


def test_the_recipe_tells_by_users_held_out_what_the_policy_is_worth_and_the_truth_is_there(tmp_path: Path) -> None:
    found = ran(tmp_path / "run")
    metrics = found.metrics
    assert Report.load(tmp_path / "run" / "report.json").metrics == metrics
    truth, logged = metrics["click/learned/truth"].value, metrics["click/logging/truth"].value
    assert logged < truth < metrics["click/best/truth"].value
    assert metrics["way_to_best"].value > 0.8
    for name in ("learned", "logging", "uniform", "best"):
        estimate = metrics[f"click/{name}/dr"]
        error = (estimate.high - estimate.low) / (2 * 1.96)
        assert abs(estimate.value - metrics[f"click/{name}/truth"].value) < 4 * error
    assert 9_000 < metrics["rows"].value < 11_000
    assert 900 < metrics["clusters"].value < 1_100
    assert "click/learned/dr" in {row["estimate"] for row in found.tables["verdicts"]}


def test_intervals_on_rows_held_out_cover_the_truth_where_those_on_rows_learned_from_do_not() -> None:
    """Little data and many steps, so that the policy follows chance."""
    _, problem = synthetic_bandit(rows=600, users=600, seed=1)
    seen, covered = [], []
    for seed in range(4):
        log, part = problem.log(seed), Split(0.5, seed)
        settings = {"rows": 40_000, "learning_rate": 0.05, "gradient": "ips", "clip": None}
        policy = learn(part.learning(log), **settings)  # type: ignore[arg-type]
        truth = problem.value(policy, 20_000).value[0]
        for half, z in ((part.learning(log), seen), (part.evaluation(log), covered)):
            (rows,) = half.chunks()
            weighed = policy.probability(rows) / rows.propensity * rows.reward[:, 0]
            z.append((weighed.mean() - truth) / (weighed.std() / np.sqrt(len(rows))))
    assert np.mean(seen) > 2
    assert abs(np.sum(covered)) / np.sqrt(len(covered)) < 4


def test_users_are_on_one_side_each_and_every_row_is_on_one() -> None:
    table = frame(2000).with_columns(number=pl.int_range(2000))
    for columns in (replace(log_of(table).columns, user="user"), log_of(table).columns):
        log, part = log_of(table, columns), Split(0.3, 5)
        learning, held_out = (half.frame.collect() for half in (part.learning(log), part.evaluation(log)))
        assert sorted([*learning["number"], *held_out["number"]]) == list(range(2000))
        assert len(held_out) / 2000 == pytest.approx(0.3, abs=0.06)
        if columns.user:
            assert not set(learning["user"]) & set(held_out["user"])
        assert Split(0.3, 5).evaluation(log).frame.collect().equals(held_out)
        assert not Split(0.3, 6).evaluation(log).frame.collect().equals(held_out)


def test_real_logs_with_positions_are_learned_from(tmp_path: Path) -> None:
    data = {"format": "open_bandit"}
    found = ran(tmp_path / "run", data=data, against__target="uniform", train__env_steps=5_000, learner__kl=1.0)
    assert found.metrics["click/learned/ess"].value > 100
    assert "way_to_best" not in found.metrics
    assert not any(name.endswith("truth") for name in found.metrics)


def test_a_view_is_standardized_and_needs_finite_numbers() -> None:
    table = frame(300).with_columns(age=pl.col("score0") * 20 + 40, flat=pl.lit(7.3), name=pl.lit("a"))
    log = log_of(table).with_context(("age", "flat", "name"))
    view = View.of(log, ("age", "flat"))
    features, *_ = columns_of(log, view)
    assert features.shape == (300, 5)  # three positions
    np.testing.assert_allclose(features[:, 3].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(features[:, 3].std(), 1, atol=1e-6)
    np.testing.assert_allclose(features[:, 4], 0, atol=1e-6)
    assert View.from_json(view.to_json()) == view
    with pytest.raises(InputError, match="sees numbers; column 'name'"):
        View.of(log)
    holes = table.with_columns(age=pl.when(pl.int_range(300) == 4).then(None).otherwise(pl.col("age")))
    with pytest.raises(InputError, match="'age' is missing or not finite in row 5"):
        View.of(log_of(holes).with_context(("age",)), ("age",))
    counted = log_of(table.with_columns(m=pl.lit(2.0)), replace(log_of(table).columns, multiplicity="m"))
    with pytest.raises(InputError, match="count as m says"):
        columns_of(counted, View.of(counted))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"data": {"format": "open_bandit"}}, "against.target=logging and best are known of data.format=synthetic"),
        ({"against.target": "run:runs/other"}, "compared by recipe recsys.ope"),
        ({"learner.baseline": "value"}, "baseline is for gradient=ips"),
        ({"learner.weights": [1, 2]}, "learner.weights must be one number, or 1"),
        ({"held_out": 1.0}, "held_out: expected less than 1"),
        ({"policy.observation": ["x0", "x9"]}, "Missing columns: 'x9'"),
        ({"policy.network.kind": "gru"}, "a policy cannot remember"),
        ({"evaluation.episodes": 5}, "Unknown key evaluation"),
        ({"data.path": "log.csv"}, "path and segments say nothing of format=synthetic"),
        ({"data.synthetic.actoins": 5}, "Did you mean data.synthetic.actions"),
    ],
)
def test_what_makes_no_sense_is_refused_and_takes_no_folder(
    overrides: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told):
        run_training(resolve(LEARN, {**QUICK, **overrides}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_table_is_learned_from(tmp_path: Path) -> None:
    path = written(frame(400), tmp_path / "log.parquet")
    columns = {"action": "item", "rewards": ["click", "watch"], "propensity": "p", "position": "place", "user": "user"}
    data = {"format": "table", "path": str(path), "columns": columns, "actions": 4, "context": ["score0", "score1"]}
    found = ran(tmp_path / "run", data=data, against__target="uniform", train__env_steps=5_000)
    assert {"click/learned/dr", "watch/learned/dr", "watch/uniform/dr"} <= set(found.metrics)


def test_the_example_of_the_docs_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "ope_learning.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) == 5
    exec(code.replace("500_000", "100_000, learning_rate=0.01"), {})
    start, learned, best = map(float, re.findall(r"0\.\d+", capsys.readouterr().out.splitlines()[-1]))
    assert start < learned - 0.1 < best - 0.1
