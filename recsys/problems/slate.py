"""Slate estimators against a problem small enough to enumerate every slate.

The expectation of every estimator that is a mean is summed exactly over all slates, so that its bias is known to
rounding. The self-normalized ones are ratios, so logs are drawn for them (and for the others beside). The report has,
per estimator, truth, expectation, gap, spread, and mean, z, RMSE and variance over the drawn logs.
"""

from __future__ import annotations

from collections.abc import Callable
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
from recsys.sequential.estimators import Trajectories
from recsys.sequential.slate import (
    cascade_dr,
    iips,
    pseudo_inverse,
    rips,
    sips,
    sn_cascade_dr,
    sn_iips,
    sn_pseudo_inverse,
    sn_rips,
    sn_sips,
)

__all__ = ["Config", "SlateProblem", "recipe"]

Q = tuple[Float[np.ndarray, "n T 1"], Float[np.ndarray, "n T 1"]]
Estimator = Callable[[Trajectories, Q], Float[np.ndarray, "n 1"]]

MEANS: dict[str, Estimator] = {
    "sips": lambda log, q: sips(log),
    "iips": lambda log, q: iips(log),
    "rips": lambda log, q: rips(log),
    "cascade_dr": lambda log, q: cascade_dr(log, *q),
    "pseudo_inverse": lambda log, q: pseudo_inverse(log),
}
RATIOS: dict[str, Estimator] = {
    "sn_sips": lambda log, q: sn_sips(log),
    "sn_iips": lambda log, q: sn_iips(log),
    "sn_rips": lambda log, q: sn_rips(log),
    "sn_cascade_dr": lambda log, q: sn_cascade_dr(log, *q),
    "sn_pseudo_inverse": lambda log, q: sn_pseudo_inverse(log),
}


class Config(OracleConfig):
    """Slate estimators on an exact problem. `q_noise` goes into the q of Cascade-DR."""

    slates: int = Field(2000, ge=2, description="slates of a drawn log")


@dataclass(frozen=True)
class SlateProblem:
    """Every slate of T slots over I items, what its slots earn, and two policies that draw each slot by itself.

    slates [M,T], M = I^T, reward [M,T,1], logging, target [T,I].
    """

    slates: Int[np.ndarray, "M T"]
    reward: Float[np.ndarray, "M T 1"]
    logging: Float[np.ndarray, "T I"]
    target: Float[np.ndarray, "T I"]

    @classmethod
    def read(cls, path: Path) -> tuple[SlateProblem, dict[str, Any]]:
        """From a file as the one in recsys/data/oracles, and the answers it tells. Raises InputError."""
        needed = ("slates", "slot_reward", "logging", "target")
        tables = read_problem(path, needed, ("truth", "expectation", "sd"))
        logging = tables["logging"]
        if logging.ndim != 2 or 0 in logging.shape:
            raise InputError(f"logging must be [slots, items], at least one of each; got {list(logging.shape)}.")
        slots, items = logging.shape
        require_shape("target", tables["target"], (slots, items), "[slots, items]")
        slates = _all_slates(tables["slates"], slots, items)
        require_shape("slot_reward", tables["slot_reward"], slates.shape, "[slates, slots]")
        policies = [distributions(name, tables[name]) for name in ("logging", "target")]
        problem = cls(slates, tables["slot_reward"][..., None], *policies)
        problem.require_support()
        if "truth" in tables:
            require_answer("truth", tables["truth"], problem.truth)
        return problem, {name: tables.get(name, {}) for name in ("expectation", "sd")}

    def slot_probability(self, policy: Float[np.ndarray, "T I"]) -> Float[np.ndarray, "M T"]:
        """The probability of each slot's item."""
        return policy[np.arange(self.slates.shape[1]), self.slates]

    @property
    def truth(self) -> float:
        """The target policy's expected sum of rewards."""
        return float(self.slot_probability(self.target).prod(1) @ self.reward.sum((1, 2)))

    @property
    def log(self) -> Trajectories:
        """Every slate once."""
        logging, target = self.slot_probability(self.logging), self.slot_probability(self.target)
        weight = np.divide(target, logging, out=np.zeros_like(target), where=logging > 0)
        return Trajectories.of(weight, self.reward)

    def require_support(self) -> None:
        """Raises InputError where the target policy shows what the logging policy never does."""
        lost = (self.target > 0) & (self.logging == 0)
        if lost.any():
            slot, item = np.argwhere(lost)[0]
            raise InputError(
                f"The target policy shows item {item} in slot {slot} with probability {self.target[slot, item]:.4g}, "
                f"the logging policy never does (and {lost.sum() - 1} more such pairs): no log can tell what that "
                "earns. Let the logging policy try every item that the target shows."
            )

    def cascade_q(self, noise: float, rng: np.random.Generator) -> Q:
        """q_k and v_k of every slate: the exact one, plus noise that only depends on the items up to slot k."""
        slots, items = self.logging.shape
        by_items = (items,) * slots
        order = np.ravel_multi_index(tuple(self.slates.T), by_items)
        rewards = np.zeros((slots, *by_items))
        rewards.reshape(slots, -1)[:, order] = self.reward[..., 0].T
        q_logged, value = np.zeros((2, *self.slates.shape, 1))
        for k in range(slots):
            q = rewards[k:].sum(0)
            for later in range(slots - 1, k, -1):
                q = q @ self.target[later]
            q = q + noise * rng.standard_normal(q.shape)
            q_logged[:, k, 0] = q[tuple(self.slates[:, : k + 1].T)]
            value[:, k, 0] = (q @ self.target[k])[tuple(self.slates[:, :k].T)]
        return q_logged, value


