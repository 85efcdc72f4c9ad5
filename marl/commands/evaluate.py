"""Evaluate and film what a run has trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from envs.core import InputError
from marl.config.load import AGENTS, load_recipe, split_assignments
from marl.config.recipe import Recipe
from marl.config.schema import EvaluationConfig, TrainingConfig
from marl.evaluation import agent_sweep
from marl.evaluation.environments import evaluation_rows, require_effect
from marl.evaluation.load import load_actor
from marl.evaluation.policy_report import evaluate, optional
from marl.output.console import console
from marl.output.report import Report
from marl.training.run import Run

HAVE_AN_EFFECT = (
    "env",
    "evaluation.episodes",
    "evaluation.num_envs",
    "evaluation.patience",
    "evaluation.args",
    "evaluation.time_limit",
    "evaluation.cross_play",
    "evaluation.load",
    "seed",
    "device",
    "threads",
)


def evaluate_folder(folder: Path, assignments: Sequence[str]) -> tuple[Report, Path]:
    """Play the team of a run again under other settings; the report goes into DIR/evaluations.

    Where one setting is a comma list, the team is played at each of its values; the report has tables `along` and
    `notes`, and a picture beside it.
    """
    points, trained = split_assignments(assignments), Run.open(folder)
    if not isinstance(trained.config, TrainingConfig):
        raise InputError(f"{trained.config.recipe} trains nobody who acts, so there is no actor to play.")
    _require_effect(trained.config.evaluation, points[0])
    _require_values(points)
    require_effect(trained.config, points[0])
    runs = [Run.open(folder, point) for point in points]
    agent_sweep.require_like(trained.config, points, [run.config for run in runs])
    stage = load_recipe(trained.config.recipe).played_stage(runs[0].config)
    if stage is not None and (checkpoint := runs[0].unfinished(stage)) is not None:
        console.print(f"{stage} has not finished: playing checkpoint {checkpoint}", markup=False)
    path = folder / "evaluations" / f"{datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}.json"
    if len(points) == 1:
        report = _evaluate_run(runs[0])
        report.save(path)
        return report, path
    key = agent_sweep.swept_key(points)
    curve = agent_sweep.play_along(
        runs, key, points, len(agent_sweep.spec_of(trained.config).agents) if key in AGENTS else None
    )
    others = {key: value for key, value in points[0].items() if key != curve.key}
    config = Run.open(folder, others).config
    report = Report(config.recipe, config.seed, config.model_dump(mode="json"), *agent_sweep.summarize(curve))
    report.save(path)
    with optional("picture"):
        agent_sweep.draw(curve, path.with_suffix(".png"))
    return report, path


def _require_effect(evaluation: EvaluationConfig, point: dict[str, Any]) -> None:
    effective = (*HAVE_AN_EFFECT, *_own_settings(evaluation))
    unused = [key for key in point if not f"{key}.".startswith(tuple(f"{name}." for name in effective))]
    if unused:
        twin = " The twin was evaluated after training; evaluate there with env='{pettingzoo: …}'."
        raise InputError(
            f"{unused[0]} changes nothing in an evaluation, which plays what was trained; these do: "
            f"{', '.join(effective)}.{twin if unused[0].startswith('evaluation.twin') else ''}"
        )


def _require_values(points: Sequence[dict[str, Any]]) -> None:
    """Raise InputError for a number of agents that was left out: it would be the world's default."""
    for key in AGENTS:
        if any(point.get(key, 0) is None for point in points):
            raise InputError(f"{key}: expected a number of agents, or a list such as {key}=2,10,100; one is empty.")


def _evaluate_run(run: Run) -> Report:
    """Everything that a recipe's evaluation has."""
    actor, env = load_actor(run, evaluation_rows(run.config))
    metrics = evaluate(run, actor, env)
    found, tables = load_recipe(run.config.recipe).findings(run, actor, env)
    env.close()
    metrics |= found
    return Report(run.config.recipe, run.config.seed, run.config.model_dump(mode="json"), metrics, tables)


def _own_settings(section: EvaluationConfig) -> list[str]:
    """Settings that a recipe has added to its evaluation, which its `findings` reads."""
    return [f"evaluation.{name}" for name in type(section).model_fields if name not in EvaluationConfig.model_fields]


def render_folder(folder: Path) -> tuple[list[Path], Recipe]:
    """Film the team of a run, or draw what its recipe draws; gives the files, and the recipe."""
    run = Run.open(folder)
    recipe = load_recipe(run.config.recipe)
    return recipe.pictures(run), recipe
