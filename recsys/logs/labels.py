"""Labels, such as those of actions and users: kept as they are, or refused where a table has lost them already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from envs.core import InputError
from recsys.logs.tables import COUNTED, TOLD_ROWS, Fault, collect

ROW = "the row's number"  # a column that no table has


def plain_labels(
    frame: pl.LazyFrame,
    schema: Mapping[str, Any],
    labels: Sequence[str],
    segments: Sequence[str],
    name: str,
    fault: Fault | None = None,
) -> pl.LazyFrame:
    """The table with labels that compare as what they are: whole numbers, text, booleans or times.

    Floats become whole numbers, categories become text. Segments stay floats, for fractions may well be few values.
    Raises InputError for labels that are lists, and for floats that are no whole numbers, or as large as those that a
    float cannot tell apart; the latter costs one scan of a log that has such columns.
    """
    for column in (*labels, *segments):
        kind = schema[column]
        if kind.is_nested() or kind in (pl.Object, pl.Binary):
            what = "of segments" if column in segments else "of labels"
            raise InputError(f"Column {column!r} {what} must hold one value a row; in {name} it holds {kind}.")
    _require_exact(frame, schema, labels, segments, name, fault)
    plain = [label for label in (_plain(column, schema[column]) for column in labels) if label is not None]
    return frame.with_columns(plain) if plain else frame


def _plain(column: str, kind: Any) -> pl.Expr | None:
    """The column as a kind that compares well, None where it is of one."""
    if kind.is_float():
        return pl.col(column).fill_nan(None).cast(pl.Int64)
    if kind in (pl.Categorical, pl.Enum, pl.UInt128):
        return pl.col(column).cast(pl.String)
    return pl.col(column).cast(pl.Int64) if kind == pl.Null else None


def _require_exact(
    frame: pl.LazyFrame,
    schema: Mapping[str, Any],
    labels: Sequence[str],
    segments: Sequence[str],
    name: str,
    fault: Fault | None,
) -> None:
    for column in dict.fromkeys((*labels, *segments)):
        kind = schema[column]
        if not kind.is_float():
            continue
        value, bits = pl.col(column).fill_nan(None), _bits(kind)
        lost = value.abs() >= 2**bits
        if column in labels:
            lost |= value != value.floor()
        rows = collect(frame.select(column).with_row_index(ROW).filter(lost), name, fault)
        if not len(rows):
            continue
        told = ", ".join(str(row + 1) for row in rows[ROW][:TOLD_ROWS]) + (", …" if len(rows) > TOLD_ROWS else "")
        raise InputError(
            f"{name} cannot be evaluated: {column} holds labels as {kind}, such as {rows[column][0]!r}, that are no "
            f"whole numbers below 2^{bits}, in {len(rows):,} {'row' if len(rows) == 1 else 'rows'} ({told}). {COUNTED} "
            "Larger ones may have merged already: write such a column as whole numbers or as text."
        )


def _bits(kind: Any) -> int:
    """The power of 2 below which every whole number is a float of its own."""
    return 24 if kind == pl.Float32 else 11 if kind == pl.Float16 else 53


def as_text(labels: pl.Series) -> list[str]:
    """The labels as a table writes them."""
    return labels.cast(pl.String).to_list()


def unlike(frame: pl.LazyFrame, column: str, kind: Any, name: str, fault: Fault | None = None) -> str:
    """The first text of a column that is not written as a number of this kind is, and its row, to be told; "" if none.

    A whole number is written as 7, without leading zeros or a plus.
    """
    read = pl.col(column).cast(kind, strict=False)
    other = read.cast(pl.String).ne_missing(pl.col(column)) if kind.is_integer() else read.is_null()
    found = frame.select(column).with_row_index(ROW).filter(other & pl.col(column).is_not_null()).head(1)
    rows = collect(found, name, fault)
    return f", such as {rows[column][0]!r} in row {rows[ROW][0] + 1}" if len(rows) else ""
