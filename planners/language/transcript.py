"""A transcript of all that was asked and answered: a line of JSON for each, from which a run can be replayed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from envs.core import InputError
from marl.output.files import cannot_write
from planners.language.base import Answer, Query, Scores
from planners.language.encoding import KINDS, Kind, from_raw, to_text

HEADER = "concord_transcript"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Exchange:
    """A query and its answer. kind: complete or score."""

    kind: Kind
    query: Query
    answer: Answer | Scores


@dataclass(frozen=True, slots=True)
class Recording:
    """A transcript's contents. identity, scores: of the model that answered. size: bytes of its whole lines."""

    identity: str
    scores: bool
    exchanges: list[Exchange]
    size: int


def read_transcript(path: Path) -> Recording | None:
    """All whole exchanges; a last line that a killed process left unfinished is not read. None for an empty file.

    Raises InputError for a file that is missing or no transcript, with the line that is wrong.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"Cannot read the transcript {path}: {error.strerror or error}. Expected the file transcript.jsonl of an "
            "earlier run."
        ) from error
    size = raw.rfind(b"\n") + 1
    # By \n alone: of what else ends a line somewhere, JSON in ASCII has none.
    first, *lines = raw[:size].split(b"\n")[:-1] or [b""]
    if not size:
        if raw and not to_text({HEADER: VERSION}).encode().startswith(raw[: len(HEADER) + 4]):
            raise _no_transcript(path, 1)
        return None
    try:
        header = json.loads(first)
        identity, scores, version = str(header["identity"]), bool(header["scores"]), header[HEADER]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _no_transcript(path, 1) from error
    if version != VERSION:
        raise InputError(
            f"The transcript {path} was written by another version of Concord (its format is {version}; this one reads "
            f"{VERSION}). Record it anew."
        )
    exchanges = [_exchange(path, number, line) for number, line in enumerate(lines, 2)]
    return Recording(identity, scores, exchanges, size)


def _exchange(path: Path, number: int, line: bytes) -> Exchange:
    try:
        raw = json.loads(line)
        kind = raw["kind"]
        return Exchange(kind, from_raw(Query, raw["query"]), from_raw(KINDS[kind], raw["answer"]))
    except (ValueError, TypeError, KeyError, RecursionError, InputError) as error:
        raise _no_transcript(path, number) from error


def _no_transcript(path: Path, number: int) -> InputError:
    return InputError(
        f"{path} is no transcript that can be replayed: line {number} is not what Concord writes there. Expected the "
        "file transcript.jsonl of an earlier run, unchanged."
    )


class Transcript:
    """A transcript that is being written, each exchange before the run goes on with its answer.

    earlier: what an interrupted run had written to the same file; new lines follow it. Raises InputError for a file of
    another model, or that is no transcript.
    """

    def __init__(self, path: Path, identity: str, scores: bool):
        self.path = path
        found = read_transcript(path) if path.exists() else None
        if found and found.identity != identity:
            raise InputError(
                f"The transcript {path} is of another model: it has answers of {found.identity}, and this run asks "
                f"{identity}. Resume with the model that the run began with, or begin a new run."
            )
        self.earlier = found.exchanges if found else []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
            self._file.truncate(found.size if found else 0)  # the rest of a line that was never finished
        except OSError as error:
            raise cannot_write(path, error) from error
        if found is None:
            self._write({HEADER: VERSION, "identity": identity, "scores": scores})

    def add(self, exchange: Exchange) -> None:
        """Write an exchange. Each is added once by its caller."""
        self._write(asdict(exchange))

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def _write(self, raw: dict[str, Any]) -> None:
        try:
            self._file.write(to_text(raw).encode("ascii") + b"\n")
            self._file.flush()
        except OSError as error:
            raise cannot_write(self.path, error) from error
