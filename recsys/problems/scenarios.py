"""Logs of many kinds whose truth is known, healthy and not: by them it is counted how often a verdict is deserved.

Rows: a row is of one of G groups, all alike likely. Scores s(g, a) are standard normal; an event has the chance

m(g, a) = min(1/2, rate exp(strength s - strength² / 2)),

the logger chooses by softmax(beta (s + o) / √2) and the target by softmax(sharpness (s + o') / √2), each with half an
own idea o. An event pays an amount of mean 1. Users share their rows out by a Pareto activity, and a taste of mean 1
in [0, 2], 2 Beta(taste, taste), multiplies their chances; so the truth is the mean over groups of Σ_a π(a|g) m(g, a).

Sessions: the groups are states, between which actions move by chances of their own, and a session goes on with the
chance 1 - leave; the truth is the expected sum of rewards, by recursion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from scipy import special

from envs.core import InputError
from marl.config.schema import Section
from recsys.config import checked
from recsys.logs.catalog import Catalog
from recsys.logs.log import Chunk, Columns, Log
from recsys.policies.base import ContextPolicy

Amount = Callable[[np.random.Generator, float, int], np.ndarray]
AMOUNTS: Mapping[str, Amount] = MappingProxyType(
    {
        "one": lambda rng, shape, n: np.ones(n),
        "gamma": lambda rng, shape, n: rng.gamma(shape, 1 / shape, n),
        "poisson": lambda rng, shape, n: rng.poisson(shape, n) / shape,
        "lognormal": lambda rng, shape, n: rng.lognormal(-(shape**2) / 2, shape, n),
        "pareto": lambda rng, shape, n: (1 + rng.pareto(shape, n)) * (shape - 1) / shape,
        "whales": lambda rng, shape, n: np.where(rng.random(n) < shape, 0.5 / shape, 0.5 / (1 - shape)),
    }
)
PROBLEM, DRAWN = range(2)  # what a seed is for


class _Scenario(Section):
    """What rows and sessions have in common."""

    name: str = Field(min_length=1, description="what the table calls it")
    healthy: bool = Field(description="whether a verdict should let most of its logs pass")
    actions: int = Field(10, ge=2, description="A")
    groups: int = Field(20, ge=1, description="G, groups of rows or states of sessions")
    rate: float = Field(0.05, gt=0, le=0.5, description="chance of an event, on average")
    strength: float = Field(0.5, ge=0, description="how much it depends on group and action")
    beta: float = Field(1.0, ge=0, description="how much the logger prefers some actions")
    sharpness: float = Field(1.5, ge=0, description="how much the target does")
    amount: Literal["one", "gamma", "poisson", "lognormal", "pareto", "whales"] = Field(
        "one",
        description="what an event pays: 1; gamma and poisson of that shape; lognormal, shape σ; pareto, shape α; or "
        "half of all from a share of that size",
    )
    shape: float = Field(1.0, gt=0, description="of the amount")
    seed: int = Field(0, ge=0, description="of the problem; logs are drawn by seeds of their own")

    @model_validator(mode="after")
    def _mean_one(self) -> _Scenario:
        if self.amount == "pareto" and self.shape <= 1:
            raise ValueError(f"{self.name}: an amount by pareto has a mean for shapes above 1 only; got {self.shape}")
        if self.amount == "whales" and self.shape >= 1:
            raise ValueError(f"{self.name}: whales are a share in (0, 1); got {self.shape}")
        return self

    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]:
        """m, the logger's and the target's probabilities, each [G,A], and what draws the rest of the problem."""
        rng = np.random.default_rng([PROBLEM, self.seed])
        score, own, other = rng.normal(size=(3, self.groups, self.actions))
        chance = np.minimum(self.rate * np.exp(self.strength * score - self.strength**2 / 2), 0.5)
        logging = special.softmax(self.beta * (score + own) / np.sqrt(2), axis=1)
        target = special.softmax(self.sharpness * (score + other) / np.sqrt(2), axis=1)
        return chance, logging, target, rng

    def paid(self, rng: np.random.Generator, chance: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Rewards of rows with these chances of an event."""
        happened = rng.random(len(chance)) < chance
        return happened * AMOUNTS[self.amount](rng, self.shape, len(chance))


