"""Differences, segments, verdicts, what to read, and the ways to weigh: by logs whose answers are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_logs import ACTIONS, CONTEXTS, bandit, frame, log_of

import recsys
from envs.core import InputError
from recsys.bandit.evaluate import evaluate
from recsys.bandit.importance_weights import LoggerInfo
from recsys.bandit.pas_if import pas_if_errors
from recsys.config import BoundsConfig, EstimatorsConfig, IntervalsConfig, SelectionConfig
from recsys.logs.log import Columns
from recsys.policies.base import ContextPolicy, TablePolicy, popularity
from recsys.statistics.selection import subsample

WITH_USERS = Columns("item", ("click", "watch"), "p", "place", user="user", segments=("tab",))
FAST = IntervalsConfig(replications=200)
TARGET = {"target": bandit().target, "uniform": "uniform"}


def rows(found: recsys.Evaluation, table: str, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in found.tables[table] if all(row[key] == value for key, value in wanted.items())]


@pytest.mark.parametrize("method", ["bootstrap", "bca", "t", "empirical_likelihood"])
def test_a_difference_is_that_of_the_estimates_and_narrower_than_they_are_apart(method: Any) -> None:
    log = log_of(frame(2000), WITH_USERS)
    found = evaluate(log, TARGET, intervals=IntervalsConfig(method=method, replications=400))
    ours, theirs = (found.metrics[f"click/{name}/ips"] for name in TARGET)
    (row,) = rows(found, "differences", signal="click", policy="uniform", against="target", estimator="ips")
    assert row["value"] == pytest.approx(theirs.value - ours.value, rel=1e-12)
    assert row["low"] < row["value"] < row["high"]
    assert row["high"] - row["low"] < 1.05 * np.hypot(ours.high - ours.low, theirs.high - theirs.low)
    (above_log,) = rows(found, "differences", signal="watch", policy="target", against="logged", estimator="dr")
    expected = found.metrics["watch/target/dr"].value - found.metrics["watch/logged"].value
    assert above_log["value"] == pytest.approx(expected, rel=1e-12)


def test_a_policy_differs_from_itself_by_nothing() -> None:
    found = evaluate(log_of(frame(), WITH_USERS), {"a": "uniform", "b": "uniform"}, intervals=FAST)
    for row in rows(found, "differences", against="a"):
        assert row["value"] == 0
        assert [row["low"], row["high"]] == ([-math.inf, math.inf] if row["estimator"] == "dm" else [0, 0])


def test_differences_cover_the_truth_as_often_as_they_say() -> None:
    truth = bandit().truth[0] - bandit().mean.mean((0, 1))[0]
    held, only = 0, EstimatorsConfig(names=("ips",))
    for seed in range(50):
        found = evaluate(log_of(frame(600, 2 * seed)), TARGET, estimators=only, intervals=IntervalsConfig(method="t"))
        (row,) = rows(found, "differences", signal="click", policy="uniform", against="target", estimator="ips")
        held += row["low"] <= -truth <= row["high"]
    assert 43 <= held <= 50


def test_segments_are_logs_of_their_own_and_p_values_are_adjusted_for_all_of_them() -> None:
    table = frame(1200)
    found = evaluate(log_of(table, WITH_USERS), TARGET, intervals=FAST)
    part = evaluate(log_of(table.filter(pl.col("tab") == 1), WITH_USERS), TARGET, intervals=FAST)
    (row,) = rows(found, "segments", segment="tab=1", signal="watch", policy="target", estimator="snips")
    assert row["value"] == pytest.approx(part.metrics["watch/target/snips"].value, rel=1e-12)
    (own,) = rows(part, "differences", signal="watch", policy="target", against="logged", estimator="snips")
    assert row["difference"] == pytest.approx(own["value"], rel=1e-9)
    family = rows(found, "segments", signal="watch", policy="target", estimator="snips")
    assert len(family) == 2
    p = sorted(one["p"] for one in family)
    adjusted = sorted(one["adjusted"] for one in family)
    assert adjusted[0] == pytest.approx(min(1, 2 * p[0]))
    assert all(one["low_all"] < one["low"] < one["high"] < one["high_all"] for one in family)
    less = evaluate(log_of(table, WITH_USERS), TARGET, intervals=IntervalsConfig(replications=100, multiplicity="bh"))
    assert rows(less, "segments")[0]["adjusted"] <= rows(found, "segments")[0]["adjusted"]


def test_of_a_segment_that_is_not_to_be_read_nothing_is_told_at_once_with_others() -> None:
    table = frame(1200).with_columns(tab=pl.when(pl.int_range(1200) < 6).then(pl.lit(7)).otherwise(pl.col("tab")))
    found = evaluate(log_of(table, WITH_USERS), TARGET, intervals=FAST)
    family = rows(found, "segments", signal="watch", policy="target", estimator="snips")
    small, *others = sorted(family, key=lambda row: row["rows"])
    assert small["verdict"] == "UNRELIABLE"
    assert (small["low"], small["high"]) == (small["low_all"], small["high_all"]) == (-math.inf, math.inf)
    assert small["p"] == 1
    assert small["adjusted"] is None
    assert math.isfinite(small["value"])
    without = evaluate(log_of(table.filter(pl.col("tab") < 7), WITH_USERS), TARGET, intervals=FAST)
    for row in others:
        (same,) = rows(without, "segments", segment=row["segment"], signal="watch", policy="target", estimator="snips")
        for name in ("low", "low_all", "high_all", "adjusted"):
            assert row[name] == pytest.approx(same[name]), name


@pytest.mark.parametrize(("rare", "tested"), [(30, False), (400, True)])
def test_a_segment_is_tested_where_enough_clusters_decide_its_difference(rare: int, tested: bool) -> None:
    """So many of the 4,000 rows of a segment are of an action that the target wants several times as often."""
    place = np.arange(8000) % 4000
    chosen, share = place < rare, rare / 4000
    columns = {"item": chosen.astype(int), "p": np.where(chosen, share, 1 - share), "click": chosen | (place % 5 == 0)}
    table = pl.DataFrame(columns).with_columns(tab=pl.int_range(8000) // 4000)
    log = recsys.dataframe(table, action="item", rewards="click", propensity="p", segments=["tab"])
    wanted = min(10 * share, 0.5)
    only = EstimatorsConfig(names=("ips",))
    found = recsys.evaluate(log, {"new": [1 - wanted, wanted]}, intervals=FAST, estimators=only)
    for row in found.tables["segments"]:
        assert row["verdict"] == "RELIABLE"
        assert row["p"] < 1e-4
        assert (row["adjusted"] is not None) == tested


def test_verdicts_know_what_is_ignored_unsupported_and_modeled() -> None:
    logging = TablePolicy("logging", np.array([[0.5, 0.5, 0.0, 0.0]] * CONTEXTS))
    table = frame(4000).filter(pl.col("item") < 2).with_columns(p=pl.lit(0.5))
    settings = EstimatorsConfig(cap=0.5)
    found = evaluate(
        log_of(table), {"new": [0.25] * 4}, logger=LoggerInfo(logging), estimators=settings, intervals=FAST
    )
    told = {row["estimate"]: row for row in found.tables["verdicts"]}
    assert told["click/new/ips"]["verdict"] == "UNRELIABLE"  # half of what it shows was never shown
    assert told["click/new/ips"]["check"] in ("mean_weight", "support")
    fine = evaluate(log_of(frame(4000)), {"new": [0.25] * 4}, estimators=EstimatorsConfig(cap=0.4), intervals=FAST)
    told = {row["estimate"]: row for row in fine.tables["verdicts"]}
    assert told["click/new/capped_ips"]["check"] == "bias"
    assert told["click/new/dm"]["verdict"] != "RELIABLE"
    assert told["click/new/ips"]["check"] == ""


def test_unsupported_choices_count_where_the_logger_reads_rows_too() -> None:
    chances = np.array([0.5, 0.499, 0.001, 0.0])
    reads = ContextPolicy("logging", ACTIONS, lambda rows: np.tile(chances, (len(rows), 1)))
    table = frame(300).with_columns(item=pl.Series(np.arange(300) % 2), p=pl.lit(0.5))
    new = {"new": [0.85, 0.0, 0.05, 0.1]}
    for logging in (reads, TablePolicy("logging", np.tile(chances, (CONTEXTS, 1)))):
        found = evaluate(log_of(table), new, logger=LoggerInfo(logging), intervals=FAST)
        assert "15.0%" in " ".join(row["reason"] for row in found.tables["verdicts"] if row["check"] == "support")


def test_users_with_many_rows_do_not_make_the_mean_weight_look_wrong() -> None:
    one = frame(60, 3)
    many = pl.concat([one] * 40).with_columns(user=pl.Series(np.tile(np.arange(60), 40)))
    columns = Columns("item", ("click",), "p", "place", user="user")
    checks = {}
    for name, log in (("users", log_of(many, columns)), ("rows", log_of(many))):
        found = evaluate(log, {"new": bandit().target}, intervals=FAST)
        checks[name] = {row["check"] for row in found.tables["verdicts"]}
    assert "mean_weight" in checks["rows"]
    assert "mean_weight" not in checks["users"]


def test_what_to_read_covers_the_truth_and_so_does_what_it_would_change() -> None:
    """Estimates whose intervals are about something else than the truth must not be what a launch is decided by."""
    problem, held, lifts = bandit(), 0, 0
    truth, logged = problem.truth[0], float((problem.logging[:, :, None] * problem.mean).sum(1).mean(0)[0])
    for seed in range(60):
        found = evaluate(log_of(frame(1500, 2 * seed)), {"new": problem.target}, intervals=IntervalsConfig(method="t"))
        read = rows(found, "recommendations", signal="click")[0]["estimator"]
        metric = found.metrics[f"click/new/{read}"]
        (row,) = rows(found, "differences", signal="click", estimator=read)
        held += metric.low <= truth <= metric.high
        lifts += row["low"] <= truth - logged <= row["high"]
    assert held >= 53
    assert lifts >= 53


def test_what_is_biased_is_read_only_where_that_is_asked_for() -> None:
    settings = EstimatorsConfig(names=("ips", "subgaussian_ips"), subgaussian=0.3)
    how = SelectionConfig(method="slope", biased=True)
    every = {"estimators": settings, "intervals": FAST}
    table = frame(300)
    careful = evaluate(log_of(table), {"new": bandit().target}, **every)
    bold = evaluate(log_of(table), {"new": bandit().target}, selection=how, **every)
    assert {row["estimator"] for row in careful.tables["recommendations"]} == {"ips"}
    assert {row["estimator"] for row in bold.tables["recommendations"]} == {"subgaussian_ips"}


def test_rewards_that_are_all_alike_are_earned_by_every_policy() -> None:
    found = evaluate(log_of(frame(3000).with_columns(click=pl.lit(1.0))), {"new": bandit().target}, intervals=FAST)
    (row,) = rows(found, "recommendations", signal="click")
    metric = found.metrics[f"click/new/{row['estimator']}"]
    assert metric.low <= 1 <= metric.high
    told = {row["estimate"]: row for row in found.tables["verdicts"]}
    assert told["click/new/subgaussian_ips"]["verdict"] != "RELIABLE"


def test_a_dense_signal_around_zero_is_as_reliable_as_its_weights() -> None:
    table = frame(4000).with_columns(watch=pl.Series(np.random.default_rng(0).normal(size=4000)))
    found = evaluate(log_of(table), {"new": bandit().target}, intervals=FAST)
    told = {row["estimate"]: row["verdict"] for row in found.tables["verdicts"]}
    assert told["watch/new/ips"] == told["watch/new/sndr"] == "RELIABLE"
    assert found.metrics["watch/events"].value == 4000  # losses are events too


def test_a_row_that_stands_for_two_is_two_rows() -> None:
    table = frame(800).with_columns(times=pl.Series(np.arange(800) % 2 + 1))
    twice = pl.concat([table, table.filter(pl.col("times") == 2)])
    columns = Columns("item", ("click",), "p", "place", user="user")
    counted = Columns("item", ("click",), "p", "place", user="user", multiplicity="times")
    one, other = (
        evaluate(log_of(rows_, named), {"new": bandit().target}, intervals=IntervalsConfig(method="t"))
        for rows_, named in ((table, counted), (twice, columns))
    )
    for name in ("click/new/sndr", "click/new/ess", "click/new/mean_weight", "rows", "click/logged"):
        assert one.metrics[name].value == pytest.approx(other.metrics[name].value, rel=1e-9), name
        assert one.metrics[name].low == pytest.approx(other.metrics[name].low, rel=1e-9), name
    assert one.tables["recommendations"] == other.tables["recommendations"]


def test_popularity_is_not_blamed_for_being_made_of_the_log() -> None:
    table = frame(4000).with_columns(p=pl.lit(0.25), item=pl.Series(np.random.default_rng(0).integers(4, size=4000)))
    skewed = table.with_columns(item=pl.when(pl.int_range(4000) < 1500).then(0).otherwise("item"))
    for policy, check in (("popularity", False), (popularity(log_of(skewed)).table, True)):
        found = evaluate(log_of(skewed), {"popular": policy}, intervals=FAST)
        assert ("mean_weight" in {row["check"] for row in found.tables["verdicts"]}) == check


def test_a_logger_that_would_not_have_chosen_so_is_refused() -> None:
    logger = LoggerInfo(TablePolicy("logging", np.full((CONTEXTS, ACTIONS), 0.25)))
    with pytest.raises(InputError, match=r"data\.logging gives"):
        evaluate(log_of(frame(400)), {"new": "uniform"}, logger=logger)


def test_what_to_read_is_of_the_best_verdict_and_never_the_model_alone() -> None:
    found = evaluate(log_of(frame(4000), WITH_USERS), TARGET, intervals=FAST)
    told = {row["estimate"]: row["verdict"] for row in found.tables["verdicts"]}
    for row in found.tables["recommendations"]:
        assert row["estimator"] in row["sentence"]
        assert row["estimator"] != "dm"
        assert told[f"{row['signal']}/{row['policy']}/{row['estimator']}"] == "RELIABLE"
    few = evaluate(log_of(frame(8)), TARGET, intervals=FAST)
    assert {row["estimator"] for row in few.tables["recommendations"]} == {None}


def test_pas_if_reads_the_log_that_it_cuts_and_needs_to_know_who_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = LoggerInfo(TablePolicy("logging", bandit().logging))
    settings = EstimatorsConfig(cap=0.1)  # nobody should read what is capped like this
    how = SelectionConfig(method="pas_if", rows=1500)
    target = {"target": bandit().target}
    found = evaluate(log_of(frame(4000)), target, logger=logger, estimators=settings, intervals=FAST, selection=how)
    again = evaluate(log_of(frame(4000)), target, logger=logger, estimators=settings, intervals=FAST, selection=how)
    assert found.tables["recommendations"] == again.tables["recommendations"]
    for row in found.tables["recommendations"]:
        assert "estimated error is the least" in row["sentence"]
        assert row["estimator"] not in ("capped_ips", "dm")
    errors = pas_if_errors(
        log_of(frame(4000)), TablePolicy("t", bandit().target), logger.logging, settings, how, prior_rows=50.0, seed=0
    )
    assert (errors["capped_ips"] > 3 * errors["ips"]).all()
    seen: list[Any] = []
    monkeypatch.setattr("recsys.bandit.pas_if.subsample", lambda *a: seen.append(a[4]) or subsample(*a))
    for columns in (WITH_USERS, Columns("item", ("click",), "p", "place")):
        log = log_of(frame(400), columns)
        pas_if_errors(log, TablePolicy("t", bandit().target), logger.logging, settings, how, prior_rows=50.0, seed=0)
    assert len(np.unique(seen[0])) == frame(400)["user"].n_unique()  # a user falls to one side
    assert seen[-1] is None
    with pytest.raises(InputError, match="tell it with"):
        evaluate(log_of(frame(4000)), target, selection=how)


def test_a_policy_that_shows_nothing_that_was_logged_has_no_estimate_by_ratio_and_says_why() -> None:
    table = frame(300).filter(pl.col("item") < 3)
    found = evaluate(log_of(table), {"new": [0, 0, 0, 1.0]}, intervals=FAST)
    assert np.isnan(found.metrics["click/new/snips"].value)
    assert {row["verdict"] for row in found.tables["verdicts"]} == {"UNRELIABLE"}


def test_mips_weighs_categories_and_needs_support_of_categories_only() -> None:
    category = np.array([0, 0, 1, 1])
    logger = LoggerInfo(TablePolicy("logging", bandit().logging), category)
    settings = EstimatorsConfig(names=("mips", "sn_mips", "ips"))
    found = evaluate(log_of(frame(500)), {"new": bandit().target}, logger=logger, estimators=settings, intervals=FAST)
    table = frame(500)
    same = category[table["item"].to_numpy()][:, None] == category
    at = table["place"].to_numpy()
    weight = (bandit().target[at] * same).sum(1) / (bandit().logging[at] * same).sum(1)
    expected = (weight * table["click"].to_numpy()).mean()
    assert found.metrics["click/new/mips"].value == pytest.approx(expected, rel=1e-12)
    assert found.metrics["click/new/sn_mips"].value == pytest.approx(expected / weight.mean(), rel=1e-12)
    assert found.metrics["click/new/mips_ess"].value == pytest.approx(weight.sum() ** 2 / (weight**2).sum(), rel=1e-12)
    reads = ContextPolicy("new", ACTIONS, lambda rows: bandit().target[rows.position])
    again = evaluate(log_of(frame(500)), [reads], logger=logger, estimators=settings, intervals=FAST)
    assert again.metrics["click/new/mips"].value == pytest.approx(expected, rel=1e-12)


def test_balanced_weights_are_over_the_mixture_of_loggers() -> None:
    table = frame(400).with_columns(p2=pl.col("p") * 0.5)
    log = log_of(table).with_context(["p", "p2"])
    logger = LoggerInfo(loggers={"p": 0.7, "p2": 0.3})
    settings = EstimatorsConfig(names=("balanced_ips",))
    found = evaluate(log, {"new": "uniform"}, logger=logger, estimators=settings, intervals=FAST)
    weight = 0.25 / (0.7 * table["p"] + 0.3 * table["p2"])
    assert found.metrics["click/new/balanced_ips"].value == pytest.approx((weight * table["click"]).mean(), rel=1e-12)


def test_mrdrs_model_is_its_own() -> None:
    settings = EstimatorsConfig(names=("dr", "mrdr"))
    found = evaluate(log_of(frame(3000)), {"new": bandit().target}, estimators=settings, intervals=FAST)
    dr, mrdr = (found.metrics[f"click/new/{name}"] for name in ("dr", "mrdr"))
    assert dr.value != mrdr.value
    assert abs(dr.value - mrdr.value) < dr.high - dr.low


def test_replay_is_for_deterministic_targets_and_uniform_loggers() -> None:
    settings = EstimatorsConfig(names=("replay",))
    table = frame(400).with_columns(p=pl.lit(0.25))
    found = evaluate(log_of(table), {"first": [1.0, 0, 0, 0]}, estimators=settings, intervals=FAST)
    shown = table.filter(pl.col("item") == 0)["click"]
    assert found.metrics["click/first/replay"].value == pytest.approx(shown.mean(), rel=1e-12)
    with pytest.raises(InputError, match="uniform draws"):
        evaluate(log_of(table), {"uniform": "uniform"}, estimators=settings, intervals=FAST)
    with pytest.raises(InputError, match="every action was logged alike"):
        evaluate(log_of(frame(400)), {"first": [1.0, 0, 0, 0]}, estimators=settings, intervals=FAST)


@pytest.mark.parametrize("method", ["hoeffding", "bernstein"])
def test_bounds_hold_whatever_is_drawn_and_what_they_do_not_apply_to_is_said(method: Any) -> None:
    bounds = BoundsConfig(weight=20, reward=(0, 3), rows=20)
    found = evaluate(log_of(frame(400), WITH_USERS), TARGET, intervals=IntervalsConfig(method=method, bounds=bounds))
    narrow = evaluate(log_of(frame(400), WITH_USERS), TARGET, intervals=FAST)
    for name in ("ips", "snips", "dr", "ncis"):
        wide, close = (x.metrics[f"click/target/{name}"] for x in (found, narrow))
        assert wide.low < close.low < close.high < wide.high, name
    assert np.isinf(found.metrics["click/target/sndr"].high)
    assert any("sndr" in row["note"] for row in found.tables["notes"])
    with pytest.raises(InputError, match="widen the bound"):
        evaluate(
            log_of(frame(400), WITH_USERS),
            TARGET,
            intervals=IntervalsConfig(method=method, bounds=BoundsConfig(weight=1.1)),
        )


def test_hoeffdings_bound_is_as_narrow_where_rows_are_dealt_into_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    how = IntervalsConfig(method="hoeffding", bounds=BoundsConfig(weight=20, reward=(0, 3)))
    widths = {}
    for clusters in (2**14, 2**7):
        monkeypatch.setattr("recsys.logs.log.ROW_CLUSTERS", clusters)
        monkeypatch.setattr("recsys.bandit.evaluate.ROW_CLUSTERS", clusters)
        metric = evaluate(log_of(frame(4000)), TARGET, intervals=how).metrics["click/target/ips"]
        widths[clusters] = metric.high - metric.low
    assert widths[2**14] == pytest.approx(2 * 60 * np.sqrt(np.log(40) / 8000), rel=1e-9)
    assert widths[2**7] == pytest.approx(widths[2**14], rel=0.02)


def test_five_lines_on_a_dataframe(capsys: pytest.CaptureFixture[str]) -> None:
    log = recsys.dataframe(frame(500), action="item", rewards="click", propensity="p", user="user")
    found = recsys.evaluate(log, {"first": [1.0, 0, 0, 0], "even": lambda rows: np.full((len(rows), 4), 0.25)})
    found.show()
    told = capsys.readouterr().out
    assert "click/first/ips" not in told
    assert all(part in told for part in ("Read sndr", "even - first", "other estimates", "show(every=True)"))
    found.show(every=True)
    assert "click/first/ips" in capsys.readouterr().out
    same = recsys.dataframe(frame(500).to_dict(as_series=False), action="item", rewards="click", propensity="p")
    assert recsys.evaluate(same, {"a": "uniform"}).metrics["rows"].value == 500


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: recsys.dataframe(3, action="a", rewards="b", propensity="c"), "A log is a DataFrame"),
        (lambda: recsys.dataframe(frame(), rewards="click", propensity="p"), "action missing"),
        (lambda: recsys.dataframe(frame(), action="itm", rewards="click", propensity="p"), "item"),
        (lambda: evaluate(log_of(frame()), {"x": [0.5, 0.5]}), "each of 4 actions"),
        (lambda: evaluate(log_of(frame()), {"x": [0.5, 0.2, 0.1, 0.1]}), "add up to 1"),
        (lambda: evaluate(log_of(frame()), {"x": "nowhere:policy"}), "nowhere"),
        (lambda: evaluate(log_of(frame()), {}), "at least one policy"),
        (lambda: evaluate(log_of(frame()), {"a": "uniform"}, estimators=EstimatorsConfig(names=("mips",))), "categor"),
    ],
)
def test_bad_input_is_refused_in_python_too(call: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        call()
