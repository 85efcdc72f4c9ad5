"""A reward model that sees the context: a ridge regression of each signal for each action, cross-fitted by users.

Axes: F folds, P positions, A actions, D features, K signals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from envs.core import InputError
from recsys.logs.log import Chunk, Log
from recsys.logs.tables import TOLD_ROWS, Problems, collect
from recsys.models.cross_fitting import fold_of, require_folds

MOST_VALUES = 100  # of a text column
MOST_SUMS = 2**26  # numbers at most that are kept of a log: half a gigabyte, and as much again to solve
CONSTANT = 1e-12  # of a column's mean square, a variance that is rounding


@dataclass(frozen=True)
class Part:
    """One column of n rows as features: feature `start + code` has `value`, the column's others have 0."""

    name: str
    start: int
    width: int
    code: Int[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]

    @property
    def at(self) -> slice:
        """The places of the column's features."""
        return slice(self.start, self.start + self.width)


class Features:
    """Columns as D features: a number is one, a text column one of 0 and 1 for each of its values.

    Numbers are moved and scaled by what the first rows hold, which keeps sums of squares exact and changes no fit.
    Raises InputError for columns of other kinds, and of more than `MOST_VALUES` different texts.
    """

    def __init__(self, log: Log, columns: Sequence[str]):
        self.columns, self._values, self._units = (
            tuple(columns),
            dict[str, pl.Series](),
            dict[str, tuple[float, float]](),
        )
        for name in columns:
            kind = log.schema[name]
            if kind in (pl.String, pl.Categorical, pl.Enum):
                self._values[name] = _values(log, name)
            elif not (kind.is_numeric() or kind == pl.Boolean):
                raise InputError(
                    f"Column {name!r} of reward_model.columns must hold numbers, booleans or text; it holds {kind}."
                )
        self._widths = [len(self._values[name]) if name in self._values else 1 for name in columns]
        self.size = sum(self._widths)
        self.is_number = np.repeat([name not in self._values for name in columns], self._widths)

    def parts(self, rows: Chunk) -> list[Part]:
        """Every column; a value is NaN or infinite where the log's is, NaN where it has none."""
        parts, start = [], 0
        for name, width in zip(self.columns, self._widths, strict=True):
            if name in self._values:
                text = pl.Series(rows.context[name], dtype=pl.String)
                code = text.replace_strict(
                    self._values[name], range(width), default=-1, return_dtype=pl.Int64
                ).to_numpy()
                value = np.where(text.is_null().to_numpy(), np.nan, code >= 0)  # what was not fitted has no feature
                code = code.clip(min=0)
            else:
                value, code = _numbers(rows.context[name]), np.zeros(len(rows), np.int64)
                shift, scale = self._units.get(name, (0.0, 1.0))
                value = (value - shift) / scale
            parts.append(Part(name, start, width, code, value))
            start += width
        return parts

    def scale(self, parts: Sequence[Part]) -> None:
        """Take the mean and the deviation of these numbers as 0 and 1."""
        for part in parts:
            if part.name not in self._values:
                first = part.value[0]
                above = part.value - first  # exactly 0 in a constant column
                self._units[part.name] = (float(first + above.mean()), float(above.std()) or 1.0)


