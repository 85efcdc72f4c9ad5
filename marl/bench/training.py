"""Speed of training, the parts of its time, and the cost of a fresh process until it has learned once."""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from envs.core import ConcordError
from marl.bench.stepping import play_steps, staggered_env
from marl.bench.timing import Calibration, Effort, Findings, calibrated, over_rounds, speed, speeds
from marl.commands.allocator import keep_freed_memory
from marl.config.catalog import find_config
from marl.config.load import load_recipe, read_yaml, resolve
from marl.learning.batch import Batch
from marl.learning.learner import Learner
from marl.learning.rollout import OnPolicy
from marl.output.report import Metric
from marl.training.compiling import CACHE
from marl.training.run import Run
from marl.training.stage import Source

SPREAD = "cooperative/spread"
WARM_UP = 3  # updates before the clock runs

L = TypeVar("L", bound=Learner)


@dataclass
class Round:
    """Some updates: seconds by both clocks, processor time by part, and the calibration loop's speed right after."""

    cpu_seconds: float
    wall_seconds: float
    parts: dict[str, float]
    loops: float


class Watch:
    """Times of a training run, part by part, without a change to what is run."""

    def __init__(self, effort: Effort | None):
        self.effort = effort
        self.begun = time.monotonic()
        self.ends: list[tuple[float, float]] = []  # (monotonic time, processor time) after each update
        self.rounds: list[Round] = []
        self._parts: defaultdict[str, float] = defaultdict(float)
        self._calibration = Calibration()
        self._start = (0.0, 0.0)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its processor time added to `part`."""

        def call(*args: Any) -> Any:
            start = time.process_time()
            result = function(*args)
            self._parts[part] += time.process_time() - start
            return result

        return call

    def updating(self, update: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
        """A learner's update, timed and marked."""
        timed = self.timed("updating", update)

        def call(batch: Batch) -> Any:
            result = timed(batch)
            self.ends.append((time.monotonic(), time.process_time()))
            return result

        return call

    def before_batch(self, number: int) -> None:
        """Close a round and open the next, where it is time; the calibration in between belongs to neither."""
        if self.effort is None or number < WARM_UP or (number - WARM_UP) % self.effort.updates:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number > WARM_UP:
            cpu, wall = time.process_time() - self._start[0], time.monotonic() - self._start[1]
            loops = speed(self._calibration, self.effort.seconds / 2)
            self.rounds.append(Round(cpu, wall, dict(self._parts), loops))
        self._parts.clear()
        self._start = (time.process_time(), time.monotonic())


class WatchedRun(Run):
    """A run whose stages are watched: the recipe that is measured is the one that users run."""

    def __init__(self, folder: Path, config: Any, seeds: Sequence[int] | None = None, effort: Effort | None = None):
        super().__init__(folder, config, seeds)
        self.watch = Watch(effort)

    def fit(self, name: str, learner: L, source: Source, *arguments: Any, **options: Any) -> L:
        """`Run.fit` with a stopwatch around stepping, acting, gathering and updating."""
        assert isinstance(source, OnPolicy)
        if self.config.compile:
            assert source.unroll is not None
            _replace(source.unroll, "steps", self.watch.timed("playing", source.unroll.steps))
        else:
            for method in ("advance", "restart"):
                _replace(source.env, method, self.watch.timed("stepping", getattr(source.env, method)))
            _replace(source.actor, "act", self.watch.timed("acting", source.actor.act))
        _replace(learner, "update", self.watch.updating(learner.update))
        self.watch.begun = time.monotonic()
        return super().fit(name, learner, _WatchedSource(source, self.watch), *arguments, **options)


class _WatchedSource:
    """A source that lets the watch measure between batches."""

    def __init__(self, source: Source, watch: Watch):
        self.source, self.watch = source, watch
        self.state_dict, self.load_state_dict = source.state_dict, source.load_state_dict

    def __iter__(self) -> Iterator[Batch]:
        gather = self.watch.timed("gathering", iter(self.source).__next__)
        for number in itertools.count():
            self.watch.before_batch(number)
            yield gather()


def _replace(owner: Any, method: str, function: Callable[..., Any]) -> None:
    setattr(owner, method, function)


def watch_training(
    effort: Effort | None, updates: int, seeds: Sequence[int] = (0,), **overrides: Any
) -> tuple[Watch, int]:
    """Train as `cooperative/spread` does, in a folder that is thrown away; the watch, and env-steps of an update."""
    with tempfile.TemporaryDirectory(prefix="concord-bench-") as folder:
        raw = read_yaml(find_config(SPREAD))
        config: Any = resolve(raw, {"device": "cpu", **{k.replace("__", "."): v for k, v in overrides.items()}})
        steps = config.learner.steps * config.env.num_envs
        config = config.model_copy(update={"train": config.train.model_copy(update={"env_steps": updates * steps})})
        run = WatchedRun(Path(folder), config, list(seeds), effort)
        load_recipe(config.recipe).train(config, run)
    return run.watch, steps * len(seeds)


def watch_rounds(effort: Effort, seeds: Sequence[int] = (0,), **overrides: Any) -> tuple[Watch, int]:
    """Training with `effort.rounds` measured rounds after the warm-up."""
    # The last round is closed at the beginning of one more update.
    return watch_training(effort, WARM_UP + effort.rounds * effort.updates + 1, seeds, **overrides)


