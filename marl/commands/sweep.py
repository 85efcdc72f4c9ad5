"""One run, or many: sweeps over seeds and settings, in several processes or stacked into one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from envs.core import ConcordError, InputError
from marl.commands.compare import point_metrics, point_tables, sweep_metrics
from marl.commands.cross_play import cross_play_seeds
from marl.commands.run import CONFIG, follow
from marl.commands.stacking import can_stack, train_stacked
from marl.config.load import dump, load_recipe, resolve, split_assignments, yaml_text
from marl.config.schema import RunConfig, TrainingConfig
from marl.output.console import console, in_words
from marl.output.files import write_atomically
from marl.output.report import REPORT, Report
from marl.training.checkpoints import checkpoints
from marl.training.folders import refuse_used_folder, sole_trainer
from marl.training.on_policy import STAGE
from marl.training.run import Run

SWEEP = "sweep.json"
CHILD = "from marl.commands.sweep import end_with_parent; end_with_parent(); from marl.__main__ import main; main()"


def run_sweep(
    raws: dict[str, dict[str, Any]], points: Sequence[dict[str, Any]], folder: Path, processes: int | None
) -> Report:
    """Every point of a sweep in a folder of its own, and a report over all. Bad points are told before any starts."""
    refuse_used_folder(folder)
    configs = _configs(raws, points)
    envs = [config.env for config in configs.values() if isinstance(config, TrainingConfig)]
    if len(raws) > 1 and len({(env.world, env.pettingzoo, env.vmas) for env in envs}) > 1:
        console.print("note: these configs play different games, so their returns differ in kind")
    if len(configs) < len(points):
        raise InputError("A sweep has each point once; this comma list names a value twice.")
    for group in _seed_groups(configs):
        _rehearse(configs[group[0]])
    plan = {"raws": raws, "points": list(points), "processes": processes}
    with sole_trainer(folder):  # of two who want it, one gets it
        refuse_used_folder(folder)
        write_atomically(folder / SWEEP, json.dumps(plan, indent=2))
    console.print(f"writing to {folder}", markup=False)
    return _finish_sweep(folder)


class _Built(ConcordError):  # noqa: N818  nothing went wrong
    """Everything is there that a stage needs."""


class _Rehearsal(Run):
    """A run that goes as far as its first stage."""

    def begin(self) -> None:
        """Stop."""
        raise _Built

    def once(self, name: str, function: Callable[[], Any]) -> Any:
        """Stop, before anything is computed that each point computes for itself."""
        self.begin()


def _rehearse(config: RunConfig) -> None:
    """Build what a run trains, and train nothing. Raises InputError where that fails."""
    with tempfile.TemporaryDirectory(prefix="concord-rehearsal-") as folder, suppress(_Built):
        follow(config, _Rehearsal.create(Path(folder), config))


MAY_BE_SET = (
    "resume.",
    "evaluation.",
    "model.budget.",
    "train.env_steps",
    "train.cpu_seconds",
    "compile",
    "cuda_graphs",
)


def resume_folder(folder: Path, assignments: Sequence[str] = ()) -> Report:
    """Continue a run or a sweep, with `train.…` beyond its end. How to resume and how to evaluate may change too.

    A new budget is written into the run's config.yaml; the report of the shorter run goes. Whatever follows the steps
    of training, as a learning rate that fades, from then on follows the new total.
    """
    points = split_assignments(assignments)
    if len(points) > 1:
        raise InputError("resume takes one setting at a time; got a comma list.")
    foreign = [key for key in points[0] if not key.startswith(MAY_BE_SET) or key == "evaluation.every"]
    if foreign:
        raise InputError(
            "A resumed run keeps its config; only train.env_steps and train.cpu_seconds, to train longer, compile, "
            "cuda_graphs, resume.…, model.budget.… and evaluation.… (but for evaluation.every) may be set, not "
            f"{foreign[0]}."
        )
    budget = {key: value for key, value in points[0].items() if key.startswith("train.")}
    others = {key: value for key, value in points[0].items() if key not in budget}
    if (folder / SWEEP).exists():
        if budget:
            _extend_sweep(folder, budget, others)
        return _finish_sweep(folder, [word for word in assignments if not word.startswith("train.")])
    if budget:
        Run.open(folder, points[0])  # what is wrong with any of them changes nothing
        _write_budget(_with_budget(folder, budget))
    run = Run.open(folder, others)
    return follow(run.config, run)


def _with_budget(folder: Path, budget: dict[str, Any]) -> Run:
    """A run with another budget, not written yet. Raises InputError where it has used as much already."""
    run = Run.open(folder, budget)
    if not isinstance(run.config, TrainingConfig):
        raise InputError(
            f"{run.config.recipe} does not train in an environment, and keeps what it found at the end; to train "
            "longer, begin another run."
        )
    stages = sorted(path.name for path in (folder / "checkpoints").glob("*") if checkpoints(path))
    if len(stages) > 1:
        later = next(stage for stage in stages if stage != STAGE)
        raise InputError(
            f"{folder} has trained {later} from what {STAGE} gave, and would not do so again. Move "
            f"{folder / 'checkpoints' / later} away first; it is then trained anew."
        )
    for stage in stages:
        used, train = run.used(stage), run.config.train
        limits = {"env_steps": train.env_steps, "cpu_seconds": train.cpu_seconds}
        reached = [name for name, limit in limits.items() if limit is not None and used[name] >= limit]
        if reached:
            raise InputError(
                f"{folder} has trained {used['env_steps']} env_steps in {used['cpu_seconds']:.1f} cpu_seconds already, "
                f"so train.{reached[0]}={limits[reached[0]]} leaves nothing to train; set more."
            )
    return run


def _write_budget(run: Run) -> None:
    """Let a run go on with its config: that is what its folder says from now on."""
    with sole_trainer(run.folder):
        (run.folder / REPORT).unlink(missing_ok=True)  # first: a run without a report is one that goes on
        write_atomically(run.folder / "config.yaml", dump(run.config))


def _extend_sweep(folder: Path, budget: dict[str, Any], others: dict[str, Any]) -> None:
    """Give every run of a sweep another budget, in its plan. From now on each trains alone.

    Raises InputError where the budget is what the sweep varies, for seeds that are being trained as one, and where
    other settings, which are not kept, are wrong.
    """
    plan = _read_plan(folder / SWEEP)
    varied = [key for key in budget if key in _varying(plan["points"])]
    if varied:
        raise InputError(
            f"This sweep compares values of {varied[0]}, so it cannot be set for all. Resume a point of it by itself."
        )
    if any(path.is_dir() for path in folder.glob(".stacked-*")):
        raise InputError(f"Seeds of {folder} are being trained as one; `concord resume {folder}` first, to their end.")
    points = [{**point, **budget} for point in plan["points"]]
    for name in _configs(plan["raws"], points):
        if (folder / name / "config.yaml").exists():
            _with_budget(folder / name, {**budget, **others})
    with sole_trainer(folder):
        (folder / REPORT).unlink(missing_ok=True)
        write_atomically(folder / SWEEP, json.dumps({**plan, "points": points, "alone": True}, indent=2))


def _finish_sweep(folder: Path, assignments: Sequence[str] = ()) -> Report:
    plan = _read_plan(folder / SWEEP)
    raws, points = plan["raws"], plan["points"]
    configs = _configs(raws, points)
    for name, config in configs.items():
        if not (folder / name / "config.yaml").exists():
            Run.create(folder / name, config).take()
        elif plan["alone"] and isinstance(config, TrainingConfig):
            _follow_plan(folder / name, config)
        if assignments:  # what is wrong with them is told before anything is trained
            Run.open(folder / name, *split_assignments(assignments))
    for group in [] if plan["alone"] else _seed_groups(configs):
        if can_stack([configs[name] for name in group]):
            train_stacked(folder, {name: configs[name] for name in group})
    waiting = [folder / name for name in configs if not (folder / name / REPORT).exists()]
    if assignments and not waiting:
        raise InputError(
            f"Every run of {folder} has finished, so {assignments[0]} changes nothing. `concord evaluate "
            f"{folder / next(iter(configs))} …` plays one of them under other settings."
        )
    _run_processes(waiting, plan["processes"] or usable_cores(), assignments)
    reports = {name: Report.load(folder / name / "report.json") for name in configs}
    variants = {label: [reports[name] for name in names] for label, names in _variants(configs, points).items()}
    first = next(iter(reports.values()))
    seeds = [config.seed for config in configs.values()]
    table = [{"point": name, **{k: m.value for k, m in report.metrics.items()}} for name, report in reports.items()]
    learned = any(load_recipe(config.recipe).learns for config in configs.values())
    groups = {",".join(label): [folder / name for name in names] for label, names in _variants(configs, points).items()}
    beside, pairs = cross_play_seeds(folder, groups)
    report = Report(
        first.recipe,
        seeds,
        next(iter(raws.values())) if len(raws) == 1 else raws,
        {**(sweep_metrics(variants) if learned else point_metrics(reports)), **beside},
        {"points": table, **pairs, **({} if learned else point_tables(load_recipe(first.recipe).judged, reports))},
    )
    report.save(folder / "report.json")
    return report


def _variants(names: Iterable[str], points: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], list[str]]:
    """Names of points that differ only in their seed, by their settings."""
    varying = [key for key in _varying(points) if key != "seed"]
    variants: dict[tuple[str, ...], list[str]] = {}
    for name, point in zip(names, points, strict=True):
        label = tuple(assignments_text(point, [key]) for key in varying) or ("all",)
        variants.setdefault(label, []).append(name)
    return variants


def _follow_plan(folder: Path, config: TrainingConfig) -> None:
    """Write the budget of a sweep's plan where the run has another."""
    run = Run.open(folder)
    if run.config.train != config.train:
        _write_budget(Run(folder, run.config.model_copy(update={"train": config.train})))


