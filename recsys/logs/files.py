"""Tables in files: CSV, whose cells are read by what their columns mean, and Parquet, whose parts are made alike."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import polars as pl

from envs.core import InputError
from recsys.logs.labels import ROW, plain_labels
from recsys.logs.paths import EXPECTED, kind_of
from recsys.logs.tables import COUNTED, collect, schema_of, unreadable

INFER_ROWS = 10_000  # of a CSV, from which the kinds of columns are told that are neither labels nor numbers
MISSING_WORDS = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")  # of a CSV, by default
SEPARATORS = (";", "\t", "|")  # of files that are no CSV, whatever they are called
BOOLEANS = ("true", "false", "True", "False", "TRUE", "FALSE")
HELD = {pl.Int64: "no whole number", pl.Float64: "no number", pl.Boolean: "neither true nor false"}


@dataclass(frozen=True)
class Cells:
    """The meaning of a table's columns to who reads it; others are what their first rows look like.

    labels: kept as they are written, and whole numbers only where each is written as one. segments: likewise, or real
    numbers, or booleans in any case of letters. numbers: real numbers, or booleans. steps: whole or real numbers; text
    where no cell is a number. missing: words of a CSV that stand for no value; an empty cell always does.
    """

    labels: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    missing: tuple[str, ...] = MISSING_WORDS

    def named(self) -> list[str]:
        """All columns that have a meaning."""
        return list(dict.fromkeys((*self.labels, *self.segments, *self.numbers, *self.steps)))


@dataclass(frozen=True)
class Files:
    """Where a table is from. lacking: columns that only some parts have, and a part without each."""

    paths: tuple[Path, ...]
    lacking: Mapping[str, Path] = field(default_factory=dict)
    find: Callable[[], str | None] = lambda: None

    def stamps(self) -> list[list[str | int]]:
        """Name, size and time of change of each file: alike where nobody wrote to them in between."""
        known = [(path, path.stat()) for path in self.paths]
        return [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in known]

    def require(self, names: Sequence[str]) -> None:
        """Raise InputError for a column that a part lacks."""
        for name in names:
            if name in self.lacking:
                raise InputError(
                    f"{self.lacking[name]} has no column {name!r}, which other parts of the log have. Add it, or name "
                    "the parts that are meant by a pattern."
                )

    def and_of(self, other: Files) -> Files:
        """These and the files whose columns were joined to them."""
        return Files((*self.paths, *other.paths), self.lacking, lambda: self.fault() or other.fault())

    def fault(self) -> str | None:
        """The first cell that cannot be read as its column's kind, to be told; None where all can."""
        return self.find()


