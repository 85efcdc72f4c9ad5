"""A run: its folder, seeds, device, logs and checkpoints. `Run.fit` is the one training loop."""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from envs.core import ConcordError, InputError, Streams, Tree
from marl.batch import Batch
from marl.checkpoints import checkpoints, load_checkpoint, load_newest, remove_old, save_checkpoint
from marl.config import END, RunConfig, dump, flatten, read_yaml, resolve
from marl.display import TrainingDisplay, console, in_words
from marl.learners import Learner
from marl.log import Log, Tally
from marl.report import versions, write_atomically

L = TypeVar("L", bound=Learner)
# What a resumed run may have otherwise than its checkpoint: how long, where, how fast, how judged. Seeds trained as one
# share their checkpoints.
MAY_CHANGE = ("seed", "device", "compile", "threads", "train.", "evaluation.", "resume.", "env.workers")
LOGGED_ROWS = 500  # rows of metrics.csv that a stage aims for


@runtime_checkable
class Source(Protocol):
    """Batches without end, from where the last one stopped."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the next batches."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""


@runtime_checkable
class Probe(Protocol):
    """Something done between updates: an evaluation, an archive."""

    every: int

    def __call__(self, update: int, learner: Any) -> dict[str, float]:
        """Look at the learner; gives what to log."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""


class Run:
    """One folder of results. The same config and seed give the same numbers on the same kind of processor.

    seeds: one for each policy trained at once. Everything random belongs to a named stage and follows from (seed,
    name), so that what one stage draws never depends on another.
    """

    def __init__(self, folder: Path, config: RunConfig, seeds: Sequence[int] | None = None):
        self.folder, self.config = folder, config
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
        return cls(folder, resolve(read_yaml(path), overrides or {}))

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

    @contextmanager
    def compiled(self, *methods: tuple[Any, str]) -> Iterator[None]:
        """Within, pure methods (owner, name) are replaced by compiled ones, where the config asks for it."""
        if not self.config.compile:
            yield
            return
        # What these methods read besides tensors never changes while they are compiled, so it need not be checked.
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe}
        for owner, name in methods:
            setattr(owner, name, torch.compile(getattr(owner, name), options=options))
        try:
            yield
        finally:
            for owner, name in methods:
                delattr(owner, name)

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
        stage = _Stage(self, name, learner, source, probes)
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
        """The newest saved state of a stage's learner, or of one of its parts."""
        stage = self.folder / "checkpoints" / name
        if not checkpoints(stage):
            raise InputError(f"{self.folder} has no checkpoint yet; `concord resume {self.folder}` trains it.")
        state = load_newest(stage, self.device)["learner"]
        for part in parts:
            state = state[part]
        return state


