"""How often each action was shown in each context, for logs of any length: streamed counts by fold.

Axes: n rows, A actions, F folds, C contexts, M pairs of a context and an action that occur, N of these by fold.
Everything that a model of the other folds says of a row follows from the counts of all rows less those of its fold, so
one scan fits all F models, their temperatures and their calibration. Memory: about 100 bytes for each of M and N,
whatever the rows, actions and contexts.
"""

from __future__ import annotations

import math

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from envs.core import InputError
from recsys.behavior import Calibration
from recsys.folds import Quality, complete, fold_of, require_folds
from recsys.logged import Chunk, Log

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
        found = frame.join(self._known, on=frame.columns, how="left", maintain_order="left")["context"]
        return found.fill_null(-1).to_numpy()

    def _frame(self, rows: Chunk) -> pl.DataFrame:
        return pl.DataFrame({f"column{i}": rows.context[name] for i, name in enumerate(self.columns)})


class Counts:
    """How often each key came, sorted by key; pending ones are joined once they are as many as the rest."""

    def __init__(self) -> None:
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._key: np.ndarray = np.zeros(0, np.int64)
        self._count: np.ndarray = np.zeros(0)

    def add(self, key: Int[np.ndarray, " n"], count: Float[np.ndarray, " n"] | None) -> None:
        """One more chunk. Raises InputError where there are more than `MOST_COUNTS` different keys."""
        found, inverse = np.unique(key, return_inverse=True)
        self._pending.append((found, np.bincount(inverse, count, len(found)).astype(np.float64)))
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
    """p(a|x) = ((count(x,a) + s share(a)) / (count(x) + s))^{1/t} / Z, counts and t without the row's own fold.

    share(a) is smoothed by one row in all, s is `strength`. t is the temperature of the fold, by which the held-out
    log-loss of the others is least. (Cross-fitting: Chernozhukov et al., Econometrics Journal 2018; temperature: Guo,
    Pleiss, Sun and Weinberger, ICML 2017.)
    """

    def __init__(
        self,
        key: Int[np.ndarray, " N"],
        count: Float[np.ndarray, " N"],
        contexts: int,
        actions: int,
        folds: int,
        strength: float,
    ):
        self.key, self.count, self.actions, self.folds, self.strength = key, count, actions, folds, strength
        pair, self.fold = np.divmod(key, folds)
        self.pair, self.pair_of = np.unique(pair, return_inverse=True)
        self.total = np.bincount(self.pair_of, count, len(self.pair))
        self.context, self.action = np.divmod(self.pair, actions)
        self.starts = np.searchsorted(self.context, np.arange(contexts))
        cell = self.context[self.pair_of] * folds + self.fold
        self.rows = np.bincount(cell, count, contexts * folds).reshape(contexts, folds)
        shown = np.bincount(self.fold * actions + self.action[self.pair_of], count, folds * actions)
        rest = (shown.reshape(folds, actions).sum(0) - shown.reshape(folds, actions)).clip(min=0)
        self.share = (rest + 1 / actions) / (rest.sum(1, keepdims=True) + 1)
        self.temperatures = [self._temperature(fold) for fold in range(folds)]
        self.log_probability = np.empty(len(key))
        for fold, t in enumerate(self.temperatures):
            mine = self.fold == fold
            self.log_probability[mine] = self._logged(fold, 1 / t)

    def _others(self, fold: int) -> Float[np.ndarray, " M"]:
        """count(x, a) of each pair without a fold."""
        count, mine = self.total.copy(), self.fold == fold
        count[self.pair_of[mine]] -= self.count[mine]
        return count.clip(min=0)  # fractional multiplicities leave crumbs

    def _log_normalizer(self, fold: int, power: float, others: Float[np.ndarray, " M"]) -> Float[np.ndarray, " C"]:
        """log Σ_a (count(x,a) + s share(a))^power: over pairs that occur, and what is left of all actions."""
        base = (self.strength * self.share[fold]) ** power
        extra = (others + self.strength * self.share[fold][self.action]) ** power - base[self.action]
        return np.log(np.add.reduceat(extra, self.starts) + base.sum())

    def _logged(self, fold: int, power: float) -> Float[np.ndarray, " m"]:
        """log p of the fold's own keys at a temperature of 1 / power."""
        others, mine = self._others(fold), self.pair_of[self.fold == fold]
        worth = np.log(others[mine] + self.strength * self.share[fold][self.action[mine]])
        return power * worth - self._log_normalizer(fold, power, others)[self.context[mine]]

    def _temperature(self, fold: int) -> float:
        from scipy import optimize

        def loss(log_t: float) -> float:
            rest = [f for f in range(self.folds) if f != fold]
            return -sum(float(self.count[self.fold == f] @ self._logged(f, math.exp(-log_t))) for f in rest)

        found = optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-4}).x
        return math.exp(
            round(found, 4)
        )  # so that the order of rows, which moves the last bits of a loss, moves no more

    def quality(self) -> Quality:
        """How good the held-out predictions are, over all rows (the calibration: over the most frequent contexts)."""
        rows, rest = self.count.sum(), self.share[self.fold, self.action[self.pair_of]]
        calibration, judged = self._calibration()
        seen = self.rows.sum(1, keepdims=True) - self.rows
        unseen = float(self.rows[seen <= 1e-9].sum() / rows)
        return Quality(
            float(rows),
            -float(self.count @ self.log_probability) / rows,
            -float(self.count @ np.log(rest)) / rows,
            calibration.table(),
            judged / rows,
            unseen,
        )

    def _calibration(self) -> tuple[Calibration, float]:
        most = max(1, CALIBRATED_PAIRS // (self.folds * self.actions))
        chosen = np.sort(np.argsort(-self.rows.sum(1), kind="stable")[:most])
        found, size = Calibration(), max(1, BLOCK // self.actions)
        for fold, t in enumerate(self.temperatures):
            others = self._others(fold)
            held_out = self.total - others
            log_z = self._log_normalizer(fold, 1 / t, others)
            base = (self.strength * self.share[fold]) ** (1 / t)
            worth = (others + self.strength * self.share[fold][self.action]) ** (1 / t)
            for block in (chosen[start : start + size] for start in range(0, len(chosen), size)):
                ends = np.append(self.starts, len(self.pair))
                at = np.concatenate([np.arange(ends[x], ends[x + 1]) for x in block])
                line, shown = np.searchsorted(block, self.context[at]), np.zeros((len(block), self.actions))
                probability = np.tile(base, (len(block), 1))
                probability[line, self.action[at]] = worth[at]
                shown[line, self.action[at]] = held_out[at]
                found.add(probability / np.exp(log_z[block])[:, None], shown, self.rows[block, fold])
        return found, float(self.rows[chosen].sum())


class FrequencyModel:
    """`Frequencies` of a log, for the rows of this log."""

    def __init__(self, log: Log, columns: tuple[str, ...], folds: int, strength: float):
        self._user, self._contexts, counts, users = log.columns.user, Contexts(columns), Counts(), np.zeros(folds)
        for rows in complete(log, columns):
            fold = fold_of(rows, self._user, folds)
            users += np.bincount(fold, rows.multiplicity, folds)
            counts.add((self._contexts.learn(rows) * log.actions + rows.action) * folds + fold, rows.multiplicity)
        require_folds(users)
        key, count = counts.total()
        self.found = Frequencies(key, count, len(self._contexts), log.actions, folds, strength)
        self.quality, self.temperatures = self.found.quality(), self.found.temperatures

    def propensity(self, rows: Chunk) -> Float[np.ndarray, " n"]:
        """p of the logged actions, from the folds that the rows' users are not in."""
        found = self.found
        fold = fold_of(rows, self._user, found.folds)
        key = (self._contexts.number(rows) * found.actions + rows.action) * found.folds + fold
        return np.exp(found.log_probability[np.searchsorted(found.key, key)])
