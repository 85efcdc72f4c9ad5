"""The benchmarks of `concord bench`, by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path

import torch

from envs.core import InputError, import_dotted
from marl.bench import kitchen, networks, playing, stepping, swarm, timing, training
from marl.bench.timing import REFERENCE_LOOPS, Effort, Findings
from marl.output.console import console
from marl.output.report import Report

Benchmark = Callable[[Effort], Findings]


def elsewhere(path: str, what: str) -> Benchmark:
    """A benchmark of an application, module:function; the core imports it no sooner than it runs."""

    def measure(effort: Effort) -> Findings:
        return import_dotted(path)(effort)

    measure.__doc__ = what
    return measure


BENCHMARKS: dict[str, Benchmark] = {
    "calibrate": timing.calibrate,
    "physics": stepping.physics,
    "step": stepping.step,
    "train": training.train,
    "channels": networks.channels,
    "stack": training.stack,
    "sampling": networks.sampling,
    "playing": playing.playing,
    "swarm": swarm.swarm,
    "kitchen": kitchen.kitchen,
    "adapter": stepping.adapter,
    "workers": stepping.workers,
    "startup": training.startup,
    "cuda": training.cuda,
    "ope": elsewhere("recsys.bench:ope", "Offline evaluation: scans, sequences, a bootstrap by user, and memory."),
    "planning": elsewhere("planners.bench:planning", "Plans of the small model in 256 kitchens together, and in one."),
    "physics-compiled": stepping.physics_compiled,
    "step-compiled": stepping.step_compiled,
    "swarm-compiled": swarm.swarm_compiled,
    "train-compiled": training.train_compiled,
    "train-ippo": training.train_ippo,
    "train-ippo-compiled": training.train_ippo_compiled,
    "stack-compiled": training.stack_compiled,
    "compile-start": training.compile_start,
    "ope-large": elsewhere("recsys.bench:large", "Offline evaluation of 100 million rows on disk: memory, time, bits."),
}
SLOW = (
    "planning",
    "physics-compiled",
    "step-compiled",
    "swarm-compiled",
    "train-compiled",
    "train-ippo",
    "train-ippo-compiled",
    "stack-compiled",
    "compile-start",
    "ope-large",
)
QUICK = [name for name in BENCHMARKS if name not in SLOW]


def run_benchmarks(name: str | None, folder: Path, effort: Effort | None = None) -> Report:
    """Run one benchmark, or all quick ones, and save `folder/report.json`. Raises InputError for an unknown name."""
    if name is not None and name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, 1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise InputError(f"There is no benchmark {name!r}. {hint}They are: {', '.join(BENCHMARKS)}.")
    effort = effort or Effort()
    torch.set_num_threads(1)
    found = Findings()
    for chosen in [name] if name is not None else QUICK:
        console.print(f"measuring {chosen}: {(BENCHMARKS[chosen].__doc__ or '').splitlines()[0]}")
        part = BENCHMARKS[chosen](effort)
        found.metrics |= part.metrics
        found.missing |= part.missing
    for metric, reason in found.missing.items():
        console.print(f"{metric} not measured: {reason}", markup=False)
    missing = [{"metric": metric, "reason": reason} for metric, reason in found.missing.items()]
    config = {"benchmark": name or "quick", "reference_loops": REFERENCE_LOOPS, **dataclasses.asdict(effort)}
    report = Report("marl.bench", 0, config, found.metrics, {"not_measured": missing} if missing else {})
    report.save(folder / "report.json")
    return report
