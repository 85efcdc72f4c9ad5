"""A trained team along one setting: its returns as a table, as metrics with names of their own, and as a picture.

Along the number of agents also how fast the return approaches that of the limit, see `marl.evaluation.limit_fit`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from envs.core import EnvSpec, InputError
from marl.config.load import AGENTS, load_recipe, resolve, yaml_text
from marl.config.schema import TrainingConfig
from marl.evaluation.environments import evaluation_rows
from marl.evaluation.limit_fit import (
    FEWEST,
    FEWEST_EPISODES,
    SIGNIFICANT,
    Fit,
    Gap,
    differ_in_sign,
    fit,
    gaps,
    standard_error,
)
from marl.evaluation.load import MisfitError, load_actor
from marl.evaluation.plots import new_axes
from marl.evaluation.policy_report import optional, played
from marl.output.console import console
from marl.output.report import Metric, Report
from marl.training.environments import make_env
from marl.training.run import Run

HEADLINE = "return_per_agent"
NO_LINE = 0.01  # chance of a misfit below which a line is no description
Value = bool | int | float | str | list[Any] | dict[str, Any] | None  # of a setting, as YAML has it
LIMIT = "limit/return_per_agent"  # a recipe's finding: the exact return of infinitely many agents


@dataclass(frozen=True)
class Point:
    """A value of the setting, what was found there, and the processor time that it took."""

    value: Value
    metrics: dict[str, Metric]
    cpu_seconds: float

    @property
    def agents(self) -> int:
        """The value, where it is a number of agents."""
        assert isinstance(self.value, int)
        return self.value


class Limit(NamedTuple):
    """The return of infinitely many agents, in words where it is from, and whether it is exact or a large swarm's."""

    value: Metric
    origin: str
    exact: bool


@dataclass(frozen=True)
class Curve:
    """Points along `key`. trained: the number of agents then."""

    key: str
    points: Sequence[Point]
    trained: int | None = None

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]

    @property
    def returns(self) -> list[Metric]:
        """The return of each point."""
        return [point.metrics[HEADLINE] for point in self.points]

    @property
    def counts_agents(self) -> bool:
        """True where the setting is the number of agents."""
        return self.key in AGENTS

    def limit(self) -> Limit | None:
        """Limit of the returns as the swarm grows; None where the setting is another."""
        if not self.counts_agents:
            return None
        largest = max(self.points, key=lambda point: point.agents)
        if LIMIT in largest.metrics:
            return Limit(largest.metrics[LIMIT], "the exact limit", exact=True)
        return Limit(largest.metrics[HEADLINE], f"{self.name}={largest.value}", exact=False)


def swept_key(points: Sequence[dict[str, Any]]) -> str:
    """The one key that these points vary. Raises InputError for two of them, and for a value that comes twice."""
    varying = [key for key in points[0] if len({yaml_text(point[key]) for point in points}) > 1]
    if len(varying) > 1:
        raise InputError(f"evaluate takes one comma list; got one each for {' and '.join(varying)}.")
    if not varying or len({yaml_text(point[varying[0]]) for point in points}) < len(points):
        raise InputError("An evaluation plays each value once; this comma list names a value twice.")
    return varying[0]


def summarize(curve: Curve) -> tuple[dict[str, Metric], dict[str, list[dict[str, Any]]]]:
    """Metrics `<setting>=<value>/<metric>`, of a swarm `limit_fit/…`; tables `along`, a row a point, and `notes`."""
    metrics = {
        f"{curve.name}={yaml_text(point.value)}/{name}": metric
        for point in curve.points
        for name, metric in point.metrics.items()
    }
    rows = [_row(curve, point, metric) for point, metric in zip(curve.points, curve.returns)]
    notes = []
    if curve.trained is not None:
        listed = curve.trained in [point.value for point in curve.points]
        notes.append(f"trained with N={curve.trained}" + ("" if listed else ", which is not in the list"))
    if curve.counts_agents:
        found, note = _transfer(curve, rows)
        metrics |= found
        notes.append(note)
    return metrics, {"along": rows, "notes": [{"note": note} for note in notes]}


