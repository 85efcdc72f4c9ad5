"""How often the word RELIABLE is deserved: logs of known truth, healthy and not, and what verdicts say of them.

`concord run ope/verdict_calibration`; docs/ope_intervals.md has its table.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from pydantic import Field, model_validator
from rich.console import Console

from marl.config.recipe import Recipe
from marl.config.schema import RunConfig
from marl.output.console import TrainingDisplay
from marl.output.report import Metric, Report, Tables
from marl.output.tables import print_table
from marl.training.run import Run
from recsys.bandit.evaluate import evaluate_rows
from recsys.config import EstimatorsConfig, EvaluationSettings, IntervalsConfig
from recsys.evaluation import Evaluation
from recsys.problems.scenarios import RowsScenario, Scenario, scenario_of
from recsys.sequential.config import SessionEstimatorsConfig
from recsys.sequential.evaluate import evaluate_read
from recsys.sequential.log import read_sessions

__all__ = ["Config", "recipe"]

READ = "read"  # the estimate that is recommended, whichever it is
CHANGE = "{}, change"  # what an estimate says of the difference to the log
RELIABLE = "RELIABLE"
ENOUGH = 0.2  # share of logs with RELIABLE estimates from which the share of these that miss is judged


class Config(RunConfig):
    """Scenarios, and how many logs are drawn of each."""

    logs: int = Field(300, ge=2, description="logs of each scenario")
    scenarios: tuple[dict[str, Any], ...] = Field(
        min_length=1,
        description="kinds of logs, each with a name, healthy, a generator (rows, sessions) and its settings",
    )
    estimators: tuple[str, ...] = Field(("ips", "snips", "dr", "sndr"), min_length=1, description="of rows")
    session_estimators: tuple[str, ...] = Field(("pdis", "seq_dr", "wdr"), min_length=1, description="of sessions")
    intervals: IntervalsConfig = IntervalsConfig()
    workers: int = Field(2, ge=1, le=256, description="processes that draw and evaluate logs")

    @model_validator(mode="after")
    def _names(self) -> Config:
        names = [scenario.name for scenario in self.kinds()]
        if len(set(names)) < len(names):
            raise ValueError(f"scenarios: each has a name of its own; got {', '.join(names)}")
        return self

    def kinds(self) -> list[Scenario]:
        """The scenarios, checked."""
        return [scenario_of(given) for given in self.scenarios]


class Outcome(NamedTuple):
    """What is said of one estimate of one log, and whether its interval holds the truth."""

    estimator: str
    verdict: str
    missed: bool
    above: bool


def outcomes_of(seed: int, scenario: Scenario, config: Config) -> list[Outcome]:
    """All estimates of a log, and once more the one to read."""
    problem = scenario.problem()
    log, policies = problem.log(seed), [problem.policy()]
    if isinstance(scenario, RowsScenario):
        chosen = EstimatorsConfig(names=config.estimators)
        settings = EvaluationSettings(estimators=chosen, intervals=config.intervals, seed=seed, workers=1)
        evaluation = evaluate_rows(log, policies, settings)
    else:
        chosen_too = SessionEstimatorsConfig(names=config.session_estimators)
        evaluation = evaluate_read(read_sessions(log), policies, 1.0, chosen_too, config.intervals, seed)
    return list(_judged(evaluation, problem.truth, problem.change))


def _judged(evaluation: Evaluation, truth: float, change: float) -> Iterator[Outcome]:
    """Of each estimate, and of what each would change of the log; once more of the one to read."""
    said = {row["estimate"].rpartition("/")[2]: row["verdict"] for row in evaluation.tables["verdicts"]}
    (read,) = evaluation.tables["recommendations"]
    changes = {row["estimator"]: row for row in evaluation.tables["differences"]}
    for name, verdict in said.items():
        estimate, moved = evaluation.metrics[f"reward/target/{name}"], changes[name]
        told = [
            Outcome(name, verdict, not estimate.low <= truth <= estimate.high, truth > estimate.high),
            Outcome(CHANGE.format(name), verdict, not moved["low"] <= change <= moved["high"], change > moved["high"]),
        ]
        yield from told
        if name == read["estimator"]:
            yield told[0]._replace(estimator=READ)
            yield told[1]._replace(estimator=CHANGE.format(READ))


class Calibration(Recipe):
    """Draw logs of each scenario, judge them, and count."""

    config = Config
    learns = False

    def run(self, config: Config, run: Run) -> Report:
        """Scenario after scenario, each kept once it is done."""
        run.begin()
        rows: list[dict[str, Any]] = []
        display = TrainingDisplay("scenarios", len(config.scenarios) * config.logs)
        workers = ProcessPoolExecutor(config.workers, mp_context=multiprocessing.get_context("spawn"))
        with display, workers:
            for number, scenario in enumerate(config.kinds()):
                told = partial(_all_outcomes, config, scenario, workers, display, number * config.logs)
                kept = run.once(f"scenario_{scenario.name}", told)
                rows += rows_of(scenario, [Outcome(*each) for each in kept], config.logs)
        return Report(config.recipe, config.seed, config.model_dump(mode="json"), metrics_of(rows), {"scenarios": rows})

    def show(self, tables: Tables, console: Console) -> None:
        """Print the estimates that are read; the report has the others."""
        rows = {(row["scenario"], row["estimator"]): row for row in tables.get("scenarios", [])}
        read = [(row, rows[name, CHANGE.format(READ)]) for (name, of), row in rows.items() if of == READ]
        print_table("verdicts of the estimate to read", [_told(*pair) for pair in read], console)


def _told(row: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """An estimate and its change in words: shares in percent, nothing where nothing was counted."""
    told = {"scenario": row["scenario"], "healthy": "yes" if row["healthy"] else "no"}
    shares = {
        "RELIABLE": row["reliable"],
        "missed": row["missed_of_reliable"],
        "change": change["missed_of_reliable"],
        "all missed": row["missed"],
        "all change": change["missed"],
    }
    return told | {name: "" if share is None else f"{share:.1%}" for name, share in shares.items()}


def _all_outcomes(
    config: Config, scenario: Scenario, workers: Executor, display: TrainingDisplay, before: int
) -> list[list[Any]]:
    """Of all logs of a scenario, as plain lists; before: logs that are done."""
    seeds = range(config.seed * config.logs, (config.seed + 1) * config.logs)
    judge = partial(outcomes_of, scenario=scenario, config=config)
    outcomes: list[list[Any]] = []
    for done, told in enumerate(workers.map(judge, seeds, chunksize=4), start=1):
        outcomes += [list(each) for each in told]
        display.advance(before + done, scenario.name)
    return outcomes


def rows_of(scenario: Scenario, outcomes: Sequence[Outcome], logs: int) -> list[dict[str, Any]]:
    """A row for each estimator: how many of the logs are RELIABLE, how many of these miss, and of all logs."""
    rows = []
    for name in dict.fromkeys(outcome.estimator for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.estimator == name]
        reliable = [outcome for outcome in mine if outcome.verdict == RELIABLE]
        wrong = sum(outcome.missed for outcome in reliable)
        rows.append(
            {
                "scenario": scenario.name,
                "healthy": scenario.healthy,
                "estimator": name,
                "reliable": len(reliable) / logs,
                "missed_of_reliable": wrong / len(reliable) if reliable else None,
                "reliable_and_missed": wrong / logs,
                "missed": sum(outcome.missed for outcome in mine) / len(mine),
                "truth_above": sum(outcome.above for outcome in mine) / len(mine),
            }
        )
    return rows


def metrics_of(rows: Sequence[dict[str, Any]]) -> dict[str, Metric]:
    """The worst of each kind, over scenarios and estimators, and every scenario's own figures of the one to read."""
    read = [row for row in rows if row["estimator"] == READ]
    many = [row for row in rows if row["reliable"] >= ENOUGH]
    worst = {
        "missed_of_reliable/worst": max((row["missed_of_reliable"] for row in many), default=0.0),
        "reliable_and_missed/worst": max(row["reliable_and_missed"] for row in rows),
        "reliable/least_of_healthy": min((row["reliable"] for row in read if row["healthy"]), default=1.0),
        "reliable/most_of_others": max((row["reliable"] for row in read if not row["healthy"]), default=0.0),
    }
    for row in read:
        for name in ("reliable", "missed_of_reliable", "missed"):
            if row[name] is not None:
                worst[f"{row['scenario']}/{name}"] = row[name]
    return {name: Metric.exact(value) for name, value in worst.items()}


recipe = Calibration()
