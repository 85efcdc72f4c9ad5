"""TSCAC on a constrained decision process whose answers are known, exactly and from logs.

`concord run recsys/tabular_tscac`; docs/tscac.md has the equations and what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveFloat, PositiveInt
from rich.console import Console
from torch import Tensor

from envs.core import InputError
from marl.config.recipe import Recipe
from marl.config.schema import RunConfig, Section
from marl.evaluation.plots import new_axes
from marl.output.console import TrainingDisplay
from marl.output.report import Metric, Report, Tables
from marl.output.tables import print_table
from marl.training.run import Run
from recsys.problems.base import ProblemConfig
from recsys.problems.constrained import ConstrainedProblem, Optimum
from recsys.problems.counts import Counts
from recsys.tscac.certificate import Standing, quantile_of_each, standing
from recsys.tscac.closed_form import product
from recsys.tscac.tables import dual_ascent, fixed_point

__all__ = ["Config", "recipe"]

ROUNDS = 3_000  # of dual ascent on counts, whose own errors are larger than what is left then
REACHED = 1e-3  # of the span: a smaller shortfall on counts is none
PRINTED = {
    "share_of_best": "of best",
    "least_share": "least",
    "violate": "violate",
    "violate_by_1_percent": "by 1 %",
    "largest_violation": "largest",
    "certified": "certified",
    "certified_below_margin": "below margin",
    "certified_wrongly": "wrongly",
}
HELD = "held by dual ascent"
NOTE = {"textcoords": "offset points", "fontsize": 7}
LOOKS = 3  # thresholds are moved by the standard errors of the policy found before, so often


class SamplesConfig(Section):
    """Pairs of logs: one to learn from, one of equal size to certify by."""

    logs: int = Field(40, ge=0, description="pairs of logs of each size; 0 for exact answers alone")
    transitions: tuple[PositiveInt, ...] = Field((20_000, 100_000, 1_000_000), description="of each log")
    slack: tuple[float, ...] = Field(
        (0.0, 1.645, 3.5), description="standard errors by which thresholds are raised while learning"
    )
    level: float = Field(0.95, gt=0.5, lt=1, description="of the certificate of all constraints at once")
    margin: float = Field(
        0.05, ge=0, lt=1, description="share by which thresholds are lowered for a second certificate"
    )


class Config(RunConfig):
    """A constrained problem, and how it is solved."""

    data: ProblemConfig = ProblemConfig()
    stage_one_temperature: PositiveFloat = Field(0.02, description="τ of the soft-optimal policies of the auxiliaries")
    closeness: tuple[PositiveFloat, ...] = Field(
        (10.0, 1.0, 0.3, 0.1, 0.03), min_length=1, description="λ of every auxiliary: a fixed point for each"
    )
    temperature: PositiveFloat = Field(0.02, description="Λ of the policies that hold thresholds by dual ascent")
    samples: SamplesConfig = SamplesConfig()


class Exact(NamedTuple):
    """Answers as plain values: a row for each policy, and metrics."""

    rows: list[dict[str, Any]]
    metrics: dict[str, float]


class TabularTscac(Recipe):
    """The exact fixed points, dual ascent beside the linear program, and what samples do to thresholds."""

    config = Config
    learns = False

    def run(self, config: Config, run: Run) -> Report:
        """Solve, then learn from logs and certify by others."""
        problem = ConstrainedProblem.read(config.data.file("cmdp.json"))
        exact = solve(problem, config)
        run.begin()
        run.once("policies", lambda: exact.rows)
        sampled = run.once("samples", lambda: from_logs(problem, config, run.stage_seeds("samples")[0]))
        self.pictures(run)
        told = {name: Metric.exact(value) for name, value in (exact.metrics | metrics_of(sampled)).items()}
        tables = {"policies": exact.rows, "samples": sampled}
        return Report(config.recipe, config.seed, config.model_dump(mode="json"), told, tables)

    def pictures(self, run: Run) -> list[Path]:
        """Draw trade_off.png: what each policy earns of the main goal, over the largest threshold that it misses."""
        rows = run.once("policies", _unfinished)
        figure, axes = new_axes(
            "The main goal, and the thresholds", "largest shortfall of a threshold", "share of best"
        )
        farthest = max(row["violation"] for row in rows)
        for row in rows:
            axes.plot(row["violation"], row["share_of_best"], "o")
            left = row["violation"] > farthest / 2  # names stay within the picture
            below = row["policy"] == HELD  # as good as the linear program, whose name is above
            place = {"xytext": (-6 if left else 6, -10 if below else 4), "ha": "right" if left else "left"}
            axes.annotate(row["policy"], (row["violation"], row["share_of_best"]), **place, **NOTE)
        axes.axhline(1.0, color="gray", lw=0.8)
        axes.axvline(0.0, color="gray", lw=0.8)
        target = run.folder / "trade_off.png"
        figure.savefig(target)
        return [target]

    def show(self, tables: Tables, console: Console) -> None:
        """Both tables, with digits enough to tell policies apart."""
        policies = [
            {key: f"{x:.5g}" if isinstance(x, float) else x for key, x in row.items()} for row in tables["policies"]
        ]
        print_table("returns", policies, console)
        print_table("learned from logs, judged by the truth", [_in_percent(row) for row in tables["samples"]], console)


def _unfinished() -> list[dict[str, Any]]:
    raise InputError("This run has not solved its problem yet; `concord resume` does.")


def _in_percent(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of the samples as it is printed."""
    told = {"transitions": f"{row['transitions']:,}", "slack": f"{row['slack']:g}"}
    return told | {column: f"{row[name]:.1%}" for name, column in PRINTED.items()}


