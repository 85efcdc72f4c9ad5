"""A picture of distillation: how the model alone, and its planner, do by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from marl.evaluation.plots import new_axes
from marl.output.report import Metric

NAMES = {"alone": "the model alone", "planner": "with planner and critic", "exact": "the model alone, exact"}


def by_round(rounds: Sequence[Mapping[str, Metric]], key: str, target: Path) -> Path:
    """Values of `alone/KEY`, `planner/KEY` and `exact/KEY` against rounds, with intervals where they have any."""
    figure, axes = new_axes("Distillation", "rounds of lessons", key.replace("_", " "))
    for who, label in NAMES.items():
        told = [(number, row[f"{who}/{key}"]) for number, row in enumerate(rounds) if f"{who}/{key}" in row]
        if not told:
            continue
        numbers = [number for number, _ in told]
        values = [metric.value for _, metric in told]
        below = [metric.value - metric.low for _, metric in told]
        above = [metric.high - metric.value for _, metric in told]
        axes.errorbar(numbers, values, [below, above], label=label, marker="o", capsize=3)
    axes.set_xticks(range(len(rounds)))
    axes.legend(frameon=False)
    figure.savefig(target)
    return target
