"""Sequential estimators against a finite-horizon problem solved by dynamic programming.

Replications of the log are drawn from the exact problem. The report has, per estimator, truth, mean, z of the bias,
RMSE and variance. `docs/ope_sequential.md` says which must be unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from envs.core import InputError
from marl.config.recipe import Recipe
from marl.output.console import TrainingDisplay
from marl.output.report import Metric, Report
from marl.training.run import Run
from recsys.problems.base import (
    OracleConfig,
    distributions,
    judgements,
    metrics_of,
    read_problem,
    reported,
    require_answer,
    require_shape,
)
from recsys.sequential.estimators import (
    Trajectories,
    cwpdis,
    magic,
    ncis,
    pdis,
    seq_dr,
    state_density_is,
    tis,
    wdr,
    wis,
)
from recsys.sequential.tabular import (
    TabularLog,
    clocked,
    density_ratio,
    empirical_model,
    exact_q,
    fqe,
    looked_up,
    mwl,
    occupancy,
    state_value,
)

__all__ = ["Config", "FiniteProblem", "recipe"]

UNBIASED = ("tis", "pdis", "dr", "dr_exact_q", "state_density_is")


class Config(OracleConfig):
    """Sequential estimators on an exact problem."""

    trajectories: int = Field(2000, ge=2, description="trajectories of a log")
    cap: float = Field(10.0, gt=0, description="the largest weight of a step in NCIS")


@dataclass(frozen=True)
class FiniteProblem:
    """A decision process with Bernoulli rewards, a horizon, and two policies.

    transition [S,A,S], reward_mean [S,A], start [S]; logging, target [S,A]; discount γ of every step but the first.
    """

    transition: Float[np.ndarray, "S A S"]
    reward_mean: Float[np.ndarray, "S A"]
    start: Float[np.ndarray, " S"]
    logging: Float[np.ndarray, "S A"]
    target: Float[np.ndarray, "S A"]
    horizon: int
    discount: float

    @classmethod
    def read(cls, path: Path) -> FiniteProblem:
        """From a file as the one in recsys/data/oracles. Raises InputError for whatever is no such problem."""
        tables = read_problem(
            path,
            ("transition", "reward_mean", "start", "horizon", "discount", "logging", "target"),
            ("value", "q", "v"),
        )
        mean = tables["reward_mean"]
        if mean.ndim != 2 or 0 in mean.shape or (mean < 0).any() or (mean > 1).any():
            raise InputError(
                f"reward_mean must be [S,A], chances in [0, 1] of the reward 1; got shape {list(mean.shape)} with "
                f"values from {mean.min(initial=0):.6g} to {mean.max(initial=0):.6g}."
            )
        states, actions = mean.shape
        shapes = {"transition": ((states, actions, states), "[S,A,S]"), "start": ((states,), "[S]")}
        shapes |= {"logging": (mean.shape, "[S,A]"), "target": (mean.shape, "[S,A]")}
        for name, (shape, axes) in shapes.items():
            require_shape(name, tables[name], shape, axes)
        checked = {name: distributions(name, tables[name]) for name in shapes}
        problem = cls(
            reward_mean=mean, horizon=_horizon(tables["horizon"]), discount=_discount(tables["discount"]), **checked
        )
        problem.require_support()
        problem.require_answers(tables)
        return problem

    def q(self, policy: Float[np.ndarray, "S A"]) -> Float[np.ndarray, "T S A 1"]:
        """The exact value of every pair by step."""
        by_step = (self.horizon, *self.transition.shape)
        reward = np.broadcast_to(self.reward_mean[..., None], (*by_step[:-1], 1))
        return exact_q(np.broadcast_to(self.transition, by_step), reward, policy, self.discount)

    def value(self, policy: Float[np.ndarray, "S A"]) -> float:
        """The exact expected return."""
        return float(self.start @ state_value(self.q(policy), policy)[0, :, 0])

    def visits(self, policy: Float[np.ndarray, "S A"]) -> Float[np.ndarray, "T S"]:
        """The probability of each state at each step."""
        return occupancy(self.transition, self.start, policy, self.horizon)

    def weight(self) -> Float[np.ndarray, "S A"]:
        """π_e / π_b; 0 where nobody acts so."""
        return np.divide(self.target, self.logging, out=np.zeros_like(self.target), where=self.logging > 0)

    def require_support(self) -> None:
        """Raises InputError where the target policy does what the logging policy never does."""
        reached = self.visits(self.target).max(0) > 0
        lost = reached[:, None] & (self.target > 0) & (self.logging == 0)
        if lost.any():
            state, action = np.argwhere(lost)[0]
            raise InputError(
                f"The target policy takes action {action} in state {state} with probability "
                f"{self.target[state, action]:.4g}, the logging policy never does (and {lost.sum() - 1} more such "
                "pairs): no log can tell what that earns. Let the logging policy try every action that the target "
                "takes."
            )

    def require_answers(self, tables: dict[str, Any]) -> None:
        """Raises InputError where the file's own answers are not those of its tables."""
        q = self.q(self.target)
        if "q" in tables:
            require_answer("q", tables["q"], q[..., 0])
        if "v" in tables:
            require_answer("v", tables["v"], state_value(q, self.target)[..., 0])
        told = tables.get("value", {})
        told = told if isinstance(told, dict) else {"target": told}
        for name, policy in (("target", self.target), ("logging", self.logging)):
            if name in told:
                require_answer(f"value.{name}", told[name], self.value(policy))

    def draw(self, trajectories: int, rng: np.random.Generator) -> TabularLog:
        """A log of the logging policy."""
        steps, (states, actions) = self.horizon, self.reward_mean.shape
        state, action = np.zeros((2, trajectories, steps), dtype=np.int64)
        reward = np.zeros((trajectories, steps, 1))
        now = _pick(np.broadcast_to(self.start, (trajectories, states)), rng)
        for t in range(steps):
            state[:, t], action[:, t] = now, _pick(self.logging[now], rng)
            reward[:, t, 0] = rng.random(trajectories) < self.reward_mean[now, action[:, t]]
            now = _pick(self.transition[now, action[:, t]], rng)
        return TabularLog.of(state, action, reward, np.ones(state.shape, bool), states, actions)


