"""Seeds trained as one: P policies in one run, then taken apart into P runs, each as if alone but for rounding."""

from __future__ import annotations

import csv
import io
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from marl.config.load import dump, flatten, load_recipe
from marl.config.schema import RunConfig, TrainingConfig
from marl.output.console import console
from marl.output.report import write_atomically
from marl.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from marl.training.metrics_log import draw_row, events_writer, read_rows
from marl.training.run import Run


def can_stack(configs: Sequence[RunConfig]) -> bool:
    """Whether runs that differ only in their seed can be trained as one.

    The recipe must say so (`Recipe.can_stack`), the world must be native, no budget may be one of processor time, which
    belongs to a run alone, and the networks must be Concord's own.
    """
    config = configs[0]
    settings = flatten(config.model_dump(mode="json"))
    return (
        len(configs) > 1
        and isinstance(config, TrainingConfig)
        and load_recipe(config.recipe).can_stack(config)
        and config.env.world is not None
        and config.train.cpu_seconds is None
        and not any(key.endswith("network.kind") and ":" in kind for key, kind in settings.items())
    )


def train_stacked(folder: Path, configs: dict[str, RunConfig]) -> None:
    """Train all runs of `configs` (folder name -> config) as one; each folder then holds its finished stages.

    Each group of runs has a stack of its own, so that an interrupted sweep goes on with the right one.
    """
    config = next(iter(configs.values()))
    number = zlib.crc32(dump(config.model_copy(update={"seed": 0})).encode())
    stack, finished = folder / f".stacked-{number:08x}", folder / f".stacked-{number:08x}.finished"
    if finished.exists():
        return
    console.print(f"training {len(configs)} seeds as one")
    write_atomically(stack / "config.yaml", dump(config))
    run = Run(stack, config, [c.seed for c in configs.values()])
    load_recipe(config.recipe).train(config, run)
    for stage in sorted(p for p in (stack / "checkpoints").iterdir() if p.is_dir()):
        newest = checkpoints(stage)[-1]
        state = load_checkpoint(newest)
        for place, name in enumerate(configs):
            target = folder / name / "checkpoints" / stage.name / newest.name
            if not target.exists():
                save_checkpoint(target, take_policy(state, place, len(configs)))
    for name, single in configs.items():
        _write_metrics(stack, folder / name, single.seed)
    finished.touch()
    shutil.rmtree(stack)


def take_policy(state: Any, number: int, policies: int) -> Any:
    """One policy's part of a saved state: every tensor is policy-major on its first axis, or a scalar.

    The processor's time was shared by all, the time on the clock was not.
    """
    part = _slice({key: value for key, value in state.items() if key != "used"}, number, policies)
    used = state["used"][number]
    part["used"] = [{**used, "cpu_seconds": used["cpu_seconds"] / policies}]
    return part


def _slice(tree: Any, number: int, policies: int) -> Any:
    if isinstance(tree, Tensor):
        return tree if tree.dim() == 0 else tree.unflatten(0, (policies, -1))[number]
    if isinstance(tree, dict):
        return {key: _slice(value, number, policies) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_slice(value, number, policies) for value in tree]
    return tree


def _write_metrics(stack: Path, folder: Path, seed: int) -> None:
    """The rows of one seed, as a table and as TensorBoard events."""
    rows = [row for row in read_rows(stack / "metrics.csv") if row["seed"] == str(seed)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "metrics.csv", text.getvalue())
    for stage in {row["stage"] for row in rows}:
        shutil.rmtree(folder / "events" / stage, ignore_errors=True)
        with events_writer(folder, stage) as drawer:
            for row in rows:
                if row["stage"] == stage:
                    draw_row(drawer, row)
