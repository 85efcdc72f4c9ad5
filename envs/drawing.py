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