def metrics_of(sampled: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`samples/TRANSITIONS/slack_SLACK/…` of every row."""
    return {
        f"samples/{row['transitions']}/slack_{row['slack']:g}/{name}": value
        for row in sampled
        for name, value in row.items()
        if name not in ("transitions", "slack")
    }


def solve(problem: ConstrainedProblem, config: Config) -> Exact:
    """Every policy that has a name, its returns, the share of the best that holds, and by how much it does not hold."""
    process, best = problem.process, problem.best()
    signals = torch.eye(problem.signals, dtype=torch.float64)
    stage_one, _ = process.soft_optimal(signals[1:], config.stage_one_temperature)
    shares = torch.full((problem.signals - 1,), 1 / (problem.signals - 1), dtype=torch.float64)
    base = product(stage_one.log(), shares)
    closeness = torch.tensor(config.closeness, dtype=torch.float64)
    points = fixed_point(process, base.expand(len(closeness), -1, -1), closeness * len(shares))
    span = problem.largest() - problem.least()
    held = dual_ascent(process, base.unsqueeze(0), config.temperature, problem.thresholds.unsqueeze(0), span)
    greedy, _ = process.soft_optimal(signals[:1], 0.0)
    named = {"linear program": best.policy, "uniform": problem.uniform(), "main goal alone": greedy[0]}
    named |= {f"auxiliary {k + 1} alone": policy for k, policy in enumerate(stage_one)}
    named |= {f"tied, λ = {value:g}": policy for value, policy in zip(config.closeness, points, strict=True)}
    named |= {HELD: held.policy[0]}
    rows = []
    for name, policy in named.items():
        returns = process.returns(policy)
        rows.append({"policy": name, **_by_signal(returns), **_judged(problem, returns, best)})
    metrics = {
        "best": float(best.returns[0]),
        **{f"held/{name}": value for name, value in _judged(problem, process.returns(held.policy[0]), best).items()},
        "held/rounds": float(held.rounds),
    }
    return Exact(rows, metrics | _gap_to_file(problem, config, points))


def _gap_to_file(problem: ConstrainedProblem, config: Config, points: Float[Tensor, "P S A"]) -> dict[str, float]:
    """The largest difference to the fixed points that the file tells; nothing where it tells those of another τ."""
    if problem.fixed_point_temperature != config.stage_one_temperature:
        return {}
    returns = dict(zip(config.closeness, problem.process.returns(points), strict=True))
    known = {float(key): told for key, told in problem.fixed_points.items() if float(key) in returns}
    gaps = [float((returns[key] - told).abs().max()) for key, told in known.items()]
    return {"fixed_point/gap": max(gaps), "fixed_point/compared": float(len(gaps))} if gaps else {}


def _by_signal(returns: Float[Tensor, " K"]) -> dict[str, float]:
    names = ["main", *(f"auxiliary {k}" for k in range(1, len(returns)))]
    return dict(zip(names, returns.tolist(), strict=True))


def _judged(problem: ConstrainedProblem, returns: Float[Tensor, " K"], best: Optimum) -> dict[str, float]:
    """Share of the best feasible main return, and the largest relative shortfall of a threshold, 0 where all hold."""
    return {"share_of_best": float(returns[0] / best.returns[0]), "violation": max(0.0, float(problem.missed(returns)))}


def from_logs(problem: ConstrainedProblem, config: Config, seed: int) -> list[dict[str, Any]]:
    """A row for each size of logs and each slack: how good policies are that logs made, and what certificates say."""
    asked = config.samples
    if not asked.logs:
        return []
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    with TrainingDisplay("logs", len(asked.transitions) * len(asked.slack)) as display:
        for transitions in asked.transitions:
            learning, certifying = (problem.draw(transitions, asked.logs, rng) for _ in range(2))
            for slack in asked.slack:
                policy = learned(problem, learning, config.temperature, slack)
                told = counted(problem, policy.policy, certifying, asked)
                unsure = {"thresholds_out_of_reach": float((~policy.reached).double().mean())}
                rows.append({"transitions": transitions, "slack": slack, **told, **unsure})
                display.advance(len(rows))
    return rows


class Learned(NamedTuple):
    """Policies of P logs; reached: those whose own counts say that the raised thresholds are held."""

    policy: Float[Tensor, "P S A"]
    reached: Bool[Tensor, " P"]


def learned(problem: ConstrainedProblem, logs: Counts, temperature: float, slack: float) -> Learned:
    """Policies by dual ascent on counted processes, close to the logger; thresholds are raised by standard errors."""
    span = problem.largest() - problem.least()
    base = torch.zeros_like(logs.tried)  # the logger chooses among all actions alike
    thresholds = problem.thresholds.expand(len(base), -1)
    raised = thresholds
    for look in range(LOOKS):
        policy = dual_ascent(logs.process, base, temperature, raised, span, tolerance=1e-6, rounds=ROUNDS).policy
        if slack == 0 or look == LOOKS - 1:
            break
        error = logs.standard_error(policy)[:, 1:]
        raised = thresholds + slack * torch.where(torch.isfinite(error), error, span[1:])
    short = (raised - logs.process.returns(policy)[:, 1:]) / span[1:].clamp(min=1e-12)
    return Learned(policy, short.max(1).values < REACHED)


def counted(
    problem: ConstrainedProblem, policy: Float[Tensor, "P S A"], certifying: Counts, asked: SamplesConfig
) -> dict[str, float]:
    """Of policies that were learned from other logs: their true returns, and what is said of them."""
    truth, best = problem.process.returns(policy), problem.best().returns[0]
    missed = problem.missed(truth)
    share = truth[:, 0] / best
    reach = quantile_of_each(asked.level, len(problem.thresholds)) * certifying.standard_error(policy)[:, 1:]
    value = certifying.process.returns(policy)[:, 1:]
    low, high = (value - reach).numpy(), (value + reach).numpy()
    thresholds = problem.thresholds.numpy()
    said = standing(low, high, thresholds)
    lowered = standing(low, high, thresholds - asked.margin * np.abs(thresholds))
    wrong = (said == Standing.HELD) & (truth[:, 1:].numpy() < thresholds)
    return {
        "share_of_best": float(share.mean()),
        "least_share": float(share.min()),
        "violate": float((missed > 0).double().mean()),
        "violate_by_1_percent": float((missed > 0.01).double().mean()),
        "largest_violation": max(0.0, float(missed.max())),
        "certified": float((said == Standing.HELD).all(1).mean()),
        "certified_below_margin": float((lowered == Standing.HELD).all(1).mean()),
        "certified_wrongly": float(wrong.any(1).mean()),
    }


recipe = TabularTscac()
