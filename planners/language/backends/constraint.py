"""Ways to tell a server that an answer must be one of a query's choices."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Constraint:
    """One way. fields: what it adds to a request. text: the choice that an answer means. spare_tokens: of its form."""

    name: str
    fields: Callable[[Sequence[str]], dict[str, Any]]
    text: Callable[[str], str]
    spare_tokens: int = 0


def _schema(choices: Sequence[str]) -> dict[str, Any]:
    """An object with one field, since OpenAI's servers take no bare text."""
    schema = {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": list(choices)}},
        "required": ["choice"],
        "additionalProperties": False,
    }
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "choice", "strict": True, "schema": schema},
        }
    }


def _from_json(text: str) -> str:
    """The choice in an answer of that schema; any other answer as it is."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        return text
    choice = raw.get("choice") if isinstance(raw, dict) else None
    return choice if isinstance(choice, str) else text


def _as_it_is(text: str) -> str:
    return text


# From the strictest on; vLLM knows the first, OpenAI, Ollama and llama.cpp the second, and every server the last.
STRUCTURED_OUTPUTS = Constraint(
    "structured_outputs", lambda choices: {"structured_outputs": {"choice": list(choices)}}, _as_it_is
)
JSON_SCHEMA = Constraint("json_schema", _schema, _from_json, spare_tokens=16)
NONE = Constraint("none", lambda choices: {}, _as_it_is)
LADDER = (STRUCTURED_OUTPUTS, JSON_SCHEMA, NONE)
