"""Pieces of models that are fitted without the row's user: folds of users, complete rows, and the quality of a fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Int, Num, UInt64

from envs.core import InputError
from recsys.logs.log import Chunk, Log
from recsys.logs.tables import TOLD_ROWS, Problems
from recsys.models.propensity import CalibrationRow, calibration_error


@dataclass(frozen=True)
class Quality:
    """Quality of held-out predictions: log-loss per row and calibration.

    marginal: the log-loss of the actions' frequencies alone, to set beside log_loss. rows: that were fitted on. judged:
    the share of these that the calibration is about. unseen: the share whose context occurs in their own fold only.
    """

    rows: float
    log_loss: float
    marginal: float
    calibration: list[CalibrationRow]
    judged: float
    unseen: float

    @property
    def error(self) -> float:
        """The expected calibration error, as a share of the rows."""
        return calibration_error(self.calibration)

    @property
    def worst(self) -> float:
        """The largest |z| of the calibration table."""
        return max(abs(row.z) for row in self.calibration)


def mixed(number: Int[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Numbers as if drawn at random, the same for the same. (SplitMix64: Steele, Lea and Flood, OOPSLA 2014.)"""
    z = number.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def row_numbers(rows: Chunk) -> Int[np.ndarray, " n"]:
    """The places of the rows in the log."""
    return rows.row_numbers


def fold_of(rows: Chunk, user: str | None, folds: int) -> Int[np.ndarray, " n"]:
    """A fold for each user, by a hash of who it is; without users, for each row."""
    key = row_numbers(rows) if user is None else rows.context[user]
    if key.dtype.kind not in "iu":
        key = pl.Series(key).hash(0).to_numpy().view(np.int64)
    return (mixed(key) % np.uint64(folds)).astype(np.int64)


def require_folds(
    rows: Num[np.ndarray, " folds"], what: str = "Propensities", key: str = "behavior.folds (at least 3)"
) -> None:
    """Raise InputError where a fold has no rows."""
    if not rows.all():
        raise InputError(
            f"{what} are fitted in {len(rows)} folds of users, and the log's users (or rows, without users) fall "
            f"into {np.count_nonzero(rows)} of them. Take fewer with {key}, or a longer log."
        )


def complete(log: Log, columns: tuple[str, ...]) -> Iterator[Chunk]:
    """All rows. Raises InputError where any of these columns has no value, once all are counted, or holds lists."""
    for name in columns:
        if log.schema[name].is_nested():
            raise InputError(
                f"Column {name!r} of behavior.columns must hold one value a row; it holds {log.schema[name]}."
            )
    problems = Problems(log.name)
    for rows in log.chunks():
        for name in columns:
            values = pl.Series(rows.context[name])
            bad = values.is_null() | values.is_nan() if values.dtype.is_float() else values.is_null()
            missing = rows.row_numbers[bad.to_numpy()]
            problems.add(f"{name}, of behavior.columns, missing", len(missing), missing[:TOLD_ROWS])
        if not problems:
            yield rows
    problems.tell()
