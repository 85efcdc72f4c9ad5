"""The oracle recipes from the command line: what they report, and one paragraph for what is no problem."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marl.output.report import Report
from recsys.problems.base import PROBLEMS, judge
from recsys.problems.sequential import UNBIASED
from tests.marl.commands.test_cli import concord

Tables = dict[str, Any]
FILES = {name: json.loads((PROBLEMS / f"{name}.json").read_text()) for name in ("sequential", "slate")}
QUICK = ["replications=20", "--out"]


def with_tables(folder: Path, name: str, change: Callable[[Tables], Any]) -> str:
    """data.path= of a copy of the problem, changed in place."""
    tables = json.loads(json.dumps(FILES[name]))
    change(tables)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(tables))
    return f"data.path={path}"


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, *words: str, quick: str = "replications=20"
) -> Report:
    out = ("--out", folder / "out")
    assert concord("run", f"ope/{name}_oracle", *words, quick, *out, monkeypatch=monkeypatch) == 0
    return Report.load(folder / "out" / "report.json")


def test_the_sequential_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[Any]
) -> None:
    report = run(tmp_path, monkeypatch, "sequential", "trajectories=500")
    value = {name: metric.value for name, metric in report.metrics.items()}
    assert value["sequential/truth"] == pytest.approx(2.426734914315522, rel=1e-12)
    assert all(abs(value[f"sequential/{name}/z"]) < 4 for name in UNBIASED)
    assert value["sequential/unbiased/max_abs_z"] == max(abs(value[f"sequential/{name}/z"]) for name in UNBIASED)
    assert abs(value["sequential/dm/z"]) > 4
    assert value["sequential/dr_exact_q/variance_ratio"] < 1
    assert value["sequential/fqe/gap_to_dp"] < 1e-8
    rows = {row["estimator"]: row for row in report.tables["estimators"]}
    assert rows["pdis"].keys() == {"estimator", "truth", "mean", "z", "rmse", "variance", "unbiased"}
    assert value["sequential/pdis/variance"] == rows["pdis"]["variance"]
    assert "pdis" in capsys.readouterr().out


def test_ncis_is_reported_biased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(tmp_path, monkeypatch, "sequential", quick="replications=100")
    assert abs(report.metrics["sequential/ncis/z"].value) > 4
    found, limit = report.metrics["sequential/ncis/mean"], report.metrics["sequential/ncis/limit_bias"].value
    assert limit < -0.03
    assert found.value - 2.426734914315522 == pytest.approx(limit, abs=2 * (found.high - found.low))


def test_the_slate_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {name: metric.value for name, metric in run(tmp_path, monkeypatch, "slate").metrics.items()}
    for name in ("sips", "rips", "cascade_dr"):
        assert abs(value[f"slate/{name}/gap"]) < 1e-12
    assert value["slate/iips/gap"] == pytest.approx(0.992655 - 0.953055854, abs=1e-6)
    assert value["slate/pseudo_inverse/gap"] == pytest.approx(0.967588 - 0.953055854, abs=1e-6)
    assert abs(value["slate/sips/sd_gap_to_file"]) < 1e-12
    assert abs(value["slate/sn_rips/z"]) < 4
    assert value["slate/sn_iips/z"] > 4


def test_a_problem_of_other_size_without_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two states, two actions, three steps; rewards that are sure; a pair that neither policy takes."""

    def shrink(tables: Tables) -> None:
        for name in ("value", "q", "v"):
            del tables[name]
        tables |= {
            "transition": [[[0, 1], [1, 0]], [[0.5, 0.5], [0, 1]]],
            "reward_mean": [[1, 0], [0, 1]],
            "start": [1, 0],
            "horizon": 3,
            "discount": 1,
            "logging": [[0.5, 0.5], [1, 0]],
            "target": [[0.9, 0.1], [1, 0]],
        }

    value = run(tmp_path, monkeypatch, "sequential", with_tables(tmp_path, "sequential", shrink)).metrics
    # From state 0: reward .9, then .9 in state 1, .1 in state 0, …
    second = 0.1 * 0.9
    third = (0.9 * 0.5 + 0.1 * 0.1) * 0.9
    assert value["sequential/truth"].value == pytest.approx(0.9 + second + third)
    assert value["sequential/unbiased/max_abs_z"].value < 5


def test_equal_seeds_give_equal_numbers_and_others_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        tables.append(run(folder, monkeypatch, "sequential", f"seed={seed}", "trajectories=50").tables)
    assert tables[0] == tables[1] != tables[2]


