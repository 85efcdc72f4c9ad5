"""Offline evaluation of sessions: what policies would have earned in the episodes that another one logged.

`concord run ope/sessions` draws a log from a problem whose truth is known; docs/ope_sequential.md has the equations and
a config for a log of your own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from envs.core import InputError
from marl.output.console import console
from marl.output.report import Metric, Report
from marl.output.tables import print_table
from marl.training.run import Run
from recsys.bandit.evaluate import Evaluation, verdict_rows
from recsys.bandit.importance_weights import LOGGED
from recsys.build import make_policies, read_log, runs_of, with_columns
from recsys.config import EstimatorsConfig, IntervalsConfig
from recsys.logs.config import DataConfig
from recsys.logs.log import Catalog, Chunk, Columns, Log
from recsys.policies.base import Policy
from recsys.policies.from_run import load
from recsys.problems.base import PROBLEMS
from recsys.problems.sequential import FiniteProblem
from recsys.recipe import LogRecipe, reported
from recsys.sequential.config import Config
from recsys.sequential.evaluate import Found, by_step, estimate, horizon_histograms, judge, logged_return, to_read
from recsys.sequential.log import Sessions, read_sessions
from recsys.statistics.diagnostics import weight_sums
from recsys.statistics.histograms import weight_table
from recsys.statistics.intervals import ClusterSums, cluster_sums
from recsys.statistics.methods import Intervals

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
        sessions = read_sessions(log, config.data.state)  # a bad log leaves no folder behind
        seed = run.stage_seeds("bootstrap")[0]

        def evaluated() -> Evaluation:
            found = evaluate(sessions, policies, config, seed)
            return found if problem is None else with_truth(found, problem, policies, config)

        found = Evaluation.from_json(run.once("evaluation", lambda: evaluated().to_json()))
        if problem is None and log.name != config.data.path:
            found.tables["notes"].append({"note": "Only sessions of users count from whom no policy here was learned."})
        print_table("weights of the way to each step", found.tables["steps"], console)
        return reported(config, run, found.metrics, found.tables)


def problem_of(config: Config) -> FiniteProblem | None:
    """The exact problem that the log is drawn from."""
    if config.data.format == "table":
        return None
    return FiniteProblem.read(Path(config.data.path) if config.data.path else PROBLEMS / "sequential.json")


def open_log(config: Config, problem: FiniteProblem | None) -> Log:
    """The rows of the log, with the columns that policies read."""
    if problem is None:
        log = _unseen(read_log(config.data.as_table(), config.seed), config)
    else:
        log = oracle_log(problem, config.data.sessions, config.seed)
    states = () if config.data.state is None else (config.data.state,)
    return with_columns(config.policy, log.with_context((*config.data.context, *states)))


def oracle_log(problem: FiniteProblem, sessions: int, seed: int) -> Log:
    """Sessions of the problem's logging policy as a table of steps."""
    drawn = problem.draw(sessions, np.random.default_rng(seed))
    state, action = drawn.state.ravel(), drawn.action.ravel()
    episode, step = np.indices(drawn.state.shape).reshape(2, -1)
    with np.errstate(divide="ignore"):
        scores = np.log(problem.target)[state]
    columns = {"episode": episode, "step": step, "state": state, "action": action, "reward": drawn.reward.ravel()}
    columns |= {"propensity": problem.logging[state, action], **{f"{SCORE}{a}": x for a, x in enumerate(scores.T)}}
    named = Columns("action", ("reward",), "propensity", episode="episode", step="step")
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


def evaluate(sessions: Sessions, policies: Sequence[Policy], config: Config, seed: int = 0) -> Evaluation:
    """Metrics `<signal>/<policy>/<estimator>` and tables of differences, verdicts, what to read, weights by step."""
    signals, gamma = sessions.log.signals, config.gamma
    how = Intervals(IntervalsConfig(**config.intervals.model_dump()), EstimatorsConfig(), seed, 1)
    logged = cluster_sums(logged_return(sessions, gamma), None, sessions.cluster)
    metrics = {"sessions": len(sessions.lengths), "steps": sessions.steps, "clusters": logged.clusters}
    told = {name: Metric.exact(count) for name, count in metrics.items()}
    own = how.of({LOGGED: logged})[LOGGED]
    told |= {f"{signal}/{LOGGED}": metric for signal, metric in zip(signals, own.metrics(), strict=True)}
    tables: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("recommendations", "verdicts", "differences", "steps", "weights")
    }
    first: tuple[str, dict[str, ClusterSums]] | None = None
    for policy in policies:
        found = estimate(sessions, policy, config.names, gamma, config.estimators.cap)
        sums, verdicts = found.sums(sessions), judge(found, sessions)
        intervals = how.of(sums)
        for name, interval in intervals.items():
            told |= {f"{s}/{policy.name}/{name}": m for s, m in zip(signals, interval.metrics(), strict=True)}
        told |= {f"{signal}/{policy.name}/{name}": x for signal in signals for name, x in weights_of(found).items()}
        tables["verdicts"] += verdict_rows(policy.name, signals, verdicts)
        tables["recommendations"] += to_read(policy.name, signals, verdicts, intervals)
        tables["differences"] += differences(policy.name, sums, logged, first, signals, how)
        tables["steps"] += by_step(found, sessions)
        tables["weights"] += weight_table({policy.name: horizon_histograms(found)})
        first = first or (policy.name, sums)
    user = sessions.log.columns.user
    note = f"the sessions of one {user} as one draw" if user else "every session as independent of the others"
    tables["notes"] = [{"note": f"Intervals take {note}. Weights are those of whole sessions."}]
    return Evaluation(told, tables)


def weights_of(found: Found) -> dict[str, Metric]:
    """What the weights of whole sessions are like."""
    of = weight_sums(found.weight[:, -1])
    facts = {"ess": of.ess, "max_weight": of.max_weight, "mean_weight": of.mean}
    return {name: Metric.exact(value) for name, value in facts.items()}


def differences(
    policy: str,
    sums: dict[str, ClusterSums],
    logged: ClusterSums,
    first: tuple[str, dict[str, ClusterSums]] | None,
    signals: Sequence[str],
    how: Intervals,
) -> list[dict[str, Any]]:
    """What a launch would change: the policy minus the log's own return, and minus the first policy; paired."""
    pairs = {(policy, name, LOGGED, LOGGED): (of, logged) for name, of in sums.items()}
    if first is not None:
        pairs |= {(policy, name, first[0], name): (of, first[1][name]) for name, of in sums.items()}
    return [
        {"signal": signal, "policy": policy, "against": against, "estimator": name}
        | {"value": metric.value, "low": metric.low, "high": metric.high}
        for (_, name, against, _), interval in how.of_differences(pairs).items()
        for signal, metric in zip(signals, interval.metrics(), strict=True)
    ]


def with_truth(found: Evaluation, problem: FiniteProblem, policies: Sequence[Policy], config: Config) -> Evaluation:
    """With `reward/<policy>/truth` before each policy's estimates, the exact return."""
    discount = float(np.ravel(config.gamma)[0])
    problem = replace(problem, discount=discount)
    truths = {f"reward/{p.name}/truth": Metric.exact(problem.value(by_state(p, problem))) for p in policies}
    return found.beside({**truths, "reward/truth": Metric.exact(problem.value(problem.logging))})


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
