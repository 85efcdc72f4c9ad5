"""Learning from sessions: what follows a step counts, by what the log says of ends, and only where it is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import recsys
from envs.core import InputError
from marl.commands.run import run_training
from marl.config.load import resolve
from marl.output.report import Report
from marl.training.checkpoints import checkpoints, load_checkpoint
from marl.training.run import Run
from recsys.learn import FitConfig, as_batch, columns_of, fit, learn
from recsys.logs.log import Log
from recsys.logs.splits import Split
from recsys.policies.from_run import View
from recsys.sequential.log import successors

NAMES = {"action": "item", "rewards": "watch", "propensity": "p", "episode": "visit", "step": "n"}
QUICK = {"learning_rate": 0.02, "critic_learning_rate": 0.02, "averaging": 0.1}


def patience(visits: int = 2_000, seed: int = 0) -> pl.DataFrame:
    """Visits in which a little at once ends all, and waiting pays later: uniform choices of two items.

    At the door item 0 pays .2 and the user leaves; item 1 pays nothing and leads inside, where both items pay 1.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for visit in range(visits):
        item = int(rng.integers(2))
        rows.append((visit, 0, 0, item, 0.2 * (item == 0), item == 0))
        if item == 1:
            rows.append((visit, 1, 1, int(rng.integers(2)), 1.0, True))
    table = pl.DataFrame(rows, schema=["visit", "n", "inside", "item", "watch", "left"], orient="row")
    return table.with_columns(p=pl.lit(0.5), user=pl.col("visit") // 2)


def log_of_visits(table: pl.DataFrame, **more: Any) -> Log:
    return recsys.dataframe(table, **{**NAMES, "context": ["inside"], **more})


def at_the_door(policy: Any, log: Log) -> np.ndarray:
    (chunk,) = log.chunks()
    return np.asarray(policy.distribution(chunk)[chunk.context["inside"] == 0][0])


def test_with_a_discount_what_pays_later_is_chosen_and_without_what_pays_at_once() -> None:
    log = log_of_visits(patience(400))
    assert at_the_door(learn(log, rows=60_000, **QUICK), log)[0] > 0.9
    assert at_the_door(learn(log, rows=60_000, discount=0.9, **QUICK), log)[1] > 0.9


def test_rows_follow_one_another_in_their_session_whatever_their_order() -> None:
    table = pl.DataFrame(
        {"visit": ["b", "a", "b", "a", "c"], "n": [1, 0, 0, 1, 0], "item": [0, 1, 0, 1, 0], "watch": [1.0] * 5}
    ).with_columns(p=pl.lit(0.5), inside=pl.lit(0), left=pl.Series([False, False, False, True, True]))
    log = log_of_visits(table)
    (chunk,) = log.chunks()
    found = successors(log, chunk.cluster)
    assert found.following.tolist() == [0, 3, 0, 3, 4]
    assert found.ended.tolist() == [True, False, False, True, True]
    assert not found.cut.any()
    cut = successors(log_of_visits(table, terminated="left"), chunk.cluster)
    assert cut.ended.tolist() == [False, False, False, True, True]
    assert cut.cut.tolist() == [True, False, False, False, False]


def test_a_step_after_which_the_log_was_cut_off_is_left_out_and_others_keep_what_followed() -> None:
    table = patience(50).with_columns(left=pl.col("left") & (pl.col("visit") % 3 != 0))
    log = log_of_visits(table, terminated="left")
    view = View.of(log)
    rows = columns_of(log, view)
    batch = as_batch(rows, successors(log, rows.cluster), torch.device("cpu"))
    last = table.select((pl.col("n") == pl.col("n").max().over("visit")).alias("last"))["last"].to_numpy()
    kept = ~(last & ~table["left"].to_numpy())
    assert len(batch.ended) == kept.sum() < len(table)
    assert batch.terminated[:, 0].tolist() == table["left"].to_numpy()[kept].tolist()
    inside = view.features(next(iter(log.chunks())))[:, 0]
    goes_on = ~batch.terminated[:, 0]
    np.testing.assert_allclose(batch.final_obs.agent[goes_on, 0, 0], inside.max())
    np.testing.assert_allclose(batch.obs.agent[:, 0, 0], inside[kept])


def test_single_decisions_know_nothing_of_sessions() -> None:
    log = log_of_visits(patience(50))
    rows = columns_of(log, View.of(log))
    batch = as_batch(rows, None, torch.device("cpu"))
    assert bool(batch.terminated.all())
    assert len(batch.ended) == len(rows.action)


@pytest.mark.parametrize(
    ("change", "more", "told"),
    [
        ({"n": pl.col("n") * 2}, {}, "n not one more than in the step before"),
        ({"left": pl.col("left").cast(pl.Int64) * 2}, {"terminated": "left"}, "must hold true and false, or 1 and 0"),
        ({"left": pl.lit("yes")}, {"terminated": "left"}, "must hold true and false"),
        ({"left": pl.lit(None, pl.Boolean)}, {"terminated": "left"}, "missing in places"),
        ({"left": pl.lit(True)}, {"terminated": "left"}, "left before the last step of the session"),
        ({"user": pl.int_range(pl.len())}, {"user": "user"}, "user other than in the first step of the session"),
    ],
)
def test_sessions_that_are_none_are_refused(change: dict[str, Any], more: dict[str, Any], told: str) -> None:
    log = log_of_visits(patience(30).with_columns(**change), **more)
    with pytest.raises(InputError, match=told):
        learn(log, rows=512, discount=0.5)


def test_discounts_need_sessions() -> None:
    log = recsys.dataframe(patience(30), action="item", rewards="watch", propensity="p")
    with pytest.raises(InputError, match="names no episode and no step"):
        learn(log, rows=512, discount=0.5)


def test_sessions_stay_whole_where_there_are_no_users() -> None:
    log = log_of_visits(patience(200))
    split = Split(0.5, 3)
    parts = [part.frame.collect() for part in (split.learning(log), split.evaluation(log))]
    assert not set(parts[0]["visit"]) & set(parts[1]["visit"])
    assert sum(len(part) for part in parts) == len(log.frame.collect())
    assert min(len(part) for part in parts) > 50


def recipe_of(tmp_path: Path, **overrides: Any) -> dict[str, Any]:
    patience().write_csv(tmp_path / "visits.csv")
    named = {"action": "item", "rewards": ["watch"], "propensity": "p", "episode": "visit", "step": "n", "user": "user"}
    raw = {
        "recipe": "recsys.learn",
        "data": {"format": "table", "path": str(tmp_path / "visits.csv"), "columns": named, "context": ["inside"]},
        "learner": {"discount": 0.9, **QUICK},
        "train": {"env_steps": 60_000},
        "intervals": {"method": "t"},
    }
    return {**raw, **overrides}


def final(folder: Path) -> dict[str, bytes]:
    state = load_checkpoint(checkpoints(folder / "checkpoints" / "train")[-1])["learner"]
    names = ("policy", "critic", "target_critic", "policy_optimizer", "critic_optimizer")
    return {f"{part}/{name}": x.numpy().tobytes() for part in names for name, x in state[part].items()}


def test_training_that_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    log = log_of_visits(patience(300))
    view = View.of(log)
    base = {"recipe": "recsys.learn", "learner": {"rows": 64, "discount": 0.5}}
    whole, half = (FitConfig.model_validate({**base, "train": {"env_steps": 64 * n}}) for n in (40, 17))
    fit(whole, Run(tmp_path / "whole", whole), log, view)
    fit(half, Run(tmp_path / "parts", half), log, view)
    assert final(tmp_path / "parts") != final(tmp_path / "whole")
    fit(whole, Run(tmp_path / "parts", whole), log, view)
    assert final(tmp_path / "parts") == final(tmp_path / "whole")


def test_the_recipe_learns_from_sessions_and_tells_what_sessions_of_others_would_earn(tmp_path: Path) -> None:
    report: Report = run_training(resolve(recipe_of(tmp_path), {}), tmp_path / "run")
    value = {name: metric.value for name, metric in report.metrics.items()}
    assert value["watch/learned/pdis"] == pytest.approx(0.9, abs=0.1)  # a step later 1, discounted
    assert value["watch/logged"] == pytest.approx(0.55, abs=0.05)
    assert "steps" in report.tables
    assert any("discounted by 0.9, as" in row["note"] for row in report.tables["notes"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data.columns.episode": None, "data.columns.step": None}, r"needs data.columns.\{episode,step\}"),
        ({"estimators.cap": 3.0}, "estimators is of single decisions"),
        ({"reward_model.prior_rows": 3.0}, "reward_model is of single decisions"),
        ({"data.segments": ["inside"]}, "segments are of single decisions"),
        ({"data.columns.terminated": "left", "learner.discount": 0, "data.columns.episode": None}, "episode and step"),
    ],
)
def test_settings_of_single_decisions_are_refused_for_sessions(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told):
        resolve(recipe_of(tmp_path), change)
