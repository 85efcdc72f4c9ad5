"""A run: its folder, seeds, device, logs and checkpoints. `Run.fit` is the one training loop."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from envs.core import InputError, Streams
from marl.config.load import END, dump, read_yaml, resolve
from marl.config.schema import RunConfig
from marl.learning.learner import Learner, find_part
from marl.output.console import TrainingDisplay, console
from marl.output.report import versions, write_atomically
from marl.training.checkpoints import checkpoints, load_checkpoint, load_newest
from marl.training.folders import refuse_used_folder, sole_trainer
from marl.training.metrics_log import Log
from marl.training.stage import Probe, Source, Stage, check_finite, summary

L = TypeVar("L", bound=Learner)
LOGGED_ROWS = 500  # rows of metrics.csv that a stage aims for


class Run:
    """One folder of results. The same config and seed give the same numbers on the same kind of processor.

    seeds: one for each policy trained at once. Everything random belongs to a named stage and follows from (seed,
    name), so that what one stage draws never depends on another.
    """

    def __init__(self, folder: Path, config: RunConfig, seeds: Sequence[int] | None = None):
        self.folder = folder
        self.config: Any = config
        self.seeds = tuple(seeds) if seeds is not None else (config.seed,)
        self.device = pick_device(config.device)
        self.begun = self._is_new = False
        torch.set_num_threads(config.threads)

    @classmethod
    def create(cls, folder: Path, config: RunConfig, seeds: Sequence[int] | None = None) -> Run:
        """A run that will begin in a new folder. Raises InputError where the folder already holds one.

        Nothing is written before there is something to keep: a config from which nothing can be built takes no folder.
        """
        refuse_used_folder(folder)
        run = cls(folder, config, seeds)
        run._is_new = True
        return run

    def begin(self) -> None:
        """Everything is built: take the folder, if it is new. Stages call this by themselves."""
        if self._is_new and not self.begun:
            self.take()
            console.print(f"writing to {self.folder}", markup=False)
        self.begun = True

    def take(self) -> None:
        """Write the config into the folder, which from then on holds this run: of two who want it, one gets it."""
        with sole_trainer(self.folder):
            refuse_used_folder(self.folder)
            write_atomically(self.folder / "versions.json", json.dumps(versions(), indent=2) + "\n")
            write_atomically(self.folder / "config.yaml", dump(self.config))

    @classmethod
    def open(cls, folder: Path, overrides: dict[str, Any] | None = None) -> Run:
        """A run that was begun before. Raises InputError where there is none."""
        path = folder / "config.yaml"
        if not path.is_file():
            points = sorted(folder.glob("*/config.yaml"))
            hint = f" It holds runs: name one of them, such as {points[0].parent}." if points else ""
            raise InputError(f"{folder} holds no run: it has no config.yaml.{hint}")
        if not path.read_text(errors="replace").rstrip().endswith(END):
            raise InputError(
                f"{path} is cut short: it does not end with a line {END!r}. Restore it (report.json, where there is "
                "one, holds the whole config); if nothing is missing, add that line."
            )
        return cls(folder, resolve(read_yaml(path), overrides or {}, saved=True))

    @property
    def policies(self) -> int:
        """P, the policies trained at once."""
        return len(self.seeds)

    def stage_seeds(self, name: str) -> list[int]:
        """A seed for each policy, for one named purpose."""
        return [stage_seed(seed, name) for seed in self.seeds]

    def streams(self, name: str, device: torch.device | str | None = None) -> Streams:
        """Random numbers for one named purpose."""
        return Streams(self.stage_seeds(name), self.device if device is None else device)

    def fit(
        self,
        name: str,
        learner: L,
        source: Source,
        updates: int,
        probes: Sequence[Probe] = (),
        cpu_seconds: float | None = None,
    ) -> L:
        """Train: one batch, one update, until `updates` are done or `cpu_seconds` of processor time are used.

        Resumes from the stage's newest checkpoint; a finished stage returns at once, learner and probes as at its end,
        unless its budget was raised since. Raises ConcordError for a loss that is no number; the last good checkpoint
        stays.
        """
        self.begin()
        stage = Stage(
            self.folder, name, self.config, learner, source, probes, policies=self.policies, device=self.device
        )
        if stage.restore(updates, cpu_seconds):
            return learner
        with (
            sole_trainer(self.folder),
            TrainingDisplay(name, updates, stage.update) as display,
            Log(self.folder, name, stage.update, stage.env_steps) as log,
        ):
            tally = stage.tally
            log_every = max(1, updates // LOGGED_ROWS)
            for batch in source if stage.goes_on(updates, cpu_seconds) else ():
                terms = learner.update(batch)
                stage.count(batch)
                tally.add(terms, batch)
                if self.device.type == "cpu":
                    check_finite(terms, stage.update)
                for probe in probes:
                    if stage.update % probe.every == 0:
                        log.write(stage.used(), self.seeds, [probe(stage.update, learner)] * self.policies)
                over = not stage.goes_on(updates, cpu_seconds)
                if stage.update % log_every == 0 or over:
                    check_finite(terms, stage.update)
                    rows, pictures = tally.read()
                    log.write(stage.used(), self.seeds, rows, pictures)
                    display.advance(stage.update, summary(stage, rows))
                else:
                    display.advance(stage.update)
                if stage.due(self.config.train.save_seconds):
                    stage.save(finished=False)
                if over:
                    break
        stage.save(finished=True)
        return learner

    def once(self, name: str, function: Callable[[], Any]) -> Any:
        """The JSON value that `function` gives, computed once and kept.

        A new run takes its folder after that, so that what `function` refuses leaves none behind.
        """
        path = self.folder / "once" / f"{name}.json"
        kept = path.exists()
        text = path.read_text() if kept else json.dumps(function())
        self.begin()
        if not kept:
            write_atomically(path, text)
        return json.loads(text)

    def used(self, name: str) -> dict[str, int | float]:
        """What a finished stage took: env_steps, agent_steps, wall_seconds, cpu_seconds, updates.

        cpu_seconds are those of the process that learns: workers that step PettingZoo environments are not counted.
        """
        newest = checkpoints(self.folder / "checkpoints" / name)
        if not newest:
            raise InputError(f"{self.folder} has no stage {name} yet; `concord resume {self.folder}` continues it.")
        used: dict[str, int | float] = load_checkpoint(newest[-1])["used"][0]
        return used

    def unfinished(self, name: str) -> str | None:
        """The newest checkpoint of a stage that has not finished; None where it has."""
        newest = checkpoints(self.folder / "checkpoints" / name)
        return None if not newest or newest[-1].name.endswith("-finished") else newest[-1].name

    def load(self, name: str, *parts: str) -> dict[str, Any]:
        """The newest saved state of a stage's learner, or of one of its parts, wherever in a chain that is."""
        stage = self.folder / "checkpoints" / name
        if not checkpoints(stage):
            raise InputError(f"{self.folder} has no checkpoint yet; `concord resume {self.folder}` trains it.")
        state = load_newest(stage, self.device)["learner"]
        for part in parts:
            state = find_part(state, part)
        return state


def stage_seed(seed: int, name: str) -> int:
    """The seed of one named purpose: a function of the run's seed and the name only."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1, np.uint64)[0] >> 1)


def pick_device(name: str) -> torch.device:
    """auto: CUDA where there is one, else the CPU. Raises InputError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("no such kind of device here")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device: expected auto, cpu, cuda or cuda:N with such a device present; got {name!r} ({error})."
        ) from None
    return device


def env_steps_to_updates(env_steps: int, batch_steps: int) -> int:
    """Updates whose batches hold at least `env_steps` steps."""
    return max(1, math.ceil(env_steps / batch_steps))
