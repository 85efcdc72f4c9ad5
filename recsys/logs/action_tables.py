"""Small tables of a catalog's actions: a CSV of one line an action, its label first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from envs.core import InputError
from recsys.logs.files import read_text
from recsys.logs.labels import as_text
from recsys.logs.log import Log
from recsys.logs.paths import one_file
from recsys.logs.tables import COUNTED

LINE = "number of the line"  # a column that no table has


def by_action(log: Log, path: str | Path, what: str, values: str, count: int | None = None) -> pl.DataFrame:
    """All columns but the labels as text, a line for each action in the order of the log's catalog, and `LINE`, last.

    A label is the catalog's where both are written alike, of whatever kind the catalog's labels are. what, values:
    words for the table and for its columns beside the labels; count: how many these are, at least one where not given.
    Raises InputError for another file, and for labels that are missing, unknown, or there twice.
    """
    file = one_file(path, what)
    table = read_text(file)
    if table.width == 1 or count not in (None, table.width - 1):
        only = " only" if table.width == 1 else ""
        raise InputError(f"{file} must have a column of actions and {values}; it has {', '.join(table.columns)}{only}.")
    label, known = table.columns[0], as_text(log.catalog.labels)
    written = table[label].fill_null("")
    if log.catalog.labels.dtype == pl.Boolean:
        written = written.str.to_lowercase()
    faults = _faults(written.to_list(), known)
    if faults:
        raise InputError(
            f"{file} must list each of the {log.actions} actions of the catalog once, in column {label!r}; of its "
            f"{len(table)} lines {'; '.join(faults)}. {COUNTED}"
        )
    place = {text: number for number, text in enumerate(known)}
    numbered = table.with_row_index(LINE).with_columns(pl.Series(label, [place[text] for text in written]))
    return numbered.sort(label).select(*table.columns[1:], LINE)


def real_numbers(table: pl.DataFrame, path: str | Path) -> pl.DataFrame:
    """The columns of `by_action` as numbers, without `LINE`. Raises InputError for a cell that is none."""
    columns = []
    for name in table.columns[:-1]:
        number = table[name].str.strip_chars().cast(pl.Float64, strict=False)
        if number.has_nulls():
            bad = table.filter(number.is_null()).sort(LINE)
            cell = "nothing" if bad[name][0] is None else repr(bad[name][0])
            raise InputError(
                f"{path}, row {bad[LINE][0] + 1}: column {name} holds {cell}, which is no number; write probabilities "
                f"such as 0.1. {COUNTED}"
            )
        columns.append(number)
    return pl.DataFrame(columns)


def _faults(labels: Sequence[str], known: Sequence[str]) -> list[str]:
    """Sentences on the labels of a table that are not those of the catalog, each once."""
    catalog, seen = set(known), set()
    unknown, twice = [], []
    for number, label in enumerate(labels, 1):
        if label not in catalog:
            unknown.append(f"{label!r} (row {number})")
        elif label in seen:
            twice.append(f"{label!r} (row {number})")
        seen.add(label)
    lacking = [repr(label) for label in known if label not in seen]
    found = (
        (unknown, "are of actions that are not in it"),
        (twice, "are of actions that stand there already"),
        (lacking, "more are needed"),
    )
    return [f"{len(told)} {how}: {_some(told)}" for told, how in found if told]


def _some(told: Sequence[str]) -> str:
    return ", ".join(told[:5]) + (", …" if len(told) > 5 else "")