class Moments:
    """Moments of a log that a ridge regression of each action needs, for each fold.

    count [F,A,P], total [F,A,P,D] and reward [F,A,P,K] are sums of 1, features and signals; square [F,A,D,D] and
    product [F,A,D,K] of features by features and by signals.
    """

    def __init__(self, folds: int, actions: int, positions: int, features: int, signals: int):
        shape = folds, actions
        self.count = np.zeros((*shape, positions))
        self.total = np.zeros((*shape, positions, features))
        self.reward = np.zeros((*shape, positions, signals))
        self.square = np.zeros((*shape, features, features))  # of two columns the later has the second axis
        self.product = np.zeros((*shape, features, signals))

    def add(self, rows: Chunk, fold: Int[np.ndarray, " n"], parts: Sequence[Part]) -> None:
        """One more chunk. Two columns meet once, however many features they are."""
        F, A, P = self.count.shape
        group, count = fold * A + rows.action, rows.counted(np.ones(len(rows)))
        cell = group * P + rows.position
        self.count += np.bincount(cell, count, F * A * P).reshape(F, A, P)
        for k, signal in enumerate(rows.reward.T):
            self.reward[..., k] += np.bincount(cell, count * signal, F * A * P).reshape(F, A, P)
        for i, part in enumerate(parts):
            value, at = count * part.value, group * part.width + part.code
            more = np.bincount(cell * part.width + part.code, value, F * A * P * part.width)
            self.total[..., part.at] += more.reshape(F, A, P, part.width)
            for k, signal in enumerate(rows.reward.T):
                more = np.bincount(at, value * signal, F * A * part.width)
                self.product[..., part.at, k] += more.reshape(F, A, part.width)
            for other in parts[i:]:
                pairs = np.bincount(
                    at * other.width + other.code, value * other.value, F * A * part.width * other.width
                )
                self.square[..., part.at, other.at] += pairs.reshape(F, A, part.width, other.width)

    def solved(
        self, fold: int, is_number: np.ndarray, prior_rows: float, l2: float
    ) -> tuple[Float[np.ndarray, "P A K"], Float[np.ndarray, "D A K"]]:
        """Intercepts and slopes from all folds but one, whose rows change nothing in them.

        z are the features less their means, numbers over their deviations, and m is the mean reward. Action a's slopes
        minimize, over its rows and with a free intercept c for each position,

        Σ (r - c_position - z·β_a)² + l2 |β_a - β̄|²

        where β̄ minimizes the sum of all actions' squares plus l2 |β̄|². What the slopes leave has a smoothed mean:
        α(position, a) = Σ (r - m - z·β_a) / (rows + prior_rows), and q(x, a) = m + α + z·β_a. Shrunk together with the
        slopes, intercepts would bend these wherever the logger chose by context. A column that is constant in these
        folds has slope 0; without columns this is `reward_models.smoothed_mean`.
        """
        F = len(self.count)
        others = [other for other in range(F) if other != fold]  # added up, not subtracted, which would leave traces

        def rest(sums: np.ndarray) -> np.ndarray:
            summed: np.ndarray = sum(sums[other] for other in others)
            return summed

        count, total, reward, product = (rest(x) for x in (self.count, self.total, self.reward, self.product))
        upper = np.triu(rest(self.square))
        square = upper + np.swapaxes(np.triu(upper, 1), 1, 2)
        n = count.sum()
        mean, center = reward.sum((0, 1)) / n, total.sum((0, 1)) / n
        of_square = np.einsum("add->d", square) / n
        variance = of_square - center**2
        known = variance > CONSTANT * of_square
        unit = np.where(is_number, 1 / np.sqrt(np.where(known, variance, 1.0)), 1.0) * known

        rows, x, r = count.sum(1), total.sum(1), reward.sum(1)
        x_by_center = x[:, :, None] * center
        square = square - x_by_center - x_by_center.swapaxes(1, 2) + rows[:, None, None] * np.outer(center, center)
        square *= np.outer(unit, unit)
        product = product - center[:, None] * r[:, None] - x[:, :, None] * mean
        product = (product + rows[:, None, None] * np.outer(center, mean)) * unit[:, None]
        total = (total - count[..., None] * center) * unit
        reward = reward - count[..., None] * mean

        seen = np.where(count > 0, count, 1.0)[..., None]
        square -= np.einsum("apd,ape->ade", total / seen, total)  # about each cell's own mean: the free intercepts
        product -= np.einsum("apd,apk->adk", total / seen, reward)
        ridge = l2 * np.eye(len(center))
        shared = np.linalg.solve(square.sum(0) + ridge, product.sum(0))
        slope = np.linalg.solve(square + ridge, product + l2 * shared)
        above = (reward - np.einsum("apd,adk->apk", total, slope)) / (count + prior_rows)[..., None]
        slope = slope * unit[:, None]
        base = mean + above - np.einsum("d,adk->ak", center, slope)[:, None]
        return base.swapaxes(0, 1), slope.swapaxes(0, 1)


