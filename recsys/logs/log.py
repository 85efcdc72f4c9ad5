"""Logs of what was shown and what users did, read in chunks: memory does not grow with the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from envs.core import InputError
from recsys.logs.catalog import BEYOND, MISSING, Catalog
from recsys.logs.clusters import Clusters
from recsys.logs.duplicate_steps import require_distinct_steps
from recsys.logs.files import MISSING_WORDS, Cells, Files
from recsys.logs.labels import plain_labels, unlike
from recsys.logs.tables import (
    TOLD_ROWS,
    Problems,
    exact_batches,
    require_columns,
    schema_of,
)

CHUNK_ROWS = 2**17  # fewer, and threads wait for each other; more, and columns leave the cache
# Clusters that the rows of a log without users are dealt into. Sums of independent rows are independent, so intervals
# hold for any number; so many give a variance to 1.1 % (sqrt(2 / clusters)), that of a width to half of it, beyond
# what the rows themselves leave uncertain.
ROW_CLUSTERS = 2**14
ROUNDING = 1e-9  # by how much a propensity of 1 may be above it


@dataclass(frozen=True)
class Columns:
    """The names of a log's columns. None and () are what it does not have.

    propensity: None where nobody kept it (`recsys.bandit.fitted_propensities`). user: whose rows belong together, and
    are drawn together by a bootstrap. episode, step: checked to occur once. multiplicity: how many rows a row stands
    for, where a log was thinned. segments: results are told for each of their values. context: handed to policies and
    reward models. state: a discrete column that tells what matters of a step, for values of sessions. terminated: true
    in the step after which the user left, where other sessions were cut off by the log's end.

    Configs name the same columns (`recsys.logs.config`, `recsys.sequential.config`).
    """

    action: str
    rewards: tuple[str, ...]
    propensity: str | None = None
    position: str | None = None
    user: str | None = None
    episode: str | None = None
    step: str | None = None
    multiplicity: str | None = None
    segments: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    state: str | None = None
    terminated: str | None = None

    def require_distinct(self) -> None:
        """Raise InputError for a column that is named twice as one kind."""
        for kind in ("rewards", "segments", "context"):
            names = getattr(self, kind)
            twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
            if twice:
                raise InputError(f"{kind} names each column once; got {', '.join(names)}, {twice[0]} twice.")

    def numbers(self) -> list[str]:
        """Those that must hold real numbers."""
        return [name for name in (self.propensity, self.multiplicity, *self.rewards) if name]

    def labels(self) -> list[str]:
        """Those that tell rows apart by what is written there, but segments."""
        return [name for name in (self.action, self.position, self.user, self.episode, self.state) if name]

    def cells(self, missing: Sequence[str] = MISSING_WORDS) -> Cells:
        """The same as a reader of files needs it; missing: words that stand for no value."""
        steps = () if self.step is None else (self.step,)
        return Cells(tuple(self.labels()), self.segments, tuple(self.numbers()), steps, tuple(missing))

    def named(self) -> list[str]:
        """All columns that are read, each once."""
        single = [self.action, self.propensity, self.position, self.user]
        single += [self.episode, self.step, self.multiplicity, self.state, self.terminated]
        every = (*single, *self.rewards, *self.segments, *self.context)
        return list(dict.fromkeys(name for name in every if name))


@dataclass(frozen=True, slots=True)
class Chunk:
    """n rows of a log.

    first: the log's rows before these. propensity: NaN where the log has none. action, position: indices into the
    catalog and the log's positions. cluster: a number for each user; without users, rows are dealt into `ROW_CLUSTERS`
    clusters in turn. multiplicity: how many rows each stands for; None is one. segments: values as text, `missing`
    where there is none. numbers: of the rows in the log, from 0; None where they follow `first` without a gap.
    """

    first: int
    action: Int[np.ndarray, " n"]
    position: Int[np.ndarray, " n"]
    propensity: Float[np.ndarray, " n"]
    reward: Float[np.ndarray, "n K"]
    cluster: Int[np.ndarray, " n"]
    multiplicity: Float[np.ndarray, " n"] | None = None
    segments: Mapping[str, np.ndarray] = field(default_factory=dict)
    context: Mapping[str, np.ndarray] = field(default_factory=dict)
    numbers: Int[np.ndarray, " n"] | None = None

    @property
    def row_numbers(self) -> Int[np.ndarray, " n"]:
        """The places of the rows in the log, from 0."""
        return np.arange(self.first, self.first + len(self)) if self.numbers is None else self.numbers

    def __len__(self) -> int:
        return len(self.action)

    def take(self, rows: Any) -> Chunk:
        """Some rows, by slice, mask or indices; their numbers stay true."""
        first = self.first
        numbers = None if self.numbers is None else self.numbers[rows]
        if isinstance(rows, slice):
            first += rows.start or 0
        elif numbers is None:  # rows that do not follow one another keep their numbers
            numbers = first + (np.flatnonzero(rows) if rows.dtype == bool else rows)
        return Chunk(
            first=first,
            action=self.action[rows],
            position=self.position[rows],
            propensity=self.propensity[rows],
            reward=self.reward[rows],
            cluster=self.cluster[rows],
            multiplicity=None if self.multiplicity is None else self.multiplicity[rows],
            segments={name: column[rows] for name, column in self.segments.items()},
            context={name: column[rows] for name, column in self.context.items()},
            numbers=numbers,
        )

    @classmethod
    def joined(cls, parts: Sequence[Chunk]) -> Chunk:
        """Chunks that follow one another as one."""
        first = parts[0]

        def join(of: Callable[[Chunk], np.ndarray]) -> np.ndarray:
            return np.concatenate([of(part) for part in parts])

        return cls(
            first=first.first,
            action=join(lambda c: c.action),
            position=join(lambda c: c.position),
            propensity=join(lambda c: c.propensity),
            reward=join(lambda c: c.reward),
            cluster=join(lambda c: c.cluster),
            multiplicity=None if first.multiplicity is None else join(lambda c: np.asarray(c.multiplicity)),
            segments={name: np.concatenate([part.segments[name] for part in parts]) for name in first.segments},
            context={name: np.concatenate([part.context[name] for part in parts]) for name in first.context},
            numbers=join(lambda c: c.row_numbers),
        )

    def counted(self, column: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n ..."]:
        """A column, each row as often as it counts."""
        if self.multiplicity is None:
            return column
        return column * self.multiplicity.reshape(-1, *[1] * (column.ndim - 1))

    def without_zeros(self) -> Chunk:
        """The rows that count at all."""
        if self.multiplicity is None or self.multiplicity.all():
            return self
        return self.take(np.flatnonzero(self.multiplicity))

    def blocks(self, size: int) -> Iterator[Chunk]:
        """The rows in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))