class RowsScenario(_Scenario):
    """Single decisions."""

    generator: Literal["rows"] = Field(description="rows: single decisions; sessions: whole episodes")
    rows: int = Field(10_000, ge=2, description="rows of a log")
    users: int | None = Field(None, ge=2, description="who share them; null: each row stands alone")
    activity: float | None = Field(None, gt=0, description="shape of the Pareto law of their activity; null: all alike")
    taste: float | None = Field(None, gt=0, description="how alike users are in taste; null: all")
    rare: tuple[float, float] | None = Field(
        None, description="two actions alone, of which the second is logged and wanted with these chances"
    )
    unshown: float = Field(0.0, ge=0, lt=1, description="share of the target's choices that no log ever shows")

    def problem(self) -> RowsProblem:
        """The problem that its logs are drawn from."""
        chance, logging, target, _ = self.tables()
        if self.rare is not None:
            chance = chance[:, :2]
            logging, target = (np.tile([1 - p, p], (self.groups, 1)) for p in self.rare)
        if self.unshown > 0:
            new = np.minimum(1.5 * chance.mean(1, keepdims=True), 0.5)
            chance = np.append(chance, new, axis=1)
            logging = np.append(logging, np.zeros_like(new), axis=1)
            target = np.append(target * (1 - self.unshown), np.full_like(new, self.unshown), axis=1)
        return RowsProblem(chance, logging, target, self)


class SessionsScenario(_Scenario):
    """Whole episodes."""

    generator: Literal["sessions"] = Field(description="rows: single decisions; sessions: whole episodes")
    sessions: int = Field(2_000, ge=2, description="sessions of a log")
    horizon: int = Field(4, ge=1, description="T, steps of a session, at most")
    leave: float = Field(0.1, ge=0, lt=1, description="chance to leave after a step")

    def problem(self) -> SessionsProblem:
        """The problem that its logs are drawn from."""
        chance, logging, target, rng = self.tables()
        moves = rng.dirichlet(np.ones(self.groups), size=(self.groups, self.actions))
        return SessionsProblem(chance, logging, target, self, moves)


Scenario = RowsScenario | SessionsScenario
GENERATORS: Mapping[str, type[Scenario]] = MappingProxyType({"rows": RowsScenario, "sessions": SessionsScenario})


def scenario_of(given: Mapping[str, Any]) -> Scenario:
    """The scenario with these settings. Raises ValueError for an unknown generator, or for others than its settings."""
    name, generator = given.get("name", "one without a name"), str(given.get("generator"))
    if generator not in GENERATORS:
        raise ValueError(f"scenario {name}: expected generator {' or '.join(GENERATORS)}; got {generator!r}")
    try:
        return checked(GENERATORS[generator], **given)
    except InputError as error:
        raise ValueError(f"scenario {name}: {error}") from None


@dataclass(frozen=True)
class _Problem(ABC):
    """Chances of events, and the probabilities of logger and target, in each group."""

    chance: Float[np.ndarray, "G A"]
    logging: Float[np.ndarray, "G A"]
    target: Float[np.ndarray, "G A"]

    @abstractmethod
    def value(self, policy: Float[np.ndarray, "G A"]) -> float:
        """What a policy earns."""

    @property
    def truth(self) -> float:
        """What the target earns."""
        return self.value(self.target)

    @property
    def change(self) -> float:
        """What the target earns more than the logger."""
        return self.truth - self.value(self.logging)

    def policy(self) -> ContextPolicy:
        """The target."""

        def choose(rows: Chunk) -> Float[np.ndarray, "n A"]:
            return self.target[rows.context["group"]]

        return ContextPolicy("target", self.target.shape[1], choose)


