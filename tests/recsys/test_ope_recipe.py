"""From a config to a table of estimates with intervals and verdicts."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_logs import ACTIONS, frame, table_config, written

from envs.core import InputError
from marl.__main__ import main
from marl.commands.run import run_training
from marl.config.catalog import find_config
from marl.config.load import read_yaml, resolve
from marl.output.report import Report
from recsys.logs.log import Chunk

PEER = json.loads((Path(__file__).parent.parent / "fixtures" / "expected_obp_0.5.7.json").read_text())
OPEN_BANDIT = read_yaml(find_config("ope/open_bandit"))
SAME = {"ipw": "ips", "snipw": "snips", "dm": "dm", "dr": "dr", "sndr": "sndr", "ipw_cap10": "capped_ips"}
SAME |= {"dr_cap10": "capped_dr", "switch_dr_10": "switch_dr", "dros_10": "dros"}


def ran(tmp_path: Path, raw: dict[str, Any] = OPEN_BANDIT, **overrides: Any) -> Report:
    quick = {"intervals.replications": 200}
    config = resolve(raw, {**quick, **{key.replace("__", "."): value for key, value in overrides.items()}})
    folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
    found = run_training(config, folder)
    assert Report.load(folder / "report.json").metrics == found.metrics
    return found


@pytest.mark.parametrize("case", PEER["cases"])
def test_the_config_gives_the_reference_values(case: str, tmp_path: Path) -> None:
    campaign, logged_by, target = re.split(":|->", case)
    found = ran(tmp_path, data__campaign=campaign, data__logged_by=logged_by, policy__target=target).metrics
    expected = PEER["cases"][case]
    for peer, ours in SAME.items():
        assert found[f"click/{target}/{ours}"].value == pytest.approx(expected["values"][peer], rel=1e-10), ours
    assert found[f"click/{target}/ncis"].value == pytest.approx(expected["ncis10"], rel=1e-10)
    assert found["ess"].value == found[f"click/{target}/ess"].value == pytest.approx(expected["ess"], rel=1e-10)
    assert found["max_weight"].value == pytest.approx(expected["w_max"], rel=1e-10)
    assert found["click/logged"].value == pytest.approx(expected["mean_reward"], rel=1e-10)


def test_intervals_hold_the_estimate_and_follow_the_seed_and_the_method(tmp_path: Path) -> None:
    found = {seed: ran(tmp_path, seed=seed).metrics["click/bts/dr"] for seed in (0, 1)}
    again = ran(tmp_path, workers=1).metrics["click/bts/dr"]
    assert found[0] == again
    assert found[0].value == found[1].value
    assert found[0].high != found[1].high
    student = ran(tmp_path, intervals__method="t").metrics["click/bts/dr"]
    assert found[0].low < found[0].value < found[0].high
    assert found[0].low <= student.low < student.high < found[0].high  # a few clicks weigh most
    wide = ran(tmp_path, intervals__method="t", intervals__level=0.99).metrics["click/bts/dr"]
    assert wide.low < student.low < student.high < wide.high


def test_what_a_log_cannot_tell_is_called_unreliable_and_what_it_can_is_not(tmp_path: Path) -> None:
    bad = ran(tmp_path, data__campaign="women", data__logged_by="bts", policy__target="random")
    assert {row["verdict"] for row in bad.tables["verdicts"]} == {"UNRELIABLE"}
    assert "effective sample of 2.1 of 10,000 rows" in bad.tables["verdicts"][0]["reason"]
    good = ran(tmp_path)
    assert "UNRELIABLE" not in {row["verdict"] for row in good.tables["verdicts"]}


def test_a_table_of_several_signals_users_and_segments_for_several_policies(tmp_path: Path) -> None:
    path = written(frame(400), tmp_path / "log.parquet")
    raw = table_config(path, user="user")
    raw["data"]["segments"] = ["tab"]
    raw["policy"] = {"target": ["uniform", "popularity", "softmax", f"{__name__}:first"], "scores": "score"}
    found = ran(tmp_path, raw)
    for policy in ("uniform", "popularity", "softmax", "first"):
        for signal in ("click", "watch"):
            metric = found.metrics[f"{signal}/{policy}/snips"]
            assert metric.low < metric.value < metric.high
            assert metric.n == frame(400)["user"].n_unique()
    assert "ess" not in found.metrics  # whose?
    segments = found.tables["segments"]
    assert {row["segment"] for row in segments} == {"tab=0", "tab=1"}
    rows = {row["segment"]: row["rows"] for row in segments}
    assert sum(rows.values()) == 400
    table = frame(400)
    ips = float((table["click"] * (table["item"] == 0) / table["p"]).mean())
    assert found.metrics["click/first/ips"].value == pytest.approx(ips, rel=1e-12)
    assert "user" in found.tables["notes"][0]["note"]


def first(rows: Chunk) -> np.ndarray:
    """Always action 0."""
    return np.tile(np.eye(ACTIONS)[0], (len(rows), 1))


def test_chosen_estimators_only(tmp_path: Path) -> None:
    raw = table_config(written(frame(50), tmp_path / "log.csv"))
    found = ran(tmp_path, raw, estimators__names=["dr", "ips"])
    assert {name.split("/")[2] for name in found.metrics if name.startswith("click/uniform")} == {
        *("dr", "ips", "ess", "max_weight", "mean_weight")
    }


def test_what_is_known_of_the_logger_comes_from_the_config(tmp_path: Path) -> None:
    table = frame(300).with_columns(p=pl.lit(0.25), p2=pl.lit(0.5))
    categories = written(pl.DataFrame({"item": range(ACTIONS), "kind": ["a", "b", "a", "b"]}), tmp_path / "kinds.csv")
    raw = table_config(written(table, tmp_path / "log.csv"))
    raw["data"] |= {"logging": "uniform", "categories": str(categories), "loggers": {"p": 0.5, "p2": 0.5}}
    raw["policy"]["target"] = f"{__name__}:first"
    names = ["ips", "mips", "sn_mips", "balanced_ips", "mrdr", "replay"]
    found = ran(tmp_path, raw, estimators__names=names).metrics
    click, even = table["click"].to_numpy(), table["item"].to_numpy() % 2 == 0
    assert found["click/first/mips"].value == pytest.approx((2 * even * click).mean(), rel=1e-12)
    balanced = (table["item"].to_numpy() == 0) * click / 0.375
    assert found["click/first/balanced_ips"].value == pytest.approx(balanced.mean(), rel=1e-12)
    assert found["click/first/replay"].value == pytest.approx(click[table["item"].to_numpy() == 0].mean(), rel=1e-12)
    assert np.isfinite(found["click/first/mrdr"].value)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (None, "no table of categories"),
        (["item", "0", "1", "2", "3"], "it has item only"),
        (["item,kind", "0,a", "1,b", "2,a"], "each of the 4 actions"),
        (["item,kind", "0,a", "1,b", "2,a", "2,b", "3,a"], "each of the 4 actions"),
        (["item,kind", "0,a", "1,", "2,a", "3,b"], "each of the 4 actions"),
    ],
)
def test_tables_of_categories_are_checked(lines: list[str] | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "kinds.csv"
    if lines:
        path.write_text("\n".join(lines) + "\n")
    raw = table_config(written(frame(50), tmp_path / "log.csv"))
    raw["data"] |= {"logging": "uniform", "categories": str(path)}
    with pytest.raises(InputError, match=told):
        ran(tmp_path, raw, estimators__names=["mips"])


def test_kuairands_random_slice(tmp_path: Path) -> None:
    from recsys.logs.formats import KUAIRAND_COLUMNS

    columns = {name: [0, 1, 0, 1] for name in KUAIRAND_COLUMNS} | {"video_id": [3, 4, 3, 9], "user_id": [1, 1, 2, 3]}
    written(pl.DataFrame(columns), tmp_path / "log_random_4_22_to_5_08_pure.csv")
    data = {"format": "kuairand", "path": str(tmp_path), "signals": ["is_click", "is_hate"]}
    found = ran(tmp_path, {"recipe": "recsys.ope", "data": data, "policy": {"target": "popularity"}})
    weight = 7583 * np.array([0.5, 0.25, 0.5, 0.25])
    wanted = (weight * [0, 1, 0, 1]).mean()
    assert found.metrics["is_click/popularity/ips"].value == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"policy.target": "bst"}, "target: expected random.*got 'bst'"),
        ({"policy.target": ["bts", "bts"]}, "names each policy once"),
        ({"policy.target": "softmax"}, "target=softmax and epsilon_greedy need policy.scores"),
        ({"policy.table": "x.csv"}, "target=table needs policy.table"),
        ({"estimators.names": ["dr", "ipw"]}, "estimators.names: expected ips, .*got 'ipw'"),
        ({"estimators.cap": 0}, "estimators.cap"),
        ({"estimators.names": ["sn_mips"]}, "needs data.categories"),
        ({"estimators.names": ["balanced_ips"]}, "needs data.loggers"),
        ({"data.loggers": {"p": 0.5}}, "add up to 1"),
        ({"intervals.method": "hoeffding"}, "need bounds that are known beforehand"),
        ({"intervals.bounds": {"weight": 3}}, "need bounds that are known beforehand"),
        ({"data.campain": "all"}, "Did you mean data.campaign"),
        ({"data.actions": 3}, "actions is for format=table; this is open_bandit"),
        ({"data.format": "table"}, "needs path and columns"),
        ({"data.format": "kuairand"}, "needs path"),
        ({"train.env_steps": 5}, "Unknown key train"),
        ({"env.world": "envs.games:climbing"}, "env"),
    ],
)
def test_configs_that_make_no_sense_are_refused(overrides: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        resolve(OPEN_BANDIT, overrides)


def test_the_command_prints_the_table_and_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["concord", "run", "ope/open_bandit", "intervals.replications=100", "--out", str(tmp_path / "run")]
    )
    with pytest.raises(SystemExit, match="0"):
        main()
    told = capsys.readouterr().out
    assert re.search(r"bts +\+0\.0009.* 0\.0047.*sndr  CAUTION", told)
    assert "click/bts/ips" not in told  # folded away, as is all that is not to be read
    monkeypatch.setattr(sys, "argv", ["concord", "resume", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "sndr  CAUTION" in capsys.readouterr().out


def test_a_bad_log_takes_no_folder_and_is_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(frame(50).with_columns(p=pl.lit(0.0)), tmp_path / "log.csv")
    (tmp_path / "c.yaml").write_text(json.dumps(table_config(path)))
    monkeypatch.setattr(sys, "argv", ["concord", "run", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="2"):
        main()
    told = capsys.readouterr().err
    assert "p not in (0, 1] in 50 rows (1, 2, 3, 4, 5, …): " in told
    assert not (tmp_path / "run").exists()
