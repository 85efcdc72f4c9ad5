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
from marl.output.files import write_atomically
from marl.output.versions import versions
from marl.training.checkpoints import checkpoints, load_checkpoint, load_newest
from marl.training.folders import LACKS_CONFIG, refuse_used_folder, sole_trainer
from marl.training.metrics_log import MetricsLog
from marl.training.population import Population
from marl.training.stage import Budget, Probe, Source, Stage, check_finite, summary

L = TypeVar("L", bound=Learner)
LOGGED_ROWS = 500  # rows of metrics.csv that a stage aims for


class Run:
    """One folder of results. The same config and seed give the same numbers on the same kind of processor.

    It trains P = seeds x members policies at once, seed-major: several seeds are trained as one and then part ways, the
    members of a seed are one result, such as a front or a population. members: of each stage that does not say
    otherwise. Everything random belongs to a named purpose and follows from (seed, name, member) only: what one stage
    draws never depends on another, nor a member on how many others there are.
    """

    def __init__(self, folder: Path, config: RunConfig, seeds: Sequence[int] | None = None, members: int = 1):
        self.folder = folder
        self.config: Any = config
        self.population = Population((config.seed,) if seeds is None else tuple(seeds), members)
        self.device = pick_device(config.device)
        self.begun = self._is_new = False
        torch.set_num_threads(config.threads)

    @classmethod
    def create(cls, folder: Path, config: RunConfig, seeds: Sequence[int] | None = None, members: int = 1) -> Run:
        """A run that will begin in a new folder. Raises InputError where the folder already holds one.

        Nothing is written before there is something to keep: a config from which nothing can be built takes no folder.
        """
        refuse_used_folder(folder)
        run = cls(folder, config, seeds, members)
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
            if (folder / "report.json").exists():
                raise InputError(f"{folder} holds a report{LACKS_CONFIG}")
            if (folder.parent / "sweep.json").exists():
                hint = f" `concord resume {folder.parent}` writes it, from the plan of the sweep."
            raise InputError(f"{folder} holds no run: it has no config.yaml.{hint}")
        if not path.read_text(errors="replace").rstrip().endswith(END):
            raise InputError(
                f"{path} is cut short: it does not end with a line {END!r}. Restore it (report.json, where there is "
                "one, holds the whole config); if nothing is missing, add that line."
            )
        return cls(folder, resolve(read_yaml(path), overrides or {}, saved=True))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that are trained as one, or the only one."""
        return self.population.seeds

    @property
    def policies(self) -> int:
        """P, the policies of a stage that says nothing else."""
        return len(self.population)

    def stage_seeds(self, name: str, members: int | None = None) -> list[int]:
        """A seed for each policy, for one named purpose; `members` of each of the run's seeds where given."""
        return [stage_seed(seed, name, member) for seed, member in self._population(members).labels]

    def streams(self, name: str, members: int | None = None, device: torch.device | str | None = None) -> Streams:
        """Random numbers for one named purpose, a generator for each policy: `members` of each seed where given."""
        return Streams(self.stage_seeds(name, members), self.device if device is None else device)

    def _population(self, members: int | None) -> Population:
        return self.population if members is None else Population(self.seeds, members)

    def fit(
        self,
        name: str,
        learner: L,
        source: Source,
        updates: int,
        probes: Sequence[Probe] = (),
        cpu_seconds: float | None = None,
        members: int | None = None,
    ) -> L:
        """Train: one batch, one update, until `updates` are done or `cpu_seconds` of processor time are used.

        members: the policies of each seed that this stage trains, where they are others than the run's; the source's
        batches must hold so many. Resumes from the stage's newest checkpoint; a finished stage returns at once, learner
        and probes as at its end, unless its budget was raised since. Raises ConcordError for a loss that is no number;
        the last good checkpoint stays.
        """
        self.begin()
        budget = Budget(updates, cpu_seconds)
        population = self._population(members)
        stage = Stage(
            self.folder, name, self.config, learner, source, probes, population=population, device=self.device
        )
        if stage.restore(budget):
            return learner
        with (
            sole_trainer(self.folder),
            TrainingDisplay(name, updates, stage.update) as display,
            MetricsLog(self.folder, name, stage.update, stage.env_steps, population) as log,
        ):
            if stage.goes_on(budget):
                self._train(stage, budget, log, display)
        stage.save(finished=True)
        return learner

    def _train(self, stage: Stage, budget: Budget, log: MetricsLog, display: TrainingDisplay) -> None:
        """Learn batch by batch while there is budget. Rows are written before the checkpoint that follows them."""
        log_every = max(1, budget.updates // LOGGED_ROWS)
        for batch in stage.source:
            terms = stage.learn(batch)
            if self.device.type == "cpu":
                check_finite(terms, stage.update)
            for probe in stage.probes:
                if stage.update % probe.every == 0:
                    log.write_findings(stage.used(), probe(stage.update, stage.learner))
            over = not stage.goes_on(budget)
            if stage.update % log_every == 0 or over:
                check_finite(terms, stage.update)
                rows, pictures = stage.tally.read()
                log.write(stage.used(), rows, pictures)
                display.advance(stage.update, summary(stage, rows))
            else:
                display.advance(stage.update)
            if stage.due(self.config.train.save_seconds):
                stage.save(finished=False)
            if over:
                return

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
        """Costs of a finished stage: updates, env_steps, total_env_steps, agent_steps, wall_seconds, cpu_seconds.

        Steps are those of the first policy, and total_env_steps those of all members. cpu_seconds are those of the
        process that learns: workers that step PettingZoo environments are not counted.
        """
        newest = checkpoints(self.folder / "checkpoints" / name)
        if not newest:
            raise InputError(f"{self.folder} has no stage {name} yet; `concord resume {self.folder}` continues it.")
        every: list[dict[str, int | float]] = load_checkpoint(newest[-1])["used"]
        used = dict(every[0])
        # Checkpoints from before there were members lack it.
        used.setdefault("total_env_steps", used["env_steps"])
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


def stage_seed(seed: int, name: str, member: int = 0) -> int:
    """The seed of one named purpose: a function of the run's seed, the name and the member's number only.

    Member 0 has the seed that a run of one policy has; the others' are spawned from it.
    """
    entropy = [seed, zlib.crc32(name.encode())]
    spawned = np.random.SeedSequence(entropy, spawn_key=(member,) if member else ())
    return int(spawned.generate_state(1, np.uint64)[0] >> 1)


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
