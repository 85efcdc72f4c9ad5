"""The labels that a column may hold, and the place of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from recsys.logs.tables import Fault, collect

WHOLE = r"^\d{1,38}$"  # text of a whole number
MISSING = -2  # the place in a catalog of no value at all
BEYOND = (pl.UInt64, pl.Int128)  # kinds that hold numbers which Int64 does not


@dataclass(frozen=True)
class Catalog:
    """The A labels that a column may hold, in order: all actions that any policy could choose."""

    labels: pl.Series
    what: str = "action"

    @classmethod
    def numbered(cls, count: int, first: int = 0, what: str = "action") -> Catalog:
        """The labels first, …, first + count - 1."""
        return cls(pl.int_range(first, first + count, eager=True), what)

    @classmethod
    def of_column(cls, frame: pl.LazyFrame, column: str, what: str = "action", fault: Fault | None = None) -> Catalog:
        """The values of a column, sorted; one scan."""
        labels = collect(frame.select(pl.col(column).unique()), fault=fault).to_series().drop_nulls()
        if labels.dtype.is_float():
            labels = labels.drop_nans()
        return cls(in_order(labels), what)

    def __len__(self) -> int:
        return len(self.labels)

    def holds(self, kind: Any) -> bool:
        """True where a column of this kind holds labels such as these."""
        mine = self.labels.dtype
        return bool(kind.is_integer() and mine.is_integer()) or kind == mine

    def index(self, column: str, kind: Any) -> pl.Expr:
        """The place of each value; -1 where it has none, -2 (`MISSING`) where there is no value.

        For a column that `holds` such labels.
        """
        value, labels = pl.col(column), self.labels
        if kind.is_integer():  # in kinds that the differences of labels fit, as those of Int8 do not fit Int8
            wide = pl.Int128 if kind in BEYOND or labels.dtype in BEYOND else pl.Int64
            value, labels = value.cast(wide), labels.cast(wide)
        if labels.dtype.is_integer() and int(labels[-1]) - int(labels[0]) == len(self) - 1:
            outside = ~value.is_between(labels[0], labels[-1])  # null of null, which is then left as it is
            place = pl.when(outside).then(-1).otherwise((value - labels[0]).cast(pl.Int64, strict=False))
        else:
            place = value.replace_strict(labels, range(len(self)), default=-1, return_dtype=pl.Int64)
            place = pl.when(value.is_not_null()).then(place)
        return place.fill_null(MISSING)


def in_order(labels: pl.Series) -> pl.Series:
    """Sorted labels; text of whole numbers by number, so that 10 follows 9 whether a file keeps it as text or not."""
    if labels.dtype != pl.String or not labels.str.contains(WHOLE).all():
        return labels.sort()
    return pl.DataFrame({"label": labels, "number": labels.cast(pl.Int128)}).sort("number", "label")["label"]
