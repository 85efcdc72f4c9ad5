"""Reports, sweeps, configs and comparisons on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from marl.commands.compare import FEWEST_SEEDS, Group
from marl.config.catalog import Entry
from marl.config.describe import describe
from marl.config.load import load_recipe
from marl.config.recipe import Recipe
from marl.config.schema import RunConfig
from marl.output.report import REPORT, Metric, Report, Tables
from marl.output.tables import interval_text, number, print_columns, print_metrics, print_table

FILES = {
    "curve": "learning_curve.png",
    "film": "film.gif",
    "cross-play": "cross_play.png",
    "agents": "agents.png",
    "events": "events",
    "checkpoint": "checkpoints",
}


def print_report(report: Report, folder: Path, console: Console) -> None:
    """The metrics, then the paths of what was made."""
    recipe = load_recipe(report.recipe)
    metrics, swept = recipe.shown(report.metrics), "points" in report.tables
    if swept:
        _print_sweep(metrics, str(folder), console)
    else:
        print_metrics(metrics, str(folder), console)
    if "along" in report.tables:
        print_along(report, str(folder), console)
    if swept:
        _show_by_point(recipe, report.tables, console)
    else:
        recipe.show(report.tables, console)
    print_files([folder / file for file in _files(recipe)], recipe, console)


def _files(recipe: Recipe) -> dict[str, str]:
    """Files that a run of this recipe may leave, with their names, in order: {file: name}."""
    return {file: name for name, file in {"report": REPORT, **recipe.files, **FILES}.items()}


def _show_by_point(recipe: Recipe, tables: Tables, console: Console) -> None:
    """Print what the recipe says of its tables, for each point of a sweep under its name."""
    for point in dict.fromkeys(row["point"] for name in recipe.judged for row in tables.get(name, [])):
        console.print(point, style="italic", markup=False)
        about = {name: [row for row in tables.get(name, []) if row["point"] == point] for name in recipe.judged}
        recipe.show(about, console)


def print_files(paths: Sequence[Path], recipe: Recipe, console: Console) -> None:
    """Print of the files that are there what each is, and where."""
    names = _files(recipe)
    for path in (path for path in paths if path.exists()):
        console.print(f"{names.get(path.name, 'picture'):<10} {path}", markup=False)


def print_evaluation(report: Report, path: Path, picture: Path, title: str, console: Console) -> None:
    """Metrics and tables of teams that were played again, and where report and picture are, if there is one."""
    if "along" in report.tables:
        print_along(report, title, console)
    else:
        print_metrics(report.metrics, title, console)
        for name, rows in report.tables.items():
            print_table(name, rows, console)
    print_files([picture], load_recipe(report.recipe), console)
    console.print(f"report     {path}")


def print_along(report: Report, title: str, console: Console) -> None:
    """A row for each value of the setting along which a team was played, then what is to be said about them."""
    rows = report.tables["along"]
    setting, headline = list(rows[0])[:2]
    gaps = any("gap" in row for row in rows)
    cells = []
    for row in rows:
        gap = number(row["gap"]) if "gap" in row else ""
        if "gap_half" in row:  # a report from before has none
            gap += f" ± {number(float(row['gap_half']))}"
        name = f"{row[setting]}{' (trained)' if row.get('trained') else ''}"
        interval = interval_text(Metric(row[headline], float(row["low"]), float(row["high"]), row["episodes"]))
        counts = (number(float(row["episodes"])), number(row["cpu_seconds"]))
        cells.append((name, number(row[headline]), interval, *((gap,) if gaps else ()), *counts))
    columns = (setting, "return", "95 % interval", *(("gap to limit",) if gaps else ()), "episodes", "CPU-s")
    print_columns(f"{headline}, {title}", columns, cells, console)
    for row in report.tables["notes"]:
        console.print(row["note"], markup=False)


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
            rows.append((base, number(iqm.value), _over_seeds(iqm), *rest, str(iqm.n)))
    print_columns(title, ("metric", "IQM", "95 % interval", "min", "median", "max", "n"), rows, console)
    if any(name.startswith("best/") for name in metrics):
        console.print("best/: chosen by the same seeds that judge it here, which flatters it; judge it on others")
    differences = {name: metric for name, metric in metrics.items() if name.startswith("difference/")}
    if differences:
        print_metrics(differences, "differences of return_per_agent", console)
    beside = {name: metric for name, metric in metrics.items() if _is_cross_play(name)}
    if beside:
        print_metrics(beside, "seeds beside one another; intervals over seeds", console)
    if len(differences) > 1:
        console.print(f"these {len(differences)} intervals are not adjusted for how many they are: some miss by chance")


def _is_cross_play(name: str) -> bool:
    return name.split("/")[-2:-1] == ["cross_play"]


def _over_seeds(iqm: Metric) -> str:
    """The interval of an interquartile mean; words where seeds are too few to tell how far they may spread."""
    return "too few seeds" if iqm.n < FEWEST_SEEDS else interval_text(iqm)


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
        rows.append((group.label, str(len(group.values)), number(iqm.value), _over_seeds(iqm), *rest))
    print_columns(metric, ("runs", "seeds", "IQM", "95 % interval", "min", "median", "max"), rows, console)
