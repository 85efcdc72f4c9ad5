"""One run, or many: sweeps over seeds and settings, in several processes or stacked into one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.core import ConcordError, InputError
from marl.comparison import sweep_metrics
from marl.config import RunConfig, dump, load_recipe, resolve, split_assignments, yaml_text
from marl.display import console
from marl.report import Report, write_atomically
from marl.run import Run, refuse_used_folder
from marl.stacking import can_stack, train_stacked

SWEEP = "sweep.json"


def run_training(config: RunConfig, folder: Path) -> Report:
    """One run in a new folder."""
    module = load_recipe(config.recipe)
    return module.recipe(config, Run.create(folder, config))


def run_sweep(raw: dict[str, Any], points: Sequence[dict[str, Any]], folder: Path, processes: int | None) -> Report:
    """Every point of a sweep in a folder of its own, and a report over all. Bad points are told before any starts."""
    refuse_used_folder(folder)
    if len({json.dumps(point) for point in points}) < len(points):
        raise InputError("A sweep has each point once; this comma list names a value twice.")
    for point in points:
        resolve(raw, point)
    write_atomically(folder / SWEEP, json.dumps({"raw": raw, "points": list(points), "processes": processes}, indent=2))
    return _finish_sweep(folder)


def resume_folder(folder: Path, assignments: Sequence[str] = ()) -> Report:
    """Continue a run or a sweep. Only how to resume and how to evaluate may change."""
    (overrides,) = split_assignments(assignments) if assignments else [{}]
    foreign = [key for key in overrides if not key.startswith(("resume.", "evaluation."))]
    if foreign:
        raise InputError(
            f"A resumed run keeps its config; only resume.… and evaluation.… may be set, not {foreign[0]}."
        )
    if (folder / SWEEP).exists():
        return _finish_sweep(folder, assignments)
    run = Run.open(folder, overrides)
    return load_recipe(run.config.recipe).recipe(run.config, run)


def _finish_sweep(folder: Path, assignments: Sequence[str] = ()) -> Report:
    plan = json.loads((folder / SWEEP).read_text())
    points = plan["points"]
    varying = [key for key in points[0] if any(point[key] != points[0][key] for point in points)]
    names = [assignments_text(point, varying) for point in points]
    configs = {name: resolve(plan["raw"], point) for name, point in zip(names, points)}
    for name, config in configs.items():
        if not (folder / name / "config.yaml").exists():
            Run.create(folder / name, config)
    for group in _seed_groups(configs):
        if can_stack([configs[name] for name in group]):
            train_stacked(folder, {name: configs[name] for name in group})
    waiting = [folder / name for name in configs if not (folder / name / "report.json").exists()]
    _run_processes(waiting, plan["processes"] or os.cpu_count() or 1, assignments)
    reports = {name: Report.load(folder / name / "report.json") for name in configs}
    variants: dict[str, list[Report]] = {}
    for name, point in zip(names, points):
        label = assignments_text(point, [key for key in varying if key != "seed"]) or "all"
        variants.setdefault(label, []).append(reports[name])
    first = next(iter(reports.values()))
    seeds = [config.seed for config in configs.values()]
    table = [{"point": name, **{k: m.value for k, m in report.metrics.items()}} for name, report in reports.items()]
    report = Report(first.recipe, seeds, plan["raw"], sweep_metrics(variants), {"points": table})
    report.save(folder / "report.json")
    return report


def assignments_text(point: dict[str, Any], keys: Sequence[str]) -> str:
    """What a point of a sweep sets for these keys; also the name of its folder."""
    return ",".join(f"{key}={yaml_text(point[key])}".replace("/", "_") for key in keys)


def _seed_groups(configs: dict[str, RunConfig]) -> list[list[str]]:
    """Points that differ only in their seed."""
    groups: dict[str, list[str]] = {}
    for name, config in configs.items():
        groups.setdefault(dump(config.model_copy(update={"seed": 0})), []).append(name)
    return list(groups.values())


def _run_processes(folders: Sequence[Path], processes: int, assignments: Sequence[str]) -> None:
    """Resume every folder, some at a time, each in a process of its own. Raises ConcordError if any fails."""
    waiting, failed = list(folders), []
    running: dict[Path, subprocess.Popen[bytes]] = {}
    try:
        with console.status("") as status:
            while waiting or running:
                while waiting and len(running) < processes:
                    folder = waiting.pop(0)
                    running[folder] = _start(folder, assignments)
                done = [folder for folder, process in running.items() if process.poll() is not None]
                for folder in done:
                    code = running.pop(folder).returncode
                    console.print(f"{'finished' if code == 0 else 'FAILED  '} {folder.name}")
                    failed += [folder] if code else []
                status.update(f"{len(running)} running, {len(waiting)} waiting")
                time.sleep(0.2)
    finally:
        for process in running.values():
            process.terminate()
    if failed:
        tail = (failed[0] / "log.txt").read_text().strip().splitlines()[-1:]
        raise ConcordError(
            f"{len(failed)} of {len(folders)} runs failed, the first being {failed[0]}: {' '.join(tail)} "
            f"Mend the cause and continue with `concord resume {folders[0].parent}`; finished runs are kept."
        )


def _start(folder: Path, assignments: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "marl", "resume", str(folder), *assignments]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
