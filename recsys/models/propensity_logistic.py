"""A logistic model of who was shown what, fitted on a sample of a log and used on all of it."""

from __future__ import annotations

import numpy as np
import polars as pl
from jaxtyping import Float

from envs.core import InputError
from recsys.logs.log import Chunk, Log
from recsys.models.cross_fitting import Quality, complete, fold_of, mixed, require_folds, row_numbers
from recsys.models.propensity import calibration_table, fit_folds, logistic

MOST_CELLS = 2**24  # rows x actions at most that are fitted on: under a gigabyte
MOST_VALUES = 100  # of a text column
BLOCK = 2**22


class Encoder:
    """Features near a scale of 1: numbers standardized, each value of a text or boolean column 0 or 1.

    Values that the sample lacks are 0 in all of their column's features.
    """

    def __init__(self, sample: pl.DataFrame):
        self.columns = sample.columns
        self._scale: dict[str, tuple[float, float]] = {}
        self._values: dict[str, pl.Series] = {}
        for name, column in zip(sample.columns, sample, strict=True):
            if column.dtype.is_numeric():
                numbers = column.cast(pl.Float64).to_numpy()
                if not np.isfinite(numbers).all():
                    raise InputError(f"Column {name!r} of behavior.columns holds infinite numbers.")
                self._scale[name] = (float(numbers.mean()), float(numbers.std()) or 1.0)
            elif column.dtype in (pl.String, pl.Boolean):
                values = column.unique().sort()
                if len(values) > MOST_VALUES:
                    raise InputError(
                        f"Column {name!r} of behavior.columns has {len(values):,} different values in the sample; "
                        f"model=logistic makes a feature of each and takes {MOST_VALUES} at most. Group them, leave "
                        "the column out, or take model=frequency."
                    )
                self._values[name] = values
            else:
                raise InputError(
                    f"Column {name!r} of behavior.columns must hold numbers, text or booleans for model=logistic; it "
                    f"holds {column.dtype}."
                )

    def features(self, frame: pl.DataFrame) -> Float[np.ndarray, "n D"]:
        """Of rows with the same columns."""
        columns = []
        for name in self.columns:
            if name in self._scale:
                mean, sd = self._scale[name]
                columns.append((frame[name].cast(pl.Float64).to_numpy() - mean) / sd)
            else:
                columns += [(frame[name] == value).to_numpy().astype(np.float64) for value in self._values[name]]
        return np.stack(columns, 1) if columns else np.zeros((len(frame), 0))


class LogisticModel:
    """Multinomial logistic regression by fold, each from the sampled rows of the other folds, with its temperature.

    Quality is told by the sampled rows, each predicted without its fold.
    """

    def __init__(self, log: Log, columns: tuple[str, ...], folds: int, l2: float, max_rows: int):
        if log.columns.multiplicity is not None:
            raise InputError("model=logistic takes every row once; for a log with multiplicity take model=frequency.")
        self._user, self._folds, self._columns = log.columns.user, folds, columns
        sample, count = self._sample(log, max_rows)
        if len(sample) * log.actions > MOST_CELLS:
            raise InputError(
                f"model=logistic on {len(sample):,} rows with {log.actions:,} actions would need "
                f"{len(sample) * log.actions * 8 * 5 / 2**30:.1f} GB of memory. Set behavior.max_rows to at most "
                f"{MOST_CELLS // log.actions:,}, or take model=frequency."
            )
        self._encoder = Encoder(sample.select(columns))
        features, action, fold = (
            self._encoder.features(sample),
            *(sample[f"\n{x}"].to_numpy() for x in ("action", "fold")),
        )
        require_folds(np.bincount(fold, minlength=folds))
        self._fitted = fit_folds(logistic(log.actions, l2), features, action, fold, folds)
        self.temperatures, held_out = self._fitted.temperatures, self._fitted.held_out
        self.quality = Quality(
            count,
            -float(np.log(held_out[np.arange(len(action)), action]).mean()),
            _marginal_loss(action, fold, folds, log.actions),
            calibration_table(held_out, action),
            len(sample) / count,
            0.0,
        )

    def propensity(self, rows: Chunk) -> Float[np.ndarray, " n"]:
        """p of the logged actions, from the folds that the rows' users are not in."""
        from scipy import special

        fold, features = fold_of(rows, self._user, self._folds), self._encoder.features(self._frame(rows))
        propensity = np.empty(len(rows))
        size = max(1, BLOCK // len(self._fitted.held_out[0]))
        for f, (model, t) in enumerate(zip(self._fitted.models, self._fitted.temperatures, strict=True)):
            mine = np.flatnonzero(fold == f)
            for at in (mine[start : start + size] for start in range(0, len(mine), size)):
                chances = special.softmax(model(features[at]) / t, axis=1)
                propensity[at] = chances[np.arange(len(at)), rows.action[at]]
        return propensity

    def _frame(self, rows: Chunk) -> pl.DataFrame:
        return pl.DataFrame({name: rows.context[name] for name in self._columns})

    def _sample(self, log: Log, most: int) -> tuple[pl.DataFrame, float]:
        """The rows with the smallest hashes of their numbers, and how many rows there are."""
        kept: list[pl.DataFrame] = []
        count = 0
        for rows in complete(log, self._columns):
            fold = fold_of(rows, self._user, self._folds)
            number = row_numbers(rows)
            own = {"\naction": rows.action, "\nfold": fold, "\nnumber": number, "\nhash": mixed(number)}
            more = pl.DataFrame({**{name: rows.context[name] for name in self._columns}, **own})
            kept = [pl.concat([*kept, more]).bottom_k(most, by="\nhash")]
            count += len(rows)
        return kept[0].sort("\nnumber"), float(count)


def _marginal_loss(action: np.ndarray, fold: np.ndarray, folds: int, actions: int) -> float:
    """Log-loss of the actions' frequencies in the other folds, smoothed by one row in all."""
    count = np.bincount(fold * actions + action, minlength=folds * actions).reshape(folds, actions)
    rest = count.sum(0) - count
    return -float(np.log(((rest + 1 / actions) / (rest.sum(1, keepdims=True) + 1))[fold, action]).mean())