@dataclass(frozen=True)
class LinearModel:
    """q(x, a) = base of (position, a) + features · slope_a, of the folds that the row's user is not in.

    base: [F,P,A,K]. slope: [F,D,A,K]. columns: of the log, those of the features and of users.
    """

    columns: tuple[str, ...]
    user: str | None
    features: Features
    base: Float[np.ndarray, "F P A K"]
    slope: Float[np.ndarray, "F D A K"]
    table: None = None

    def predict(self, rows: Chunk) -> Float[np.ndarray, "n A K"]:
        """q(x, a) of few rows and all actions."""
        fold, x = fold_of(rows, self.user, len(self.base)), np.zeros((len(rows), self.features.size))
        for part in self._parts(rows):
            x[np.arange(len(rows)), part.start + part.code] = part.value
        q = self.base[fold, rows.position]
        for f, slope in enumerate(self.slope):
            at = np.flatnonzero(fold == f)
            q[at] += np.einsum("nd,dak->nak", x[at], slope)  # not @, whose threads may change the bits
        return q

    def predict_logged(self, rows: Chunk) -> Float[np.ndarray, "n K"]:
        """q(x, a) of the logged actions."""
        fold = fold_of(rows, self.user, len(self.base))
        q = self.base[fold, rows.position, rows.action]
        for part in self._parts(rows):
            q += part.value[:, None] * self.slope[fold, part.start + part.code, rows.action]
        return q

    def _parts(self, rows: Chunk) -> list[Part]:
        parts = self.features.parts(rows)
        for part in parts:
            if not np.isfinite(part.value).all():
                raise InputError(f"Column {part.name!r} of reward_model.columns has missing or infinite values.")
        return parts


def fit_linear(log: Log, columns: Sequence[str], prior_rows: float, l2: float, folds: int) -> LinearModel:
    """The model of `Moments.solved` for each fold of users, or of rows where there are no users; one scan.

    Text columns are looked through once before. Cross-fitting keeps DR unbiased whatever the model is worth.
    Raises InputError for columns that are missing, have missing or infinite values, or came after the action; for
    fewer users than folds; and where the sums would not fit into memory.
    (Cross-fitting: Chernozhukov et al., Econometrics Journal 2018.)
    """
    for name in columns:
        if name in (log.columns.action, log.columns.propensity, *log.signals):
            raise InputError(
                f"reward_model.columns are what was known before an action was chosen; {name!r} came after."
            )
    user = log.columns.user
    needed = (*columns, *([] if user is None or user in columns else [user]))
    log = log.with_context(needed)
    features, problems = Features(log, columns), Problems(log.name)
    A, P, D, K = log.actions, log.positions, features.size, len(log.signals)
    numbers = folds * A * ((D + 1 + K) * (P + D))
    if numbers > MOST_SUMS:
        raise InputError(
            f"reward_model.kind=linear of {D:,} features for {A:,} actions at {P:,} positions in {folds} folds would "
            f"keep {numbers * 8 / 2**30:.1f} GB of sums, and takes {MOST_SUMS * 8 / 2**30:.1f} at most. Name fewer "
            "columns, group the values of text columns, or take fewer folds."
        )
    moments: Moments | None = None
    users = np.zeros(folds)
    for rows in log.chunks():
        with np.errstate(invalid="ignore", over="ignore"):
            parts = features.parts(rows)
            for part in parts:
                bad = rows.row_numbers[~np.isfinite(part.value)]
                told = f"{part.name}, of reward_model.columns, missing or not finite"
                problems.add(told, len(bad), bad[:TOLD_ROWS])
            if problems:
                continue
            if moments is None:
                features.scale(parts)
                parts, moments = features.parts(rows), Moments(folds, A, P, D, K)
            fold = fold_of(rows, user, folds)
            users += np.bincount(fold, rows.multiplicity, folds)
            moments.add(rows, fold, parts)
    problems.tell()
    assert moments is not None
    require_folds(users, "Reward models", "reward_model.folds")
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        solved = [moments.solved(fold, features.is_number, prior_rows, l2) for fold in range(folds)]
    base, slope = (np.stack(x) for x in zip(*solved, strict=True))
    if not (np.isfinite(base).all() and np.isfinite(slope).all()):
        raise InputError(
            f"The linear reward model of {', '.join(columns)} cannot be computed: numbers of a column or a reward are "
            "too large. Divide them, or leave the column out."
        )
    return LinearModel(needed, user, features, base, slope)


def _values(log: Log, name: str) -> pl.Series:
    """The texts of a column, sorted."""
    text = pl.col(name).cast(pl.String)
    values = collect(log.frame.select(text.drop_nulls().unique()), log.name, log.files.fault).to_series().sort()
    if len(values) > MOST_VALUES:
        raise InputError(
            f"Column {name!r} of reward_model.columns has {len(values):,} different values; kind=linear makes a "
            f"feature of each and takes {MOST_VALUES} at most. Group them, or leave the column out."
        )
    return values


def _numbers(values: np.ndarray) -> Float[np.ndarray, " n"]:
    """As real numbers, NaN where there is none."""
    if values.dtype.kind in "iufb":
        return values.astype(np.float64)
    return pl.Series(values).cast(pl.Float64).fill_null(float("nan")).to_numpy()
