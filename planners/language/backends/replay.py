"""A language model that says again what a transcript holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from envs.core import InputError
from planners.language.base import Answer, Message, Query, Scores
from planners.language.transcript import read_transcript

SHOWN = 40  # characters of a text that is told in a message


class Replay:
    """The answers of a transcript, `cached` as they were then, so that a run and its counts come out the same.

    Raises InputError for a query that is not in it, with the nearest that is.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        found = read_transcript(self.path)
        if found is None:
            raise InputError(f"The transcript {path} is empty: nothing was answered in that run, so nothing replays.")
        self.identity = f"replay:{found.identity}"
        self.scores = found.scores
        self._answers: dict[str, dict[Query, Any]] = {"complete": {}, "score": {}}
        self._prompt_tokens: dict[tuple[Message, ...], int] = {}
        for exchange in found.exchanges:
            self._answers[exchange.kind].setdefault(exchange.query, exchange.answer)
            if exchange.kind == "complete":
                self._prompt_tokens[exchange.query.messages] = exchange.answer.prompt_tokens

    def complete(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        """The completions that were recorded."""
        return self._recorded("complete", queries)

    def score(self, queries: Sequence[Query]) -> Iterator[tuple[int, Scores]]:
        """The log-probabilities that were recorded."""
        return self._recorded("score", queries)

    def count_tokens(self, messages: Sequence[Message]) -> int | None:
        """Tokens of a prompt that was recorded with a completion; None for others."""
        return self._prompt_tokens.get(tuple(messages))

    def close(self) -> None:
        """Nothing is held."""

    def _recorded(self, kind: str, queries: Sequence[Query]) -> Iterator[tuple[int, Any]]:
        answers = self._answers[kind]
        for number, query in enumerate(queries):
            if query not in answers:
                raise InputError(self._unknown(kind, query))
            yield number, answers[query]

    def _unknown(self, kind: str, query: Query) -> str:
        """The message for a query that was never recorded: the nearest that was, and where the two part."""
        told = f"The transcript {self.path} is of another config: it has no answer to a query of this run"
        mend = "Replay it with the config, seed and version of Concord that it was recorded with."
        if not (recorded := self._answers[kind]):
            return f"{told}; it has none of the kind {kind} at all. {mend}"
        nearest = min(recorded, key=lambda other: len(_differences(query, other)))
        parts = ", ".join(_differences(query, nearest))
        return f"{told}. The nearest of its {len(recorded)} differs in {parts}. {mend}"


def _differences(query: Query, recorded: Query) -> list[str]:
    """The fields in which two queries differ, in words."""
    found = []
    for field in fields(Query):
        asked, known = getattr(query, field.name), getattr(recorded, field.name)
        if field.name == "messages":
            found += _differences_of_messages(asked, known)
        elif asked != known:
            found.append(f"{field.name} (asked {_short(asked)}, recorded {_short(known)})")
    return found


def _differences_of_messages(asked: tuple[Message, ...], known: tuple[Message, ...]) -> list[str]:
    """The messages that differ, from the first differing character on."""
    if len(asked) != len(known):
        return [f"the number of messages (asked {len(asked)}, recorded {len(known)})"]
    found = []
    for number, (one, other) in enumerate(zip(asked, known), 1):
        if one != other:
            pairs = zip(one.content, other.content)
            shortest = min(len(one.content), len(other.content))
            start = next((i for i, (a, b) in enumerate(pairs) if a != b), shortest)
            told = [_short(message.content[start:]) for message in (one, other)]
            found.append(f"message {number} from character {start + 1} on (asked {told[0]}, recorded {told[1]})")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
