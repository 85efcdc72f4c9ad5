"""Seeds trained as one: P policies in one run, then taken apart into P runs, each as if alone but for rounding."""

from __future__ import annotations

import csv
import io
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

from marl.config.load import dump, flatten, load_recipe
from marl.config.schema import RunConfig, TrainingConfig
from marl.output.console import console
from marl.output.files import write_atomically
from marl.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from marl.training.events import draw_row, events_writer
from marl.training.metrics_log import read_rows
from marl.training.policy_rows import take_from_checkpoint
from marl.training.population import tag_prefix
from marl.training.run import Run


def can_stack(configs: Sequence[RunConfig]) -> bool:
    """True where runs that differ only in their seed can be trained as one.

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
    if not finished.exists():
        console.print(f"training {len(configs)} seeds as one")
        write_atomically(stack / "config.yaml", dump(config))
        run = Run(stack, config, [c.seed for c in configs.values()])
        load_recipe(config.recipe).train(config, run)
        for stage in sorted(p for p in (stack / "checkpoints").iterdir() if p.is_dir()):
            _part_checkpoint(stage, [folder / name for name in configs])
        for name, single in configs.items():
            _write_metrics(stack, folder / name, single.seed)
        finished.touch()
    shutil.rmtree(stack, ignore_errors=True)


def _part_checkpoint(stage: Path, folders: Sequence[Path]) -> None:
    """Give each seed's folder its part of a stage's newest checkpoint; those that have it keep it."""
    newest = checkpoints(stage)[-1]
    state = load_checkpoint(newest)
    for place, folder in enumerate(folders):
        target = folder / "checkpoints" / stage.name / newest.name
        if not target.exists():
            save_checkpoint(target, take_from_checkpoint(state, place, len(folders)))


def _write_metrics(stack: Path, folder: Path, seed: int) -> None:
    """The rows of one seed, as a table and as TensorBoard events; those about all policies are every seed's."""
    own = str(seed)
    rows = [{**row, "seed": own} for row in read_rows(stack / "metrics.csv") if row["seed"] in ("", own)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "metrics.csv", text.getvalue())
    for stage in {row["stage"] for row in rows}:
        _draw_stage(folder, stage, [row for row in rows if row["stage"] == stage])


def _draw_stage(folder: Path, stage: str, rows: Sequence[dict[str, str]]) -> None:
    """The rows of one stage as TensorBoard events, drawn anew."""
    shutil.rmtree(folder / "events" / stage, ignore_errors=True)
    members = sorted({row["policy"] for row in rows} - {""})
    with events_writer(folder, stage) as events:
        for row in rows:
            several = members if row["policy"] else ()
            draw_row(events, row, tag_prefix([row["seed"]], several, row["seed"], row["policy"]))
