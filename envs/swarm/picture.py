"""A picture of a swarm on its square, colored by heading, with its order below."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor

from envs.drawing import blank_axes, pixels
from envs.swarm.manifolds import FLIPPED, GLUED, WALL, Manifold

# More than these are a blur, and slow to draw.
MOST_ARROWS, MOST_DOTS = 1_000, 20_000
EDGE_STYLES = {WALL: "-", GLUED: ":", FLIPPED: "--"}


def draw_swarm(
    manifold: Manifold, position: Float[Tensor, "N 2"], heading: Float[Tensor, " N"], order: float, name: str = "R"
) -> Any:
    """[400,400,3] uint8: arrows, or dots where there are many, and a bar filled up to `order` in [0, 1].

    Walls are solid lines, glued edges dotted, flipped ones dashed.
    """
    axes = blank_axes((-0.1, 1.1), (-0.17, 1.03))
    vertical, horizontal = (EDGE_STYLES[edge] for edge in manifold.edges)
    for at in (0, 1):
        axes.plot((at, at), (0, 1), color="black", linewidth=1, linestyle=vertical)
        axes.plot((0, 1), (at, at), color="black", linewidth=1, linestyle=horizontal)
    step = math.ceil(len(position) / MOST_DOTS)
    x, y = (position[::step] / manifold.size).cpu().numpy().T
    angle = heading[::step].cpu().numpy()
    colors = {"cmap": "hsv", "clim": (0, 2 * math.pi)}
    if len(position) <= MOST_ARROWS:
        from numpy import cos, sin

        arrows = {"pivot": "mid", "scale": 30, "width": 0.006, "headwidth": 4}
        axes.quiver(x, y, cos(angle), sin(angle), angle % (2 * math.pi), **arrows, **colors)
    else:
        axes.scatter(x, y, s=2, c=angle % (2 * math.pi), cmap="hsv", vmin=0, vmax=2 * math.pi, linewidths=0)
    axes.barh(-0.08, 1, height=0.04, color="white", edgecolor="black")
    axes.barh(-0.08, min(max(order, 0), 1), height=0.04, color="black")
    axes.text(0.5, -0.14, f"{name} = {order:.2f}", ha="center", va="center")
    return pixels(axes)
