"""Pictures of worlds, drawn with matplotlib, which is imported only when one is asked for."""

from __future__ import annotations

from typing import Any


def blank_axes(xlim: tuple[float, float], ylim: tuple[float, float]) -> Any:
    """Equal axes without ticks or margins that fill a figure of 400 by 400 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=xlim, ylim=ylim, aspect="equal")
    axes.axis("off")
    return axes


def pixels(axes: Any) -> Any:
    """Picture of what was drawn on `axes`, [400,400,3] uint8."""
    import numpy as np

    canvas = axes.figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_particles(discs: list[tuple[Any, float, str]], points: list[tuple[Any, str]]) -> Any:
    """A picture [400,400,3] uint8 of the square [-1.5, 1.5]²: discs (center, radius, color), points (center, color)."""
    from matplotlib.patches import Circle

    axes = blank_axes((-1.5, 1.5), (-1.5, 1.5))
    for center, color in points:
        axes.add_patch(Circle(center, 0.05, color=color, zorder=1))
    for center, radius, color in discs:
        axes.add_patch(Circle(center, radius, facecolor=color, edgecolor="black", alpha=0.7, zorder=2))
    return pixels(axes)
