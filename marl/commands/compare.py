"""Many runs side by side: statistics over seeds, differences between variants, a plot."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from envs.core import InputError
from marl.config.load import flatten, yaml_text
from marl.evaluation.plots import new_axes, read_curve, require_picture_name, smooth
from marl.output.report import Metric, Report, Tables

LONGEST_LABEL = 80
MOST_PAIRED = 8  # variants up to which each is compared with each
RETURN = "return_per_agent"
TRIMMED = 0.25  # of the seeds on either side, which leaves the interquartile mean
FEWEST_SEEDS = 3  # below which no interval is printed
ROUNDING = 1e-9  # relative
SHOWN = 8  # names of metrics in an error


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed."""

    label: str
    folders: list[Path]
    values: np.ndarray
    summary: dict[str, Metric]


def interquartile_mean(values: np.ndarray) -> float:
    """The mean of the middle half. Source: Agarwal et al., NeurIPS 2021 (arXiv 2108.13264)."""
    from scipy.stats import trim_mean

    return float(trim_mean(values, TRIMMED))


def summarize(values: np.ndarray) -> dict[str, Metric]:
    """min, median and max, which are counted, and iqm with its 95 % interval over seeds."""
    exact = {"min": values.min(), "median": np.median(values), "max": values.max()}
    return {**{name: Metric.exact(float(value)) for name, value in exact.items()}, "iqm": _trimmed(values)}


def _trimmed(values: np.ndarray) -> Metric:
    """The interquartile mean with the interval of Tukey and McLaughlin, Sankhya A 25 (1963), infinite below 3 seeds.

    The standard deviation of the values, the outer quarters drawn in to the middle half, times sqrt((n-1) / (h (h-1)))
    and Student's quantile of h - 1 degrees of freedom, where h of n values are in the middle half.
    """
    from scipy import stats

    n, outer = len(values), int(TRIMMED * len(values))
    value, inner = interquartile_mean(values), n - 2 * outer
    if n < FEWEST_SEEDS:
        return Metric(value, -math.inf, math.inf, n)
    drawn_in = np.clip(values, *np.sort(values)[[outer, n - 1 - outer]])
    if np.ptp(drawn_in) == 0:  # of equal seeds no spread; where the outer ones differ, it is only not seen
        half = math.inf if np.ptp(values) else 0.0
        return Metric(value, value - half, value + half, n)
    error = float(drawn_in.std(ddof=1)) * math.sqrt((n - 1) / (inner * (inner - 1)))
    half = float(stats.t.ppf(0.975, inner - 1)) * error
    return Metric(value, value - half, value + half, n)


