"""Queries, and what scores say of constrained draws."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from envs.core import InputError
from planners.language.base import Message, Query, Scores

QUERY = Query((Message("user", "where?"),), choices=("up", "down"))


@pytest.mark.parametrize(
    "change",
    [
        {"messages": (Message("system", "where?"),)},
        {"messages": (Message("user", "where"),)},
        {"choices": ("down", "up")},
        {"n": 2},
        {"temperature": 0.5},
        {"max_tokens": 9},
        {"seed": 1},
        {"attempt": 1},
    ],
)
def test_whatever_decides_an_answer_is_in_its_key(change: dict[str, Any]) -> None:
    assert dataclasses.replace(QUERY, **change).key("complete", "model") != QUERY.key("complete", "model")


def test_a_key_is_of_one_kind_and_one_model() -> None:
    keys = {QUERY.key(kind, model) for kind in ("complete", "score") for model in ("one", "two")}
    assert len(keys) == 4
    assert dataclasses.replace(QUERY, temperature=1).key("complete", "one") in keys


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"messages": ()}, r"at least one message"),
        ({"n": 0}, r"n >= 1"),
        ({"max_tokens": 0}, r"max_tokens=0"),
        ({"temperature": -1.0}, r"temperature=-1.0"),
        ({"temperature": math.inf}, r"finite temperature"),
        ({"choices": ("up", "up")}, r"must differ"),
        ({"choices": ("up", "")}, r"none be empty"),
    ],
)
def test_queries_that_ask_nothing_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        dataclasses.replace(QUERY, **change)


def scores(*parts: tuple[tuple[int, ...], tuple[float, ...]]) -> Scores:
    return Scores(tuple(path for path, _ in parts), tuple(odds for _, odds in parts), 1, 0.0)


def test_constrained_draws_are_renormalized_at_every_token() -> None:
    """Choices 1 2 0, 1 3 0 and 4 0: by hand, P(1) = .3 / .4, then P(2 | 1) = .5 / .6."""
    log = math.log
    found = scores(
        ((1, 2, 0), (log(0.3), log(0.5), log(0.9))),
        ((1, 3, 0), (log(0.3), log(0.1), log(0.2))),
        ((4, 0), (log(0.1), log(0.7))),
    )
    by_hand = [0.75 * 5 / 6, 0.75 / 6, 0.25]
    assert [math.exp(x) for x in found.constrained()] == pytest.approx(by_hand)
    assert sum(math.exp(x) for x in found.constrained(2.5)) == pytest.approx(1)
    hot = 0.3**0.5 / (0.3**0.5 + 0.1**0.5)
    assert math.exp(found.constrained(2.0)[2]) == pytest.approx(1 - hot)
    assert found.constrained(0) == (0.0, -math.inf, -math.inf)
    assert found.whole[2] == pytest.approx(log(0.07))
    assert found.per_token == pytest.approx([(log(0.3) + log(0.5)) / 2, (log(0.3) + log(0.1)) / 2, log(0.1)])


def test_of_equally_likely_tokens_the_first_is_taken_at_temperature_0() -> None:
    assert scores(((1, 0), (-1.0, 0.0)), ((2, 0), (-1.0, 0.0))).constrained(0) == (0.0, -math.inf)


def test_what_a_model_rules_out_is_drawn_alike_where_nothing_else_is_allowed() -> None:
    never = -math.inf
    assert scores(((1, 0), (never, 0.0)), ((2, 0), (never, 0.0))).constrained() == pytest.approx((-math.log(2),) * 2)
    assert scores(((1, 0), (never, 0.0)), ((2, 0), (-5.0, 0.0))).constrained() == (never, 0.0)


def test_a_choice_that_begins_another_ends_with_its_share() -> None:
    found = scores(((1, 0), (0.0, math.log(0.2))), ((1, 2, 0), (0.0, math.log(0.6), 0.0)))
    assert [math.exp(x) for x in found.constrained()] == pytest.approx([0.25, 0.75])
