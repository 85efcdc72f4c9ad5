"""Trained Concord policies as targets of evaluation: whatever chooses one of A actions from a flat observation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Float

from envs.core import EnvSpec, InputError, Observation
from marl.config.load import load_recipe
from marl.config.recipe import Recipe
from marl.evaluation.load import load_actor
from marl.models.action_critic import only_choice
from marl.models.policies import JointActor
from marl.training.run import Run
from recsys.logs.config import DataConfig
from recsys.logs.log import Chunk, Log
from recsys.logs.paths import home
from recsys.logs.splits import Split
from recsys.logs.tables import require_columns
from recsys.policies.base import ContextPolicy

ENCODE = "Encode it, such as one column of 0 and 1 for each value, or leave it out."


@dataclass(frozen=True)
class View:
    """The observation of a logged row: a one-hot of its position where there are several, then columns.

    Columns are taken as (x - middle) / scale; without middle and scale as they are. Where there is nothing to see, the
    policy sees a 1. labels: of the catalog that it was learned from, if it knows them.
    """

    columns: tuple[str, ...] = ()
    positions: int = 1
    middle: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    labels: tuple[Any, ...] = ()

    @classmethod
    def of(cls, log: Log, columns: Sequence[str] = ()) -> View:
        """Of a log's columns, all its context where none are named, standardized by one scan.

        Raises InputError for columns that are not there or hold no finite numbers.
        """
        named = tuple(columns) or log.context
        plain = cls(named, log.positions, labels=tuple(log.catalog.labels.to_list()))
        if not named:
            return plain
        require_columns(named, log.context, "columns that the policy sees", "the log's context columns")
        for name in named:
            if log.schema[name] == pl.String:
                raise InputError(f"A policy sees numbers; column {name!r} holds {log.held(name)}. {ENCODE}")
        count, total, squares = 0, np.zeros(len(named)), np.zeros(len(named))
        for rows in log.chunks():
            x = plain.numbers(rows)
            count += len(x)
            total += x.sum(0)
            squares += np.square(x).sum(0)
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
        deviation[deviation <= 1e-6 * np.abs(mean)] = 1.0  # a constant, up to rounding
        scale = np.where(deviation > 0, deviation, 1)
        return replace(plain, middle=tuple(mean.tolist()), scale=tuple(scale.tolist()))

    @property
    def size(self) -> int:
        """D, how many numbers a row has."""
        return max(1, len(self.columns) + (self.positions if self.positions > 1 else 0))

    def features(self, rows: Chunk) -> Float[np.ndarray, "n D"]:
        """The observation of each row."""
        parts = [] if self.positions == 1 else [np.eye(self.positions)[rows.position]]
        if self.columns:
            x = self.numbers(rows)
            parts.append((x - self.middle) / self.scale if self.middle else x)
        return np.concatenate(parts, 1) if parts else np.ones((len(rows), 1))

    def numbers(self, rows: Chunk) -> Float[np.ndarray, "n C"]:
        """The columns as they are. Raises InputError for one that is not there, or where it holds no finite number."""
        require_columns(self.columns, rows.context, "columns that the policy sees", "the log's context columns")
        for name in self.columns:
            if rows.context[name].dtype.kind not in "biuf":
                raise InputError(f"A policy sees numbers; column {name!r} holds {rows.context[name].dtype}. {ENCODE}")
        x = np.stack([rows.context[name] for name in self.columns], 1).astype(np.float64)
        bad = ~np.isfinite(x)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise InputError(
                f"A policy sees finite numbers; {self.columns[column]!r} is missing or not finite in row "
                f"{rows.row_numbers[row] + 1:,} and {int(bad.any(1).sum()) - 1:,} more of this part of the log."
            )
        return x

    def to_json(self) -> dict[str, Any]:
        """As plain values, that a run keeps."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> View:
        """The view that `to_json` made plain."""
        lists = {name: tuple(kept[name]) for name in ("columns", "middle", "scale", "labels")}
        return cls(positions=int(kept["positions"]), **lists)


@dataclass(frozen=True)
class Origin:
    """The log that a policy was learned from, and which part of it."""

    data: DataConfig
    seed: int
    split: Split

    def is_of(self, data: DataConfig, seed: int) -> bool:
        """True for the same log, as far as its description tells: a copy of a file goes unnoticed."""
        return self.data == data and (self.seed == seed or data.format != "synthetic")


class Trained(NamedTuple):
    """A policy as it was last saved, its world's spec, and, where it was learned from a log, how it sees that one."""

    policy: JointActor
    spec: EnvSpec
    view: View | None = None
    origin: Origin | None = None


class LearnsFromLogs(Recipe):
    """A recipe whose policy is learned from a log."""

    @abstractmethod
    def load_target(self, run: Run) -> Trained:
        """The policy of a run as it was last saved, how it sees a log, and which rows it was learned from."""


def as_target(name: str, policy: JointActor, view: View, actions: int) -> ContextPolicy:
    """The policy as a target: π(·|x) of the one agent that chooses, from its view of each row."""

    def choose(rows: Chunk) -> Float[np.ndarray, "n A"]:
        chances = log_probs(policy, view.features(rows)).double().exp().cpu().numpy()
        return np.asarray(chances / chances.sum(1, keepdims=True))

    return ContextPolicy(name, actions, choose)


