"""Offline evaluation of sessions: what policies would have earned in the episodes that another one logged.

`concord run ope/sessions` draws a log from a problem whose truth is known; docs/ope_sequential.md has the equations and
a config for a log of your own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from rich.console import Console

from envs.core import InputError
from marl.output.report import Metric, Report, Tables
from marl.output.tables import print_table
from marl.training.run import Run
from recsys.build import make_policies, runs_of, with_columns
from recsys.config import IntervalsConfig
from recsys.evaluation import Evaluation
from recsys.logs import formats
from recsys.logs.catalog import Catalog
from recsys.logs.config import DataConfig
from recsys.logs.log import Chunk, Columns, Log
from recsys.logs.paths import home
from recsys.policies.base import Policy
from recsys.policies.from_run import load
from recsys.problems.base import PROBLEMS
from recsys.problems.sequential import FiniteProblem
from recsys.recipe import LogRecipe, kept, reported
from recsys.report.terminal import STEPS
from recsys.sequential.config import Config
from recsys.sequential.evaluate import evaluate_read
from recsys.sequential.log import Sessions, read_sessions

__all__ = ["Config", "recipe"]

SCORE = "score"  # of an oracle's log: score0 … are the logarithms of its target policy's probabilities


class SessionEvaluation(LogRecipe):
    """A log of sessions, policies that were not run, and what they would have earned."""

    config = Config

    def run(self, config: Config, run: Run) -> Report:
        """Hold the sessions in memory, scan the log once or twice for each policy, and tell what it would earn."""
        problem = problem_of(config)
        log = open_log(config, problem)
        policies = make_policies(DataConfig(), config.policy, log)
        sessions = read_sessions(log)  # a bad log leaves no folder behind
        seed = run.stage_seeds("bootstrap")[0]

        def evaluated() -> Evaluation:
            evaluation = judge(config, sessions, policies, seed)
            return evaluation if problem is None else with_truth(evaluation, problem, policies, config)

        evaluation = kept(run, log, evaluated)
        if problem is None and log.name != config.data.path:
            evaluation = evaluation.with_more(
                notes=["Only sessions of users count from whom no policy here was learned."]
            )
        return reported(config, run, evaluation.metrics, evaluation.tables)

    def show(self, tables: Tables, console: Console) -> None:
        """Print the weights of each step after all else, which they explain."""
        super().show(tables, console)
        print_table("weights of the way to each step", tables.get(STEPS, []), console)


def judge(config: Config, sessions: Sessions, policies: Sequence[Policy], seed: int = 0) -> Evaluation:
    """The estimates, as the config asks for them."""
    intervals = IntervalsConfig(**config.intervals.model_dump())
    return evaluate_read(sessions, policies, config.gamma, config.estimators, intervals, seed)


def problem_of(config: Config) -> FiniteProblem | None:
    """The exact problem that the log is drawn from."""
    if config.data.format == "table":
        return None
    return FiniteProblem.read(home(config.data.path) if config.data.path else PROBLEMS / "sequential.json")


def open_log(config: Config, problem: FiniteProblem | None) -> Log:
    """The rows of the log, with the columns that policies read."""
    data = config.data
    if problem is not None:
        log = oracle_log(problem, data.sessions, config.seed)
    else:
        assert data.path is not None
        assert data.columns is not None
        log = _unseen(formats.table(data.path, data.columns.of_log(), data.actions, data.missing), config)
    states = () if data.state is None else (data.state,)
    return with_columns(config.policy, log.with_context((*data.context, *states)))


def oracle_log(problem: FiniteProblem, sessions: int, seed: int) -> Log:
    """Sessions of the problem's logging policy as a table of steps."""
    drawn = problem.draw(sessions, np.random.default_rng(seed))
    state, action = drawn.state.ravel(), drawn.action.ravel()
    episode, step = np.indices(drawn.state.shape).reshape(2, -1)
    with np.errstate(divide="ignore"):
        scores = np.log(problem.target)[state]
    columns = {"episode": episode, "step": step, "state": state, "action": action, "reward": drawn.reward.ravel()}
    columns |= {"propensity": problem.logging[state, action], **{f"{SCORE}{a}": x for a, x in enumerate(scores.T)}}
    named = Columns("action", ("reward",), "propensity", episode="episode", step="step", state="state")
    return Log(pl.LazyFrame(columns), named, Catalog.numbered(drawn.actions), name="the exact problem's log")


def _unseen(log: Log, config: Config) -> Log:
    """The sessions of users that no trained policy was learned from. Raises InputError where these cannot be told."""
    origins = [load(path).origin for path in runs_of(config.policy)]
    mine = [origin for origin in origins if origin is not None and origin.data.path == config.data.path]
    if not mine:
        return log
    splits = {origin.split for origin in mine}
    users = {None if origin.data.columns is None else origin.data.columns.user for origin in mine}
    if len(splits) > 1 or users != {log.columns.user} or log.columns.user is None:
        raise InputError(
            f"Policies that were learned from rows of {log.name} are evaluated on the sessions of the other users, so "
            "columns.user must be the same in both configs, and all such runs must have one seed and one held_out; or "
            "evaluate them on another log."
        )
    return splits.pop().evaluation(log)


def with_truth(
    evaluation: Evaluation, problem: FiniteProblem, policies: Sequence[Policy], config: Config
) -> Evaluation:
    """With `reward/<policy>/truth` before each policy's estimates, the exact return."""
    discount = float(np.ravel(config.gamma)[0])
    problem = replace(problem, discount=discount)
    truths = {f"reward/{p.name}/truth": Metric.exact(problem.value(by_state(p, problem))) for p in policies}
    return evaluation.beside({**truths, "reward/truth": Metric.exact(problem.value(problem.logging))})


def by_state(policy: Policy, problem: FiniteProblem) -> np.ndarray:
    """π(a | s), [S,A], by asking the policy for a row of each state."""
    states = np.arange(len(problem.start))
    with np.errstate(divide="ignore"):
        scores = {f"{SCORE}{a}": x for a, x in enumerate(np.log(problem.target).T)}
    nothing = np.zeros(len(states), np.int64)
    reward = np.zeros((len(states), 1))
    rows = Chunk(0, nothing, nothing, np.ones(len(states)), reward, states, context={"state": states, **scores})
    return policy.distribution(rows)


recipe = SessionEvaluation()