def scan(paths: Sequence[Path], name: str, cells: Cells) -> tuple[pl.LazyFrame, Files]:
    """The rows of CSV, gzipped CSV or Parquet files, one after the other, and where they are from.

    Raises InputError for other files, or none, and for parts that lack a column or hold something else in it.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise InputError(f"There is no log {missing[0] if missing else name}.")
    kinds = {kind_of(path) for path in paths}
    if kinds == {"parquet"}:
        return _scan_parquet(list(paths), cells)
    if kinds == {"csv"}:
        return _scan_csv(list(paths), name, cells)
    raise InputError(
        f"A log is {EXPECTED}, its parts alike; got {', '.join(path.name for path in paths)}. "
        "Another table becomes one by polars, such as polars.read_ndjson(file).write_parquet(…)."
    )


def _common(columns: Mapping[Path, Sequence[str]], cells: Cells) -> tuple[list[str], Files]:
    """The columns that all parts have, in the order of the first."""
    lacking: dict[str, Path] = {}
    for path, mine in columns.items():
        others = {name for names in columns.values() for name in names} - set(mine)
        lacking = {**dict.fromkeys(others, path), **lacking}
    files = Files(tuple(columns), lacking)
    files.require(cells.named())
    return [name for name in next(iter(columns.values())) if name not in lacking], files


def _scan_parquet(paths: list[Path], cells: Cells) -> tuple[pl.LazyFrame, Files]:
    schemas = {path: dict(schema_of(pl.scan_parquet(path, glob=False), str(path))) for path in paths}
    first = schemas[paths[0]]
    if all(list(schema.items()) == list(first.items()) for schema in schemas.values()):
        return pl.scan_parquet(paths, glob=False), Files(tuple(paths))
    names, files = _common({path: list(schema) for path, schema in schemas.items()}, cells)
    labels = [name for name in cells.labels if name in names]
    parts = []
    for path, schema in schemas.items():
        kinds = {name: _wide([s[name] for s in schemas.values()], name in labels) for name in names}
        wrong = [name for name, kind in kinds.items() if kind is None]
        if wrong:
            other = next(p for p in paths if schemas[p][wrong[0]] != first[wrong[0]])
            raise InputError(
                f"Parts of a log hold values of one kind in each column; {wrong[0]!r} is {first[wrong[0]]} in "
                f"{paths[0]} and {schemas[other][wrong[0]]} in {other}. Write it alike in all parts."
            )
        frame = plain_labels(pl.scan_parquet(path, glob=False), schema, labels, (), str(path))
        parts.append(frame.select(pl.col(name).cast(kind) for name, kind in kinds.items()))
    return pl.concat(parts), files


def _wide(kinds: Sequence[Any], is_label: bool) -> Any:
    """A kind that holds the values of all these, None if there is none; floats of labels become whole numbers."""
    first, *others = dict.fromkeys(kind for kind in kinds if kind != pl.Null) or [pl.Null()]
    if not others and not (is_label and (first.is_float() or first == pl.Categorical)):
        return first
    every = (first, *others)
    if all(kind in (pl.String, pl.Categorical, pl.Enum) for kind in every):
        return pl.String
    if all(kind.is_integer() or (is_label and kind.is_float()) for kind in every):
        return pl.Int128 if any(kind in (pl.UInt64, pl.Int128) for kind in every) else pl.Int64
    if all(kind.is_numeric() or kind == pl.Boolean for kind in every) and not is_label:
        return pl.Float64
    return None


def _scan_csv(paths: list[Path], name: str, cells: Cells) -> tuple[pl.LazyFrame, Files]:
    headers = {path: _header(path, cells) for path in paths}
    names, files = _common(headers, cells)
    words = [word for word in cells.missing if word]

    def read(kinds: Mapping[str, Any], some: Sequence[Path]) -> pl.LazyFrame:
        def one(part: list[Path]) -> pl.LazyFrame:
            return pl.scan_csv(part, infer_schema=False, schema_overrides=kinds, null_values=words, glob=False)

        alike = len({tuple(headers[path]) for path in some}) == 1
        frame = one(list(some)) if alike else pl.concat([one([path]).select(names) for path in some])
        # An empty cell is no value; in quotes it is to polars, which is told so far slower by null_values.
        text = [name for name in cells.named() if name in names and name not in kinds]
        return frame.with_columns(pl.when(pl.col(name) != "").then(pl.col(name)) for name in text) if text else frame

    def text(path: Path) -> pl.LazyFrame:
        return read({}, [path])

    try:
        kinds = _kinds(read({}, paths), cells)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(name, error, lambda: _first_fault(paths, {}, text)) from error
    return read(kinds, paths), Files(files.paths, files.lacking, lambda: _first_fault(paths, kinds, text))


def _kinds(text: pl.LazyFrame, cells: Cells) -> dict[str, Any]:
    """Kinds of a CSV's columns that are no text: by all rows for labels, by the first ones for others."""
    sample = text.head(INFER_ROWS).collect()
    kinds = {name: _kind(sample[name], cells) for name in sample.columns}
    kinds = {name: kind for name, kind in kinds.items() if kind is not None}
    doubtful = [name for name in kinds if name in (*cells.labels, *cells.segments) and name not in cells.numbers]
    if len(sample) == INFER_ROWS and doubtful:
        trips = [_round_trip(name, kinds[name], cells).all() for name in doubtful]
        whole = text.select(trips).collect(engine="streaming")
        kinds = {name: kind for name, kind in kinds.items() if name not in doubtful or whole[name].item()}
    return kinds


def _kind(written: pl.Series, cells: Cells) -> Any:
    """The kind of a column by what is written there; None is text."""
    name = written.name
    said = written.filter(written != "")
    is_boolean = len(said) > 0 and said.is_in(BOOLEANS).all()
    if name in cells.numbers:
        return pl.Boolean if is_boolean else pl.Float64
    number = next((kind for kind in (pl.Int64, pl.Float64) if not _unread(said, kind).any()), None)
    if name in cells.steps:
        return number or (None if _unread(said, pl.Int64).all() else pl.Int64)
    if name not in (*cells.labels, *cells.segments):
        return pl.Boolean if is_boolean else number
    known = (pl.Int64, pl.Boolean) if name in cells.labels else (pl.Int64, pl.Boolean, pl.Float64)
    frame = said.to_frame()
    return next((kind for kind in known if frame.select(_round_trip(name, kind, cells).all()).item()), None)