class _Stage:
    """The progress of one `fit`: counts, clocks and checkpoints."""

    def __init__(self, run: Run, name: str, learner: Learner, source: Source, probes: Sequence[Probe]):
        self.run, self.name = run, name
        self.learner, self.source, self.probes = learner, source, probes
        self.folder = run.folder / "checkpoints" / name
        self.update, self.env_steps = 0, 0
        self.agent_steps = torch.zeros(run.policies, dtype=torch.float64, device=run.device)
        self.tally = Tally(run.policies)
        self._wall, self._cpu = time.monotonic(), time.process_time()
        self._wall_before = self._cpu_before = 0.0
        self._saved = time.monotonic()

    def restore(self, updates: int, cpu_seconds: float | None) -> bool:
        """Load the newest checkpoint, if there is one; says whether the stage is done, with nothing to go on for."""
        found = checkpoints(self.folder)
        if not found:
            return False
        state = load_checkpoint(found[-1], self.run.device)
        self._require_same_config(state.get("config", {}))
        try:
            self._load(state)
            if state["finished"] and not self.goes_on(updates, cpu_seconds):
                return True
            self.source.load_state_dict(state["source"])
        except ConcordError:
            raise
        except Exception as error:
            raise InputError(
                f"The checkpoint {found[-1]} does not fit what the recipe builds: {in_words(error)} Undo what has "
                "changed since it was written, in the recipe or its environment; nothing saved is lost."
            ) from error
        return False

    def _load(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        for probe, saved in zip(self.probes, state["probes"], strict=True):
            probe.load_state_dict(saved)
        self.tally.load_state_dict(state["tally"])
        used = state["used"]
        self.update, self.env_steps = int(used[0]["updates"]), int(used[0]["env_steps"])
        self.agent_steps += torch.tensor([each["agent_steps"] for each in used]).to(self.agent_steps)
        self._wall_before, self._cpu_before = used[0]["wall_seconds"], used[0]["cpu_seconds"]

    def _require_same_config(self, before: dict[str, Any]) -> None:
        """What was learned under one config does not go on under another, except for what cannot matter."""
        now, before = flatten(self.run.config.model_dump(mode="json")), flatten(before)
        changed = [
            f"{key} is {now[key]!r}, was {before[key]!r}"
            for key in now
            if key in before and now[key] != before[key] and not key.startswith(MAY_CHANGE)
        ]
        if changed:
            raise InputError(
                f"{self.run.folder / 'config.yaml'} was changed since the checkpoint of {self.name}: "
                f"{'; '.join(changed)}. A run goes on only as it began: undo that, or begin another run."
            )

    def goes_on(self, updates: int, cpu_seconds: float | None) -> bool:
        """Whether there is budget left."""
        return self.update < updates and (cpu_seconds is None or self.cpu_seconds < cpu_seconds)

    def count(self, batch: Batch) -> None:
        """One more update."""
        self.update += 1
        self.env_steps += batch.steps * batch.rows
        self.agent_steps = self.agent_steps + batch.obs.alive.view(batch.policies, -1).sum(1)

    @property
    def cpu_seconds(self) -> float:
        """Processor time of this process so far, all attempts together; that of env.workers is not in it."""
        return self._cpu_before + time.process_time() - self._cpu

    @property
    def wall_seconds(self) -> float:
        """Time on the clock so far, all attempts together."""
        return self._wall_before + time.monotonic() - self._wall

    def used(self) -> list[dict[str, int | float]]:
        """Counts and clocks, for each policy."""
        clocks = {"wall_seconds": self.wall_seconds, "cpu_seconds": self.cpu_seconds}
        return [
            {"updates": self.update, "env_steps": self.env_steps, "agent_steps": agent_steps, **clocks}
            for agent_steps in self.agent_steps.tolist()
        ]

    def due(self, seconds: float) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved > seconds

    def save(self, finished: bool) -> None:
        """Write a checkpoint; what is not finite is never saved."""
        learner = self.learner.state_dict()
        _refuse_nan(learner, self.update)
        state = {
            "finished": finished,
            "config": self.run.config.model_dump(mode="json"),
            "used": self.used(),
            "tally": self.tally.state_dict(),
            "learner": learner,
            "source": self.source.state_dict(),
            "probes": [probe.state_dict() for probe in self.probes],
        }
        # A name of its own: the last update may have been saved already, as unfinished.
        save_checkpoint(self.folder / f"{self.update:09d}{'-finished' if finished else ''}", state)
        remove_old(self.folder)
        self._saved = time.monotonic()


def summary(stage: _Stage, rows: Sequence[dict[str, float]]) -> str:
    """How it goes, in a line: steps, speed and return."""
    speed = stage.env_steps / max(stage.wall_seconds, 1e-9)
    returns = [row["return_per_agent"] for row in rows if math.isfinite(row.get("return_per_agent", math.nan))]
    shown = f"  return/agent {np.mean(returns):8.2f}" if returns else ""
    return f"{stage.env_steps:>10,} steps  {speed:>9,.0f}/s{shown}"


def check_finite(terms: dict[str, Tensor], update: int) -> None:
    """Raise ConcordError, naming the terms, where one is no number."""
    if not terms or bool(torch.stack([term.sum() for term in terms.values()]).isfinite().all()):
        return
    bad = [name for name, term in terms.items() if not bool(term.isfinite().all())]
    raise ConcordError(
        f"Training stopped at update {update}: {', '.join(bad)} became NaN or infinite. The last good checkpoint is "
        "kept. Usual causes: a learning rate too high (learner.learning_rate), rewards of huge size, or an environment "
        "that returns numbers that are not finite."
    )


def _refuse_nan(state: Tree, update: int) -> None:
    leaves: list[Tensor] = []

    def gather(tree: Any) -> None:
        if isinstance(tree, Tensor):
            leaves.append(tree)
        for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ():
            gather(value)

    gather(state)
    if any(leaf.is_floating_point() and not bool(leaf.isfinite().all()) for leaf in leaves):
        raise ConcordError(
            f"Training stopped at update {update}: a parameter became NaN or infinite. The last good checkpoint is "
            "kept. Usual cause: a learning rate too high (learner.learning_rate)."
        )


def refuse_used_folder(folder: Path) -> None:
    """Raise InputError where a folder already holds a run, a sweep or a report, or is none: nothing is overwritten."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"{place} is a file, so no folder can be made of {folder}. Choose another --out.")
    if any((folder / name).exists() for name in ("config.yaml", "sweep.json", "report.json")):
        raise InputError(
            f"{folder} already holds a run. Continue it with `concord resume {folder}`, or choose another --out."
        )


@contextmanager
def sole_trainer(folder: Path) -> Iterator[None]:
    """Hold a folder while training in it. Raises ConcordError where another process does."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConcordError(
                f"Another process is training in {folder}. Wait for it, or end it and run `concord resume {folder}`."
            ) from None
        yield


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
