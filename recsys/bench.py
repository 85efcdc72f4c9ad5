"""Speed and memory of offline evaluation: `concord bench ope`, and `ope-large` for 100 million rows.

Rows and steps per CPU-second are one worker's, rows and seconds on the clock those of two, told on an idle machine
only. Logs are drawn: two thousand users, 50 actions at 3 positions, continuous propensities that are true.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from envs.core import ConcordError
from marl.bench.timing import Effort, Findings, Work, calibrated, machine_is_idle, over_rounds, speed, take_turns
from marl.bench.training import peak_memory
from marl.commands.allocator import keep_freed_memory
from marl.commands.run import run_training
from marl.config.load import resolve
from marl.output.report import Metric
from recsys.bandit.importance_weights import standard
from recsys.bandit.scan import Sums, sum_up
from recsys.config import EstimatorsConfig
from recsys.logs import formats
from recsys.logs.catalog import Catalog
from recsys.logs.log import Columns, Log
from recsys.models.reward import smoothed_mean
from recsys.policies.base import TablePolicy
from recsys.sequential.estimators import Trajectories, pdis, wdr
from recsys.statistics.bootstrap import bootstrap
from recsys.statistics.intervals import cluster_sums

SIX = ("ips", "snips", "ncis", "dm", "dr", "sndr")  # with the effective sample size and the largest weight: eight
ACTIONS, POSITIONS, USERS, MANY_USERS = 50, 3, 2_000, 100_000
COLUMNS = Columns("action", ("click",), "propensity", "position", "user")
ROWS, FILE_ROWS = 4_000_000, 1_000_000
FILES, LARGE_FILES = 32, 100
SOME = "00[0-7].parquet"  # of the files, whose memory is compared with that of all
BYTES_PER_ROW = 16  # on disk, more than measured
TRAJECTORIES, STEPS = 20_000, 20
BOOTSTRAP_ROWS, REPLICATIONS = 1_000_000, 1_000
WORKERS = 2  # of what is timed on the clock
BUSY = "two threads did not get two whole cores, so times on the clock say nothing; try again when nothing else runs."


def ope(effort: Effort) -> Findings:
    """Offline evaluation: eight statistics in one scan, PDIS and WDR, a bootstrap by user, and memory."""
    with tempfile.TemporaryDirectory(prefix="concord-bench-") as folder:
        larger = write(Path(folder) / "log", FILES)
        smaller = larger / SOME
        logs = {"scan_memory": in_memory(), "scan_parquet": formats.table(str(smaller), COLUMNS, ACTIONS)}
        logs |= variants(logs["scan_memory"])
        sequences, sums = Sequences(), resamples()
        scans = {name: scan_of(log) for name, log in logs.items()}
        single = {name: partial(scan, 1) for name, scan in scans.items()} | sequences.works()
        double = {name: partial(scan, WORKERS) for name, scan in scans.items()} | sequences.works()
        metrics = by_cpu(single, replace(effort, seconds=effort.seconds / 2)) | cpu_seconds(sums, effort)
        idle = machine_is_idle()
        metrics |= by_clock(double, sums, effort) if idle else {}
        peaks = [alone("scan_alone", str(path)) for path in (smaller, larger)]
    metrics["ope/scan_peak_mb"] = Metric.exact(peaks[1]["peak_mb"])
    metrics["ope/scan_peak_mb_ratio"] = Metric.exact(peaks[1]["peak_mb"] / peaks[0]["peak_mb"])
    clock = [f"ope/{name}/{unit(name)}_per_second" for name in double] + [f"ope/{name}/seconds" for name in sums]
    return Findings(metrics, {} if idle else dict.fromkeys(clock, BUSY))


def large(effort: Effort) -> Findings:
    """Offline evaluation of 100 million rows on disk, by one worker and by two: memory, time, and equality of all bits.

    peak_mb: the larger of both. rows_per_second: of the whole run with two workers, which reads the log twice.
    """
    rows = LARGE_FILES * FILE_ROWS
    names = [f"ope-large/{name}" for name in ("peak_mb", "rows_per_second", "rows_per_cpu_second", "identical")]
    with tempfile.TemporaryDirectory(prefix="concord-bench-") as folder:
        free, needed = shutil.disk_usage(folder).free, rows * BYTES_PER_ROW
        if free < needed:
            reason = (
                f"{rows:,} rows need {needed / 1e9:.1f} GB of disk in {folder}, where {free / 1e9:.1f} GB are free."
            )
            return Findings({}, dict.fromkeys(names, reason))
        path = write(Path(folder) / "log", LARGE_FILES)
        runs = [alone("run_alone", str(path), workers) for workers in (1, WORKERS)]
    identical = runs[0]["metrics"] == runs[1]["metrics"] and runs[0]["tables"] == runs[1]["tables"]
    values = (
        max(run["peak_mb"] for run in runs),
        rows / runs[1]["seconds"],
        rows / runs[0]["cpu_seconds"],
        float(identical),
    )
    return Findings({name: Metric.exact(value) for name, value in zip(names, values, strict=True)})


def draw(rows: int, first_user: int, users: int, seed: int) -> pl.DataFrame:
    """A log that is sorted by `users` users, chosen by a mixture of a fixed policy and chance that differs by row."""
    rng = np.random.default_rng(seed)
    pool = np.random.default_rng(0).choice(ACTIONS, p=_preferences(0)[0], size=(POSITIONS, 2**12))
    position, explores = rng.integers(POSITIONS, size=rows), rng.uniform(0.1, 0.9, rows)
    liked = pool[position, rng.integers(pool.shape[1], size=rows)]
    action = np.where(rng.random(rows) < explores, rng.integers(ACTIONS, size=rows), liked)
    share = np.stack([np.bincount(row, minlength=ACTIONS) for row in pool]) / pool.shape[1]
    columns = {
        "action": action.astype(np.int16),
        "position": position.astype(np.int8),
        "propensity": explores / ACTIONS + (1 - explores) * share[position, action],
        "click": (rng.random(rows) < 0.02 + action / (10 * ACTIONS)).astype(np.int8),
        "user": (first_user + np.arange(rows) * users // rows).astype(np.int32),
    }
    return pl.DataFrame(columns)


def _preferences(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(ACTIONS), POSITIONS)


def write(folder: Path, files: int) -> Path:
    """Write so many files of FILE_ROWS rows; users are in one file only."""
    folder.mkdir()
    for number in range(files):
        part = draw(FILE_ROWS, number * USERS // files, max(1, USERS // files), number)
        part.write_parquet(folder / f"{number:03}.parquet")
    return folder


def in_memory() -> Log:
    """Of ROWS rows, real numbers and whole ones of 64 bits."""
    frame = draw(ROWS, 0, USERS, 0).with_columns(
        pl.col("action", "position", "user").cast(pl.Int64), pl.col("click").cast(pl.Float64)
    )
    return _log(frame, COLUMNS)


def variants(log: Log) -> dict[str, Log]:
    """The same rows without users, and by users in any order: few, and many."""
    frame, rng = log.frame.collect(), np.random.default_rng(1)
    mixed = {users: frame.with_columns(user=pl.Series(rng.integers(users, size=ROWS))) for users in (USERS, MANY_USERS)}
    without = {"scan_without_users": _log(frame.drop("user"), replace(COLUMNS, user=None))}
    return without | {f"scan_mixed_{users}": _log(table, COLUMNS) for users, table in mixed.items()}


def _log(frame: pl.DataFrame, columns: Columns) -> Log:
    return Log(frame.lazy(), columns, Catalog.numbered(ACTIONS), Catalog.numbered(POSITIONS, what="position"))


def eight(log: Log, workers: int) -> Sums:
    """The eight statistics of one signal and one policy."""
    every = standard(EstimatorsConfig())
    target = TablePolicy("target", _preferences(1))
    sums = sum_up(log, [target], smoothed_mean(log), {name: every[name] for name in SIX}, workers)["target"]
    return sums


def scan_of(log: Log) -> Callable[[int], int]:
    """One scan by so many workers, which is `eight` without the scan that fits the reward model; the rows."""
    model, target, every = smoothed_mean(log), TablePolicy("target", _preferences(1)), standard(EstimatorsConfig())
    chosen = {name: every[name] for name in SIX}

    def work(workers: int) -> int:
        sums = sum_up(log, [target], model, chosen, workers)["target"]
        assert sums.weights.ess > 0
        assert all(np.isfinite(sums.estimate(name)).all() for name in SIX)
        return int(sums.n)

    return work


class Sequences:
    """Trajectories of equal length whose weights have mean 1."""

    def __init__(self) -> None:
        rng, shape = np.random.default_rng(0), (TRAJECTORIES, STEPS)
        weight = rng.lognormal(-0.02, 0.2, shape)
        self.log = Trajectories.of(weight, rng.random((*shape, 1)))
        self.q_logged, self.value = rng.random((2, *shape, 1))

    def works(self) -> dict[str, Work]:
        """One estimate each, which is so many steps."""

        def by_decision() -> int:
            assert np.isfinite(pdis(self.log, 0.95)).all()
            return TRAJECTORIES * STEPS

        def weighted() -> int:
            assert np.isfinite(wdr(self.log, self.q_logged, self.value, 0.95)).all()
            return TRAJECTORIES * STEPS

        return {"pdis": by_decision, "wdr": weighted}


def resamples() -> dict[str, Callable[[], object]]:
    """A bootstrap of SNIPS on a million rows by user, from the rows to the interval."""
    rng = np.random.default_rng(0)
    weight, reward = rng.lognormal(-0.5, 1, BOOTSTRAP_ROWS), rng.random((BOOTSTRAP_ROWS, 1))

    def work(user: np.ndarray) -> Callable[[], object]:
        return lambda: bootstrap(
            cluster_sums(weight[:, None] * reward, weight, user), replications=REPLICATIONS, workers=WORKERS
        )

    return {f"bootstrap_{n}": work(rng.integers(n, size=BOOTSTRAP_ROWS)) for n in (USERS, MANY_USERS)}


def unit(name: str) -> str:
    """The unit that a work counts."""
    return "rows" if name.startswith("scan") else "steps"


def by_cpu(works: Mapping[str, Work], effort: Effort) -> dict[str, Metric]:
    """Speeds per CPU-second, and as they would be on the reference machine."""
    rates = take_turns(works, effort)
    loops = rates.pop("calibrate")
    speeds = {f"ope/{name}/{unit(name)}_per_cpu_second": over_rounds(rate) for name, rate in rates.items()}
    return speeds | {f"ope/{name}/calibrated": over_rounds(calibrated(rate, loops)) for name, rate in rates.items()}


def by_clock(works: Mapping[str, Work], sums: Mapping[str, Callable[[], object]], effort: Effort) -> dict[str, Metric]:
    """Speeds of works, and seconds of what takes that long, on the clock; each once in each round."""
    samples: dict[str, list[float]] = {}
    for _ in range(effort.rounds):
        for name, work in works.items():
            rate = speed(work, 0.0, time.perf_counter)
            samples.setdefault(f"ope/{name}/{unit(name)}_per_second", []).append(rate)
        for name, function in sums.items():
            samples.setdefault(f"ope/{name}/seconds", []).append(spent(function, time.perf_counter))
    return {name: over_rounds(np.array(values)) for name, values in samples.items()}


def cpu_seconds(sums: Mapping[str, Callable[[], object]], effort: Effort) -> dict[str, Metric]:
    """Of the processor, all threads together; the median of three is enough where the clock follows."""
    times = {
        name: [spent(work, time.process_time) for _ in range(min(3, effort.rounds))] for name, work in sums.items()
    }
    return {f"ope/{name}/cpu_seconds": over_rounds(np.array(values)) for name, values in times.items()}


def spent(function: Callable[[], object], clock: Callable[[], float]) -> float:
    """The time that one call takes."""
    start = clock()
    function()
    return clock() - start


def alone(function: str, *arguments: str | int) -> dict[str, Any]:
    """The JSON that a function of this module prints, in a fresh process."""
    program = f"import recsys.bench as b; b.{function}(*{arguments!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        raise ConcordError(f"A fresh process could not evaluate: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def scan_alone(path: str) -> None:
    """Both scans of a log on disk, then the process's peak memory in MB, on a line of its own."""
    keep_freed_memory()  # as the command line does
    eight(formats.table(path, COLUMNS, ACTIONS), WORKERS)
    print(json.dumps({"peak_mb": peak_memory()}))


def run_alone(path: str, workers: int) -> None:
    """A run of the recipe on a log on disk; what it found and took, on a line of its own."""
    keep_freed_memory()
    raw = {
        "recipe": "recsys.ope",
        "data": {"format": "table", "path": path, "actions": ACTIONS, "columns": _named(COLUMNS)},
        "policy": {"target": "uniform"},
        "estimators": {"names": list(SIX)},
    }
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="concord-bench-") as folder:
        report = run_training(resolve(raw, {"workers": workers}), Path(folder) / "run")
    outcome = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": peak_memory(),
        "metrics": {name: repr(metric) for name, metric in report.metrics.items()},
        "tables": repr(report.tables),
    }
    print(json.dumps(outcome))


def _named(columns: Columns) -> dict[str, object]:
    named = {name: getattr(columns, name) for name in ("action", "propensity", "position", "user")}
    return {**named, "rewards": list(columns.rewards)}
