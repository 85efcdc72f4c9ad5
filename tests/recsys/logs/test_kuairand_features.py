"""Columns of KuaiRand's files of users and videos, by small files of the published shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from small_logs import COLUMNS, frame

import recsys
from envs.core import InputError
from marl.commands.run import run_training
from marl.config.load import resolve
from recsys.bandit import fitted_propensities
from recsys.logs import formats
from recsys.logs.config import BehaviorConfig

USERS = "user_id,user_active_degree,onehot_feat4\n1,full_active,1.0\n3,,\n"
VIDEOS = 'video_id,video_type,video_duration,tag\n10,NORMAL,87433.0,39\n40,AD,,"8,3"\n7000,NORMAL,5000.0,2\n'


def log_file(folder: Path, base: str, rows: int = 6, users: int = 3) -> None:
    rng = np.random.default_rng(rows)
    columns = {name: np.zeros(rows, np.int64) for name in formats.KUAIRAND_COLUMNS}
    columns |= {
        "user_id": np.arange(rows) % users + 1,
        "video_id": np.array([10, 40, 7000])[np.arange(rows) * 7 // 4 % 3],
    }
    columns |= {"is_click": rng.integers(2, size=rows), "tab": np.arange(rows) % 2}
    pl.DataFrame(columns).write_csv(folder / f"{base}_pure.csv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log_file(tmp_path, *formats.KUAIRAND_LOGS["random"])
    (tmp_path / "user_features_pure.csv").write_text(USERS)
    (tmp_path / "video_features_basic_pure.csv").write_text(VIDEOS)
    return tmp_path


def test_features_that_are_named_are_joined_and_others_are_missing(folder: Path) -> None:
    plain = formats.kuairand(folder, "pure", "random", ("is_click",))
    segments, more = ("user_active_degree", "video_type", "tab"), ("onehot_feat4", "video_duration", "tag")
    log = formats.kuairand(folder, "pure", "random", ("is_click",), segments, more).with_context(more)
    (chunk,), (alone,) = log.chunks(), plain.chunks()
    np.testing.assert_array_equal(chunk.action, alone.action)
    np.testing.assert_array_equal(chunk.cluster, alone.cluster)
    assert chunk.segments["user_active_degree"].tolist() == ["full_active", "missing", "missing"] * 2
    labels = [log.catalog.labels[int(a)] for a in chunk.action]
    assert chunk.segments["video_type"].tolist() == [{10: "NORMAL", 40: "AD", 7000: "NORMAL"}[x] for x in labels]
    np.testing.assert_array_equal(chunk.context["onehot_feat4"], [1, np.nan, np.nan] * 2)
    assert chunk.context["tag"].tolist() == [{10: "39", 40: "8,3", 7000: "2"}[x] for x in labels]
    assert "user_active_degree" not in plain.schema


def test_gzipped_files_are_read_too(folder: Path) -> None:
    (folder / "user_features_pure.csv").unlink()
    pl.DataFrame({"user_id": [1, 2, 3], "degree": ["a", "b", "b"]}).write_csv(
        folder / "user_features_pure.csv.gz", compression="gzip"
    )
    (chunk,) = formats.kuairand(folder, "pure", "random", ("is_click",), ("degree",)).chunks()
    assert chunk.segments["degree"].tolist() == ["a", "b", "b"] * 2


def test_what_is_nowhere_is_told_with_the_files_that_are_not_there(folder: Path) -> None:
    with pytest.raises(InputError, match=r"'user_activ_degree' \(did you mean 'user_active_degree'"):
        formats.kuairand(folder, "pure", "random", ("is_click",), ("user_activ_degree",))
    (folder / "user_features_pure.csv").unlink()
    with pytest.raises(InputError, match=r"which lacks user_features_pure\.csv"):
        formats.kuairand(folder, "pure", "random", ("is_click",), ("user_active_degree",))
    (folder / "user_features_pure.csv").write_text("user_id,degree\n1,a\n1,b\n")
    with pytest.raises(InputError, match="must tell of each user_id once"):
        formats.kuairand(folder, "pure", "random", ("is_click",), ("degree",))


def test_a_run_tells_of_segments_by_activity_with_propensities_by_features(folder: Path) -> None:
    for base in (*formats.KUAIRAND_LOGS["random"], *formats.KUAIRAND_LOGS["standard"]):
        log_file(folder, base, 300, users=40)
    user = np.arange(1, 41)
    features = {"user_id": user, "degree": np.where(user % 2, "full", "low"), "group": user % 3}
    pl.DataFrame(features).write_csv(folder / "user_features_pure.csv")
    data = {"format": "kuairand", "path": str(folder), "logged_by": "standard", "random_slice": True}
    data |= {"signals": ["is_click"], "segments": ["degree"], "context": ["video_type"]}
    raw = {"recipe": "recsys.ope", "data": data, "policy": {"target": "uniform"}, "intervals": {"method": "t"}}
    raw["behavior"] = {"columns": ["group"], "folds": 3}
    found = run_training(resolve(raw, {}), folder / "run")
    assert {row["segment"] for row in found.tables["segments"]} == {"degree=full", "degree=low"}
    assert found.tables["random_slice"]


def test_a_data_frame_without_propensities_is_fitted() -> None:
    table = frame(2000).drop("p")
    for columns in ({}, {"propensity": None}):
        log = recsys.dataframe(table, action="item", rewards=["click"], position="place", user="user", **columns)
        with pytest.raises(InputError, match=r"recsys\.bandit\.fitted_propensities\.fit gives it fitted ones"):
            recsys.evaluate(log, {"even": "uniform"})
    fitted = fitted_propensities.fit(log, BehaviorConfig(columns=("place",)))
    found = recsys.evaluate(fitted.log, {"even": "uniform"})
    assert "RELIABLE" not in {row["verdict"] for row in found.tables["verdicts"]}
    assert "fitted" in {row["check"] for row in found.tables["verdicts"]}
    known = recsys.dataframe(frame(2000), action="item", rewards=["click"], propensity="p", user="user")
    assert COLUMNS.propensity == "p"
    truth = recsys.evaluate(known, {"even": "uniform"}).metrics["click/even/snips"]
    assert found.metrics["click/even/snips"].value == pytest.approx(truth.value, abs=0.05)
