"""Verdicts, what to read, differences and segments on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from marl.output.tables import LONGEST_TABLE, number, print_columns

JUDGED = ("verdicts", "recommendations", "differences")  # tables on whether and how to read estimates


def print_judgments(tables: Mapping[str, Sequence[Mapping[str, Any]]], console: Console) -> None:
    """Each verdict on estimates once, with its reason and those it is about; what to read, and what it would change.

    Then what is to be read of each segment.
    """
    about: dict[tuple[str, str], list[str]] = {}
    for row in tables.get("verdicts", []):
        about.setdefault((row["verdict"], row["reason"]), []).append(row["estimate"])
    for (level, reason), estimates in about.items():
        console.print(f"{level}: {reason} ({', '.join(estimates)})", markup=False)
    chosen = {(row["signal"], row["policy"]): row for row in tables.get("recommendations", [])}
    for (signal, policy), row in chosen.items():
        console.print(f"{signal}, {policy}: {row['sentence']}", markup=False)
    for row in _read_differences(tables.get("differences", []), {key: row["estimator"] for key, row in chosen.items()}):
        value, low, high = (float(row[name]) for name in ("value", "low", "high"))  # JSON has infinities as words
        told = f"{value:+.4g} [{low:+.4g}, {high:+.4g}]"
        console.print(f"{row['signal']}, {row['policy']} - {row['against']}: {told} ({row['estimator']})", markup=False)
    _print_segments(tables.get("segments", []), {key: row["estimator"] for key, row in chosen.items()}, console)


def _print_segments(
    rows: Sequence[Mapping[str, Any]], chosen: Mapping[tuple[str, str], str | None], console: Console
) -> None:
    """For each signal and policy the largest segments, by the estimator to read; none where none is to be read."""
    families: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["signal"], row["policy"])
        if row["estimator"] == chosen.get(key):
            families.setdefault(key, []).append(row)
    columns = ("segment", "rows", "estimate", "interval", "difference to log", "adjusted p", "verdict")
    for (signal, policy), family in families.items():
        cells = []
        for row in sorted(family, key=lambda row: -row["rows"])[:LONGEST_TABLE]:
            value, low, high, difference, p = (
                float(row[name]) for name in ("value", "low", "high", "difference", "adjusted")
            )
            interval = f"[{number(low)}, {number(high)}]"
            told = (number(value), interval, f"{difference:+.4g}", number(p), row["verdict"])
            cells.append((row["segment"], number(float(row["rows"])), *told))
        print_columns(f"segments: {signal}, {policy} ({family[0]['estimator']})", columns, cells, console)
        if len(family) > LONGEST_TABLE:
            left = f"{len(family) - LONGEST_TABLE} more segments with fewer rows"
            console.print(f"and {left}: see the segments of report.html, or that table of the report", markup=False)


def _read_differences(
    rows: Sequence[Mapping[str, Any]], chosen: Mapping[tuple[str, str], str | None]
) -> list[Mapping[str, Any]]:
    """Each difference by the estimator to read; where that differs between two policies, by the less certain one."""
    widest: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for row in rows:
        signal, policy, against = row["signal"], row["policy"], row["against"]
        read = {chosen[signal, policy], chosen.get((signal, against), chosen[signal, policy])}
        known = widest.get((signal, policy, against))
        wider = known is None or _width(row) > _width(known)
        if None not in read and row["estimator"] in read and wider:
            widest[signal, policy, against] = row
    return list(widest.values())


def _width(row: Mapping[str, Any]) -> float:
    return float(row["high"]) - float(row["low"])
