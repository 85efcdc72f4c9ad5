"""A picture of planners: what they reach, against what they ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from marl.evaluation.plots import new_axes
from marl.output.report import Metric

CURVES = {"rounds": "sent back, so many proposals at most", "blind": "the same, asked blindly"}


def by_queries(planners: Mapping[str, Mapping[str, Metric]], target: Path) -> Path | None:
    """Success, or returns where no goal is set, against queries an episode, with intervals; None where nobody asks.

    Planners that differ in how often they may ask, such as blind_1 and blind_6, are one curve.
    """
    asking = {name: found for name, found in planners.items() if found["count/queries"].value > 0}
    if not asking:
        return None
    key = "success" if all("success" in found for found in asking.values()) else "return_per_agent"
    figure, axes = new_axes("Planners", "queries an episode", key.replace("_", " "))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    markers = cycle("osD^v<>pPXh")  # eleven, so that planners whose color is the same of ten differ in their marker
    curves: dict[str, list[Mapping[str, Metric]]] = {}
    for name, found in asking.items():
        kind, _, number = name.rpartition("_")
        if kind in CURVES and number.isdigit():
            curves.setdefault(kind, []).append(found)
        else:
            plot(axes, [found], key, name.replace("_", " "), next(markers))
    for kind, points in curves.items():
        plot(axes, points, key, CURVES[kind], "o-")
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(target, bbox_inches="tight")
    return target


def plot(axes: Any, points: Sequence[Mapping[str, Metric]], key: str, label: str, style: str) -> None:
    """Points with both intervals, joined where the style says so."""
    points = sorted(points, key=lambda found: found["count/queries"].value)
    x, y = ([found[name] for found in points] for name in ("count/queries", key))
    axes.errorbar(
        [metric.value for metric in x],
        [metric.value for metric in y],
        yerr=spans(y),
        xerr=spans(x),
        label=label,
        fmt=style,
        markersize=4,
        capsize=2,
    )


def spans(metrics: Sequence[Metric]) -> list[list[float]]:
    """How far the intervals go below and above."""
    below = [metric.value - metric.low for metric in metrics]
    return [below, [metric.high - metric.value for metric in metrics]]