def difference(first: np.ndarray, second: np.ndarray) -> Metric:
    """Mean difference between two groups with Welch's 95 % interval.

    Infinite with one seed each, and where neither group varies, which leaves the error unknown.
    """
    from scipy import stats

    value, n = float(first.mean() - second.mean()), min(len(first), len(second))
    if n < 2 or (_equal(first) and _equal(second)):
        return Metric(value, -math.inf, math.inf, n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of one constant group, which is no loss of precision here
        interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    return Metric(value, float(interval.low), float(interval.high), n)


def paired(first: np.ndarray, second: np.ndarray) -> Metric:
    """Mean difference seed by seed with Student's 95 % interval, infinite with one seed or where all differ alike."""
    gaps = first - second
    if _equal(gaps, np.abs(first).max()):
        return Metric(float(gaps.mean()), -math.inf, math.inf, len(gaps))
    return Metric.mean(gaps)


def _equal(values: np.ndarray, scale: float = 0.0) -> bool:
    """True where values are the same but for rounding, theirs or that of numbers of this size."""
    return bool(np.ptp(values) <= ROUNDING * max(scale, float(np.abs(values).max())))


def in_errors(first: np.ndarray, second: np.ndarray) -> float:
    """`paired` in units of its standard error; no number where that is unknown, so that it meets no bar."""
    gap, gaps = paired(first, second), first - second
    if gap.high == math.inf:
        return math.nan
    return gap.value / (float(gaps.std(ddof=1)) / math.sqrt(len(gaps)))


def sweep_metrics(variants: dict[tuple[str, ...], list[Report]]) -> dict[str, Metric]:
    """`<metric>/{min,median,iqm,max}` of each variant, and `difference/<a>-<b>` of their returns.

    A variant is named by its settings, `key=value` each. Names stand before metrics where there are several variants;
    the difference of any other metric is `<metric>/difference/<a>-<b>`. `paired/<a>-<b>` is the mean difference of
    returns between runs of one seed, `…/in_errors` that in units of its standard error, and `…/low_share` the lower end
    of its 95 % interval as a share of b's mean. Where more than one key varies, the same again under `best/` for the
    best variant (highest mean return) of each value of the first key: so both sides of a comparison are tuned alike.
    `mode/paired/…` are the same differences of most probable actions. Each interval is one of 95 % by itself: they are
    not adjusted for how many there are, nor those under `best/` for having been chosen by the seeds that judge.
    """
    values = {label: _columns(reports) for label, reports in variants.items()}
    found = _side_by_side({",".join(label): columns for label, columns in values.items()})
    sides = list(dict.fromkeys(label[0] for label in values))
    if len(next(iter(values))) > 1 and len(sides) > 1:
        best = {side: max((values[label] for label in values if label[0] == side), key=_mean_return) for side in sides}
        found |= {f"best/{name}": metric for name, metric in _side_by_side(best).items()}
    return found


def point_metrics(reports: Mapping[str, Report]) -> dict[str, Metric]:
    """`<point>/<metric>` of runs that train nothing, each with the interval that the run itself has for it.

    Such a metric is no draw of training: seeds of one log give one estimate, whose spread over seeds would say nothing.
    """
    return {f"{point}/{name}": metric for point, report in reports.items() for name, metric in report.metrics.items()}


def point_tables(names: Sequence[str], reports: Mapping[str, Report]) -> Tables:
    """The named tables of all points, each row with the `point` that it is about."""
    found = {
        table: [{"point": point, **row} for point, report in reports.items() for row in report.tables.get(table, [])]
        for table in names
    }
    return {table: rows for table, rows in found.items() if rows}


def _side_by_side(values: dict[str, dict[str, np.ndarray]]) -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    for label, columns in values.items():
        prefix = f"{label}/" if len(values) > 1 else ""
        for name, column in columns.items():
            found |= {f"{prefix}{name}/{stat}": metric for stat, metric in summarize(column).items()}
    for first, second in combinations(values, 2) if len(values) <= MOST_PAIRED else ():
        for name in sorted(values[first].keys() & values[second].keys()):
            key = f"difference/{first}-{second}"
            key = key if name == RETURN else f"{name}/{key}"
            found[key] = difference(values[first][name], values[second][name])
        for prefix in ("", "mode/"):
            one, other = (values[label].get(prefix + RETURN, np.zeros(0)) for label in (first, second))
            if len(one) and len(one) == len(other):
                found |= _paired(f"{prefix}paired/{first}-{second}", one, other)
    return found


def _paired(key: str, one: np.ndarray, other: np.ndarray) -> dict[str, Metric]:
    gap = paired(one, other)
    found = {key: gap, f"{key}/in_errors": Metric.exact(in_errors(one, other))}
    return found | ({f"{key}/low_share": Metric.exact(gap.low / abs(float(other.mean())))} if other.mean() else {})


def _mean_return(columns: dict[str, np.ndarray]) -> float:
    return float(columns[RETURN].mean()) if RETURN in columns else -np.inf


def _columns(reports: Sequence[Report]) -> dict[str, np.ndarray]:
    names = [name for name in reports[0].metrics if all(name in report.metrics for report in reports)]
    return {name: np.array([report.metrics[name].value for report in reports]) for name in names}


def compare_folders(folders: Sequence[Path], metric: str, picture: Path) -> list[Group]:
    """Group the runs found in `folders`, summarize `metric`, draw learning curves. Raises InputError for no runs."""
    require_picture_name(picture)
    paths = dict.fromkeys(path.resolve() for folder in folders for path in reports_in(folder))
    found = [(path.parent, Report.load(path)) for path in paths]
    configs = [flatten(report.config) for _, report in found]
    varying = sorted(
        {key for c in configs for key in c if any(other.get(key) != c[key] for other in configs)} - {"seed"}
    )
    groups: dict[str, list[tuple[Path, Report]]] = {}
    for (folder, report), config in zip(found, configs):
        label = ", ".join(f"{key}={yaml_text(config.get(key))}" for key in varying) or report.recipe
        groups.setdefault(label, []).append((folder, report))
    summaries = [_group(_short(label, members[0][0]), members, metric) for label, members in groups.items()]
    _draw(summaries, picture)
    return summaries


def reports_in(folder: Path) -> list[Path]:
    """The reports of single runs in a folder: its own, or those of a sweep's points, and of sweeps within."""
    points = sorted(folder.glob("*/report.json"))
    if points:
        return [report for point in points for report in reports_in(point.parent)]
    if not folder.is_dir():
        raise InputError(f"{folder} holds no finished run: there is no such folder.")
    if not (folder / "report.json").is_file():
        raise InputError(f"{folder} holds no finished run: there is no report.json in it.")
    return [folder / "report.json"]


def _short(label: str, folder: Path) -> str:
    """Runs that have little in common are told apart by their folders."""
    return label if len(label) <= LONGEST_LABEL else "/".join(folder.parts[-2:])


def _group(label: str, members: list[tuple[Path, Report]], metric: str) -> Group:
    for folder, report in members:
        if metric not in report.metrics:
            near = difflib.get_close_matches(metric, report.metrics, SHOWN, 0.6) or list(report.metrics)[:SHOWN]
            left = len(report.metrics) - len(near)
            others = f" and {left} others, in report.json" if left else ""
            raise InputError(f"{folder} has no metric {metric!r}; it has {', '.join(near)}{others}.")
    by_seed: dict[str, list[Path]] = {}
    for folder, report in members:
        by_seed.setdefault(str(report.seed), []).append(folder)
    for seed, folders in by_seed.items():
        if len(folders) > 1:
            raise InputError(
                f"Each seed counts once; seed {seed} of {label} was run in {', '.join(map(str, folders))}. "
                "Name one of these folders."
            )
    values = np.array([report.metrics[metric].value for _, report in members])
    return Group(label, [folder for folder, _ in members], values, summarize(values))


def _draw(groups: Sequence[Group], picture: Path) -> None:
    """Learning curves: mean over seeds, and the band between the worst and the best."""
    figure, axes = new_axes("Learning curves", "environment steps", "return per agent and episode")
    for group in groups:
        curves = [read_curve(folder) for folder in group.folders if (folder / "metrics.csv").exists()]
        curves = [curve for curve in curves if curve[0]]
        if not curves:
            continue
        grid = np.linspace(max(c[0][0] for c in curves), min(c[0][-1] for c in curves), 200)
        lines = np.stack([np.interp(grid, steps, smooth(returns)) for steps, returns in curves])
        (line,) = axes.plot(grid, lines.mean(0), lw=2, label=f"{group.label} ({len(curves)} seeds)")
        axes.fill_between(grid, lines.min(0), lines.max(0), color=line.get_color(), alpha=0.2, lw=0)
    if axes.lines:
        axes.legend(fontsize=8, frameon=False)
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture)
    except OSError as error:
        raise InputError(f"Cannot write {picture}: {error.strerror or error}. Choose another --out.") from error
