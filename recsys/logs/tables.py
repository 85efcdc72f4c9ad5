"""Reading tables with polars, batch by batch, and saying what is wrong with them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from envs.core import InputError

TOLD_ROWS = 5  # row numbers that an error names
COUNTED = "Rows are counted from 1, without the header."

Fault = Callable[[], str | None]  # looks for the first cell that cannot be read, and says where it is


class Problems:
    """The faults of a log: how many rows, and which the first are."""

    def __init__(self, name: str):
        self.name = name
        self._counts: dict[str, int] = {}
        self._rows: dict[str, list[int]] = {}
        self._seen: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._counts)

    def look(self, what: str, bad: np.ndarray, first: int, seen: str = "") -> None:
        """Count the rows that are bad; `first` rows came before these. seen: values there, of which the first stay."""
        if bad.any():
            if seen:
                self._seen.setdefault(what, seen)
            self.add(what, int(bad.sum()), first + np.flatnonzero(bad)[:TOLD_ROWS])

    def add(self, what: str, count: int, rows: np.ndarray) -> None:
        """Count so many more, beginning with these rows."""
        if count:
            self._counts[what] = self._counts.get(what, 0) + count
            self._rows[what] = (self._rows.get(what, []) + [int(row) + 1 for row in rows])[:TOLD_ROWS]

    def tell(self) -> None:
        """Raise InputError if anything is wrong."""
        if not self:
            return
        told = []
        for what, count in self._counts.items():
            rows = ", ".join(map(str, self._rows[what])) + (", …" if count > len(self._rows[what]) else "")
            seen = f": {self._seen[what]}" if what in self._seen else ""
            told.append(f"{what} in {count:,} {'row' if count == 1 else 'rows'} ({rows}){seen}")
        raise InputError(
            f"{self.name} cannot be evaluated: {'; '.join(told)}. {COUNTED} Mend or remove them; nothing is dropped "
            "silently."
        )


def require_columns(names: Sequence[str], known: Collection[str], what: str, where: str) -> None:
    """Raise InputError for names that are not known, each with the nearest that is."""
    missing = [name for name in names if name not in known]
    if not missing:
        return
    told = []
    for name in missing[:TOLD_ROWS]:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        told.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    more = f" and {len(missing) - TOLD_ROWS} more" if len(missing) > TOLD_ROWS else ""
    listed = ", ".join(list(known)[:30]) or "none"
    raise InputError(f"Missing {what}: {', '.join(told)}{more}. There are, as {where}: {listed}.")


def exact_batches(frame: pl.LazyFrame, rows: int, name: str, fault: Fault | None = None) -> Iterator[pl.DataFrame]:
    """All rows in order, `rows` at a time wherever the files' own parts end, so that sums by chunk always agree."""
    waiting: list[pl.DataFrame] = []
    count = 0
    try:
        for batch in frame.collect_batches(chunk_size=rows, maintain_order=True):
            waiting.append(batch)
            count += len(batch)
            if count >= rows:
                whole = waiting[0] if len(waiting) == 1 else pl.concat(waiting)
                for start in range(0, count - count % rows, rows):
                    yield whole.slice(start, rows)
                waiting = [whole.slice(count - count % rows)] if count % rows else []
                count %= rows
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(name, error, fault) from error
    if count:
        yield pl.concat(waiting)


def schema_of(frame: pl.LazyFrame, name: str) -> Mapping[str, Any]:
    """The columns and their kinds. Raises InputError where the files are no table."""
    try:
        return frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(name, error) from error


def collect(frame: pl.LazyFrame, name: str = "the log", fault: Fault | None = None) -> pl.DataFrame:
    """The rows, streamed. Raises InputError where the files are no table."""
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(name, error, fault) from error


def unreadable(name: str, error: Exception, fault: Fault | None = None) -> InputError:
    """What to say of a table that polars cannot read: the file, row and column, where `fault` finds these."""
    told = None if fault is None else fault()
    if told is not None:
        return InputError(told)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("utf-8" in line.lower() for line in lines):
        return InputError(f"{name} is no text in UTF-8; save it as such.")
    return InputError(f"{name} cannot be read: {lines[0] if lines else type(error).__name__}.")
