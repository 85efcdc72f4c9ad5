"""Sessions of a user's own log, from the config to estimates with intervals and verdicts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_sequences import ORACLE, right

from envs.core import InputError
from marl.__main__ import main
from marl.commands.run import run_training
from marl.config.catalog import find_config
from marl.config.load import read_yaml, resolve
from marl.output.report import Report
from recsys.build import make_policies
from recsys.logs.config import DataConfig
from recsys.logs.log import Chunk
from recsys.sequential import estimators
from recsys.sequential.estimators import Trajectories
from recsys.sequential.evaluate import FOLDS
from recsys.sequential.log import read_sessions
from recsys.sequential.tabular import TabularLog, fqe, looked_up
from recsys.sessions import judge, open_log, problem_of

SHIPPED = read_yaml(find_config("ope/sessions"))
GAMMA = 0.95
T_INTERVALS = {"intervals.method": "t"}


def ran(folder: Path, raw: dict[str, Any] = SHIPPED, **overrides: Any) -> Report:
    quick = {"intervals.replications": 100, **{key.replace("__", "."): value for key, value in overrides.items()}}
    found = run_training(resolve(raw, quick), folder / f"run{len(list(folder.iterdir()))}")
    return found


def table_config(path: Path, **columns: Any) -> dict[str, Any]:
    named = {"episode": "visit", "step": "n", "action": "item", "rewards": ["click", "watch"], "propensity": "p"}
    data = {"format": "table", "path": str(path), "columns": {**named, **columns}, "actions": 3}
    return {"recipe": "recsys.sessions", "data": data, "policy": {"target": "uniform"}, "discount": [0.9, 1.0]}


def steps(sessions: int = 60, seed: int = 0) -> pl.DataFrame:
    """Sessions of one to five steps in the exact problem's states, two signals, three sessions a user, rows mixed."""
    rng = np.random.default_rng(seed)
    log = ORACLE.draw(sessions, rng)
    happened = np.arange(5) < rng.integers(1, 6, sessions)[:, None]
    visit, n = (x[happened] for x in np.indices(happened.shape))
    state, action = log.state[happened], log.action[happened]
    columns = {"visit": [f"v{i:03d}" for i in visit], "n": n + 1, "item": action, "p": ORACLE.logging[state, action]}
    columns |= {"click": log.reward[happened][:, 0], "watch": rng.normal(size=len(n)), "user": visit // 3}
    scores = {f"score{a}": x for a, x in enumerate(np.log(ORACLE.target)[state].T)}
    table = pl.DataFrame({**columns, "state": [f"s{s}" for s in state], **scores})
    return table.sample(fraction=1.0, shuffle=True, seed=seed)


def written(table: pl.DataFrame, folder: Path) -> Path:
    path = folder / "steps.parquet"
    table.write_parquet(path)
    return path


def padded(table: pl.DataFrame) -> tuple[Trajectories, TabularLog, np.ndarray]:
    """Of the table, by hand: the log under the target of the exact problem, and each session's user."""
    groups = table.sort("visit", "n").partition_by("visit", maintain_order=True)
    shape = (len(groups), max(len(g) for g in groups))
    weight, reward, mask = np.ones(shape), np.zeros((*shape, 2)), np.zeros(shape, bool)
    state, action = np.zeros((2, *shape), np.int64)
    for i, g in enumerate(groups):
        here = slice(0, len(g))
        state[i, here], action[i, here] = [int(s[1:]) for s in g["state"]], g["item"]
        weight[i, here] = ORACLE.target[state[i, here], action[i, here]] / g["p"].to_numpy()
        reward[i, here], mask[i, here] = g.select("click", "watch").to_numpy(), True
    users = np.array([g["user"][0] for g in groups])
    return Trajectories.of(weight, reward, mask), TabularLog.of(state, action, reward, mask, 5, 3), users


def by_hand(log: Trajectories, table: TabularLog, cluster: np.ndarray, gamma: Any) -> dict[str, np.ndarray]:
    """Every estimate from the functions of `recsys.sequential.estimators` and `recsys.sequential.tabular`."""
    target = ORACLE.target
    fold = np.unique(cluster, return_inverse=True)[1] % FOLDS
    q_logged, value = np.zeros((2, *log.reward.shape))
    for k in range(FOLDS):
        a, b = (
            [x[rows] for x in (table.state, table.action, table.reward, table.mask)] for rows in (fold != k, fold == k)
        )
        q = fqe(TabularLog.of(*a, 5, 3), target, gamma)
        q_logged[fold == k], value[fold == k] = looked_up(q, target, TabularLog.of(*b, 5, 3))
    names = ("tis", "wis", "pdis", "cwpdis", "ncis")
    found = {name: getattr(estimators, name)(log, gamma) for name in names}
    found |= {name: getattr(estimators, name)(log, q_logged, value, gamma) for name in ("seq_dr", "wdr", "magic")}
    found["fqe"] = looked_up(fqe(table, target, gamma), target, table)[1][:, 0]
    return {name: x.mean(0) for name, x in found.items()}


def test_the_shipped_config_gives_what_the_functions_give_beside_the_truth(tmp_path: Path) -> None:
    report = ran(tmp_path, data__sessions=400)
    drawn = ORACLE.draw(400, np.random.default_rng(0))
    for name, value in by_hand(right(ORACLE, drawn), drawn, np.arange(400), GAMMA).items():
        assert report.metrics[f"reward/softmax/{name}"].value == pytest.approx(value[0], abs=1e-12), name
    assert report.metrics["reward/softmax/truth"].value == pytest.approx(ORACLE.value(ORACLE.target), abs=1e-12)
    uniform = np.full_like(ORACLE.target, 1 / 3)
    assert report.metrics["reward/uniform/truth"].value == pytest.approx(ORACLE.value(uniform), abs=1e-12)
    assert (tmp_path / "run0" / "report.html").exists()
    endless = {name for name in names_of(report, "softmax") if np.isinf(report.metrics[f"reward/softmax/{name}"].low)}
    assert endless == {"fqe", "magic"}
    (note,) = (row["note"] for row in report.tables["notes"] if "no interval" in row["note"])
    assert "no interval of fqe, magic" in note
    told = {row["estimator"]: row["truth"] for row in report.tables["recommendations"] if row["policy"] == "softmax"}
    assert list(told.values()) == [pytest.approx(ORACLE.value(ORACLE.target))]


def names_of(report: Report, policy: str) -> list[str]:
    names = [row["estimate"].rpartition("/") for row in report.tables["verdicts"]]
    return [name for place, _, name in names if place.endswith(f"/{policy}")]


def test_intervals_hold_the_truth() -> None:
    config = resolve(SHIPPED, {**T_INTERVALS, "policy.target": "softmax", "data.sessions": 500})
    held = dict.fromkeys(("pdis", "cwpdis", "seq_dr", "wdr"), 0)
    for seed in range(50):
        asked = config.model_copy(update={"seed": seed})
        log = open_log(asked, problem_of(asked))
        policies = make_policies(DataConfig(), asked.policy, log)
        metrics = judge(asked, read_sessions(log), policies).metrics
        for name in held:
            metric = metrics[f"reward/softmax/{name}"]
            held[name] += metric.low <= ORACLE.value(ORACLE.target) <= metric.high
    assert min(held.values()) >= 45, held


def test_own_sessions_of_unequal_length_several_signals_and_users(tmp_path: Path) -> None:
    table = steps()
    raw = table_config(written(table, tmp_path), user="user", state="state")
    raw["policy"] = {"target": ["softmax", "uniform"], "scores": "score"}
    report = ran(tmp_path, raw)
    log, tabular, users = padded(table)
    gamma = np.array([0.9, 1.0])
    for name, value in by_hand(log, tabular, users, gamma).items():
        for k, signal in enumerate(("click", "watch")):
            assert report.metrics[f"{signal}/softmax/{name}"].value == pytest.approx(value[k], abs=1e-12), name
    own = estimators.discounted(log.reward, gamma).mean(0)
    assert [report.metrics[f"{s}/logged"].value for s in ("click", "watch")] == pytest.approx(own.tolist())
    counts = {name: report.metrics[name].value for name in ("sessions", "steps", "clusters")}
    assert counts == {"sessions": 60, "steps": len(table), "clusters": 20}
    pairs = {(row["policy"], row["against"]) for row in report.tables["differences"]}
    assert pairs == {("softmax", "logged"), ("uniform", "logged"), ("uniform", "softmax")}
    (row,) = [
        row
        for row in report.tables["differences"]
        if (row["signal"], row["against"], row["estimator"]) == ("watch", "softmax", "wdr")
    ]
    a, b = (report.metrics[f"watch/{policy}/wdr"].value for policy in ("uniform", "softmax"))
    assert row["value"] == pytest.approx(a - b)
    assert {row["verdict"] for row in report.tables["verdicts"]} == {"UNRELIABLE"}  # 60 sessions
    assert {row["estimator"] for row in report.tables["recommendations"]} == {None}


def test_users_are_the_clusters_of_intervals(tmp_path: Path) -> None:
    """Three copies of each session under one user: as wide as one copy of each alone, and not by √3 narrower."""
    once = steps(300)
    copies = [
        once.with_columns(pl.col("visit") + f"-{c}", user=pl.col("visit").str.slice(1).cast(pl.Int64)) for c in "abc"
    ]
    path = written(pl.concat(copies), tmp_path)
    width = {}
    for user in ("user", None):
        metric = ran(tmp_path, table_config(path, user=user), **{"intervals__method": "t"}).metrics[
            "click/uniform/pdis"
        ]
        width[user] = metric.high - metric.low
    assert width["user"] / width[None] == pytest.approx(3**0.5, rel=0.01)


def test_many_sessions_without_users_are_dealt_into_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = table_config(written(steps(600), tmp_path))
    alone = ran(tmp_path, raw, intervals__method="t").metrics
    monkeypatch.setattr("recsys.sequential.log.ROW_CLUSTERS", 128)
    dealt = ran(tmp_path, raw, intervals__method="t").metrics
    assert (alone["clusters"].value, dealt["clusters"].value) == (600, 128)
    one, other = (found["click/uniform/pdis"] for found in (alone, dealt))
    assert other.value == pytest.approx(one.value)
    assert other.high - other.low == pytest.approx(one.high - one.low, rel=0.25)


def test_without_states_only_weights_are_used_and_steps_are_told(tmp_path: Path) -> None:
    report = ran(tmp_path, table_config(written(steps(), tmp_path)))
    assert {row["estimator"] for row in report.tables["differences"]} == {"tis", "wis", "pdis", "cwpdis", "ncis"}
    told = report.tables["steps"]
    assert [row["step"] for row in told] == [0, 1, 2, 3, 4]
    assert told[0]["sessions"] == 60
    assert told[-1]["ess"] == pytest.approx(report.metrics["click/uniform/ess"].value)
    with pytest.raises(InputError, match=r"wdr needs data\.columns\.state"):
        ran(tmp_path, table_config(Path("x")), estimators__names=["wdr"])


def by_its_state(rows: Chunk) -> np.ndarray:
    """A policy of one's own that reads the state."""
    return ORACLE.target[[int(s[1:]) for s in rows.context["state"]]]


def test_a_function_of_ones_own_sees_the_state(tmp_path: Path) -> None:
    raw = table_config(written(steps(), tmp_path), state="state")
    raw["policy"] = {"target": ["softmax", f"{__name__}:by_its_state"], "scores": "score"}
    found = ran(tmp_path, raw).metrics
    for name in ("pdis", "fqe", "magic"):
        assert found[f"click/by_its_state/{name}"].value == pytest.approx(found[f"click/softmax/{name}"].value)


def test_what_was_learned_from_this_log_is_judged_by_the_sessions_of_other_users(tmp_path: Path) -> None:
    raw = table_config(written(steps(200), tmp_path), user="user", state="state")
    columns = {key: value for key, value in raw["data"]["columns"].items() if key != "state"}
    scores = [f"score{a}" for a in range(3)]
    learn = {"data": {**raw["data"], "columns": columns, "context": scores}, "train": {"env_steps": 5_000}}
    quick = {"intervals": {"method": "t"}, "learner": {"weights": [1.0, 0.0]}}
    run_training(resolve({"recipe": "recsys.learn", **learn, **quick}, {}), tmp_path / "learned")
    raw["policy"] = {"target": f"run:{tmp_path / 'learned'}"}
    report = ran(tmp_path, raw, data__context=scores)
    found = report.metrics
    assert "no policy here was learned" in report.tables["notes"][-1]["note"]
    assert 15 < found["clusters"].value < 55  # about half of 67 users
    assert np.isfinite(found["click/learned/wdr"].value)
    with pytest.raises(InputError, match=r"evaluated on the sessions of the other users"):
        ran(tmp_path, raw, data__columns__user=None)


def broken(what: str) -> tuple[pl.DataFrame, str]:
    """A table with something wrong, and the row number that must be told."""
    table = steps().with_row_index("row")
    row = table.filter((pl.col("n") == 2) & (pl.col("visit") != "v000")).row(0, named=True)
    at = pl.col("row") == row["row"]
    changed = {
        "gap": table.with_columns(n=pl.when(at).then(9).otherwise(pl.col("n"))),
        "late": table.with_columns(n=pl.when(pl.col("visit") == row["visit"]).then(pl.col("n") + 1).otherwise("n")),
        "twice": table.with_columns(n=pl.when(at).then(1).otherwise(pl.col("n"))),
        "state": table.with_columns(state=pl.when(at).then(None).otherwise("state")),
        "user": table.with_columns(user=pl.when(at).then(999).otherwise("user")),
        "p": table.with_columns(p=pl.when(at).then(0.0).otherwise("p")),
        "kind": table.with_columns(pl.col("n").cast(pl.String)),
        "column": table.rename({"visit": "visits"}),
    }[what]
    return changed.drop("row"), str(row["row"] + 1)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("gap", "n not one more than in the step before"),
        ("late", "or not 1 in the first of a session"),
        ("twice", "visit and n as in an earlier row"),
        ("state", "state missing in 1 row"),
        ("user", "user other than in the first step of the session"),
        ("p", r"p not in \(0, 1\]"),
        ("kind", "Column 'n' .* must hold the number of the step"),
        ("column", r"Missing columns: 'visit' \(did you mean 'visits'\?\)"),
    ],
)
def test_what_is_no_session_is_refused_with_its_row(what: str, message: str, tmp_path: Path) -> None:
    table, row = broken(what)
    raw = table_config(written(table, tmp_path), user="user", state="state")
    with pytest.raises(InputError, match=message) as caught:
        ran(tmp_path, raw)
    if what in ("state", "user", "p"):
        assert f"({row})" in str(caught.value)
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.columns.propensity": None}, "propensity"),
        ({"data.format": "oracle"}, "columns and actions are for format=table"),
        ({"data.sessions": 5}, "sessions is for format=oracle"),
        ({"discount": [0.9, 0.9, 0.9]}, "one for each of 2 signals"),
        ({"discount": 1.5}, r"one number in \[0, 1\]"),
        ({"estimators.names": ["dr"]}, "expected tis, wis"),
        ({"policy.target": "bts"}, "bts is not known of sessions"),
        ({"intervals.method": "hoeffding"}, "bootstrap"),
    ],
)
def test_configs_that_mean_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(table_config(Path("steps.parquet")), change)


