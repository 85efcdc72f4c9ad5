"""One stage of a run: its counts, clocks and checkpoints."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from envs.core import ConcordError, InputError, Tree
from marl.config.load import flatten, resolve
from marl.config.schema import RunConfig
from marl.learning.batch import Batch
from marl.learning.learner import Learner
from marl.output.console import in_words
from marl.training.checkpoints import checkpoints, load_checkpoint, remove_old, save_checkpoint
from marl.training.population import Population
from marl.training.tally import Tally

# What a resumed run may have otherwise than its checkpoint: how long, where, how fast, how judged, what it may spend.
# Seeds trained as one share their checkpoints.
MAY_CHANGE: tuple[str, ...] = ("seed", "device", "compile", "cuda_graphs", "threads", "env.workers")
MAY_CHANGE += ("train.", "evaluation.", "resume.", "model.budget.")


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

    def __call__(self, update: int, learner: Any) -> Mapping[str, float | Tensor]:
        """Look at the learner; gives what to log: numbers about all policies, or tensors [P], a value for each."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""


@dataclass(frozen=True)
class Budget:
    """Budget of a stage: `updates`, or fewer where `cpu_seconds` of processor time are used before."""

    updates: int
    cpu_seconds: float | None = None


class Stage:
    """The progress of one `fit`: counts, clocks and checkpoints, in `folder`/checkpoints/`name`.

    Its learner, source and probes are saved and restored together.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        config: RunConfig,
        learner: Learner,
        source: Source,
        probes: Sequence[Probe],
        *,
        population: Population,
        device: torch.device,
    ):
        self.run_folder, self.name, self.config, self.device = folder, name, config, device
        self.learner, self.source, self.probes = learner, source, probes
        self.folder = folder / "checkpoints" / name
        self.population = population
        self.update, self.env_steps = 0, 0
        self.agent_steps = torch.zeros(len(population), dtype=torch.float64, device=device)
        self.tally = Tally(len(population))
        self._wall, self._cpu = time.monotonic(), time.process_time()
        self._wall_before = self._cpu_before = 0.0
        self._saved = time.monotonic()

    def restore(self, budget: Budget) -> bool:
        """Load the newest checkpoint, if there is one; True where the stage is done, with nothing to go on for."""
        kept = checkpoints(self.folder)
        if not kept:
            return False
        state = load_checkpoint(kept[-1], self.device)
        self._require_same_config(state.get("config", {}))
        try:
            self._load(state)
            if state["finished"] and not self.goes_on(budget):
                return True
            self.source.load_state_dict(state["source"])
        except ConcordError:
            raise
        except Exception as error:
            raise InputError(
                f"The checkpoint {kept[-1]} does not fit what the recipe builds: {in_words(error)} Undo what has "
                "changed since it was written, in the recipe or its environment; nothing saved is lost."
            ) from error
        return False

    def _load(self, state: dict[str, Any]) -> None:
        used = state["used"]
        self.population.require(len(used), self.name)
        self.learner.load_state_dict(state["learner"])
        for probe, saved in zip(self.probes, state["probes"], strict=True):
            probe.load_state_dict(saved)
        self.tally.load_state_dict(state["tally"])
        self.update, self.env_steps = int(used[0]["updates"]), int(used[0]["env_steps"])
        agent_steps = [each["agent_steps"] for each in used]
        self.agent_steps += torch.tensor(agent_steps).to(self.agent_steps)
        self._wall_before, self._cpu_before = used[0]["wall_seconds"], used[0]["cpu_seconds"]

    def _require_same_config(self, before: dict[str, Any]) -> None:
        """Raise InputError where the config differs from that of the checkpoint in something that matters."""
        if not before:
            return
        # What an earlier version saved is read as its config.yaml is; what is damaged, as far as it goes.
        with contextlib.suppress(InputError):
            before = resolve(before, {}, saved=True).model_dump(mode="json")
        now, was = flatten(self.config.model_dump(mode="json")), flatten(before)
        changed = [
            f"{key} is {value!r}, was {was[key]!r}"
            for key, value in now.items()
            if key in was and value != was[key] and not key.startswith(MAY_CHANGE)
        ]
        if changed:
            raise InputError(
                f"{self.run_folder / 'config.yaml'} was changed since the checkpoint of {self.name}: "
                f"{'; '.join(changed)}. A run goes on only as it began: undo that, or begin another run."
            )

    def goes_on(self, budget: Budget) -> bool:
        """True while there is budget left."""
        in_time = budget.cpu_seconds is None or self.cpu_seconds < budget.cpu_seconds
        return self.update < budget.updates and in_time

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """One update, which is counted; gives the learner's terms. Raises InputError for another number of policies."""
        self.population.require(batch.policies, self.name)
        terms = self.learner.update(batch)
        self.update += 1
        self.env_steps += batch.steps * batch.rows
        alive = batch.obs.alive.view(batch.policies, -1)
        self.agent_steps = self.agent_steps + alive.sum(1)
        self.tally.add(terms, self.learner.outcome(batch))
        return terms

    @property
    def cpu_seconds(self) -> float:
        """Processor time of this process so far, all attempts together; that of env.workers is not in it."""
        return self._cpu_before + time.process_time() - self._cpu

    @property
    def wall_seconds(self) -> float:
        """Time on the clock so far, all attempts together."""
        return self._wall_before + time.monotonic() - self._wall

    def used(self) -> list[dict[str, int | float]]:
        """Counts and clocks, for each policy. Steps are its own; `total_env_steps` are those of all its seed's members.

        Seeds that are trained as one count as they would alone.
        """
        counts: dict[str, int | float] = {
            "updates": self.update,
            "env_steps": self.env_steps,
            "total_env_steps": self.env_steps * self.population.members,
        }
        clocks = {"wall_seconds": self.wall_seconds, "cpu_seconds": self.cpu_seconds}
        return [{**counts, "agent_steps": agent_steps, **clocks} for agent_steps in self.agent_steps.tolist()]

    def due(self, seconds: float) -> bool:
        """True where it is time to save."""
        return time.monotonic() - self._saved > seconds

    def save(self, finished: bool) -> None:
        """Write a checkpoint; what is not finite is never saved."""
        learner = self.learner.state_dict()
        refuse_nan(learner, self.update)
        state = {
            "finished": finished,
            "config": self.config.model_dump(mode="json"),
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


def summary(stage: Stage, rows: Sequence[dict[str, float]]) -> str:
    """Progress in a line: steps, speed and return."""
    speed = stage.env_steps / max(stage.wall_seconds, 1e-9)
    returns = [row.get("return_per_agent", math.nan) for row in rows]
    returns = [value for value in returns if math.isfinite(value)]
    shown = f"  return/agent {np.mean(returns):8.2f}" if returns else ""
    return f"{stage.env_steps:>10,} steps  {speed:>9,.0f}/s{shown}"


def check_finite(terms: dict[str, Tensor], update: int) -> None:
    """Raise ConcordError, naming the terms, where one is no number."""
    if not terms:
        return
    sums = torch.stack([term.sum() for term in terms.values()])
    if bool(sums.isfinite().all()):
        return
    bad = [name for name, term in terms.items() if not bool(term.isfinite().all())]
    raise ConcordError(
        f"Training stopped at update {update}: {', '.join(bad)} became NaN or infinite. The last good checkpoint is "
        "kept. Usual causes: a learning rate too high (learner.learning_rate), rewards of huge size, or an environment "
        "that returns numbers that are not finite."
    )


def refuse_nan(state: Tree, update: int) -> None:
    """Raise ConcordError where a tensor of the state holds a number that is none."""
    reals = [leaf for leaf in _leaves(state) if leaf.is_floating_point()]
    if not all(bool(leaf.isfinite().all()) for leaf in reals):
        raise ConcordError(
            f"Training stopped at update {update}: a parameter became NaN or infinite. The last good checkpoint is "
            "kept. Usual cause: a learning rate too high (learner.learning_rate)."
        )


def _leaves(tree: Tree) -> Iterator[Tensor]:
    """All tensors of a state."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _leaves(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _leaves(value)
