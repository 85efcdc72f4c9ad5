"""A prior to which all plans are alike: what a critic does without a language model."""

from __future__ import annotations

import hashlib

from envs.core import InputError
from planners.language.backends.scripted import Scripted
from planners.language.base import Query


def uniform_prior() -> Scripted:
    """A stand-in for a language model to which all legal plans are alike: what a critic does by itself.

    Whatever a model adds shows beside it, with the same critic and budget.
    """
    return Scripted(_anything, "uniform prior", lambda query, text: 0.0)


def _anything(query: Query, number: int) -> str:
    """One of the choices, by the query's own random numbers."""
    if not query.choices:
        raise InputError("A uniform prior needs plans to choose from; this query allows any text.")
    digest = hashlib.sha256(query.key(f"uniform {number}", "").encode()).digest()
    return query.choices[int.from_bytes(digest[:8], "big") % len(query.choices)]
