"""Logs of a bandit whose truth is known: what every action earns of everybody, and how likely it was logged.

Features x ~ N(0, I) in D dimensions. The expected reward of action a in signal k is

q_k(x, a) = sigmoid(logit(rate_k) + strength · s_k(x, a))   for Bernoulli rewards
q_k(x, a) = rate_k + strength · s_k(x, a)                    for Gaussian ones, of deviation 1

with scores s_k = (c + o_k) / √2 of which half is common to all signals. Scores are linear, s(x, a) = θ_a · x / √D +
b_a, with standard normal θ and b, so they have mean 0 and variance 2. The log was written by π_b(a|x) ∝ exp(beta · l(x,
a)) with l = (s_1 + o_0) / √2: half a right idea of the first signal, half an own one. A user's rows share a taste z:
their features are √½ z + √½ ε, so that rows of one user are alike and every row alone is distributed as x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy import special

from envs.core import InputError
from marl.output.report import Metric
from recsys.config import checked
from recsys.logs.catalog import Catalog
from recsys.logs.config import SyntheticConfig
from recsys.logs.log import CHUNK_ROWS, Chunk, Columns, Log
from recsys.policies.base import ContextPolicy, Policy

FRESH_ROWS = 200_000  # contexts over which a truth is averaged
PROBLEM, ROWS, TRUTH = range(3)  # what a seed is for


class Truth(NamedTuple):
    """The value of a policy by signal, [K], and the standard error that averaging over random contexts leaves, [K]."""

    value: Float[np.ndarray, " K"]
    standard_error: Float[np.ndarray, " K"]


class Scores(NamedTuple):
    """s(x, a) = θ_a · x / √D + b_a of J kinds of scores."""

    slope: Float[np.ndarray, "J A D"]
    offset: Float[np.ndarray, "J A"]

    def of(self, x: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "J n A"]:
        """The scores of every action."""
        return x @ self.slope.swapaxes(1, 2) / np.sqrt(x.shape[1]) + self.offset[:, None]


@dataclass(frozen=True)
class SyntheticBandit:
    """A problem and its truth. `settings.seed` fixes it; the rows of a log follow from a seed of their own."""

    settings: SyntheticConfig

    @property
    def signals(self) -> tuple[str, ...]:
        """The names of the K rewards."""
        return tuple(self.settings.signals)

    @property
    def observation(self) -> tuple[str, ...]:
        """The columns of the log that hold the features."""
        return tuple(f"x{d}" for d in range(self.settings.features))

    @cached_property
    def _scores(self) -> Scores:
        """Those of each signal, then the logging policy's."""
        rng = np.random.default_rng([PROBLEM, self.settings.seed])
        kinds, actions, features = len(self.signals) + 2, self.settings.actions, self.settings.features
        slope, offset = rng.normal(size=(kinds, actions, features)), rng.normal(size=(kinds, actions))
        common, own, idea = slice(0, 1), slice(1, -1), slice(-1, None)

        def mixed(part: np.ndarray) -> np.ndarray:
            signals = (part[common] + part[own]) / np.sqrt(2)
            return np.concatenate([signals, (signals[:1] + part[idea]) / np.sqrt(2)])

        return Scores(mixed(slope), mixed(offset))

    def expected_reward(self, x: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n A K"]:
        """q(x, a), exactly."""
        rate = np.array(list(self.settings.signals.values()))
        score = self.settings.strength * np.moveaxis(self._scores.of(x)[:-1], 0, -1)
        return special.expit(special.logit(rate) + score) if self._bernoulli else rate + score

    def logging_probability(self, x: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n A"]:
        """π_b(a | x), exactly."""
        chances: Float[np.ndarray, "n A"] = special.softmax(self.settings.beta * self._scores.of(x)[-1], axis=1)
        return chances

    @property
    def logging(self) -> ContextPolicy:
        """The policy that writes the logs."""
        return ContextPolicy("logging", self.settings.actions, lambda rows: self.logging_probability(self._x(rows)))

    def best(self, weights: Sequence[float] | None = None) -> ContextPolicy:
        """The action of largest Σ_k weight_k q_k(x, a); weights are 1 unless told. No policy earns more of that sum."""
        worth = np.ones(len(self.signals)) if weights is None else np.asarray(weights, dtype=np.float64)
        if worth.shape != (len(self.signals),):
            raise InputError(f"best takes a weight for each of {', '.join(self.signals)}; got {list(worth)}.")

        def choose(rows: Chunk) -> Float[np.ndarray, "n A"]:
            best = (self.expected_reward(self._x(rows)) @ worth).argmax(1)
            return np.eye(self.settings.actions)[best]

        return ContextPolicy("best", self.settings.actions, choose)

    def value(self, policy: Policy, rows: int = FRESH_ROWS, seed: int = 0) -> Truth:
        """E_x Σ_a π(a|x) q(x, a): the sum over actions exact, the mean over fresh independent contexts."""
        if policy.actions != self.settings.actions:
            raise InputError(
                f"The policy {policy.name} chooses among {policy.actions} actions; the problem has "
                f"{self.settings.actions}."
            )
        rng, earned = np.random.default_rng([TRUTH, self.settings.seed, seed]), []
        for first in range(0, rows, CHUNK_ROWS):
            x = rng.normal(size=(min(CHUNK_ROWS, rows - first), self.settings.features))
            earned.append(np.einsum("na,nak->nk", policy.distribution(self._asked(x)), self.expected_reward(x)))
        by_row = np.concatenate(earned)
        return Truth(by_row.mean(0), by_row.std(0, ddof=1) / np.sqrt(rows))

    def truths(self, policies: Sequence[Policy]) -> dict[str, Metric]:
        """The metrics `<signal>/<policy>/truth`, with the intervals that Monte Carlo leaves."""
        metrics = {}
        for policy in policies:
            truth = self.value(policy)
            for name, value, error in zip(self.signals, *truth, strict=True):
                metrics[f"{name}/{policy.name}/truth"] = Metric(
                    value, value - 1.96 * error, value + 1.96 * error, FRESH_ROWS
                )
        return metrics

    def log(self, seed: int = 0) -> Log:
        """`settings.rows` logged rows: action, propensity, user, x0 …, and the signals by name."""
        settings, rng = self.settings, np.random.default_rng([ROWS, self.settings.seed, seed])
        rows, users = settings.rows, min(settings.users, settings.rows)
        user = np.sort(np.concatenate([np.arange(users), rng.integers(users, size=rows - users)]))
        taste = rng.normal(size=(users, settings.features))
        x = (taste[user] + rng.normal(size=(rows, settings.features))) / np.sqrt(2)
        chance, draw = rng.random(rows), rng.random if self._bernoulli else rng.normal
        noise = draw(size=(rows, len(self.signals)))
        parts = [
            self._shown(x[at], chance[at], noise[at])
            for at in (slice(first, first + CHUNK_ROWS) for first in range(0, rows, CHUNK_ROWS))
        ]
        action, propensity, reward = (np.concatenate(column) for column in zip(*parts, strict=True))
        features = dict(zip(self.observation, x.T, strict=True))
        signals = dict(zip(self.signals, reward.T, strict=True))
        frame = pl.DataFrame({"user": user, "action": action, "propensity": propensity, **signals, **features})
        columns = Columns("action", self.signals, "propensity", user="user", context=self.observation)
        return Log(frame.lazy(), columns, Catalog.numbered(settings.actions), name="the synthetic log")

    def _shown(
        self, x: Float[np.ndarray, "n D"], chance: Float[np.ndarray, " n"], noise: Float[np.ndarray, "n K"]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Actions, their probabilities and rewards, from random numbers."""
        probability = self.logging_probability(x)
        below = probability.cumsum(1)
        action = np.minimum((chance[:, None] * below[:, -1:] >= below).sum(1), self.settings.actions - 1)
        at = np.arange(len(x)), action
        mean = self.expected_reward(x)[at]
        return action, probability[at], (noise < mean) * 1.0 if self._bernoulli else mean + noise

    @property
    def _bernoulli(self) -> bool:
        return self.settings.rewards == "bernoulli"

    def _x(self, rows: Chunk) -> Float[np.ndarray, "n D"]:
        return np.stack([rows.context[name] for name in self.observation], 1).astype(np.float64)

    def _asked(self, x: Float[np.ndarray, "n D"]) -> Chunk:
        """Rows about which only their features are known."""
        n, none = len(x), np.zeros(len(x), np.int64)
        reward = np.zeros((n, len(self.signals)))
        return Chunk(0, none, none, np.ones(n), reward, none, context=dict(zip(self.observation, x.T, strict=True)))


def synthetic_bandit(
    rows: int = 20_000,
    actions: int = 10,
    features: int = 5,
    signals: dict[str, float] | None = None,
    users: int = 2_000,
    seed: int = 0,
    *,
    beta: float = 1.0,
    strength: float = 1.0,
    rewards: Literal["bernoulli", "gaussian"] = "bernoulli",
) -> tuple[Log, SyntheticBandit]:
    """A log and the problem that it is from; `seed` fixes both. signals: names, and what 0 scores earn.

    `problem.log(seed=…)` draws other logs of the same problem.
    """
    named = {} if signals is None else {"signals": signals}
    sizes = {"rows": rows, "actions": actions, "features": features, "users": users, "seed": seed}
    problem = SyntheticBandit(checked(SyntheticConfig, **sizes, **named, beta=beta, strength=strength, rewards=rewards))
    return problem.log(seed), problem
