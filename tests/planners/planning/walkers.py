"""A language model for two walkers, as a function, and configs of small runs that plan with it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marl.config.load import resolve
from planners.language.backends.scripted import Scripted
from planners.language.base import Query
from planners.language.config import ModelConfig
from planners.language.recorded import Recorded
from planners.language.store import Store

SMALL: dict[str, Any] = {
    "recipe": "planners.planning.recipe",
    "device": "cpu",
    "env": {"world": "worded_meetings:Meeting", "time_limit": 3},
    "planner": {"plans": "steps", "rounds": 2},
    "critic": {
        "log": {"num_envs": 8, "steps": 8, "time_limit": 8, "starts": 32, "start_steps": 4},
        "network": {"hidden": [16]},
        "learner": {"rows": 32, "steps": 4},
        "updates": 6,
    },
    "evaluation": {"goal": 1, "episodes": 4, "num_envs": 2},
}
RANDOM = {"model.scripted": "walkers:say", "critic.log.play": "random"}


def small(**overrides: Any) -> Any:
    """A small run's config; keys with __ for dots."""
    return resolve(SMALL, {name.replace("__", "."): value for name, value in overrides.items()})


def number(*parts: object) -> float:
    """A number in [0, 1) that is a function of its arguments alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big") / 2**56


def log_prob(query: Query, text: str) -> float:
    """Of a text in this situation, in which some are ten times as likely as others."""
    weight = {choice: 0.1 + number(query.messages[-1].content, choice) for choice in (*query.choices, text)}
    return math.log(weight[text] / sum(weight[choice] for choice in query.choices))


def say(query: Query, place: int) -> str:
    """One of the choices, drawn by `log_prob`."""
    left = number(query.seed, query.attempt, place)
    for choice in query.choices:
        left -= math.exp(log_prob(query, choice))
        if left < 0:
            return choice
    return query.choices[-1]


def toward(query: Query, place: int) -> str:
    """The step toward the other walker."""
    return "right" if query.messages[-1].content.endswith("What does ann do?") else "left"


def walker(log_probs: Callable[[Query, str], float] | None = log_prob, name: str = "walker") -> Scripted:
    return Scripted(say, name, log_probs)


def open_walker(monkeypatch: pytest.MonkeyPatch, cache: Path, model: Callable[[], Scripted] = walker) -> None:
    """Let runs ask this model, whose answers are kept in a file."""

    def opened(config: ModelConfig, run_name: str, *given: Any, **options: Any) -> Recorded:
        return Recorded(model(), Store(cache, run_name), config.budget, config.prices)

    monkeypatch.setattr("planners.planning.recipe.open_model", opened)