def _row(curve: Curve, point: Point, metric: Metric) -> dict[str, Any]:
    row = {
        curve.name: point.value,
        HEADLINE: metric.value,
        "low": metric.low,
        "high": metric.high,
        "episodes": metric.n,
        "cpu_seconds": round(point.cpu_seconds, 2),
    }
    return row | ({"trained": point.value == curve.trained} if curve.trained is not None else {})


def _transfer(curve: Curve, rows: list[dict[str, Any]]) -> tuple[dict[str, Metric], str]:
    """The slope of the gap to the limit, if there is one, and a sentence about it; `rows` get their gaps."""
    known = curve.limit()
    assert known is not None
    limit, origin, exact = known
    largest = max(point.agents for point in curve.points)
    returns = {p.agents: metric for p, metric in zip(curve.points, curve.returns) if exact or p.agents != largest}
    found = {gap.agents: gap for gap in gaps(returns, limit)}
    for row in rows:
        if (gap := found.get(row[curve.name])) is not None:
            row |= {"gap": gap.value, "gap_error": gap.error, "gap_half": gap.half}
    every = list(found.values())
    line = fit(every, standard_error(limit), None if exact else largest)
    metrics = {"limit_fit/points": Metric.exact(sum(gap.counts for gap in every))} | ({LIMIT: limit} if exact else {})
    if line is not None:
        metrics["limit_fit/slope"] = line.slope
    if line is not None and line.doubt is not None:
        metrics["limit_fit/misfit_p_value"] = Metric.exact(line.doubt)
    note = f"no slope: {_why_no_slope(every, origin)}" if line is None else _about(line, every, origin)
    unknown = sum(not gap.has_error for gap in every)
    if unknown:
        note += (
            f"; {unknown} left out, whose error is unknown: {FEWEST_EPISODES} episodes or more, not all alike, "
            "tell it, here and of the limit"
        )
    return metrics, note


def _why_no_slope(every: Sequence[Gap], origin: str) -> str:
    used = [gap for gap in every if gap.counts]
    if differ_in_sign(used):
        above, below = ([gap.agents for gap in used if (gap.value > 0) == side] for side in (True, False))
        return (
            f"the gap to {origin} is positive at N={_listed(above)} and negative at N={_listed(below)}, no power of N"
        )
    return (
        f"the gap to {origin} exceeds {SIGNIFICANT:g} standard errors at {len(used)} of {len(every)} numbers of agents"
        f", and a line needs {FEWEST}; more evaluation.episodes show smaller gaps"
    )


def _about(line: Fit, every: Sequence[Gap], origin: str) -> str:
    used = sorted(gap.agents for gap in every if gap.counts)
    power = f"{line.slope.value:.3f} [{line.slope.low:.3f}, {line.slope.high:.3f}]"
    if line.doubt is None:
        return (
            f"the gap to {origin} falls from N={used[0]} to N={used[-1]} with the local slope {power}, by the 2 of "
            f"{len(every)} numbers of agents whose gaps exceed {SIGNIFICANT:g} standard errors; two points cannot test "
            "a line"
        )
    note = (
        f"the gap to {origin} falls as N to the power {power}, by {len(used)} of {len(every)} numbers of agents, whose "
        f"gaps exceed {SIGNIFICANT:g} standard errors"
    )
    if line.doubt < NO_LINE:
        note += f"; but these gaps do not lie on a line (chance {line.doubt:.1g}), so that this is no law of the swarm"
    return note


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def draw(curve: Curve, target: Path) -> Path:
    """The return against the setting with intervals; of a swarm on a logarithmic axis, with the limit."""
    figure, axes = new_axes("Return of the trained team", curve.key, HEADLINE)
    values = [point.value for point in curve.points]
    numbers = all(isinstance(value, int | float) for value in values)
    x: list[Any] = values if numbers else [yaml_text(value) for value in values]
    middle = [metric.value for metric in curve.returns]
    halves = [(metric.high - metric.low) / 2 for metric in curve.returns]
    line = "-" if numbers and x == sorted(x) else ""
    drawn = [half if half < math.inf else 0.0 for half in halves]
    axes.errorbar(x, middle, drawn, color="tab:blue", marker="o", ms=4, capsize=3, ls=line, lw=1.5)
    for place in (place for place, half in zip(x, halves) if half == math.inf):
        axes.axvline(place, color="tab:blue", lw=1.5)  # one episode tells nothing: from bottom to top
    if curve.counts_agents:
        axes.set_xscale("log")
    if curve.trained is not None:
        axes.axvline(curve.trained, color="gray", lw=1, ls=":", label=f"trained with N={curve.trained}")
    if (known := curve.limit()) is not None:
        axes.axhline(known.value.value, color="tab:orange", lw=1, ls="--", label=known.origin)
    if curve.counts_agents:
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(target)
    return target