def test_a_finished_run_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path, monkeypatch, "slate", "slates=50")
    assert concord("resume", tmp_path / "out", monkeypatch=monkeypatch) == 0
    assert Report.load(tmp_path / "out" / "report.json").metrics == first.metrics


def test_estimates_that_do_not_vary_are_the_truth_or_infinitely_far() -> None:
    assert judge(np.full(5, 2.0), 2.0)["z"] == 0
    assert judge(np.full(5, 2.1), 2.0)["z"] == np.inf


def unequal(tables: Tables) -> None:
    tables["transition"][0][0] = [1.0]


def unsupported(tables: Tables) -> None:
    tables["logging"][2] = [1.0, 0.0, 0.0]


def hidden(tables: Tables) -> None:
    tables["logging"][1] = [1.0, 0.0, 0.0, 0.0]


BAD: list[tuple[str, Callable[[Tables], Any], str]] = [
    ("sequential", lambda t: [t.pop("start"), t.pop("target")], "lacks start and target"),
    ("sequential", unequal, "transition in"),
    ("sequential", lambda t: t.update(transition=t["transition"][:4]), "transition must be [S,A,S] = [5, 3, 5]"),
    ("sequential", lambda t: t.update(logging=t["start"]), "logging must be [S,A] = [5, 3]; got [5]"),
    ("sequential", lambda t: t.update(start=[0.3] * 5), "Every row of start holds probabilities"),
    ("sequential", lambda t: t["target"].__setitem__(1, [0.5, 0.6, -0.1]), "the first being row [1]"),
    ("sequential", lambda t: t["reward_mean"].__setitem__(0, [2.0, 0.0, 0.0]), "chances in [0, 1]"),
    ("sequential", lambda t: t["reward_mean"].__setitem__(0, [None, 0.0, 0.0]), "must hold finite numbers"),
    ("sequential", lambda t: t.update(reward_mean={"a": 1}), "reward_mean in"),
    ("sequential", lambda t: t.update(horizon=2.5), "horizon is the number of steps"),
    ("sequential", lambda t: t.update(discount=1.2), "discount is one number in [0, 1]"),
    ("sequential", unsupported, "takes action 1 in state 2"),
    ("sequential", lambda t: t["value"].update(target=2.0), "value.target, but its tables give another answer"),
    ("sequential", lambda t: t["q"][0][0].__setitem__(0, 9.0), "leave q out"),
    ("slate", lambda t: t.pop("slot_reward"), "lacks slot_reward"),
    ("slate", lambda t: t.update(slates=t["slates"][:60]), "every slate once"),
    ("slate", lambda t: t["slates"].__setitem__(0, [1, 1, 1]), "each of the 64 slates once"),
    ("slate", lambda t: t["slates"].__setitem__(0, [0, 0, 4]), "numbers of items, 0 to 3"),
    ("slate", lambda t: t["slot_reward"].pop(), "slot_reward must be"),
    ("slate", lambda t: t["logging"].__setitem__(0, [0.5, 0.5, 0.5, 0.5]), "Every row of logging"),
    ("slate", lambda t: t.update(target=t["target"][:2]), "target must be [slots, items] = [3, 4]"),
    ("slate", hidden, "shows item 1 in slot 1"),
    ("slate", lambda t: t.update(truth=0.5), "leave truth out"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD, ids=[message for _, _, message in BAD])
def test_a_file_that_is_no_problem_is_told_in_a_paragraph(
    name: str,
    change: Callable[[Tables], Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[Any],
) -> None:
    words = [f"ope/{name}_oracle", with_tables(tmp_path, name, change), *QUICK, tmp_path / "out"]
    assert concord("run", *words, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.path=nowhere.json"], "There is no problem at nowhere.json"),
        (["data.path=."], "is not a problem in JSON"),
        (["data.path=pyproject.toml"], "is not a problem in JSON"),
        (["env={world: 'envs.particles:SimpleSpread'}"], "Unknown key env"),
        (["train.env_steps=4"], "Unknown key train"),
        (["evaluation.episodes=4"], "Unknown key evaluation"),
        (["compile=true"], "Unknown key compile"),
        (["replications=1"], "replications: expected greater than or equal to 2"),
        (["cap=0"], "cap: expected greater than 0"),
        (["data.file=x"], "Unknown key data.file"),
    ],
    ids=str,
)
def test_bad_settings_are_told_in_a_paragraph(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[Any]
) -> None:
    assert concord("run", "ope/sequential_oracle", *words, "--out", tmp_path / "out", monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
