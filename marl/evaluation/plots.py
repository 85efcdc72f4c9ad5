"""Pictures of a run: learning curves and films."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.core import InputError
from marl.training.metrics_log import read_rows


def read_curve(folder: Path, x: str = "env_steps", y: str = "return_per_agent") -> tuple[list[float], list[float]]:
    """Two columns of the first stage in a run's metrics.csv, where both have a value; every stage counts from 0.

    Of several policies, y is their mean where x is the same.
    """
    path = folder / "metrics.csv"
    if not path.exists():
        raise InputError(f"{folder} has no metrics.csv: nothing has been trained there yet, or it was moved away.")
    table = read_rows(path)
    first = [row for row in table if row["stage"] == table[0]["stage"]]
    values: dict[float, list[float]] = {}
    for row in first:
        if row.get(x) and row.get(y) not in (None, "", "nan"):
            values.setdefault(float(row[x]), []).append(float(row[y]))
    return list(values), [float(np.mean(ys)) for ys in values.values()]


def require_picture_name(path: Path) -> None:
    """Raise InputError for a file name whose ending is no kind of picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    kinds = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds or path.is_dir():
        raise InputError(f"A picture is a file that ends in .png, .pdf or .svg; got {path}.")


def new_axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    """A figure and its axes in the project's look."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def learning_curve(folder: Path, target: Path) -> Path:
    """Return per agent against environment steps, raw and smoothed."""
    steps, returns = read_curve(folder)
    figure, axes = new_axes("Learning curve", "environment steps", "return per agent and episode")
    if steps:
        axes.plot(steps, returns, color="tab:blue", alpha=0.3, lw=1)
        axes.plot(steps, smooth(returns), color="tab:blue", lw=2)
    figure.savefig(target)
    return target


def smooth(values: Sequence[float], share: float = 0.05) -> np.ndarray:
    """A centered moving average over `share` of the points, shorter at the ends."""
    x = np.asarray(values, dtype=np.float64)
    half = max(1, int(len(x) * share / 2))
    total = np.concatenate([[0.0], np.cumsum(x)])
    low = np.clip(np.arange(len(x)) - half, 0, None)
    high = np.clip(np.arange(len(x)) + half + 1, None, len(x))
    return (total[high] - total[low]) / (high - low)


def save_gif(frames: Sequence[np.ndarray], target: Path, frames_per_second: int = 10, width: int = 400) -> Path:
    """A looping GIF of pictures [height,width,3] uint8. Raises InputError for no pictures."""
    from PIL import Image

    if not len(frames):
        raise InputError("There is nothing to film: no frames were given.")
    images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    height = round(width * images[0].height / images[0].width)
    images = [image.resize((width, height), Image.Resampling.LANCZOS).quantize(64) for image in images]
    images[0].save(target, save_all=True, append_images=images[1:], duration=1000 // frames_per_second, loop=0)
    return target


def cross_play_heat_map(panels: Mapping[str, Sequence[Mapping[str, Any]]], target: Path) -> Path:
    """Tables `cross_play` by title, as a picture: mean returns of trained players (rows) beside partners (columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = {title: (_names(rows, "who"), _names(rows, "beside")) for title, rows in panels.items()}
    below, aside = (max(len(name) for names in sizes.values() for name in names[axis]) for axis in (1, 0))
    height = 1.2 + 0.07 * below + 0.4 * max(len(who) for who, _ in sizes.values())
    width = sum(0.8 + 0.08 * aside + 0.65 * len(beside) for _, beside in sizes.values())
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, rows) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items()):
        _draw_panel(axes, title, rows, *sizes[title])
    figure.savefig(target)
    return target


def _names(rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows))


def _draw_panel(axes: Any, title: str, rows: Sequence[Mapping[str, Any]], who: list[str], beside: list[str]) -> None:
    values = np.full((len(who), len(beside)), np.nan)
    for row in rows:
        values[who.index(row["who"]), beside.index(row["beside"])] = row["return"]
    image = axes.imshow(values, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(beside)), beside, rotation=45, ha="right")
    axes.set_yticks(range(len(who)), who)
    axes.set(title=title, xlabel="beside")
    for (i, j), value in np.ndenumerate(values):
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        axes.text(j, i, f"{value:.3g}", ha="center", va="center", color="white" if dark else "black", fontsize=8)