def check_other_numbers(config: TrainingConfig) -> None:
    """Raise InputError, before training, where the team could not play in each number of `evaluation.agents`."""
    points = _numbers(config)
    require_like(config, points, [_resolved(config, point) for point in points])


def in_other_numbers(run: Run, report: Report) -> Report:
    """The report of a finished run, with how its team fares in each number of agents of `evaluation.agents`."""
    points = _numbers(run.config)
    if not points:
        return report
    runs = [Run(run.folder, _resolved(run.config, point)) for point in points]
    curve = play_along(runs, "env.agents", points, len(spec_of(run.config).agents))
    metrics, tables = summarize(curve)
    report.metrics.update(metrics)
    report.tables.update(tables)
    with optional("picture"):
        draw(curve, run.folder / "agents.png")
    return report


def require_like(trained: TrainingConfig, points: Sequence[dict[str, Any]], configs: Sequence[TrainingConfig]) -> None:
    """Raise InputError where a number of agents among the points makes a team that this policy cannot play."""
    asked = [(f"{key}={point[key]}", config) for point, config in zip(points, configs) for key in AGENTS & point.keys()]
    here = spec_of(trained) if asked else None
    for setting, config in asked:
        try:
            there = spec_of(config)
        except InputError as error:
            raise InputError(f"{setting}: {error}") from error
        assert here is not None
        if (reason := _misfit(config, here, there)) is not None:
            raise InputError(f"{setting}: {reason}, so this team plays only in its own number, {len(here.agents)}.")


def _misfit(config: TrainingConfig, here: EnvSpec, there: EnvSpec) -> str | None:
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


def play_along(runs: Sequence[Run], key: str, points: Sequence[dict[str, Any]], trained: int | None) -> Curve:
    """The team at each value, after all of them have shown that they can be played."""
    recipe = load_recipe(runs[0].config.recipe)
    settings = [f"{key}={yaml_text(point[key])}" for point in points]
    for setting, run in zip(settings, runs):
        _require_playable(run, setting, key in AGENTS)
    found: list[Point] = []
    limit: dict[str, Metric] = {}
    for setting, point, run in zip(settings, points, runs):
        start = time.process_time()
        actor, env = load_actor(run, evaluation_rows(run.config))
        episodes = played(run, env, actor, run.config.evaluation.episodes, "evaluation")
        metrics = episodes.metrics(env.spec.channels)
        if not limit or key not in AGENTS:  # that of all numbers of agents is one
            limit = recipe.limit(actor, env)
        metrics |= limit
        env.close()
        found.append(Point(point[key], metrics, time.process_time() - start))
        earned, seconds = metrics[HEADLINE], found[-1].cpu_seconds
        console.print(f"{setting}: {HEADLINE} {earned}, {earned.n} episodes, {seconds:.1f} s", markup=False)
    return Curve(key, found, trained)


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


def _numbers(config: TrainingConfig) -> list[dict[str, Any]]:
    """Overrides of the config that `evaluation.agents` stands for, one dict for each point."""
    return [{"env.agents": n} for n in config.evaluation.agents]


def _resolved(config: TrainingConfig, point: dict[str, Any]) -> Any:
    return resolve(config.model_dump(mode="json"), point)


def spec_of(config: TrainingConfig) -> EnvSpec:
    """Specification of this config's world: its agents, their observations and actions."""
    with closing(make_env(config.env, num_envs=1)) as env:
        return env.spec