def _all_slates(table: Float[np.ndarray, "*shape"], slots: int, items: int) -> Int[np.ndarray, "M T"]:
    require_shape("slates", table, (items**slots, slots), "every slate once, [items^slots, slots]")
    wrong = ((table < 0) | (table >= items) | (table != np.floor(table))).any(1)
    if wrong.any():
        raise InputError(
            f"slates holds numbers of items, 0 to {items - 1}; row {np.flatnonzero(wrong)[0]} is "
            f"{table[wrong][0].tolist()}."
        )
    slates = table.astype(np.int64)
    if len(np.unique(slates, axis=0)) < len(slates):
        raise InputError(f"slates must hold each of the {len(slates)} slates once; some stand there twice.")
    return slates


class SlateEstimators(Recipe):
    """Estimators on an exact slate problem."""

    config = Config
    learns = False

    def run(self, config: Config, run: Run) -> Report:
        """Sum over all slates, estimate from every drawn log, tell it as a table and metrics."""
        problem, answers = SlateProblem.read(config.data.file("slate.json"))
        q = problem.cascade_q(config.q_noise, np.random.default_rng(run.stage_seeds("q")[0]))
        exact = expectations(problem, q)
        samples = run.once("replications", lambda: replicate(problem, q, config, run.stage_seeds("replications")[0]))
        rows = judgements(samples, problem.truth)
        metrics = {"slate/truth": Metric.exact(problem.truth)} | metrics_of("slate", samples, rows)
        for row in rows:
            expected = exact.get(row["estimator"], {})
            row |= {"expectation": "", "gap": "", "sd": ""} | expected
            metrics |= {f"slate/{row['estimator']}/{name}": Metric.exact(value) for name, value in expected.items()}
        metrics |= gaps_to_file(exact, answers)
        title = f"{len(problem.slates)} slates enumerated, {config.replications} logs of {config.slates} drawn"
        return reported(config, title, rows, metrics)


def expectations(problem: SlateProblem, q: Q) -> dict[str, dict[str, float]]:
    """Exact expectation under the logging policy, its gap to the truth, and the spread of one slate's contribution."""
    probability = problem.slot_probability(problem.logging).prod(1)
    exact = {}
    for name, estimator in MEANS.items():
        contribution = estimator(problem.log, q)[:, 0]
        mean = float(probability @ contribution)
        spread = float(np.sqrt(probability @ (contribution - mean) ** 2))
        exact[name] = {"expectation": mean, "gap": mean - problem.truth, "sd": spread}
    return exact


def gaps_to_file(exact: dict[str, dict[str, float]], answers: dict[str, Any]) -> dict[str, Metric]:
    """Gaps of expectation and spread to those that the file tells, where it does."""
    return {
        f"slate/{name}/{column}_gap_to_file": Metric.exact(moments[column] - float(answers[column][name]))
        for name, moments in exact.items()
        for column in ("expectation", "sd")
        if isinstance(answers[column], dict) and name in answers[column]
    }


def replicate(problem: SlateProblem, q: Q, config: Config, seed: int) -> dict[str, list[float]]:
    """Every estimator's estimate from every drawn log."""
    every, probability = problem.log, problem.slot_probability(problem.logging).prod(1)
    samples: dict[str, list[float]] = {name: [] for name in (*MEANS, *RATIOS)}
    with TrainingDisplay("replications", config.replications) as display:
        for replication in range(config.replications):
            rng = np.random.default_rng([seed, replication])
            rows = rng.choice(len(probability), config.slates, p=probability)
            log = Trajectories.of(every.weight[rows], every.reward[rows])
            for name, estimator in (MEANS | RATIOS).items():
                samples[name].append(float(estimator(log, (q[0][rows], q[1][rows])).mean()))
            display.advance(replication + 1)
    return samples


recipe = SlateEstimators()
