"""Frequencies of each action in each context, for logs of any length: streamed counts by fold.

Axes: n rows, A actions, F folds, C contexts, M pairs of a context and an action that occur, N of these by fold.
Everything that a model of the other folds says of a row follows from the counts of all rows less those of its fold, so
one scan fits all F models, their temperatures and their calibration. Memory: about 100 bytes for each of M and N,
whatever the rows, actions and contexts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from envs.core import InputError
from recsys.logs.log import Chunk, Log
from recsys.models.cross_fitting import Quality, complete, fold_of, require_folds
from recsys.models.propensity import Calibration

MOST_COUNTS = 2**23  # N at most: under a gigabyte in all
CALIBRATED_PAIRS = 2**27  # pairs of a context and an action, by fold, for the calibration: a few seconds
BLOCK = 2**20


class Contexts:
    """Numbers for the contexts of a log, given as they come: rows that agree in all columns share one."""

    def __init__(self, columns: tuple[str, ...]):
        self.columns = columns
        self._known: pl.DataFrame | None = None

    def __len__(self) -> int:
        return 1 if self._known is None else len(self._known)

    def learn(self, rows: Chunk) -> Int[np.ndarray, " n"]:
        """The numbers of the rows' contexts; new ones get the next."""
        if not self.columns:
            return np.zeros(len(rows), np.int64)
        frame = self._frame(rows)
        if self._known is None:
            self._known = frame.clear().with_columns(context=pl.lit(0, pl.Int64))
        new = frame.join(self._known, on=frame.columns, how="anti").unique(maintain_order=True)
        number = pl.int_range(len(self._known), len(self._known) + len(new), eager=True).alias("context")
        self._known = pl.concat([self._known, new.with_columns(number)])
        return self.number(rows)

    def number(self, rows: Chunk) -> Int[np.ndarray, " n"]:
        """The numbers of the rows' contexts, -1 for those never learned."""
        if self._known is None:
            return np.zeros(len(rows), np.int64)
        frame = self._frame(rows)
        numbers = frame.join(self._known, on=frame.columns, how="left", maintain_order="left")["context"]
        return numbers.fill_null(-1).to_numpy()

    def sort(self) -> Int[np.ndarray, " C"]:
        """Number them by their values, whatever the order in which they came: the new numbers of the old."""
        if self._known is None:
            return np.zeros(1, np.int64)
        known = self._known.sort(self._known.columns[:-1])
        number = np.empty(len(known), np.int64)
        number[known["context"].to_numpy()] = np.arange(len(known))
        self._known = known.with_columns(context=pl.int_range(pl.len()))
        return number

    def _frame(self, rows: Chunk) -> pl.DataFrame:
        return pl.DataFrame({f"column{i}": rows.context[name] for i, name in enumerate(self.columns)})


class Counts:
    """Counts of keys, sorted by key; pending ones are joined once they are as many as the rest."""

    def __init__(self) -> None:
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._key: np.ndarray = np.zeros(0, np.int64)
        self._count: np.ndarray = np.zeros(0)

    def add(self, key: Int[np.ndarray, " n"], count: Float[np.ndarray, " n"] | None) -> None:
        """One more chunk. Raises InputError where there are more than `MOST_COUNTS` different keys."""
        distinct, inverse = np.unique(key, return_inverse=True)
        self._pending.append((distinct, np.bincount(inverse, count, len(distinct)).astype(np.float64)))
        if sum(len(keys) for keys, _ in self._pending) > max(len(self._key), BLOCK):
            self.total()

    def total(self) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"]]:
        """All keys and their counts."""
        keys, counts = zip((self._key, self._count), *self._pending, strict=True)
        self._key, inverse = np.unique(np.concatenate(keys), return_inverse=True)
        self._count = np.bincount(inverse, np.concatenate(counts), len(self._key))
        self._pending = []
        if len(self._key) > MOST_COUNTS:
            raise InputError(
                f"The counts of behavior.columns, actions and folds have more than {MOST_COUNTS:,} different cells, "
                f"{100 * MOST_COUNTS / 2**30:.1f} GB of memory. Name columns with fewer values, take fewer folds, or a "
                "part of the log or of its actions."
            )
        return self._key, self._count


