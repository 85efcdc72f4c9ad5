"""Tables on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from marl.output.report import Metric

INTERVAL = "95 % interval"
LONGEST_TABLE = 30  # rows on the terminal


def print_table(title: str, rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The rows of a report's table; of a long one the first, and how many more the report has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "")) for name in columns] for row in rows[:LONGEST_TABLE]]
    if rows:
        print_columns(title, columns, cells, console)
    if len(rows) > LONGEST_TABLE:
        console.print(f"and {len(rows) - LONGEST_TABLE} more in the report")


def _cell(value: Any) -> str:
    return number(float(value)) if isinstance(value, float | int) else str(value)


def print_metrics(metrics: dict[str, Metric], title: str, console: Console, interval: str = INTERVAL) -> None:
    """Name, value and interval of each metric; interval: what it is. Where all are exact there are none."""
    rows = [[name, number(m.value), interval_text(m), "" if m.is_exact else str(m.n)] for name, m in metrics.items()]
    columns = 2 if all(metric.is_exact for metric in metrics.values()) else 4
    print_columns(title, ("metric", "value", interval, "n")[:columns], [row[:columns] for row in rows], console)


def print_columns(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """A table whose names stay whole: where the terminal is too narrow, each stands in a line above its numbers."""
    table = [columns, *rows]
    name, *widths = (max(len(row[column]) for row in table) for column in range(len(columns)))
    narrow = name + sum(widths) + 2 * len(widths) > console.width
    console.print(title, style="italic", markup=False)
    for first, *cells in table:
        numbers = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths))
        style = "bold" if first == columns[0] else ""
        console.print(f"{first}\n{numbers}" if narrow else f"{first:<{name}}{numbers}", style=style, markup=False)


def interval_text(metric: Metric) -> str:
    """The 95 % interval in brackets; nothing of an exact number, and words where equal samples leave it unknown."""
    if metric.is_exact:
        return ""
    if not metric.has_spread:
        return f"no spread in {metric.n}"
    if math.isinf(metric.low) and math.isinf(metric.high):
        return "unknown"  # the middle half of the samples are equal, the others are not
    return f"[{number(metric.low)}, {number(metric.high)}]"


def number(value: float) -> str:
    """Readable at any size."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1e15:
        return f"{value:.4g}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) < 0.1 else f"{value:.2f}"
