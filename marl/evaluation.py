"""Evaluate and film what a run has trained."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from envs.core import Actor, ConcordError, EnvSpec, InputError, VectorEnv
from marl import along
from marl.config import AGENTS, EvaluationConfig, RunConfig, load_recipe, resolve, split_assignments, yaml_text
from marl.display import console, in_words
from marl.environments import evaluation_rows, make_env
from marl.judging import evaluate, optional, picture, played
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
    """Play the team of a run again under other settings; the report goes into DIR/evaluations.

    Where one setting is a comma list, the team is played at each of its values; the report has tables `along` and
    `notes`, and a picture beside it.
    """
    points, trained = split_assignments(assignments), Run.open(folder)
    _require_effect(trained.config.evaluation, points[0])
    _require_values(points)
    runs = [Run.open(folder, point) for point in points]
    _require_like(trained.config, points, [run.config for run in runs])
    if (checkpoint := runs[0].unfinished("train")) is not None:
        console.print(f"training has not finished: playing checkpoint {checkpoint}", markup=False)
    path = folder / "evaluations" / f"{datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}.json"
    if len(points) == 1:
        report = _evaluate_run(runs[0])
        report.save(path)
        return report, path
    key = along.swept_key(points)
    curve = _play_along(runs, key, points, len(_spec(trained.config).agents) if key in AGENTS else None)
    others = {key: value for key, value in points[0].items() if key != curve.key}
    config = Run.open(folder, others).config
    report = Report(config.recipe, config.seed, config.model_dump(mode="json"), *along.summarize(curve))
    report.save(path)
    with optional("picture"):
        along.draw(curve, path.with_suffix(".png"))
    return report, path


def check_other_numbers(config: RunConfig) -> None:
    """Raise InputError, before training, where the team could not play in each number of `evaluation.agents`."""
    points = _numbers(config)
    _require_like(config, points, [_resolved(config, point) for point in points])


def in_other_numbers(run: Run, report: Report) -> Report:
    """The report of a finished run, with how its team fares in each number of agents of `evaluation.agents`."""
    points = _numbers(run.config)
    if not points:
        return report
    runs = [Run(run.folder, _resolved(run.config, point)) for point in points]
    curve = _play_along(runs, "env.agents", points, len(_spec(run.config).agents))
    metrics, tables = along.summarize(curve)
    report.metrics.update(metrics)
    report.tables.update(tables)
    report.save(run.folder / "report.json")
    with optional("picture"):
        along.draw(curve, run.folder / "agents.png")
    return report


def _require_effect(evaluation: EvaluationConfig, point: dict[str, Any]) -> None:
    effective = (*HAVE_AN_EFFECT, *_own_settings(evaluation))
    idle = [key for key in point if not key.startswith(effective)]
    if idle:
        twin = " The twin was evaluated after training; evaluate there with env='{pettingzoo: …}'."
        raise InputError(
            f"{idle[0]} changes nothing in an evaluation, which plays what was trained; these do: "
            f"{', '.join(effective)}.{twin if idle[0].startswith('evaluation.twin') else ''}"
        )


def _require_values(points: Sequence[dict[str, Any]]) -> None:
    """Raise InputError for a number of agents that was left out: it would be the world's default."""
    for key in AGENTS:
        if any(point.get(key, 0) is None for point in points):
            raise InputError(f"{key}: expected a number of agents, or a list such as {key}=2,10,100; one is empty.")


def _require_like(trained: RunConfig, points: Sequence[dict[str, Any]], configs: Sequence[RunConfig]) -> None:
    """Raise InputError where a number of agents among the points makes a team that this policy cannot play."""
    asked = [(f"{key}={point[key]}", config) for point, config in zip(points, configs) for key in AGENTS & point.keys()]
    here = _spec(trained) if asked else None
    for setting, config in asked:
        try:
            there = _spec(config)
        except InputError as error:
            raise InputError(f"{setting}: {error}") from error
        assert here is not None
        if (reason := _misfit(config, here, there)) is not None:
            raise InputError(f"{setting}: {reason}, so this team plays only in its own number, {len(here.agents)}.")