def training_speed(watch: Watch, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Env-steps and calibration loops per CPU-second, both [rounds]."""
    assert watch.effort is not None
    done = watch.effort.updates * steps
    rates = np.array([done / found.cpu_seconds for found in watch.rounds])
    return rates, np.array([found.loops for found in watch.rounds])


def shares(watch: Watch) -> dict[str, np.ndarray]:
    """Parts of the processor time, [rounds]; they add up to 1.

    playing: stepping and acting, where they are compiled as one. copying: random numbers, joining steps into a batch
    and following episodes. logging: everything else, such as events and display.
    """
    columns: defaultdict[str, list[float]] = defaultdict(list)
    for found in watch.rounds:
        parts = dict(found.parts)
        gathering, updating = parts.pop("gathering"), parts.pop("updating")
        seconds = {
            **parts,
            "copying": gathering - sum(parts.values()),
            "updating": updating,
            "logging": found.cpu_seconds - gathering - updating,
        }
        for name, value in seconds.items():
            columns[name].append(value / found.cpu_seconds)
    return {name: np.array(values) for name, values in columns.items()}


def _training_findings(name: str, watch: Watch, steps: int) -> Findings:
    found = speeds(name, *training_speed(watch, steps))
    found |= {f"{name}/share/{part}": over_rounds(values) for part, values in shares(watch).items()}
    return Findings(found)


def train(effort: Effort) -> Findings:
    """MAPPO: 16 environments x 128 steps, 4 epochs x 4 minibatches, 2x64 networks; and where the time goes."""
    return _training_findings("train", *watch_rounds(effort))


def train_compiled(effort: Effort) -> Findings:
    """The same training with compile=true."""
    return _training_findings("train-compiled", *watch_rounds(effort, compile=True))


def train_ippo(effort: Effort) -> Findings:
    """IPPO: the same training, where the critic sees what one agent sees."""
    return _training_findings("train-ippo", *watch_rounds(effort, critic__sees="agent"))


def train_ippo_compiled(effort: Effort) -> Findings:
    """IPPO with compile=true."""
    return _training_findings("train-ippo-compiled", *watch_rounds(effort, critic__sees="agent", compile=True))


def stack_compiled(effort: Effort) -> Findings:
    """Training five policies stacked with compile=true: env-steps of all together."""
    return Findings(speeds("stack-compiled", *training_speed(*watch_rounds(effort, range(5), compile=True))))


def compile_start(effort: Effort) -> Findings:
    """Seconds of training, imports done, to the end of the first update with compile=true: at first, and thereafter."""
    with tempfile.TemporaryDirectory(prefix="concord-bench-") as folder:
        cold, *warm = (_fresh_process(1, compiled_in=folder)["first_update"] for _ in range(4))
    return Findings(
        {
            "compile-start/cold/first_update_seconds": Metric.exact(cold),
            "compile-start/warm/first_update_seconds": over_rounds(np.array(warm)),
        }
    )


def stack(effort: Effort) -> Findings:
    """Training five policies stacked against one: env-steps of all policies together."""
    alone, stacked = (calibrated(*training_speed(*watch_rounds(effort, seeds=range(policies)))) for policies in (1, 5))
    return Findings({"stack/ratio_5_to_1": over_rounds(stacked / np.median(alone))})


def startup(effort: Effort) -> Findings:
    """A fresh process from import to the end of its first update, and its peak memory after 20 updates."""
    found = [_fresh_process(20) for _ in range(3)]
    columns = {name: np.array([entry[name] for entry in found]) for name in found[0]}
    return Findings(
        {
            "startup/seconds": over_rounds(columns["wall_seconds"]),
            "startup/cpu_seconds": over_rounds(columns["cpu_seconds"]),
            "memory/peak_mb": over_rounds(columns["peak_mb"]),
        }
    )


def _fresh_process(updates: int, compiled_in: str | None = None) -> dict[str, float]:
    """Times of some updates; compiled where there is a folder for what was compiled."""
    call = f"first_updates({updates}, compiled={compiled_in is not None})"
    command = [sys.executable, "-c", f"from marl.bench.training import first_updates; {call}"]
    environ = os.environ if compiled_in is None else {**os.environ, CACHE: compiled_in}
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    if done.returncode:
        raise ConcordError(f"A fresh process could not train: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return {**answer, "wall_seconds": answer.pop("finished") - started}


def first_updates(updates: int, compiled: bool = False) -> None:
    """Train in a fresh process, then print one line of JSON."""
    keep_freed_memory()  # as the command line does
    watch, _ = watch_training(None, updates, compile=compiled)
    finished, cpu_seconds = watch.ends[0]
    found = {"cpu_seconds": cpu_seconds, "first_update": finished - watch.begun, "peak_mb": peak_memory()}
    # The monotonic clock is one for the whole machine, so the parent can subtract its own reading.
    print(json.dumps({"finished": finished, **found}))


def peak_memory() -> float:
    """The most resident memory that this process ever had, in MB (2^20 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux a process that was just started inherits there what its parent had.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def cuda(effort: Effort) -> Findings:
    """On a GPU, by the clock: the full step at 65,536 environments, and training with 4,096 environments x 32 steps."""
    names = ("cuda/step/65536/steps_per_second", "cuda/train/4096/steps_per_second")
    if not torch.cuda.is_available():
        return Findings({}, dict.fromkeys(names, "this machine has no CUDA device."))
    play = play_steps(staggered_env(65536, "cuda"))

    def work() -> int:
        done = play()
        torch.cuda.synchronize()
        return done

    work()
    stepping = np.array([speed(work, effort.seconds, time.monotonic) for _ in range(effort.rounds)])
    watch, steps = watch_rounds(effort, device="cuda", env__num_envs=4096, learner__steps=32)
    training = np.array([effort.updates * steps / found.wall_seconds for found in watch.rounds])
    return Findings(dict(zip(names, (over_rounds(stepping), over_rounds(training)))))