@torch.inference_mode()
def log_probs(policy: JointActor, features: Float[np.ndarray, "n D"]) -> Float[torch.Tensor, "n A"]:
    """log π(·|x) of the one agent."""
    device = next((p.device for p in getattr(policy, "parameters", list)()), torch.device("cpu"))
    x = torch.as_tensor(features, dtype=torch.float32, device=device)
    alive = torch.ones(len(x), 1, dtype=torch.bool, device=device)
    distribution, _ = policy(Observation(x.unsqueeze(1), x, alive), None)
    return distribution.log_probs().squeeze(1)


def columns_of(path: str, observation: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns of a log that the policy of the run in a folder sees; see `trained` for what is raised."""
    return _view(path, load(path), observation).columns


def unseen(log: Log, paths: Sequence[str], data: DataConfig, seed: int) -> Log:
    """The rows of a log that none of the runs in these folders was learned from; data and seed describe the log.

    What was learned from a row follows what happened there, so such rows would flatter the policy. Raises InputError
    where runs have learned from different parts of the log.
    """
    origins = {path: load(path).origin for path in paths}
    splits = {path: o.split for path, o in origins.items() if o is not None and o.is_of(data, seed)}
    if len(set(splits.values())) > 1:
        raise InputError(
            f"{' and '.join(splits)} were learned from different parts of {log.name}, so no rows are left that are new "
            "to all of them. Train them with one seed and one held_out, or evaluate them on another log."
        )
    return next(iter(splits.values())).evaluation(log) if splits else log


def trained(log: Log, path: str, observation: Sequence[str] = ()) -> ContextPolicy:
    """The policy of the run in a folder, whatever recipe trained it, over a log's catalog.

    observation: the columns that it sees, where the run does not say or the log calls them otherwise.
    Raises InputError for a folder without a checkpoint, several agents, an action that is not one choice among the
    catalog's, a policy that remembers or whose agents do not choose alone, and observations of another size.
    """
    loaded = load(path)
    view = _view(path, loaded, observation)
    _require_fit(path, loaded, log, view)
    return as_target(Path(path).name, loaded.policy, view, log.actions)


def load(path: str) -> Trained:
    """The policy that a folder's run has trained, and how it sees a log, where it was learned from one."""
    run = Run.open(home(path), {"device": "cpu", "threads": torch.get_num_threads()})
    recipe = load_recipe(run.config.recipe)
    if isinstance(recipe, LearnsFromLogs):
        return recipe.load_target(run)
    actor, env = load_actor(run, 1)
    env.close()
    if not isinstance(actor, JointActor):
        raise InputError(f"The actor of {path} does not say how likely it chooses what, so it is no target.")
    return Trained(actor, env.spec)


def _view(path: str, loaded: Trained, observation: Sequence[str]) -> View:
    if loaded.view is None:
        if not observation:
            raise InputError(
                f"The policy of {path} was trained in a world: name the {loaded.spec.observation_size} columns of the "
                "log that it sees, in its order: policy.observation=[…]."
            )
        return View(tuple(observation))
    if observation and len(observation) != len(loaded.view.columns):
        raise InputError(
            f"The policy of {path} was learned from {len(loaded.view.columns)} columns, "
            f"{', '.join(loaded.view.columns)}; policy.observation names {len(observation)}."
        )
    return replace(loaded.view, columns=tuple(observation) or loaded.view.columns)


def _require_fit(path: str, loaded: Trained, log: Log, view: View) -> None:
    spec, what = loaded.spec, f"The policy of {path} cannot be evaluated on {log.name}"
    if len(spec.agents) != 1:
        raise InputError(f"{what}: it decides for {len(spec.agents)} agents, and a row of a log has one action.")
    try:
        actions = only_choice(spec.action)
    except InputError as error:
        raise InputError(f"{what}. {error}") from error
    if actions != log.actions:
        raise InputError(f"{what}: it chooses among {actions} actions, the catalog has {log.actions}.")
    if view.labels and view.labels != tuple(log.catalog.labels.to_list()):
        raise InputError(
            f"{what}: it chooses among other actions, {_some(view.labels)}; the catalog has "
            f"{_some(log.catalog.labels.to_list())}. Set data.actions, or evaluate it on a log of the same catalog."
        )
    if view.size != spec.observation_size:
        raise InputError(
            f"{what}: it sees {spec.observation_size} numbers, policy.observation names {len(view.columns)}"
            f"{'' if view.columns else ' columns'}."
        )
    if view.positions > 1 and view.positions != log.positions:
        raise InputError(f"{what}: it was learned with {view.positions} positions, the log has {log.positions}.")
    if loaded.policy.initial_memory(1) is not None:
        raise InputError(f"{what}: it remembers, and a row of a log stands alone. Train it without memory.")
    try:
        log_probs(loaded.policy, np.zeros((1, view.size)))
    except Exception as error:
        raise InputError(f"{what}: it does not say how likely it takes each action ({error}).") from error


def _some(labels: Sequence[Any]) -> str:
    return ", ".join(map(str, labels[:5])) + (", …" if len(labels) > 5 else "")