@dataclass(frozen=True)
class RowsProblem(_Problem):
    """Logs of single decisions."""

    scenario: RowsScenario

    def value(self, policy: Float[np.ndarray, "G A"]) -> float:
        """The expected reward of a row under a policy."""
        return float((policy * self.chance).sum(1).mean())

    def log(self, seed: int) -> Log:
        """A log of so many rows."""
        asked, rng = self.scenario, np.random.default_rng([DRAWN, self.scenario.seed, seed])
        user, factor = self._users(rng)
        group = rng.integers(asked.groups, size=asked.rows)
        action = _drawn(rng, self.logging[group])
        reward = asked.paid(rng, self.chance[group, action] * factor)
        propensity = self.logging[group, action]
        columns = {"group": group, "action": action, "propensity": propensity, "reward": reward}
        named = Columns("action", ("reward",), "propensity", context=("group",))
        if user is not None:
            columns["user"], named = user, Columns(**{**vars(named), "user": "user"})
        return Log(pl.LazyFrame(columns), named, Catalog.numbered(self.chance.shape[1]), name=asked.name)

    def _users(self, rng: np.random.Generator) -> tuple[Int[np.ndarray, " n"] | None, np.ndarray | float]:
        """Each row's user, and the factor by which that user's taste changes chances."""
        asked = self.scenario
        if asked.users is None:
            return None, 1.0
        activity = np.ones(asked.users) if asked.activity is None else 1 + rng.pareto(asked.activity, asked.users)
        user = rng.choice(asked.users, size=asked.rows, p=activity / activity.sum())
        if asked.taste is None:
            return user, 1.0
        return user, 2 * rng.beta(asked.taste, asked.taste, asked.users)[user]


@dataclass(frozen=True)
class SessionsProblem(_Problem):
    """Logs of whole sessions. moves: the next group's chances, by group and action."""

    scenario: SessionsScenario
    moves: Float[np.ndarray, "G A G"]

    def value(self, policy: Float[np.ndarray, "G A"]) -> float:
        """The expected sum of a session's rewards under a policy."""
        value = np.zeros(self.scenario.groups)
        for _ in range(self.scenario.horizon):
            later = (1 - self.scenario.leave) * self.moves @ value
            value = (policy * (self.chance + later)).sum(1)
        return float(value.mean())

    def log(self, seed: int) -> Log:
        """A log of so many sessions."""
        asked, rng = self.scenario, np.random.default_rng([DRAWN, self.scenario.seed, seed])
        session = np.arange(asked.sessions)
        group = rng.integers(asked.groups, size=asked.sessions)
        parts = []
        for step in range(asked.horizon):
            action = _drawn(rng, self.logging[group])
            reward = asked.paid(rng, self.chance[group, action])
            propensity = self.logging[group, action]
            parts.append(
                pl.DataFrame(
                    {
                        "session": session,
                        "step": np.full(len(session), step),
                        "group": group,
                        "action": action,
                        "propensity": propensity,
                        "reward": reward,
                    }
                )
            )
            stays = rng.random(len(session)) >= asked.leave
            group = _drawn(rng, self.moves[group, action])[stays]
            session = session[stays]
        named = Columns(
            "action",
            ("reward",),
            "propensity",
            episode="session",
            step="step",
            state="group",
            context=("group",),
        )
        frame = pl.concat(parts).lazy()
        return Log(frame, named, Catalog.numbered(asked.actions), name=asked.name)


def _drawn(rng: np.random.Generator, chances: Float[np.ndarray, "n A"]) -> Int[np.ndarray, " n"]:
    """A place in each row, by its chances."""
    below = chances.cumsum(1)
    drawn = (rng.random(len(chances))[:, None] * below[:, -1:] >= below).sum(1)
    return np.minimum(drawn, chances.shape[1] - 1)
