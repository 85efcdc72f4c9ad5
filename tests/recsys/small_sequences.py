"""Small logs and problems for tests of sequential estimators."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from recsys.problems.base import PROBLEMS, judge
from recsys.problems.sequential import FiniteProblem
from recsys.sequential.estimators import Trajectories
from recsys.sequential.tabular import TabularLog

ORACLE = FiniteProblem.read(PROBLEMS / "sequential.json")
Estimate = Callable[[FiniteProblem, TabularLog], np.ndarray]


def random_log(
    seed: int, n: int = 40, steps: int = 6, signals: int = 2, states: int = 3, actions: int = 2
) -> TabularLog:
    """Trajectories of random length."""
    rng = np.random.default_rng(seed)
    mask = np.arange(steps) < rng.integers(1, steps + 1, n)[:, None]
    state, action = rng.integers(0, states, (n, steps)), rng.integers(0, actions, (n, steps))
    return TabularLog.of(state, action, rng.normal(size=(n, steps, signals)), mask, states, actions)


def random_policy(seed: int, states: int = 3, actions: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(actions), states)


def weighted(log: TabularLog, seed: int = 0) -> Trajectories:
    weight = np.random.default_rng(seed).gamma(1.0, 1.0, log.state.shape)
    return Trajectories.of(weight, log.reward, log.mask)


def right(problem: FiniteProblem, log: TabularLog) -> Trajectories:
    """With the true weights."""
    return Trajectories.of(problem.weight()[log.state, log.action], log.reward, log.mask)


def wrong(problem: FiniteProblem, log: TabularLog) -> Trajectories:
    """As if the logging policy were uniform."""
    return right(replace(problem, logging=np.full_like(problem.logging, 1 / log.actions)), log)


def z_of(estimate: Estimate, problem: FiniteProblem = ORACLE, n: int = 1000, replications: int = 100) -> float:
    """z of the bias over replicated logs."""
    samples = []
    for replication in range(replications):
        log = problem.draw(n, np.random.default_rng([7, replication]))
        samples.append(float(estimate(problem, log).mean()))
    return judge(np.array(samples), problem.value(problem.target))["z"]
