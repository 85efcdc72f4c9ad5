"""Tables on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from marl.catalog import Entry
from marl.comparison import JUDGMENTS, Group
from marl.config import RunConfig, describe
from marl.report import Metric, Report

FILES = {
    "report": "report.json",
    "page": "report.html",
    "curve": "learning_curve.png",
    "film": "film.gif",
    "agents": "agents.png",
    "edges": "graph.png",
    "graphs": "graph.gif",
    "events": "events",
    "checkpoint": "checkpoints",
}
LONGEST_TABLE = 30  # rows on the terminal


def print_report(report: Report, folder: Path, console: Console) -> None:
    """The metrics, then the paths of what was made."""
    swept = "points" in report.tables
    if swept:
        _print_sweep(report.metrics, str(folder), console)
    else:
        whole = {name: metric for name, metric in report.metrics.items() if not name.startswith("agents=")}
        print_metrics(whole, str(folder), console)
    if "along" in report.tables:
        print_along(report, str(folder), console)
    edges = report.tables.get("edges", [])
    if any("worth" in row for row in edges):
        print_table("edges", edges, console)
    if swept:
        _print_judgments_by_point(report.tables, console)
    else:
        print_judgments(report.tables, console)
    print_files([folder / file for file in FILES.values() if (folder / file).exists()], console)


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


def _print_judgments_by_point(tables: Mapping[str, Sequence[Mapping[str, Any]]], console: Console) -> None:
    """The judgments of each point of a sweep under its name."""
    for point in dict.fromkeys(row["point"] for name in JUDGMENTS for row in tables.get(name, [])):
        console.print(point, style="italic", markup=False)
        about = {name: [row for row in tables.get(name, []) if row["point"] == point] for name in JUDGMENTS}
        print_judgments(about, console)


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
        _print(f"segments: {signal}, {policy} ({family[0]['estimator']})", columns, cells, console)
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
        found = widest.get((signal, policy, against))
        wider = found is None or _width(row) > _width(found)
        if None not in read and row["estimator"] in read and wider:
            widest[signal, policy, against] = row
    return list(widest.values())


def _width(row: Mapping[str, Any]) -> float:
    return float(row["high"]) - float(row["low"])


def print_files(paths: Sequence[Path], console: Console) -> None:
    """What each file is, and where."""
    names = {file: name for name, file in FILES.items()}
    for path in paths:
        console.print(f"{names.get(path.name, 'picture'):<10} {path}", markup=False)


def print_table(title: str, rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The rows of a report's table; of a long one the first, and how many more the report has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "")) for name in columns] for row in rows[:LONGEST_TABLE]]
    if rows:
        _print(title, columns, cells, console)
    if len(rows) > LONGEST_TABLE:
        console.print(f"and {len(rows) - LONGEST_TABLE} more in the report")


def _cell(value: Any) -> str:
    return number(float(value)) if isinstance(value, float | int) else str(value)


def print_along(report: Report, title: str, console: Console) -> None:
    """A row for each value of the setting along which a team was played, then what is to be said about them."""
    rows = report.tables["along"]
    setting, headline = list(rows[0])[:2]
    gaps = any("gap" in row for row in rows)
    cells = []
    for row in rows:
        gap = f"{number(row['gap'])} ± {number(1.96 * row['gap_error'])}" if "gap" in row else ""
        name = f"{row[setting]}{' (trained)' if row.get('trained') else ''}"
        interval = f"[{number(row['low'])}, {number(row['high'])}]"
        counts = (number(float(row["episodes"])), number(row["cpu_seconds"]))
        cells.append((name, number(row[headline]), interval, *((gap,) if gaps else ()), *counts))
    columns = (setting, "return", "95 % interval", *(("gap to limit",) if gaps else ()), "episodes", "CPU-s")
    _print(f"{headline}, {title}", columns, cells, console)
    for row in report.tables["notes"]:
        console.print(row["note"], markup=False)


def print_metrics(metrics: dict[str, Metric], title: str, console: Console) -> None:
    """Name, value and interval of each metric."""
    rows = []
    for name, metric in metrics.items():
        exact = metric.low == metric.high
        rows.append((name, number(metric.value), "" if exact else _interval(metric), "" if exact else str(metric.n)))
    _print(title, ("metric", "value", "95 % interval", "n"), rows, console)


def _print_sweep(metrics: dict[str, Metric], title: str, console: Console) -> None:
    """A row for each metric: its statistics over the points; then the differences. What was not learned has none."""
    if not any(name.endswith("/iqm") for name in metrics):
        print_metrics(metrics, title, console)
        return
    rows = []
    for name, iqm in metrics.items():
        if name.endswith("/iqm"):
            base = name.removesuffix("/iqm")
            rest = (number(metrics[f"{base}/{stat}"].value) for stat in ("min", "median", "max"))
            rows.append((base, number(iqm.value), _interval(iqm), *rest, str(iqm.n)))
    _print(title, ("metric", "IQM", "95 % interval", "min", "median", "max", "n"), rows, console)
    differences = {name: metric for name, metric in metrics.items() if name.startswith("difference/")}
    if differences:
        print_metrics(differences, "differences of return_per_agent", console)


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """A table whose names stay whole: where the terminal is too narrow, each stands in a line above its numbers."""
    table = [columns, *rows]
    name, *widths = (max(len(row[column]) for row in table) for column in range(len(columns)))
    narrow = name + sum(widths) + 2 * len(widths) > console.width
    console.print(title, style="italic", markup=False)
    for first, *cells in table:
        numbers = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths))
        style = "bold" if first == columns[0] else ""
        console.print(f"{first}\n{numbers}" if narrow else f"{first:<{name}}{numbers}", style=style, markup=False)


def _interval(metric: Metric) -> str:
    return f"[{number(metric.low)}, {number(metric.high)}]"


def number(value: float) -> str:
    """Readable at any size."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) < 0.1 else f"{value:.2f}"


def print_config(config: RunConfig, console: Console) -> None:
    """Every field with its value, range and meaning, a line each."""
    rows = describe(config)
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for key, value, limits, meaning in rows:
        line = f"{key:<{widths[0]}}  {value:<{widths[1]}}  # {limits}: {meaning}"
        console.print(line, markup=False, soft_wrap=True)


def print_catalog(entries: Sequence[Entry], console: Console) -> None:
    """Every config's name and header."""
    for entry in entries:
        console.print(f"[bold]{entry.name}[/bold]")
        for line in entry.summary.splitlines():
            console.print(f"    {line}", markup=False, soft_wrap=True)


def print_comparison(groups: Sequence[Group], metric: str, console: Console) -> None:
    """Each group's interquartile mean with its interval over seeds."""
    rows = []
    for group in groups:
        iqm = group.summary["iqm"]
        rest = (number(group.summary[name].value) for name in ("min", "median", "max"))
        rows.append((group.label, str(len(group.values)), number(iqm.value), _interval(iqm), *rest))
    _print(metric, ("runs", "seeds", "IQM", "95 % interval", "min", "median", "max"), rows, console)