def test_a_log_too_long_to_hold_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.sequential.log.MOST", 100)
    with pytest.raises(InputError, match="Sessions are held in memory"):
        ran(tmp_path, table_config(written(steps(), tmp_path)))


def test_the_command_prints_what_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["policy.target=softmax", "intervals.replications=100"]
    monkeypatch.setattr(sys, "argv", ["concord", "run", "ope/sessions", *small, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="0"):
        main()
    printed = capsys.readouterr().out
    assert "weights of the way to each step" in printed
    assert "reward: softmax. Read" in printed
    assert "softmax  +0.35" in printed


def test_intervals_of_sessions_follow_the_seed(tmp_path: Path) -> None:
    raw = table_config(written(steps(), tmp_path))
    one, again, other = (ran(tmp_path, raw, seed=seed).metrics["click/uniform/pdis"] for seed in (0, 0, 1))
    assert one == again
    assert one.value == other.value
    assert one.high != other.high


def test_the_truth_is_discounted_as_the_estimates_are(tmp_path: Path) -> None:
    metrics = ran(tmp_path, discount=0.5, data__sessions=50).metrics
    problem = replace(ORACLE, discount=0.5)
    assert metrics["reward/softmax/truth"].value == pytest.approx(problem.value(ORACLE.target), abs=1e-12)
    assert metrics["reward/truth"].value == pytest.approx(problem.value(ORACLE.logging), abs=1e-12)
