"""Train from a config in a new folder, or go on in an old one."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.core import ConcordError, InputError
from marl.config.load import load_recipe, read_yaml
from marl.config.schema import RunConfig
from marl.output.console import in_words
from marl.training.run import Run

if TYPE_CHECKING:
    from marl.output.report import Report


def run_training(config: RunConfig, folder: Path) -> Report:
    """One run in a new folder, which stays free where the config's world or networks cannot be built."""
    return follow(config, Run.create(folder, config))


def follow(config: RunConfig, run: Run) -> Report:
    """The recipe's report, saved once. Before anything is trained, whatever it raises is taken for bad input."""
    recipe = load_recipe(config.recipe)
    try:
        report = recipe.run(config, run)
    except ConcordError:
        raise
    except Exception as error:
        if run.begun:
            raise
        raise InputError(
            f"What the config asks for cannot be built: {in_words(error)} Mend the value that this comes from, such as "
            "a dotted path or an argument; CONCORD_TRACEBACK=1 shows the whole way to it."
        ) from error
    from marl.output.report import REPORT, Report  # once there is something to report

    if not isinstance(report, Report):
        raise InputError(
            f"{config.recipe}: run must return a marl.output.report.Report; got a {type(report).__name__}."
        )
    report.save(run.folder / REPORT)  # last: whoever finds it takes the run for finished
    return report


CONFIG = "config"  # the key of a point that says which of several configs is meant


def with_configs(
    paths: Sequence[Path], points: Sequence[dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The files' contents by their names, and every point for each of them, under the key `config` where several.

    Raises InputError for two files of one name, and for a setting of that key.
    """
    if any(CONFIG in point for point in points):
        raise InputError(f"{CONFIG}=… is no setting; several configs are compared as `concord run ONE,OTHER`.")
    raws = {path.stem: read_yaml(path) for path in paths}
    if len(raws) < len(paths):
        raise InputError(
            f"Configs that are compared need different names; got {', '.join(str(path) for path in paths)}. Copy one "
            "of them under another name, or sweep what differs: key=value,value."
        )
    if len(paths) == 1:
        return raws, list(points)
    return raws, [{CONFIG: name, **point} for name in raws for point in points]


def new_folder(names: Sequence[str]) -> Path:
    """A name for the folder of a run of these configs that begins now."""
    return Path("runs") / f"{'-'.join(names)}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
