"""The benchmarks of offline evaluation measure what they say. Sizes are tiny here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from envs.core import ConcordError
from marl.bench import SLOW, run_benchmarks
from marl.bench.timing import Effort
from recsys import bench

TINY = Effort(rounds=2, seconds=0.002, updates=1)
SCANS = ("scan_memory", "scan_parquet", "scan_without_users", "scan_mixed_2000", "scan_mixed_100000")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"ROWS": 5000, "FILE_ROWS": 3000, "FILES": 2, "LARGE_FILES": 3, "TRAJECTORIES": 20}
    for name, value in {**sizes, "BOOTSTRAP_ROWS": 3000, "REPLICATIONS": 20, "SOME": "000.parquet"}.items():
        monkeypatch.setattr(bench, name, value)


def test_speeds_and_memory_are_measured_and_the_clock_only_on_an_idle_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    peaks = iter([400.0, 500.0, 400.0, 400.0])
    monkeypatch.setattr(bench, "alone", lambda function, path: {"peak_mb": next(peaks)})
    monkeypatch.setattr(bench, "machine_is_idle", lambda: False)
    found = run_benchmarks("ope", tmp_path, TINY)
    by_cpu = {f"ope/{scan}/{kind}" for scan in SCANS for kind in ("rows_per_cpu_second", "calibrated")}
    by_cpu |= {f"ope/{name}/{kind}" for name in ("pdis", "wdr") for kind in ("steps_per_cpu_second", "calibrated")}
    by_cpu |= {f"ope/bootstrap_{users}/cpu_seconds" for users in (2000, 100000)}
    assert set(found.metrics) == by_cpu | {"ope/scan_peak_mb", "ope/scan_peak_mb_ratio"}
    assert all(metric.value > 0 for metric in found.metrics.values())
    assert found.metrics["ope/scan_peak_mb_ratio"].value == 1.25
    missing = {row["metric"] for row in found.tables["not_measured"]}
    assert {"ope/scan_memory/rows_per_second", "ope/bootstrap_2000/seconds", "ope/pdis/steps_per_second"} <= missing
    monkeypatch.setattr(bench, "machine_is_idle", lambda: True)
    idle = bench.ope(TINY)
    assert set(idle.metrics) - set(found.metrics) == missing
    assert not idle.missing


def test_a_large_log_is_evaluated_by_the_recipe_with_any_number_of_workers(tmp_path: Path) -> None:
    assert "ope-large" in SLOW
    found = run_benchmarks("ope-large", tmp_path, TINY)
    assert found.metrics["ope-large/identical"].value == 1
    assert 100 < found.metrics["ope-large/peak_mb"].value < 1000
    assert found.metrics["ope-large/rows_per_second"].value > 0


def test_without_room_on_the_disk_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    monkeypatch.delattr(bench, "write")
    found = bench.large(TINY)
    assert not found.metrics
    assert "0.0 GB of disk" in found.missing["ope-large/peak_mb"]


def test_a_fresh_process_that_fails_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConcordError, match="There is no log"):
        bench.alone("scan_alone", str(tmp_path / "none.parquet"))


def test_the_log_that_is_drawn_has_true_propensities() -> None:
    frame = bench.draw(40_000, 10, 100, 0)
    weight = 1 / (bench.ACTIONS * frame["propensity"].to_numpy())  # of a uniform target
    assert abs(weight.mean() - 1) < 4 * weight.std() / np.sqrt(len(weight))
    assert frame["user"].is_sorted()
    assert frame["user"].unique().to_list() == list(range(10, 110))


def test_threads_of_linear_algebra_do_not_change_the_bits() -> None:
    program = (
        "import numpy as np, recsys.bench as b; b.ROWS = 100_000; sums = b.eight(b.in_memory(), 2); "
        "print(sums.squared_weight.hex(), [x.hex() for x in sums.total])"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in (1, 2)
    ]
    assert told[0] == told[1] != ""