def usable_cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text())
        _configs(plan["raws"], plan["points"])
        return {"processes": None, "alone": False, **plan}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, StopIteration) as error:
        raise InputError(
            f"{path} is not a plan that Concord wrote: {in_words(error)} Restore it, or run the sweep anew in another "
            "folder; each point's folder can still be resumed, evaluated and compared by itself."
        ) from error


def _configs(raws: dict[str, dict[str, Any]], points: Sequence[dict[str, Any]]) -> dict[str, RunConfig]:
    """The config of each point, by the name of its folder."""
    varying = _varying(points)
    return {assignments_text(point, varying): _config(raws, point) for point in points}


def _config(raws: dict[str, dict[str, Any]], point: dict[str, Any]) -> RunConfig:
    name = point.get(CONFIG, next(iter(raws)))
    try:
        return resolve(raws[name], {key: value for key, value in point.items() if key != CONFIG})
    except InputError as error:
        if len(raws) == 1:
            raise
        raise InputError(f"In {name}: {error}") from error


def _varying(points: Sequence[dict[str, Any]]) -> list[str]:
    return [key for key in points[0] if any(point[key] != points[0][key] for point in points)]


def assignments_text(point: dict[str, Any], keys: Sequence[str]) -> str:
    """Settings of a point of a sweep, for these keys; also the name of its folder."""
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
                    code = _end(running.pop(folder))
                    console.print(f"{'finished' if code == 0 else 'FAILED  '} {folder.name}")
                    failed += [folder] if code else []
                status.update(f"{len(running)} running, {len(waiting)} waiting")
                time.sleep(0.2)
    finally:
        for process in running.values():
            process.terminate()
            _end(process)
    if failed:
        tail = (failed[0] / "log.txt").read_text().strip().splitlines()[-1:]
        raise ConcordError(
            f"{len(failed)} of {len(folders)} runs failed, the first being {failed[0]}: {' '.join(tail)} "
            f"Mend the cause and continue with `concord resume {folders[0].parent}`; finished runs are kept."
        )


def _start(folder: Path, assignments: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CHILD, "resume", str(folder), *assignments]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.PIPE)


def _end(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process that has ended or was told to; gives its exit code."""
    code = process.wait()
    assert process.stdin is not None
    process.stdin.close()
    return code


def end_with_parent() -> None:
    """From now on, end this process as soon as nobody holds the other end of its standard input, whatever it does.

    So a sweep's processes never outlive it. Like kill -9 this may strike anywhere, and nothing is ever saved by halves.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