def _round_trip(name: str, kind: Any, cells: Cells) -> pl.Expr:
    """True where a value that is read as this kind would be written as it is, so that no two become one."""
    written = pl.col(name)
    if kind == pl.Boolean:
        return written.is_null() | written.is_in(BOOLEANS[:2] if name in cells.labels else BOOLEANS)
    return written.eq_missing(written.cast(kind, strict=False).cast(pl.String))


def _unread(written: pl.Series, kind: Any) -> pl.Series:
    """True where a cell cannot be read as this kind, in which polars takes blanks before numbers for nothing."""
    return written.to_frame().select(_is_unread(written.name, kind)).to_series()


def _is_unread(name: str, kind: Any) -> pl.Expr:
    written, is_there = pl.col(name), pl.col(name).fill_null("") != ""
    if kind == pl.Boolean:
        return is_there & ~written.is_in(BOOLEANS)
    return is_there & written.str.strip_chars_start(" \t").cast(kind, strict=False).is_null()


def _first_fault(paths: Sequence[Path], kinds: Mapping[str, Any], text: Callable[[Path], pl.LazyFrame]) -> str | None:
    """The first cell of the first file that cannot be read as the kind of its column, or row with too many cells."""
    for path in paths:
        try:
            told = _unread_cell(path, kinds, text(path).with_row_index(ROW))
        except (pl.exceptions.PolarsError, OSError):
            told = None
        told = told or _overlong(path)
        if told is not None:
            return told
    return None


def _unread_cell(path: Path, kinds: Mapping[str, Any], numbered: pl.LazyFrame) -> str | None:
    """The first cell of a file that cannot be read as the kind of its column, to be told."""
    if not kinds:
        return None
    bad = [pl.col(ROW).filter(_is_unread(name, kind)).min().alias(name) for name, kind in kinds.items()]
    found = numbered.select(bad).collect(engine="streaming").row(0, named=True)
    rows = {name: row for name, row in found.items() if row is not None}
    if not rows:
        return None
    name = min(rows, key=lambda column: rows[column])
    cell = numbered.select(name).slice(rows[name], 1).collect().item()
    return (
        f"{path}, row {rows[name] + 1}: column {name} holds {cell!r}, which is {HELD[kinds[name]]}. {COUNTED} Mend it, "
        "or name it among the words for a missing value (data.missing)."
    )


def _overlong(path: Path) -> str | None:
    """The first row of a CSV that has more cells than there are columns, or an open quote, to be told."""
    number = 0
    try:
        with _opened(path) as lines:
            rows = csv.reader(lines, strict=True)
            columns = len(next(rows, []))
            for row in filter(None, rows):
                number += 1
                if len(row) > columns:
                    return f"{path}, row {number}: {len(row)} cells, where there are {columns} columns. {COUNTED}"
    except csv.Error as error:
        return f"{path}, row {number + 1}: {error}, as where a quote is not closed. {COUNTED}"
    except (OSError, EOFError):
        return None
    return None


def _header(path: Path, cells: Cells) -> list[str]:
    """The names of a CSV's columns. Raises InputError for none, and where one that has a meaning stands twice."""
    try:
        with _opened(path) as lines:
            names = next(csv.reader(lines), [])
    except (csv.Error, OSError, EOFError) as error:
        raise unreadable(str(path), error) from error
    if any("\0" in name for name in names):
        raise InputError(f"{path} is no text in UTF-8; save it as such.")
    if len(names) == 1 and (sign := next((sign for sign in SEPARATORS if sign in names[0]), "")):
        raise InputError(
            f"{path} has one column, {names[0]!r}: a CSV's cells are separated by commas, not by {sign!r}."
        )
    if not names:
        raise InputError(f"{path} is empty: expected a line of names of columns, then one for each row.")
    twice = [name for name in cells.named() if names.count(name) > 1]
    if twice:
        raise InputError(f"{path} has {names.count(twice[0])} columns {twice[0]!r}; rename those that are not meant.")
    return names


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A CSV's lines; bytes that are no text are told by who reads the cells."""
    if path.name.lower().endswith(".gz"):
        with gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as lines:
            yield lines
    else:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as lines:
            yield lines


def read_text(path: Path) -> pl.DataFrame:
    """A small CSV with all cells as they are written; empty ones are missing. Raises InputError for other files."""
    _header(path, Cells())
    frame = pl.scan_csv([path], infer_schema=False, glob=False)
    return collect(frame, str(path), lambda: _overlong(path))