def _horizon(value: Any) -> int:
    if np.shape(value) != () or value < 1 or value != int(value):
        raise InputError(f"horizon is the number of steps, 1 or more; got {value}.")
    return int(value)


def _discount(value: Any) -> float:
    if np.shape(value) != () or not 0 <= value <= 1:
        raise InputError(f"discount is one number in [0, 1]; got {value}.")
    return float(value)


def _pick(probability: Float[np.ndarray, "n choices"], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """One choice a row, never one of probability 0."""
    edges = np.cumsum(probability, axis=-1)
    edges[:, -1] = 1.0
    last = probability.shape[-1] - 1 - np.argmax(probability[:, ::-1] > 0, axis=-1)
    return np.minimum((rng.random((len(edges), 1)) >= edges).sum(-1), last)


class SequentialProblem(Recipe):
    """Estimators on an exact sequential problem."""

    config = Config
    learns = False

    def run(self, config: Config, run: Run) -> Report:
        """Estimate from every replication, compare with the truth, tell it as a table and metrics."""
        problem = FiniteProblem.read(config.data.file("sequential.json"))
        replicated = run.once("replications", lambda: replicate(problem, config, run.stage_seeds("replications")[0]))
        samples, truth = replicated["samples"], problem.value(problem.target)
        rows = judgements(samples, truth)
        for row in rows:
            row["unbiased"] = "yes" if row["estimator"] in UNBIASED else ""
        metrics = metrics_of("sequential", samples, rows) | summary(problem, rows, replicated["gap_to_dp"], config.cap)
        return reported(config, f"{config.replications} logs of {config.trajectories} trajectories", rows, metrics)


def summary(problem: FiniteProblem, rows: list[dict[str, Any]], gap_to_dp: float, cap: float) -> dict[str, Metric]:
    """Metrics of all estimators together."""
    by_name = {row["estimator"]: row for row in rows}
    of_dr, of_pdis = by_name["dr_exact_q"]["variance"], by_name["pdis"]["variance"]
    ratio = of_dr / of_pdis if of_pdis > 0 else 1.0 if of_dr == 0 else float("inf")
    return {
        "sequential/truth": Metric.exact(problem.value(problem.target)),
        "sequential/logging_value": Metric.exact(problem.value(problem.logging)),
        "sequential/dr_exact_q/variance_ratio": Metric.exact(ratio),
        "sequential/fqe/gap_to_dp": Metric.exact(gap_to_dp),
        "sequential/ncis/limit_bias": Metric.exact(ncis_limit(problem, cap) - problem.value(problem.target)),
        "sequential/unbiased/max_abs_z": Metric.exact(max(abs(by_name[name]["z"]) for name in UNBIASED)),
    }


def ncis_limit(problem: FiniteProblem, cap: float) -> float:
    """The limit of NCIS with more and more data: Σ_t γ^t E_b[min(w_t, c) r_t] / E_b[min(w_t, c)]."""
    chance = problem.visits(problem.logging)[..., None] * problem.logging * np.minimum(problem.weight(), cap)
    mean_reward = (chance * problem.reward_mean).sum((1, 2)) / chance.sum((1, 2))
    return float(problem.discount ** np.arange(problem.horizon) @ mean_reward)


def replicate(problem: FiniteProblem, config: Config, seed: int) -> dict[str, Any]:
    """Every estimator's estimate from every log, and the largest gap between FQE and dynamic programming."""
    exact = problem.q(problem.target)
    noisy = exact + config.q_noise * np.random.default_rng(seed).standard_normal(exact.shape)
    ratio = density_ratio(problem.visits(problem.target), problem.visits(problem.logging))
    samples: dict[str, list[float]] = {}
    gap = 0.0
    with TrainingDisplay("replications", config.replications) as display:
        for replication in range(config.replications):
            log = problem.draw(config.trajectories, np.random.default_rng([seed, replication]))
            for name, estimate in estimates(problem, log, exact, noisy, ratio, config.cap).items():
                samples.setdefault(name, []).append(estimate)
            gap = max(gap, gap_to_dp(problem, log))
            display.advance(replication + 1)
    return {"samples": samples, "gap_to_dp": gap}


def gap_to_dp(problem: FiniteProblem, log: TabularLog) -> float:
    """The largest difference between q by FQE and by dynamic programming on the empirical model."""
    by_model = exact_q(*empirical_model(log), problem.target, problem.discount)
    return float(np.abs(fqe(log, problem.target, problem.discount) - by_model).max())


def estimates(
    problem: FiniteProblem,
    log: TabularLog,
    exact: Float[np.ndarray, "T S A 1"],
    noisy: Float[np.ndarray, "T S A 1"],
    ratio: Float[np.ndarray, "T S"],
    cap: float,
) -> dict[str, float]:
    """Every estimator's estimate from one log; `dm`, `dr`, `wdr` and `magic` are given the noisy q."""
    gamma, target = problem.discount, problem.target
    weighted = Trajectories.of(problem.weight()[log.state, log.action], log.reward, log.mask)
    wrong, right = looked_up(noisy, target, log), looked_up(exact, target, log)
    fitted = looked_up(fqe(log, target, gamma), target, log)
    policy_by_clock = np.tile(target, (problem.horizon, 1))
    contributions = {
        "tis": tis(weighted, gamma),
        "wis": wis(weighted, gamma),
        "pdis": pdis(weighted, gamma),
        "cwpdis": cwpdis(weighted, gamma),
        "dm": wrong[1][:, 0],
        "dr": seq_dr(weighted, *wrong, gamma),
        "dr_exact_q": seq_dr(weighted, *right, gamma),
        "wdr": wdr(weighted, *wrong, gamma),
        "wdr_exact_q": wdr(weighted, *right, gamma),
        "magic": magic(weighted, *wrong, gamma),
        "magic_exact_q": magic(weighted, *right, gamma),
        "fqe": fitted[1][:, 0],
        "state_density_is": state_density_is(weighted, ratio[np.arange(problem.horizon), log.state], gamma),
        "mwl": mwl(clocked(log), policy_by_clock, gamma),
        "ncis": ncis(weighted, gamma, cap),
    }
    return {name: float(values.mean()) for name, values in contributions.items()}


recipe = SequentialProblem()