class Frequencies:
    """p(a|x) = ((count(x,a) + s share(a)) / (count(x) + s))^{1/t} / Z, with nothing of the row's own fold.

    share(a) is smoothed by one row in all. The strength s of a fold, unless it is given, and then its temperature t are
    those by which the held-out log-loss of the other folds is least. (Cross-fitting: Chernozhukov et al., Econometrics
    Journal 2018; temperature: Guo, Pleiss, Sun and Weinberger, ICML 2017.)
    """

    def __init__(
        self,
        key: Int[np.ndarray, " N"],
        count: Float[np.ndarray, " N"],
        contexts: int,
        actions: int,
        folds: int,
        strength: float | None,
    ):
        self.key, self.count, self.actions, self.folds = key, count, actions, folds
        pair, self.fold = np.divmod(key, folds)
        self.pair, self.pair_of = np.unique(pair, return_inverse=True)
        self.total = np.bincount(self.pair_of, count, len(self.pair))
        self.context, self.action = np.divmod(self.pair, actions)
        self.starts = np.searchsorted(self.context, np.arange(contexts + 1))
        cell = self.context[self.pair_of] * folds + self.fold
        self.rows = np.bincount(cell, count, contexts * folds).reshape(contexts, folds)
        shown = np.bincount(self.fold * actions + self.action[self.pair_of], count, folds * actions)
        rest = (shown.reshape(folds, actions).sum(0) - shown.reshape(folds, actions)).clip(min=0)
        self.share = (rest + 1 / actions) / (rest.sum(1, keepdims=True) + 1)
        self.strengths = [self._strength(fold) if strength is None else strength for fold in range(folds)]
        self.temperatures = [self._temperature(fold) for fold in range(folds)]
        self.log_probability = np.empty(len(key))
        for fold in range(folds):
            self.log_probability[self.fold == fold] = self._logged(fold, self.strengths[fold], self.temperatures[fold])

    def _others(self, fold: int) -> Float[np.ndarray, " M"]:
        """count(x, a) of each pair without a fold."""
        count, mine = self.total.copy(), self.fold == fold
        count[self.pair_of[mine]] -= self.count[mine]
        return count.clip(min=0)  # fractional multiplicities leave crumbs

    def _powers(
        self, fold: int, strength: float, temperature: float, others: Float[np.ndarray, " M"]
    ) -> tuple[Float[np.ndarray, " A"], Float[np.ndarray, " M"], Float[np.ndarray, " C"]]:
        """(s share(a))^{1/t}; (count(x,a) + s share(a))^{1/t} of pairs that occur; and their sum over all actions."""
        base = strength * self.share[fold]
        worth = others + base[self.action]
        if temperature == 1:
            return base, worth, np.add.reduceat(others, self.starts[:-1]) + base.sum()
        base, worth = base ** (1 / temperature), worth ** (1 / temperature)
        return base, worth, np.add.reduceat(worth - base[self.action], self.starts[:-1]) + base.sum()

    def _logged(self, fold: int, strength: float, temperature: float) -> Float[np.ndarray, " m"]:
        """log p of the fold's own keys."""
        mine = self.pair_of[self.fold == fold]
        _, worth, total = self._powers(fold, strength, temperature, self._others(fold))
        return np.log(worth[mine] / total[self.context[mine]])

    def _strength(self, fold: int) -> float:
        """Without a temperature the sum over all actions is known: count(x) + s."""
        rest = self.fold != fold
        own, pair, folds = self.count[rest], self.pair_of[rest], self.fold[rest]
        context, share = self.context[pair], self.share[folds, self.action[pair]]
        others = (self.total[pair] - own).clip(min=0)
        seen = (self.rows.sum(1)[context] - self.rows[context, folds]).clip(min=0)
        return _least(lambda s: -float(own @ np.log((others + s * share) / (seen + s))), 0.01, 1e6)

    def _temperature(self, fold: int) -> float:
        rest, strength = [f for f in range(self.folds) if f != fold], self.strengths[fold]

        def loss(t: float) -> float:
            return -sum(float(self.count[self.fold == f] @ self._logged(f, strength, t)) for f in rest)

        return _least(loss, math.exp(-3), math.exp(3))

    def quality(self) -> Quality:
        """The quality of the held-out predictions, over all rows (the calibration: over the most frequent contexts)."""
        rows, share = self.count.sum(), self.share[self.fold, self.action[self.pair_of]]
        calibration, judged = self._calibration()
        seen = self.rows.sum(1, keepdims=True) - self.rows
        return Quality(
            float(rows),
            -float(self.count @ self.log_probability) / rows,
            -float(self.count @ np.log(share)) / rows,
            calibration.table(),
            judged / rows,
            float(self.rows[seen <= 1e-9].sum() / rows),
        )

    def _calibration(self) -> tuple[Calibration, float]:
        most = max(1, CALIBRATED_PAIRS // (self.folds * self.actions))
        chosen = np.sort(np.argsort(-self.rows.sum(1), kind="stable")[:most])
        calibration, size = Calibration(), max(1, BLOCK // self.actions)
        for fold in range(self.folds):
            others = self._others(fold)
            held_out = self.total - others
            base, worth, total = self._powers(fold, self.strengths[fold], self.temperatures[fold], others)
            for block in (chosen[start : start + size] for start in range(0, len(chosen), size)):
                at = np.concatenate([np.arange(self.starts[x], self.starts[x + 1]) for x in block])
                line, shown = np.searchsorted(block, self.context[at]), np.zeros((len(block), self.actions))
                probability = np.tile(base, (len(block), 1))
                probability[line, self.action[at]] = worth[at]
                shown[line, self.action[at]] = held_out[at]
                calibration.add(probability / total[block, None], shown, self.rows[block, fold])
        return calibration, float(self.rows[chosen].sum())


def _least(loss: Callable[[float], float], low: float, high: float) -> float:
    """The positive number at which a loss is least, searched on a scale of logarithms."""
    from scipy import optimize

    bounds = (math.log(low), math.log(high))
    optimum = optimize.minimize_scalar(
        lambda log: loss(math.exp(log)), bounds=bounds, method="bounded", options={"xatol": 1e-3}
    )
    return math.exp(optimum.x)


class FrequencyModel:
    """`Frequencies` of a log, for the rows of this log."""

    def __init__(self, log: Log, columns: tuple[str, ...], folds: int, strength: float | None):
        self._user, self._contexts, counts, users = log.columns.user, Contexts(columns), Counts(), np.zeros(folds)
        for rows in complete(log, columns):
            fold = fold_of(rows, self._user, folds)
            users += np.bincount(fold, rows.multiplicity, folds)
            counts.add((self._contexts.learn(rows) * log.actions + rows.action) * folds + fold, rows.multiplicity)
        require_folds(users)
        key, count = counts.total()
        context, rest = np.divmod(key, log.actions * folds)
        key = self._contexts.sort()[context] * log.actions * folds + rest
        order = np.argsort(key)
        self._frequencies = Frequencies(key[order], count[order], len(self._contexts), log.actions, folds, strength)
        self.quality = self._frequencies.quality()
        self.temperatures = self._frequencies.temperatures

    def propensity(self, rows: Chunk) -> Float[np.ndarray, " n"]:
        """p of the logged actions, from the folds that the rows' users are not in."""
        frequencies = self._frequencies
        fold = fold_of(rows, self._user, frequencies.folds)
        key = (self._contexts.number(rows) * frequencies.actions + rows.action) * frequencies.folds + fold
        return np.exp(frequencies.log_probability[np.searchsorted(frequencies.key, key)])
