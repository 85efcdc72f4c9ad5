"""Queries and answers as JSON, exactly: numbers come back as they were, log-probabilities of minus infinity too."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from planners.language.base import Answer, Query, Scores

T = TypeVar("T", Query, Answer, Scores)
Kind = Literal["complete", "score"]
KINDS: dict[str, type[Any]] = {"complete": Answer, "score": Scores}
READERS: dict[Any, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (Query, Answer, Scores)}


def to_text(value: Any) -> str:
    """One line of JSON, in ASCII: a text of any language can neither break the line nor the file's encoding."""
    plain = value if isinstance(value, dict) else asdict(value)
    return json.dumps(plain, ensure_ascii=True, separators=(",", ":"))


def from_raw(kind: type[T], raw: Any) -> T:
    """The query, answer or scores that JSON values describe. Raises ValueError for those that describe none."""
    checked: T = READERS[kind].validate_python(raw)
    return checked


def well_formed(text: str) -> str:
    """A text without halves of characters, which no file could hold; a question mark stands for each."""
    return text.encode("utf-8", "replace").decode("utf-8")
