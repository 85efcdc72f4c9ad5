"""Say what a run would do, without doing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from marl.commands.run import CONFIG
from marl.config.load import load_recipe, resolve


def preview_points(raws: Mapping[str, dict[str, Any]], points: Sequence[dict[str, Any]], console: Console) -> None:
    """The preview of each point of a sweep, as its recipe gives it; its own settings stand above, if there are others.

    Raises InputError for a config that cannot be resolved, and for a recipe without previews.
    """
    first = next(iter(raws))
    for point in points:
        if len(points) > 1:
            settings = " ".join(f"{name}={value}" for name, value in point.items())
            console.print(settings, style="bold", markup=False)
        own = {name: value for name, value in point.items() if name != CONFIG}
        config = resolve(raws[point.get(CONFIG, first)], own)
        load_recipe(config.recipe).preview(config, console)
