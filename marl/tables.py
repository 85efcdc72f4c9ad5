"""Tables on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from marl.catalog import Entry
from marl.comparison import Group
from marl.config import RunConfig, describe
from marl.report import Metric, Report

FILES = {
    "report": "report.json",
    "curve": "learning_curve.png",
    "film": "film.gif",
    "events": "events",
    "checkpoint": "checkpoints",
}


def print_report(report: Report, folder: Path, console: Console) -> None:
    """The metrics, then the paths of what was made."""
    print_metrics(report.metrics, str(folder), console)
    for name, file in FILES.items():
        if (folder / file).exists():
            console.print(f"{name:<10} {folder / file}")


def print_metrics(metrics: dict[str, Metric], title: str, console: Console) -> None:
    """Name, value and interval of each metric."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column, justify in (("metric", "left"), ("value", "right"), ("95 % interval", "right"), ("n", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name, metric in metrics.items():
        exact = metric.low == metric.high
        interval = "" if exact else f"[{metric.low:.2f}, {metric.high:.2f}]".replace("[", "\\[")
        table.add_row(name, number(metric.value), interval, "" if exact else str(metric.n))
    console.print(table)


def number(value: float) -> str:
    """Readable at any size."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) < 0.1 else f"{value:.2f}"


def print_config(config: RunConfig, console: Console) -> None:
    """Every field with its value, range and meaning."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for column in ("key", "value", "range", "meaning"):
        table.add_column(column, overflow="fold")
    for row in describe(config):
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    console.print(table)


def print_catalog(entries: Sequence[Entry], console: Console) -> None:
    """Every config's name and header."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for entry in entries:
        table.add_row(f"[bold]{entry.name}[/bold]", entry.summary.replace("[", "\\["))
    console.print(table)


def print_comparison(groups: Sequence[Group], metric: str, console: Console) -> None:
    """Each group's interquartile mean with its interval over seeds."""
    table = Table(title=metric, title_justify="left", box=None, pad_edge=False)
    for column in ("runs", "seeds", "IQM", "95 % interval", "min", "median", "max"):
        table.add_column(column, justify="left" if column == "runs" else "right")
    for group in groups:
        iqm = group.summary["iqm"]
        interval = f"\\[{iqm.low:.3f}, {iqm.high:.3f}]"
        rest = (number(group.summary[name].value) for name in ("min", "median", "max"))
        table.add_row(group.label.replace("[", "\\["), str(len(group.values)), f"{iqm.value:.3f}", interval, *rest)
    console.print(table)
