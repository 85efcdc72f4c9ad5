"""Exact policy gradients of Bayesian-network policies in tabular games: no sampling, no critic, no networks.

Many random starts ascend at once, by the natural gradient or the plain one. The report says how many reach the optimum,
and how far from an equilibrium they end. On a complete graph all do; without edges most stick at a worse Nash
equilibrium.

Source: Chen and Zhang, "Context-Aware Bayesian Network Actor-Critic Methods for Cooperative Multi-Agent Reinforcement
Learning", ICML 2023 (arXiv 2306.01920), and its code. Where we depart: the natural gradient; a line that reaches its
last agent; the start is a distribution.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from envs.arguments import require_arguments
from envs.core import ConcordError, InputError, import_dotted
from envs.dags import named_edges
from marl.algorithms.bnpg_tabular.equilibria import bn_nash_gap, nash_gap
from marl.algorithms.bnpg_tabular.exact import optimum
from marl.algorithms.bnpg_tabular.game import TabularGame, tabulate
from marl.algorithms.bnpg_tabular.network import BayesianNetwork, Estimator, advantages, ascent, gradient
from marl.config.recipe import Recipe
from marl.config.schema import RunConfig, Section
from marl.evaluation.plots import new_axes
from marl.output.console import TrainingDisplay
from marl.output.report import Metric, Report
from marl.training.run import Run

__all__ = ["BayesianNetwork", "Config", "TabularBNPG", "TabularGame", "recipe"]

OPTIMAL = 0.999  # the share of J* from which a start counts as optimal
CURVE_POINTS = 100  # of the picture, about
LARGEST_TABLE = 2**26  # entries of one table over starts, states and joint actions: half a gigabyte

ESTIMATORS: dict[str, Estimator] = {"natural": advantages, "plain": gradient}


class WorldConfig(Section):
    """The world whose tables are used: nothing is sampled, so there is nothing else to set."""

    world: str = Field(description="a native World, module:Class")
    args: dict[str, Any] = Field(default_factory=dict, description="arguments of the world")


class Config(RunConfig):
    """Exact BNPG."""

    env: WorldConfig

    graph: Literal["empty", "line", "complete"] | tuple[tuple[int, int], ...] = Field(
        "complete", description="empty, line, complete, or edges [[i,j],…]: agent j sees i's action"
    )
    discount: float = Field(0.95, ge=0, lt=1, description="γ, a step")
    start: Literal["world", "uniform"] = Field("world", description="the first state: as in the world, or any alike")
    estimator: Literal["natural", "plain"] = Field("natural", description="θ moves by A_i, or by the gradient of J")
    step_size: float = Field(0.02, gt=0, description="η; for N agents the official plain setting is 0.01·2^N/N")
    iterations: int = Field(3000, ge=1, description="steps of the ascent")
    starts: int = Field(200, ge=1, description="policies that begin at random and ascend at once")
    spread: float = Field(1.0, ge=0, description="standard deviation of the first logits; 0 is the uniform policy")

    @field_validator("graph", mode="before")
    @classmethod
    def _name_or_edges(cls, value: Any) -> Any:
        pairs = isinstance(value, list | tuple) and all(
            isinstance(edge, list | tuple) and len(edge) == 2 and all(type(agent) is int for agent in edge)
            for edge in value
        )
        if not pairs and value not in ("empty", "line", "complete"):
            raise ValueError(f"expected empty, line, complete or a list of edges such as [[0,1],[1,2]]; got {value!r}")
        return value

    @model_validator(mode="after")
    def _starts_differ(self) -> Config:
        if self.spread == 0 and self.starts > 1:
            raise ValueError("spread=0 makes all starts the uniform policy; set starts=1")
        return self


class TabularBNPG(Recipe):
    """Ascend from all starts, judge where they end, draw the curves."""

    config = Config

    def run(self, config: Config, run: Run) -> Report:
        """Ascend once, and judge."""
        game, network = build(config)
        best = positive_optimum(game)
        found = run.once("ascent", lambda: ascend(config, run, game, network, best))
        self.pictures(run)
        agents = len(game.choices)
        return Report(config.recipe, config.seed, config.model_dump(mode="json"), metrics(found, agents), tables(found))

    def pictures(self, run: Run) -> list[Path]:
        """Draw learning_curve.png: J/J* of every start along the ascent, and their mean."""
        found = run.once("ascent", _unfinished)
        figure, axes = new_axes("Exact ascent", "iteration", "J / J*")
        ratio = found["ratio"]
        axes.plot(found["iterations"], ratio, color="tab:blue", alpha=0.2, lw=0.7)
        axes.plot(found["iterations"], [sum(row) / len(row) for row in ratio], color="black", lw=2, label="mean")
        axes.legend(frameon=False)
        target = run.folder / "learning_curve.png"
        figure.savefig(target)
        return [target]


def build(config: Config) -> tuple[TabularGame, BayesianNetwork]:
    """The game and the network. Raises InputError for worlds without tables, and for tables that are too large."""
    game = tabulate(make_world(config.env), config.discount)
    game = game.with_uniform_start() if config.start == "uniform" else game
    edges = named_edges(config.graph, len(game.choices)) if isinstance(config.graph, str) else config.graph
    if config.starts * game.reward.numel() > LARGEST_TABLE:
        raise InputError(
            f"{config.starts} starts in a game of {game.states} states and {game.reward.shape[1]} joint actions need "
            f"tables of {config.starts * game.reward.numel():,} entries; at most {LARGEST_TABLE:,} are made. Set "
            "starts lower, or take a smaller game."
        )
    return game, BayesianNetwork.of(game, edges)


def make_world(env: WorldConfig) -> Any:
    """World that env.world makes of env.args. Raises InputError where it makes nothing."""
    maker = import_dotted(env.world)
    if not callable(maker):
        raise InputError(f"env.world names a world or a function, module:name; {env.world} is no such thing.")
    require_arguments(maker, env.args, "env.args")
    try:
        return maker(**env.args)
    except ConcordError:
        raise
    except Exception as error:
        raise InputError(
            f"{env.world} cannot be made with env.args={env.args}: {type(error).__name__}: {error}."
        ) from error


def positive_optimum(game: TabularGame) -> float:
    """J*. Raises InputError unless it is positive, for J/J* would say nothing."""
    best = optimum(game)
    if best <= 0:
        raise InputError(f"J/J* needs a game whose optimum is positive; got {best:.6g}. Add a constant to its rewards.")
    return best


def ascend(config: Config, run: Run, game: TabularGame, network: BayesianNetwork, best: float) -> dict[str, Any]:
    """J/J* of each start along the ascent, the gaps where it ends, and what it took; best is J*."""
    begun = time.process_time()
    theta = network.draw(config.starts, game.states, config.spread, run.streams("starts").on_host[0])
    game, theta = game.to(run.device), [logits.to(run.device) for logits in theta]
    every = max(1, config.iterations // CURVE_POINTS)
    curve: dict[int, list[float]] = {}
    points = ascent(game, network, theta, ESTIMATORS[config.estimator], config.step_size)
    with TrainingDisplay("ascent", config.iterations) as display:
        for iteration, point in enumerate(islice(points, config.iterations + 1)):
            if iteration % every == 0 or iteration == config.iterations:
                ratio = point.expected_return / best
                if not bool(ratio.isfinite().all()):
                    raise InputError(
                        f"The logits grew beyond all numbers; set step_size lower than {config.step_size}, or spread "
                        f"lower than {config.spread}."
                    )
                curve[iteration] = ratio.tolist()
                optimal = float((ratio >= OPTIMAL).double().mean())
                display.advance(iteration, f"J/J* {float(ratio.mean()):.4f}  optimal {optimal:.1%}")
    return {
        "optimum": best,
        "iterations": list(curve),
        "ratio": list(curve.values()),
        "nash_gap": nash_gap(game, point.theta).tolist(),
        "bn_nash_gap": bn_nash_gap(game, network, point.theta).tolist(),
        "cpu_seconds": time.process_time() - begun,
    }


def metrics(found: dict[str, Any], agents: int) -> dict[str, Metric]:
    """Over the starts: the share that is optimal, J/J*, and both gaps in units of J; J is what every agent earns."""
    ratio, gap, bn_gap, best = found["ratio"][-1], found["nash_gap"], found["bn_nash_gap"], found["optimum"]
    return {
        "share_optimal": Metric.proportion(sum(x >= OPTIMAL for x in ratio), len(ratio)),
        "ratio_mean": Metric.mean(ratio),
        "ratio_min": Metric.exact(min(ratio)),
        "nash_gap": Metric.mean(gap),
        "nash_gap_max": Metric.exact(max(gap)),
        "bn_nash_gap": Metric.mean(bn_gap),
        "bn_nash_gap_max": Metric.exact(max(bn_gap)),
        "return_per_agent": Metric.mean([x * best for x in ratio]),
        "return_team": Metric.mean([x * best * agents for x in ratio]),
        "optimum": Metric.exact(best),
        "cpu_seconds": Metric.exact(found["cpu_seconds"]),
    }


def tables(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """`ends`: how many starts end at which J/J*, to three digits. `starts`: each start's end."""
    ratio = found["ratio"][-1]
    ends = Counter(round(x, 3) for x in ratio)
    rows = zip(ratio, found["nash_gap"], found["bn_nash_gap"], strict=True)
    return {
        "ends": [{"ratio": end, "starts": ends[end]} for end in sorted(ends, reverse=True)],
        "starts": [{"ratio": r, "nash_gap": gap, "bn_nash_gap": bn_gap} for r, gap, bn_gap in rows],
    }


def _unfinished() -> None:
    raise InputError("The ascent has not finished; `concord resume` on the run's folder finishes it.")


recipe = TabularBNPG()