def _misfit(config: RunConfig, here: EnvSpec, there: EnvSpec) -> str | None:
    """Why a team of `here` cannot play in `there`, of another number of agents; None if nothing speaks against it."""
    for what, field in (("sees", "observation_sizes"), ("may do", "actions")):
        if set(getattr(here, field)) != set(getattr(there, field)):
            return f"what an agent {what} depends on how many they are (its {field} differ)"
    policy = getattr(config, "policy", None)
    apart = {
        "agent_id: true": getattr(policy, "agent_id", False),
        "share: none": getattr(policy, "share", "") == "none",
    }
    if any(apart.values()) and len(here.agents) != len(there.agents):
        return f"policy.{next(name for name, is_set in apart.items() if is_set)} tells agents apart in training"
    return None


def _evaluate_run(run: Run) -> Report:
    """Everything that a recipe's evaluation has."""
    actor, env = load_actor(run, evaluation_rows(run.config))
    metrics, tables = evaluate(run, actor, env), {}
    module = load_recipe(run.config.recipe)
    if hasattr(module, "findings"):
        found, tables = module.findings(run, actor, env)
        metrics |= found
    env.close()
    return Report(run.config.recipe, run.config.seed, run.config.model_dump(mode="json"), metrics, tables)


def _play_along(runs: Sequence[Run], key: str, points: Sequence[dict[str, Any]], trained: int | None) -> along.Curve:
    """The team at each value, after all of them have shown that they can be played."""
    module = load_recipe(runs[0].config.recipe)
    settings = [f"{key}={yaml_text(point[key])}" for point in points]
    for setting, run in zip(settings, runs):
        _require_playable(run, setting, key in AGENTS)
    found, limit = [], None
    for setting, point, run in zip(settings, points, runs):
        start = time.process_time()
        actor, env = load_actor(run, evaluation_rows(run.config))
        episodes = played(run, env, actor, run.config.evaluation.episodes, "evaluation")
        metrics = episodes.metrics(env.spec.channels)
        if hasattr(module, "limit") and (limit is None or key not in AGENTS):  # that of all numbers of agents is one
            limit = module.limit(actor, env)
        metrics |= limit or {}
        env.close()
        found.append(along.Point(point[key], metrics, time.process_time() - start))
        earned, seconds = metrics[along.HEADLINE], found[-1].cpu_seconds
        console.print(f"{setting}: {along.HEADLINE} {earned}, {earned.n} episodes, {seconds:.1f} s", markup=False)
    return along.Curve(key, found, trained)


def _require_playable(run: Run, setting: str, counts_agents: bool) -> None:
    try:
        load_actor(run, 1)[1].close()
    except InputError as error:
        hint = (
            " A team plays in other numbers only where nothing that it has learned depends on how many they are."
            if counts_agents and isinstance(error, MisfitError)
            else ""
        )
        raise InputError(f"{setting}: {error}{hint}") from error


def _numbers(config: RunConfig) -> list[dict[str, Any]]:
    """What `evaluation.agents` sets, point by point."""
    return [{"env.agents": n} for n in config.evaluation.agents]


def _resolved(config: RunConfig, point: dict[str, Any]) -> RunConfig:
    return resolve(config.model_dump(mode="json"), point)


def _spec(config: RunConfig) -> EnvSpec:
    """What the agents of this config's world see and do."""
    with closing(make_env(config.env, num_envs=1)) as env:
        return env.spec


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


class MisfitError(InputError):
    """What was learned does not fit the networks that the config asks for."""


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
        raise MisfitError(
            f"The trained policy of {run.folder} does not fit this environment, or not these networks: "
            f"{in_words(error)} Leave env and policy as they were trained, or change only what keeps their sizes."
        ) from error
    return loaded
