"""Reward models, the q of DM, DR and their kin: what an action is expected to earn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from recsys.config import RewardModelConfig
from recsys.logs.log import Chunk, Log
from recsys.models.reward_linear import fit_linear

Table = Float[np.ndarray, "positions A K"]


@runtime_checkable
class RewardModel(Protocol):
    """The expected reward of every action.

    `table` is the whole model where it knows no more of a row than its position, and None where it needs the row.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the log that it reads, besides action and position: `Log.with_context` provides them."""

    @property
    def table(self) -> Table | None:
        """q(position, a), or None."""

    def predict(self, rows: Chunk) -> Float[np.ndarray, "n A K"]:
        """q(x, a) of few rows and all actions."""

    def predict_logged(self, rows: Chunk) -> Float[np.ndarray, "n K"]:
        """q(x, a) of the logged actions."""


class TableModel:
    """q(position, action), whatever the context."""

    columns: tuple[str, ...] = ()

    def __init__(self, table: Table):
        self.table = table

    def predict(self, rows: Chunk) -> Float[np.ndarray, "n A K"]:
        """The rows of the table."""
        return self.table[rows.position]

    def predict_logged(self, rows: Chunk) -> Float[np.ndarray, "n K"]:
        """The entries of the table."""
        actions, signals = self.table.shape[1:]
        return np.take(self.table.reshape(-1, signals), rows.position * actions + rows.action, axis=0)


def fit_reward_model(log: Log, config: RewardModelConfig) -> RewardModel:
    """The model that the section `reward_model` asks for. Raises InputError where the log does not allow it."""
    if config.kind == "linear":
        return fit_linear(log, config.columns, config.prior_rows, config.l2, config.folds)
    return smoothed_mean(log, config.prior_rows)


def smoothed_mean(log: Log, prior_rows: float = 50.0) -> TableModel:
    """The mean reward of each action at each position, as if `prior_rows` rows of the log's mean had been seen there.

    q(a, position) = (Σ r + prior_rows · mean of r) / (rows + prior_rows), fitted on the rows that are evaluated, by one
    scan. With a whole log's few thousand cells the rows' own part in their prediction is small; where it is not, DM
    and DR lean towards what was logged.
    """
    return fitted_means(log, prior_rows)


def fitted_means(
    log: Log, prior_rows: float, weight: Callable[[Chunk], Float[np.ndarray, " n"]] | None = None
) -> TableModel:
    """`smoothed_mean` with rows that count as much as `weight` says, scaled to a mean of 1."""
    cells = log.positions * log.actions
    count, total, rows = np.zeros(cells), np.zeros((cells, len(log.signals))), 0.0
    for chunk in log.chunks():
        cell = chunk.position * log.actions + chunk.action
        counts = chunk.counted(np.ones(len(chunk)) if weight is None else weight(chunk))
        count += np.bincount(cell, counts, cells)
        rows += chunk.counted(np.ones(len(chunk))).sum()
        for k, signal in enumerate((counts[:, None] * chunk.reward).T):
            total[:, k] += np.bincount(cell, signal, cells)
    if count.sum() == 0:  # nothing that the policy would show was logged
        return TableModel(np.zeros((log.positions, log.actions, len(log.signals))))
    mean, scale = total.sum(0) / count.sum(), 1.0 if weight is None else rows / count.sum()
    table = (total * scale + prior_rows * mean) / (count * scale + prior_rows)[:, None]
    return TableModel(table.reshape(log.positions, log.actions, -1))
