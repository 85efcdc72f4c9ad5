"""`concord run recsys/neural_tscac`: both stages by networks, judged by the process, resumed and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from marl.learning.batch import Batch
from marl.learning.offline_actor_critic import LoggedActorCritic
from marl.output.report import Report
from tests.marl.commands.test_cli import concord

FEW = ("transitions=2000", "train.env_steps=2048", "closeness=[1,0.1]")


def learned(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: Any) -> Report:
    assert concord("run", "recsys/neural_tscac", *words, "--out", folder, monkeypatch=monkeypatch) == 0
    return Report.load(folder / "report.json")


def test_networks_come_near_the_fixed_point_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["transitions=50000", "train.env_steps=409600", "closeness=[0.3]"]
    for stage in ("stage_one", "stage_two"):
        quick = {"rows": 1024, "learning_rate": 0.01, "critic_learning_rate": 0.01, "averaging": 0.1}
        words += [f"{stage}.{name}={value}" for name, value in quick.items()]
    report = learned(tmp_path / "run", monkeypatch, *words)
    value = {name: metric.value for name, metric in report.metrics.items()}
    assert value["λ=0.3/gap_main"] < 0.05
    assert value["λ=0.3/gap_auxiliary_1"] < 0.05
    assert value["λ=0.3/gap_auxiliary_2"] < 0.06
    assert value["λ=0.3/off_own_optimum"] < 0.1
    (row,) = report.tables["policies"]
    assert row["main"] == value["λ=0.3/main"]


def test_a_path_of_closeness_is_one_fit_and_each_policy_is_as_if_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = learned(tmp_path / "both", monkeypatch, *FEW)
    first = learned(tmp_path / "first", monkeypatch, *FEW[:2], "closeness=[1]")
    assert [row["policy"] for row in both.tables["policies"]] == ["λ=1", "λ=0.1"]
    assert both.metrics["λ=1/main"].value == pytest.approx(first.metrics["λ=1/main"].value, rel=1e-4)
    assert both.metrics["λ=0.1/main"].value != both.metrics["λ=1/main"].value


def weights(folder: Path, stage: str) -> bytes:
    """All tensors of a stage's last checkpoint."""
    return max((folder / "checkpoints" / stage).iterdir()).joinpath("tensors.safetensors").read_bytes()


@pytest.mark.parametrize("update", [3, 7])
def test_a_run_that_is_killed_in_either_stage_goes_on_to_equal_bytes(
    update: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*FEW, "train.save_seconds=0")  # four updates of each stage
    whole = learned(tmp_path / "whole", monkeypatch, *words)
    learn, calls = LoggedActorCritic.update, iter(range(1, 100))

    def killed(self: LoggedActorCritic, batch: Batch) -> dict[str, Tensor]:
        if next(calls) == update:
            raise KeyboardInterrupt
        return learn(self, batch)

    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(LoggedActorCritic, "update", killed)
        assert concord("run", "recsys/neural_tscac", *words, "--out", cut, monkeypatch=monkeypatch) != 0
    assert not (cut / "report.json").exists()
    assert concord("resume", cut, monkeypatch=monkeypatch) == 0
    assert Report.load(cut / "report.json").tables == whole.tables
    for stage in ("auxiliary", "main"):
        assert weights(cut, stage) == weights(tmp_path / "whole", stage)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("closeness=[0]",), "closeness"),
        (("closeness=[]",), "closeness"),
        (("stage_one_temperature=0",), "stage_one_temperature"),
        (("stage_one.policy.kind=gru",), "remember"),
        (("stage_two.learning_rte=1",), "learning_rte"),
        (("data.path=nowhere.json",), "There is no problem at nowhere.json"),
        (("transitions=0",), "transitions"),
    ],
)
def test_what_means_nothing_here_is_refused(
    words: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert concord("run", "recsys/neural_tscac", *FEW, *words, "--out", tmp_path / "run", monkeypatch=monkeypatch) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