class Log:
    """A log and the meaning of its columns; `chunks` reads it anew each time, always in the same chunks.

    files: where the rows are from, to tell which cell cannot be read. Raises InputError for columns that are missing,
    not numbers where numbers are needed, or labels in floats that cannot tell them apart. Bad rows are told while
    reading, all of them counted.
    """

    def __init__(
        self,
        frame: pl.LazyFrame,
        columns: Columns,
        catalog: Catalog | None = None,
        positions: Catalog | None = None,
        name: str = "the log",
        chunk_rows: int = CHUNK_ROWS,
        changes: tuple[Callable[[Chunk], Chunk], ...] = (),
        facts: Mapping[str, int | float] | None = None,
        files: Files | None = None,
    ):
        self._changes = changes
        self.facts = dict(facts or {})
        self.columns, self.name, self._chunk_rows = columns, name, min(chunk_rows, CHUNK_ROWS)
        self.files = files or Files(())
        self._steps_are_distinct = False
        self._whole: Log | None = None
        self.schema = schema_of(frame, name)
        columns.require_distinct()
        self.files.require(columns.named())
        require_columns(columns.named(), self.schema, "columns", f"the columns of {name}")
        self._require_numbers(columns.numbers())
        labels = columns.labels()
        self.frame = plain_labels(frame, self.schema, labels, columns.segments, name, self.files.fault)
        if self.frame is not frame:
            self.schema = schema_of(self.frame, name)
        self.catalog = catalog or self._values(columns.action, "action")
        if positions is None and columns.position is not None:
            positions = self._values(columns.position, "position")
            if not len(positions):
                raise InputError(f"{name} has no rows with a position in column {columns.position!r}.")
        self.position_catalog = positions if columns.position is not None else None
        if not len(self.catalog):
            raise InputError(f"{name} has no rows with an action in column {columns.action!r}.")

    def held(self, column: str, wanted: Any = pl.Float64) -> str:
        """The kind of a column, and the first text in it that is no number of the wanted kind: to be told."""
        kind, log = self.schema[column], self._whole or self
        return f"{kind}{unlike(log.frame, column, wanted, log.name, log.files.fault) if kind == pl.String else ''}"

    def over(self, catalog: Catalog, positions: Catalog | None) -> Log:
        """The same log over another catalog and other positions."""
        return self._with(catalog=catalog, positions=positions)

    def _values(self, column: str, what: str) -> Catalog:
        return Catalog.of_column(self.frame, column, what, self.files.fault)

    def __repr__(self) -> str:
        labels = [str(label) for label in self.labels[:10]]
        rest = ", …" if self.actions > len(labels) else ""
        rewards = ", ".join(self.signals)
        return f"Log({self.name}: {self.actions} actions, in the order {', '.join(labels)}{rest}; rewards {rewards})"

    @property
    def actions(self) -> int:
        """A, the size of the catalog."""
        return len(self.catalog)

    @property
    def labels(self) -> list[Any]:
        """The actions in order: `Chunk.action` has their places, and distributions [A] go by them."""
        return self.catalog.labels.to_list()

    @property
    def positions(self) -> int:
        """The number of positions; 1 where the log has no such column."""
        return 1 if self.position_catalog is None else len(self.position_catalog)

    @property
    def signals(self) -> tuple[str, ...]:
        """The names of the K rewards."""
        return self.columns.rewards

    @property
    def context(self) -> tuple[str, ...]:
        """The columns that policies may read."""
        return self.columns.context

    def with_context(self, names: Sequence[str]) -> Log:
        """The same log with these columns in `Chunk.context` too."""
        context = tuple(dict.fromkeys((*self.columns.context, *names)))
        return self.with_columns(replace(self.columns, context=context))

    def with_columns(self, columns: Columns) -> Log:
        """The same log whose columns mean something else, or are left out."""
        return self._with(columns=columns)

    def of_rows(self, frame: pl.LazyFrame, name: str | None = None) -> Log:
        """The same columns of other rows: a part of the log. Bad rows are told by their places in the whole."""
        part = self._with(frame=frame, name=name or self.name)
        part._whole = self._whole or self
        return part

    def with_change(self, change: Callable[[Chunk], Chunk], facts: Mapping[str, int | float] | None = None) -> Log:
        """The same log, each chunk as `change` gives it: with propensities that were fitted, say.

        facts: what every verdict on the changed log must know, by the names of `diagnostics.Diagnosis`.
        """
        return self._with(changes=(*self._changes, change), facts={**self.facts, **(facts or {})})

    def _with(self, **changed: Any) -> Log:
        """The same log but for some of the arguments of `Log`."""
        arguments = {
            "frame": self.frame,
            "columns": self.columns,
            "catalog": self.catalog,
            "positions": self.position_catalog,
            "name": self.name,
            "chunk_rows": self._chunk_rows,
            "changes": self._changes,
            "facts": self.facts,
            "files": self.files,
        }
        log = Log(**{**arguments, **changed})
        log._whole = self._whole
        return log

    def chunks(self) -> Iterator[Chunk]:
        """All rows in order. Raises InputError once the log's end is reached if any row was bad; none follows it."""
        try:
            yield from self._chunks()
        except InputError:
            if self._whole is not None:
                for _ in self._whole.chunks():
                    pass  # the whole log tells its bad rows by their own numbers
            raise

    def _chunks(self) -> Iterator[Chunk]:
        self._require_distinct_steps()
        problems, users, first, counted = Problems(self.name), Clusters(), 0, 0
        for frame in self._frames():
            chunk = self._chunk(frame, first, users)
            self._look_for_problems(problems, chunk, frame)
            first += len(chunk)
            chunk = chunk.without_zeros()
            for change in () if problems else self._changes:
                chunk = change(chunk).without_zeros()
            if problems or not len(chunk):
                continue
            if self.columns.user is None:
                chunk = replace(chunk, cluster=np.arange(counted, counted + len(chunk)) & (ROW_CLUSTERS - 1))
            counted += len(chunk)
            yield chunk
        problems.tell()
        if counted == 0:
            which = f" of a {self.columns.multiplicity} above 0" if first else ""
            raise InputError(f"{self.name} has no rows{which}.")

    def _chunk(self, frame: pl.DataFrame, first: int, users: Clusters) -> Chunk:
        rows, known = len(frame), frame.columns
        signals = [frame[f"reward{k}"].to_numpy() for k in range(len(self.signals))]
        return Chunk(
            first=first,
            action=frame["action"].to_numpy(),
            position=frame["position"].to_numpy() if "position" in known else np.zeros(rows, np.int64),
            propensity=frame["propensity"].to_numpy() if "propensity" in known else np.full(rows, np.nan),
            reward=signals[0][:, None] if len(signals) == 1 else np.stack(signals, 1),
            cluster=users.encode(frame["user"].to_numpy()) if "user" in known else np.zeros(rows, np.int64),
            multiplicity=frame["multiplicity"].to_numpy() if "multiplicity" in known else None,
            segments={name: frame[f"segment{i}"].to_numpy() for i, name in enumerate(self.columns.segments)},
            context={name: frame[f"context{i}"].to_numpy() for i, name in enumerate(self.columns.context)},
        )

    def _look_for_problems(self, problems: Problems, chunk: Chunk, frame: pl.DataFrame) -> None:
        columns, first, p = self.columns, chunk.first, chunk.propensity
        for name, place, among in (
            (columns.action, chunk.action, f"in the catalog of {self.actions} actions"),
            (columns.position, chunk.position, f"among the {self.positions} positions"),
        ):
            if place.min() < 0:
                problems.look(f"{name} missing", place == MISSING, first)
                problems.look(f"{name} not {among}", place == -1, first)
        if columns.propensity is not None and not (p.min() > 0 and p.max() <= 1):  # NaN is neither
            missing, outside = np.isnan(p), (p <= 0) | (p > 1 + ROUNDING)
            problems.look(f"{columns.propensity} missing", missing, first)
            seen = ", ".join(f"{value:.9g}" for value in np.unique(p[outside])[:TOLD_ROWS])
            problems.look(f"{columns.propensity} not in (0, 1]", outside, first, seen)
        for name, signal in zip(self.signals, chunk.reward.T, strict=True):
            problems.look(f"{name} missing or not finite", ~np.isfinite(signal), first)
        if chunk.multiplicity is not None:
            bad = ~(np.isfinite(chunk.multiplicity) & (chunk.multiplicity >= 0))
            problems.look(f"{columns.multiplicity} not a number ≥ 0", bad, first)
        if "user" in frame.columns and frame["user_missing"].any():
            problems.look(f"{columns.user} missing", frame["user_missing"].to_numpy(), first)

    def _frames(self) -> Iterator[pl.DataFrame]:
        """The columns that a chunk needs, renamed to what they mean."""
        columns = self.columns
        wanted = [
            self._place(self.catalog, columns.action).alias("action"),
            *(_number(name).alias(f"reward{k}") for k, name in enumerate(columns.rewards)),
            *(_text(name).alias(f"segment{i}") for i, name in enumerate(columns.segments)),
            *(pl.col(name).alias(f"context{i}") for i, name in enumerate(columns.context)),
        ]
        if columns.position is not None and self.position_catalog is not None:
            wanted.append(self._place(self.position_catalog, columns.position).alias("position"))
        if columns.propensity is not None:
            wanted.append(_number(columns.propensity).alias("propensity"))
        if columns.multiplicity is not None:
            wanted.append(_number(columns.multiplicity).alias("multiplicity"))
        if columns.user is not None:
            user, kind = pl.col(columns.user), self.schema[columns.user]
            plain = kind.is_integer() and kind not in BEYOND
            key = user.cast(pl.Int64) if plain else user.hash(0).reinterpret(signed=True)
            wanted += [key.fill_null(-1).alias("user"), user.is_null().alias("user_missing")]
        return exact_batches(self.frame.select(wanted), self._chunk_rows, self.name, self.files.fault)

    def _place(self, catalog: Catalog, column: str) -> pl.Expr:
        """The place of each value in a catalog. Raises InputError for a column of another kind of values."""
        kind = self.schema[column]
        if catalog.holds(kind):
            return catalog.index(column, kind)
        label = catalog.labels[0]
        raise InputError(
            f"Column {column!r} must hold {catalog.what} labels such as {label!r} ({catalog.labels.dtype}); in "
            f"{self.name} it holds {self.held(column, pl.Int64)}. Write the labels alike, or leave the number of "
            "actions out (data.actions, actions=), which says that they are 0, 1, 2, …"
        )

    def _require_numbers(self, names: Sequence[str]) -> None:
        for name in names:
            kind = self.schema[name]
            if not (kind.is_numeric() or kind == pl.Boolean):
                raise InputError(f"Column {name!r} of {self.name} must hold numbers; it holds {kind}.")

    def _require_distinct_steps(self) -> None:
        """Look once whether each step of an episode is there, and occurs once."""
        episode, step = self.columns.episode, self.columns.step
        if episode is not None and step is not None and not self._steps_are_distinct:
            require_distinct_steps(self.frame, episode, step, self.name, self.files.fault)
            self._steps_are_distinct = True


def _number(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Float64).fill_null(float("nan"))


def _text(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.String).fill_null("missing")


def require_rows(good: Bool[np.ndarray, " n"], what: str, rows: Chunk) -> None:
    """Raise InputError, with the numbers of the first, where rows are bad that are looked at while scanning."""
    if not good.all():
        bad = rows.row_numbers[~good] + 1
        told = ", ".join(map(str, bad[:TOLD_ROWS])) + (", …" if len(bad) > TOLD_ROWS else "")
        raise InputError(f"The log cannot be evaluated: {what} in {len(bad):,} of {len(rows):,} rows (rows {told}).")
