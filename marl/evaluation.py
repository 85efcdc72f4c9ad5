"""Evaluate and film what a run has trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from envs.core import Actor, ConcordError, InputError, VectorEnv
from marl.config import EvaluationConfig, load_recipe, split_assignments
from marl.display import console, in_words
from marl.judging import evaluate, picture
from marl.report import Report
from marl.run import Run

HAVE_AN_EFFECT = (
    "env",
    "evaluation.episodes",
    "evaluation.num_envs",
    "evaluation.patience",
    "evaluation.team",
    "seed",
    "device",
    "threads",
)


def evaluate_folder(folder: Path, assignments: Sequence[str]) -> tuple[Report, Path]:
    """Play the team of a run again under other settings; the report goes into DIR/evaluations."""
    points = split_assignments(assignments)
    if len(points) > 1:
        raise InputError("evaluate takes one setting at a time; got a comma list.")
    run = Run.open(folder, points[0])
    effective = (*HAVE_AN_EFFECT, *_own_settings(run.config.evaluation))
    idle = [key for key in points[0] if not key.startswith(effective)]
    if idle:
        raise InputError(
            f"{idle[0]} changes nothing in an evaluation, which plays what was trained; these do: "
            f"{', '.join(effective)}. The twin was evaluated after training; evaluate there with "
            "env='{pettingzoo: …}'."
        )
    if (checkpoint := run.unfinished("train")) is not None:
        console.print(f"training has not finished: playing checkpoint {checkpoint}", markup=False)
    actor, env = load_actor(run, run.config.evaluation_envs)
    metrics, tables = evaluate(run, actor, env), {}
    module = load_recipe(run.config.recipe)
    if hasattr(module, "findings"):
        found, tables = module.findings(run, actor, env)
        metrics |= found
    env.close()
    report = Report(run.config.recipe, run.config.seed, run.config.model_dump(mode="json"), metrics, tables)
    path = folder / "evaluations" / f"{datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}.json"
    report.save(path)
    return report, path


def _own_settings(section: EvaluationConfig) -> list[str]:
    """What a recipe has added to its evaluation, which its `findings` reads."""
    return [f"evaluation.{name}" for name in type(section).model_fields if name not in EvaluationConfig.model_fields]


def render_folder(folder: Path) -> list[Path]:
    """Film the team of a run, or draw what its recipe draws; gives the files."""
    run = Run.open(folder)
    module = load_recipe(run.config.recipe)
    if hasattr(module, "pictures"):
        drawn: list[Path] = module.pictures(run)
        return drawn
    actor, env = load_actor(run, 1)
    env.close()
    return [picture(run, actor)]


def load_actor(run: Run, num_envs: int) -> tuple[Any, VectorEnv]:
    """The trained actor of a run and environments for it. Raises InputError where they do not fit together."""
    module = load_recipe(run.config.recipe)
    if not hasattr(module, "load"):
        raise InputError(f"{run.config.recipe} has no load(run, num_envs), so there is no actor to play.")
    try:
        loaded: tuple[Actor, VectorEnv] = module.load(run, num_envs)
    except ConcordError:
        raise
    except Exception as error:
        raise InputError(
            f"The trained policy of {run.folder} does not fit this environment, or not these networks: "
            f"{in_words(error)} Leave env and policy as they were trained, or change only what keeps their sizes."
        ) from error
    return loaded
