"""Logs without propensities, from fitted models of the logger to estimates, bounds and the random slice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from envs.core import InputError
from marl.commands.run import run_training
from marl.config.catalog import find_config
from marl.config.load import read_yaml, resolve
from marl.output.report import Report
from recsys.bandit import fitted_propensities, random_slice
from recsys.bandit.evaluate import evaluate
from recsys.bandit.sensitivity import Groups, scanned, sensitivity_bounds
from recsys.config import IntervalsConfig
from recsys.logs import formats
from recsys.logs.catalog import Catalog
from recsys.logs.config import BehaviorConfig
from recsys.logs.log import Chunk, Columns, Log
from recsys.models.cross_fitting import fold_of, mixed
from recsys.models.propensity import calibration_table, fit_folds, frequency
from recsys.models.propensity_frequency import Contexts, FrequencyModel
from recsys.models.propensity_logistic import LogisticModel
from recsys.policies.base import uniform
from recsys.statistics.diagnostics import Diagnosis
from recsys.statistics.verdict import Level, verdict

ACTIONS = 4
TABLE = Columns("item", ("click", "watch"), user="user")


@dataclass(frozen=True)
class World:
    """Tab and mood, three by two and alike, move what is shown and what it earns; a fifth is shown at random."""

    logging: np.ndarray  # [tab, mood, A]
    mean: np.ndarray  # [tab, mood, A]

    @property
    def truth(self) -> float:
        """Clicks of uniform choices."""
        return float(self.mean.mean())

    @property
    def odds(self) -> float:
        """How far the odds of the logger are from those of the logger that does not know the mood, at most."""
        nominal = self.logging.mean(1, keepdims=True)
        ratio = self.logging / (1 - self.logging) / (nominal / (1 - nominal))
        return float(max(ratio.max(), 1 / ratio.min()))

    def draw(self, rows: int, seed: int) -> pl.DataFrame:
        """`p` is for the test's eyes."""
        rng = np.random.default_rng(seed)
        user = rng.integers(rows // 5, size=rows)
        tab, mood = user % 3, rng.integers(2, size=rows)
        random = rng.random(rows) < 0.2
        chances = np.where(random[:, None], 1 / ACTIONS, self.logging[tab, mood])
        item = (rng.random(rows)[:, None] > chances.cumsum(1)).sum(1).clip(max=ACTIONS - 1)
        click = rng.random(rows) < self.mean[tab, mood, item]
        columns = {"user": user, "tab": np.array(["a", "b", "c"])[tab], "mood": mood, "item": item, "is_random": random}
        p = chances[np.arange(rows), item]
        return pl.DataFrame({**columns, "click": click.astype(float), "watch": rng.random(rows) * click, "p": p})


@pytest.fixture(scope="module")
def world() -> World:
    rng = np.random.default_rng(7)
    logging = 0.7 * rng.dirichlet(np.full(ACTIONS, 1.0), (3, 2)) + 0.3 / ACTIONS
    mean = 0.1 + 0.4 * logging + 0.1 * np.arange(3)[:, None, None]  # shows what is liked
    mean[:, 1] += 0.3 * (logging[:, 1] > 1 / ACTIONS)
    return World(logging, mean)


@pytest.fixture(scope="module")
def table(world: World) -> pl.DataFrame:
    return world.draw(40_000, 0)


def log_of(frame: pl.DataFrame, columns: Columns = TABLE, **settings: Any) -> Log:
    return Log(frame.lazy(), columns, Catalog.numbered(ACTIONS), **settings)


def one(log: Log) -> Chunk:
    (chunk,) = log.chunks()
    return chunk


def run(tmp_path: Path, raw: dict[str, Any], **overrides: Any) -> Report:
    quick = {"intervals.method": "t"}
    config = resolve(raw, {**quick, **{key.replace("__", "."): value for key, value in overrides.items()}})
    return run_training(config, tmp_path / f"run{len(list(tmp_path.iterdir()))}")


def config_of(path: Path, *columns: str, **behavior: Any) -> dict[str, Any]:
    named = {"action": "item", "rewards": ["click", "watch"], "propensity": None, "user": "user"}
    data = {"format": "table", "path": str(path), "columns": named, "actions": ACTIONS}
    raw = {"recipe": "recsys.ope", "data": data, "policy": {"target": "uniform"}}
    return {**raw, "behavior": {"columns": list(columns), **behavior}}


# Models


def test_streamed_counts_say_what_the_whole_log_says(table: pl.DataFrame) -> None:
    part = table.head(3_000)
    log = log_of(part, chunk_rows=256).with_context(("tab", "mood", "user"))
    model = FrequencyModel(log, ("tab", "mood"), 4, 10.0)
    chunk = one(log_of(part).with_context(("tab", "mood", "user")))
    fold = fold_of(chunk, "user", 4)
    features = Contexts(("tab", "mood")).learn(chunk)[:, None].astype(np.float64)
    whole = fit_folds(frequency(ACTIONS, 10.0), features, chunk.action, fold, 4)
    np.testing.assert_allclose(model.temperatures, whole.temperatures, rtol=2e-3)
    wanted = whole.held_out[np.arange(3_000), chunk.action]
    np.testing.assert_allclose(model.propensity(chunk), wanted, rtol=2e-3)
    assert model.quality.log_loss == pytest.approx(-np.log(wanted).mean(), rel=1e-5)
    expected = calibration_table(whole.held_out, chunk.action)
    for row, other in zip(model.quality.calibration, expected, strict=True):
        assert row.pairs == pytest.approx(other.pairs, rel=0.02)
        assert row.predicted == pytest.approx(other.predicted, rel=0.02)
    assert sum(row.pairs * row.shown for row in model.quality.calibration) == pytest.approx(3_000)


def test_the_normalizer_of_actions_that_never_occur_is_counted() -> None:
    """Of 50 actions a context shows few: its 50 probabilities add up to 1 all the same."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"item": rng.integers(8, size=400), "x": rng.integers(20, size=400), "click": 0.0})
    log = Log(frame.lazy(), Columns("item", ("click",)), Catalog.numbered(50)).with_context(("x",))
    calibration = FrequencyModel(log, ("x",), 5, 2.0).quality.calibration
    assert sum(row.pairs for row in calibration) == pytest.approx(400 * 50)
    assert sum(row.pairs * row.predicted for row in calibration) == pytest.approx(400)
    assert sum(row.pairs * row.shown for row in calibration) == pytest.approx(400)


def test_fitted_propensities_are_those_of_the_logger(world: World, table: pl.DataFrame) -> None:
    log = log_of(table.filter(~pl.col("is_random")))
    known = table.filter(~pl.col("is_random"))["p"].to_numpy()
    for model in ("frequency", "logistic"):
        extra = pl.concat_str("tab", "mood").alias("both")  # a model without interactions needs them spelled out
        fitted = fitted_propensities.fit(
            log_of(table.filter(~pl.col("is_random")).with_columns(extra)),
            BehaviorConfig(model=model, columns=("both",)),  # type: ignore[arg-type]
        )
        off = np.log(one(fitted.log).propensity / known)
        assert abs(off.mean()) < 0.01
        assert off.std() < 0.1
        assert fitted.behavior.quality.log_loss < fitted.behavior.quality.marginal - 0.05
        assert fitted.behavior.quality.worst < 4
    assert np.isnan(one(log).propensity).all()


def test_a_user_is_in_one_fold_and_rows_may_come_in_any_order(table: pl.DataFrame) -> None:
    settings = BehaviorConfig(columns=("tab", "mood"))
    found = one(fitted_propensities.fit(log_of(table), settings).log)
    folds = fold_of(found, "user", 5)
    by_user = pl.DataFrame({"user": found.context["user"], "fold": folds}).group_by("user").n_unique()
    assert by_user["fold"].max() == 1
    assert np.bincount(folds).min() > 0.15 * len(table)
    order = np.random.default_rng(0).permutation(len(table))
    shuffled = one(fitted_propensities.fit(log_of(table[order.tolist()]), settings).log)
    np.testing.assert_allclose(shuffled.propensity, found.propensity[order], rtol=1e-12)
    by_name = log_of(table.with_columns(pl.col("user").cast(pl.String)))
    names = one(fitted_propensities.fit(by_name, settings).log)
    assert (
        pl.DataFrame({"u": names.context["user"], "f": fold_of(names, "user", 5)}).group_by("u").n_unique()["f"].max()
        == 1
    )


def test_hashes_of_numbers_are_those_of_the_published_generator() -> None:
    assert mixed(np.array([0]))[0] == 0xE220A8397B1DCDAF  # SplitMix64's first number from seed 0


def test_rows_count_as_often_as_their_multiplicity_says(table: pl.DataFrame) -> None:
    part = table.head(2_000)
    twice = log_of(pl.concat([part, part]))
    counted = log_of(part.with_columns(m=pl.lit(2)), replace(TABLE, multiplicity="m"))
    settings = BehaviorConfig(columns=("tab",))
    doubled = one(fitted_propensities.fit(twice, settings).log).propensity[:2_000]
    np.testing.assert_allclose(one(fitted_propensities.fit(counted, settings).log).propensity, doubled, rtol=1e-9)
    with pytest.raises(InputError, match="takes every row once"):
        fitted_propensities.fit(counted, BehaviorConfig(model="logistic", columns=("tab",)))


def test_logistic_takes_a_sample_and_says_so(table: pl.DataFrame) -> None:
    fitted = fitted_propensities.fit(
        log_of(table), BehaviorConfig(model="logistic", columns=("tab", "mood"), max_rows=4_000)
    )
    assert fitted.behavior.quality.judged == 0.1
    assert any("told by 10.0% of the rows" in note for note in fitted_propensities.notes(fitted, 0))
    small = log_of(table, chunk_rows=1_000).with_context(("tab", "mood", "user"))
    again = LogisticModel(small, ("tab", "mood"), 5, 1.0, 4_000)
    whole = one(fitted.log)
    np.testing.assert_allclose(again.propensity(whole), whole.propensity, rtol=1e-12)


# Estimates


@pytest.mark.parametrize("model", ["frequency", "logistic"])
def test_the_truth_is_found_where_the_context_has_all_that_moved_the_logger(
    world: World, table: pl.DataFrame, tmp_path: Path, model: str
) -> None:
    table = table.with_columns(both=pl.concat_str("tab", "mood"))
    table.write_parquet(tmp_path / "log.parquet")
    found = run(tmp_path, config_of(tmp_path / "log.parquet", "both", model=model))
    for name in ("ips", "snips", "dr", "sndr"):
        metric = found.metrics[f"click/uniform/{name}"]
        assert abs(metric.value - world.truth) < 4 * (metric.high - metric.low) / 3.92
    assert abs(found.metrics["click/logged"].value - world.truth) > 0.03
    verdicts = [row for row in found.tables["verdicts"] if row["estimate"].endswith(("/ips", "/snips", "/dr", "/sndr"))]
    assert {(row["verdict"], row["check"]) for row in verdicts} == {("CAUTION", "fitted")}
    assert "unmeasured confounding" in str(found.tables["notes"])
    assert found.metrics["behavior/calibration_z"].value < 4
    assert {"pairs", "predicted", "shown", "standard_error"} == set(found.tables["calibration"][0])


def test_a_hidden_confounder_is_found_out_by_the_random_slice(
    world: World, table: pl.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "log.parquet"
    table.write_parquet(path)
    right = run(tmp_path, config_of(path, "tab", "mood"), data__random={"column": "is_random"})
    rows = {(row["signal"], row["estimator"]): row for row in right.tables["random_slice_differences"]}
    assert all(abs(row["z"]) < 4 for row in rows.values())
    assert "CAUTION" in {row["verdict"] for row in right.tables["verdicts"]}
    sound = [row for row in right.tables["verdicts"] if row["estimate"].endswith(("/ips", "/snips", "/dr", "/sndr"))]
    assert {row["verdict"] for row in sound} == {"CAUTION"}
    random = [row for row in right.tables["random_slice"] if row["source"] == "random" and row["signal"] == "click"]
    assert all(abs(row["value"] - world.truth) < 4 * (row["high"] - row["low"]) / 3.92 for row in random)

    wrong = run(tmp_path, config_of(path, "tab"), data__random={"column": "is_random"})
    metric = wrong.metrics["click/uniform/snips"]
    assert abs(metric.value - world.truth) > 4 * (metric.high - metric.low) / 3.92
    assert {row["verdict"] for row in wrong.tables["verdicts"]} == {"UNRELIABLE"}
    assert {row["check"] for row in wrong.tables["verdicts"]} - {"bias"} == {"random_slice"}
    assert any("not among behavior.columns" in note["note"] for note in wrong.tables["notes"])
    low, high = (wrong.metrics["random_slice/click/uniform/snips"].__dict__[end] for end in ("low", "high"))
    assert not low <= 0 <= high


def test_a_reward_model_that_sees_the_context_goes_with_fitted_propensities_and_the_random_slice(
    table: pl.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "log.parquet"
    table.write_parquet(path)
    raw = config_of(path, "tab", "mood") | {"reward_model": {"kind": "linear", "columns": ["tab", "mood"]}}
    found = run(tmp_path, raw, data__random={"column": "is_random"})
    assert {row["estimator"] for row in found.tables["random_slice"]} >= {"ips", "dr"}
    assert all(abs(row["z"]) < 4 for row in found.tables["random_slice_differences"])


def test_a_slice_of_other_contexts_is_matched_by_context(world: World, table: pl.DataFrame, tmp_path: Path) -> None:
    """The slice is nine tenths tab a; as it is, it would tell of tab a's clicks."""
    rest, drawn = table.filter(~pl.col("is_random")), table.filter(pl.col("is_random"))
    thin = (pl.col("tab") == "a") | (pl.int_range(pl.len()) % 10 == 0)
    rest.write_parquet(tmp_path / "log.parquet")
    drawn.filter(thin).write_parquet(tmp_path / "slice.parquet")
    raw = config_of(tmp_path / "log.parquet", "tab", "mood")
    found = run(tmp_path, raw, data__random={"path": str(tmp_path / "slice.parquet")})
    row = next(r for r in found.tables["random_slice"] if (r["estimator"], r["source"]) == ("snips", "random"))
    assert abs(row["value"] - world.truth) < 4 * (row["high"] - row["low"]) / 3.92
    unmatched = drawn.filter(thin)["click"].mean()
    assert abs(float(unmatched) - world.truth) > 0.02  # type: ignore[arg-type]


def test_a_policy_is_compared_by_what_the_slice_can_show() -> None:
    policy = uniform(log_of(pl.DataFrame({"item": [0], "user": [0], "click": [0.0], "watch": [0.0]})))
    some = np.array([True, False, True, False])
    np.testing.assert_allclose(random_slice.restricted(policy, some).table, [[0.5, 0, 0.5, 0]])
    with pytest.raises(random_slice.NothingSharedError):
        random_slice.restricted(policy, np.zeros(4, bool))


# Sensitivity


def test_bounds_at_the_true_odds_hold_the_truth(world: World, table: pl.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    table.filter(~pl.col("is_random")).write_parquet(path)
    odds = [1.0, 1.05, world.odds]
    found = run(tmp_path, config_of(path, "tab", odds=odds))
    rows = {row["odds"]: row for row in found.tables["sensitivity"] if row["signal"] == "click"}
    snips = found.metrics["click/uniform/snips"].value
    assert rows[1.0]["low"] == pytest.approx(snips, rel=1e-9) == rows[1.0]["high"]
    assert not rows[1.05]["low"] <= world.truth <= rows[1.05]["high"]
    assert rows[world.odds]["low"] < world.truth < rows[world.odds]["high"]
    broken = next(row for row in found.tables["breaking_odds"] if row["signal"] == "click")
    assert broken["logged"] == found.metrics["click/logged"].value
    assert broken["odds"] == found.metrics["behavior/click/uniform/breaking_odds"].value > 1


@pytest.mark.parametrize("kind", ["clicks", "milliseconds", "real"])
def test_bounds_by_scanning_are_the_sorted_ones(kind: str) -> None:
    rng = np.random.default_rng(0)
    n = 5_000
    draw: dict[str, Callable[[], np.ndarray]] = {
        "clicks": lambda: rng.integers(-1, 2, n).astype(float),
        "milliseconds": lambda: rng.integers(0, 32_000, n).astype(float),
        "real": lambda: rng.normal(size=n) * 1e4,
    }
    reward, target, propensity = draw[kind](), rng.random(n), rng.uniform(0.05, 1, n)
    parts = [Groups.of(reward[s], target[s], propensity[s]) for s in (slice(0, 2_000), slice(2_000, n))]
    groups = parts[0] + parts[1]
    for odds in (1, 1.5, 4):
        low, high = sensitivity_bounds(reward[:, None], target, propensity, odds)
        tolerance = 1e-7 if kind == "real" else 1e-12
        assert groups.bounds(odds) == pytest.approx((low[0], high[0]), rel=tolerance)
        assert groups.bounds(odds)[1] <= high[0] + 1e-12 * abs(high[0])


def test_a_scan_has_the_same_bits_for_any_number_of_workers(table: pl.DataFrame) -> None:
    log = log_of(table, replace(TABLE, propensity="p"), chunk_rows=3_000)
    one_worker, three = (scanned(log, [uniform(log)], workers) for workers in (1, 3))
    for name, groups in one_worker.items():
        assert groups.sums.tobytes() == three[name].sums.tobytes()


def test_a_run_has_the_same_bits_for_any_number_of_workers(table: pl.DataFrame, tmp_path: Path) -> None:
    table.head(5_000).write_parquet(tmp_path / "log.parquet")
    raw = config_of(tmp_path / "log.parquet", "tab")
    reports = [run(tmp_path, raw, workers=n, data__random={"column": "is_random"}) for n in (1, 4)]
    told = [json.dumps([r.tables, {k: str(vars(m)) for k, m in r.metrics.items()}]) for r in reports]
    assert told[0] == told[1]


# Verdicts


def test_a_calibration_that_fails_clearly_is_no_mere_caution() -> None:
    fine = Diagnosis(10_000, 1_000, 5_000.0, 3.0, 0.001, 1.0, 0.0, 0.2)
    assert verdict(fine).level is Level.RELIABLE
    assert verdict(replace(fine, fitted=True)).check == "fitted"
    off = verdict(replace(fine, fitted=True, calibration_error=0.3, calibration_z=12.0))
    assert (off.level, off.check) == (Level.UNRELIABLE, "calibration")
    assert "30% of what was shown" in off.reason
    assert verdict(replace(fine, fitted=True, slice_z=5.0)).level is Level.UNRELIABLE


# Published logs


def kuairand_rows(rows: int, seed: int, random: bool) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    columns = {name: np.zeros(rows, np.int64) for name in formats.KUAIRAND_COLUMNS}
    columns |= {"user_id": rng.integers(200, size=rows), "tab": rng.integers(3, size=rows)}
    liked = np.minimum(rng.geometric(0.25, rows) - 1, 9)
    columns["video_id"] = 100 + (rng.integers(10, size=rows) if random else (liked + columns["tab"]) % 10)
    click = rng.random(rows) < 0.1 + 0.05 * ((columns["video_id"] + columns["tab"]) % 10)
    columns |= {
        "is_click": click.astype(np.int64),
        "play_time_ms": 1_000 * click,
        "is_rand": np.full(rows, int(random)),
    }
    return pl.DataFrame(columns)


@pytest.mark.parametrize("version", ["pure", "27k"])
def test_kuairands_standard_log_beside_its_random_slice(version: str, tmp_path: Path) -> None:
    folder = tmp_path / "kuairand"
    folder.mkdir()
    parts = ["_part1", "_part2"] if version == "27k" else [""]
    for seed, base in enumerate(formats.KUAIRAND_LOGS["standard"]):
        for part in parts:
            kuairand_rows(3_000, seed + len(part), False).write_csv(folder / f"{base}_{version}{part}.csv")
    kuairand_rows(3_000, 9, True).write_csv(folder / f"log_random_4_22_to_5_08_{version}.csv")
    data = {"format": "kuairand", "path": str(folder), "version": version, "logged_by": "standard"}
    data |= {"signals": ["is_click", "play_time_ms"], "random_slice": True}
    raw = {"recipe": "recsys.ope", "data": data, "policy": {"target": ["uniform", "popularity"]}}
    found = run(tmp_path, {**raw, "behavior": {"columns": ["tab"], "folds": 4}})
    assert found.metrics["rows"].value == 6_000 * len(parts)
    assert found.metrics["is_click/uniform/snips"].n == 200
    assert all(abs(row["z"]) < 4 for row in found.tables["random_slice_differences"])
    assert {row["source"] for row in found.tables["random_slice"]} == {"fitted", "random"}
    assert len(found.tables["sensitivity"]) == 2 * 2 * 3
    with pytest.raises(InputError, match="no propensities; a section behavior"):
        resolve(raw, {})


def test_the_config_that_comes_along(tmp_path: Path) -> None:
    found = run(tmp_path, read_yaml(find_config("ope/without_propensities")))
    assert found.metrics["behavior/log_correlation"].value > 0.75
    known = run(
        tmp_path,
        read_yaml(find_config("ope/without_propensities")),
        data__hide_propensity=False,
        data__random_slice=False,
        behavior=None,
    ).metrics["click/random/snips"]
    assert known.low < found.metrics["click/random/snips"].value < known.high
    assert all(abs(row["z"]) < 3 for row in found.tables["random_slice_differences"])


# Bad input


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"behavior": None}, "this log has no propensities; a section behavior"),
        ({"data.columns.propensity": "p"}, "behavior fits propensities, but this log has them"),
        ({"behavior.max_rows": 1_000}, "max_rows is not for model=frequency"),
        ({"behavior.model": "logistic", "behavior.strength": 2}, "strength is not for model=logistic"),
        ({"behavior.odds": [0.5]}, "factors of at least 1"),
        ({"behavior.folds": 2}, "behavior.folds"),
        ({"data.random": {}}, "either path or column"),
        ({"data.random": {"path": "a", "column": "b"}}, "either path or column"),
        ({"data.random_slice": True}, "data.random says which"),
        ({"data.logged_by": "standard"}, "logged_by=standard is for format=kuairand"),
        ({"data.hide_propensity": True}, "hide_propensity is for format=open_bandit"),
    ],
)
def test_configs_that_make_no_sense_are_refused(overrides: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        resolve(config_of(tmp_path / "log.parquet", "tab"), overrides)


@pytest.mark.parametrize(
    ("change", "settings", "told"),
    [
        ({"tab": pl.lit(None, pl.String)}, {}, r"tab, of behavior.columns, missing in 300 rows \(1, 2"),
        ({"mood": pl.lit(float("nan"))}, {"columns": ["mood"]}, "mood, of behavior.columns, missing in 300 rows"),
        ({}, {"columns": ["tabb"]}, "'tabb' .did you mean 'tab'"),
        ({}, {"columns": ["item"]}, "'item' came after"),
        ({"user": pl.lit(1)}, {}, "fall into 1 of them"),
        ({"tab": pl.int_range(pl.len()).cast(pl.String)}, {"model": "logistic"}, "300 different values in the sample"),
        ({"tab": pl.concat_list("mood", "item")}, {}, "must hold one value a row"),
        ({"tab": pl.lit("2024-01-01").str.to_date()}, {"model": "logistic"}, "numbers, text or booleans"),
        ({"mood": pl.lit(float("inf"))}, {"columns": ["mood"], "model": "logistic"}, "infinite"),
    ],
)
def test_logs_that_cannot_be_fitted_are_refused(
    table: pl.DataFrame, change: dict[str, pl.Expr], settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    table.head(300).with_columns(**change).write_parquet(tmp_path / "log.parquet")
    raw = config_of(tmp_path / "log.parquet", *settings.pop("columns", ["tab"]), **settings)
    with pytest.raises(InputError, match=told):
        run(tmp_path, raw)
    assert not (tmp_path / "run1").exists()


def test_models_that_would_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pl.DataFrame({"item": np.arange(20_000), "click": 0.0})
    log = Log(frame.lazy(), Columns("item", ("click",)))
    with pytest.raises(InputError, match=r"max_rows to at most 838, or take model=frequency"):
        fitted_propensities.fit(log, BehaviorConfig(model="logistic", columns=()))
    monkeypatch.setattr("recsys.models.propensity_frequency.MOST_COUNTS", 10_000)
    with pytest.raises(InputError, match="more than 10,000 different cells"):
        fitted_propensities.fit(log, BehaviorConfig(columns=()))


def test_what_says_nothing_changes_nothing_and_is_told(table: pl.DataFrame) -> None:
    part = table.head(2_000).with_columns(same=pl.lit(3.0))
    constant, none = (fitted_propensities.fit(log_of(part), BehaviorConfig(columns=c)) for c in (("same",), ()))
    np.testing.assert_allclose(one(constant.log).propensity, one(none.log).propensity)
    assert any("no more than how often" in note for note in fitted_propensities.notes(constant, 0))
    logistic = fitted_propensities.fit(log_of(part), BehaviorConfig(model="logistic", columns=("same",)))
    assert np.isfinite(one(logistic.log).propensity).all()


def test_contexts_seen_once_get_all_rows_frequencies_and_are_told(table: pl.DataFrame) -> None:
    part = table.head(2_000).with_columns(each=pl.int_range(pl.len()))
    fitted = fitted_propensities.fit(log_of(part), BehaviorConfig(columns=("each",)))
    share = part["item"].value_counts().sort("item")["count"].to_numpy() / 2_000
    np.testing.assert_allclose(one(fitted.log).propensity, share[part["item"].to_numpy()], rtol=0.1)
    assert any("in their own fold only" in note for note in fitted_propensities.notes(fitted, 0))


def test_no_propensity_is_below_one_showing(table: pl.DataFrame) -> None:
    part = table.head(2_000).with_columns(item=pl.when(pl.int_range(pl.len()) == 7).then(77).otherwise("item"))
    log = Log(part.lazy(), TABLE, Catalog.numbered(1_000))
    fitted = fitted_propensities.fit(log, BehaviorConfig(columns=("tab",)))
    assert one(fitted.log).propensity[7] == 1 / 2_000
    found = evaluate(fitted.log, [uniform(log)], intervals=IntervalsConfig(method="t"))
    told = fitted_propensities.findings(fitted, [uniform(log)], found)
    assert told.metrics["behavior/floored"].value == 1
    assert any("1 fitted propensities below 0.0005" in row["note"] for row in told.tables["notes"])


def test_an_estimate_without_propensities_is_refused(table: pl.DataFrame) -> None:
    log = log_of(table.head(50))
    with pytest.raises(InputError, match="has no propensities"):
        evaluate(log, [uniform(log)], intervals=IntervalsConfig(method="t"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"column": "tabb"}, "'tabb'"),
        ({"column": "tab"}, "true and false"),
        ({"column": "all"}, "some rows as random and others not"),
        ({"column": "holes"}, "some rows as random and others not"),
        ({"path": "nowhere.parquet"}, "no log nowhere.parquet"),
    ],
)
def test_slices_that_are_none_are_refused(
    table: pl.DataFrame, settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    holes = pl.when(pl.int_range(pl.len()) > 5).then(pl.col("is_random"))
    part = table.head(300).with_columns(all=pl.lit(True), holes=holes)
    part.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match=told):
        run(tmp_path, config_of(tmp_path / "log.parquet", "tab"), data__random=settings)
