"""A cache of answers and the ledger of their cost, in one SQLite file that processes share."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from envs.core import InputError
from planners.language.base import Answer, Scores
from planners.language.encoding import KINDS, Kind, from_raw, to_text

A = TypeVar("A", bound=Answer | Scores)

IN_MEMORY = ":memory:"
VERSION = 1
APPLICATION = 0x436F6E63  # "Conc": tells our files from those of other programs
PATIENCE = 60.0  # seconds to wait while another process writes

TABLES = (
    "CREATE TABLE answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE spent (run TEXT, kind TEXT, queries INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, "
    "completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL, price REAL NOT NULL, PRIMARY KEY (run, kind)) "
    "WITHOUT ROWID",
)
ADD = (
    "INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run, kind) DO UPDATE SET "
    "queries = queries + excluded.queries, prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
    "completion_tokens = completion_tokens + excluded.completion_tokens, seconds = seconds + excluded.seconds, "
    "price = price + excluded.price"
)
TOTAL = (
    "SELECT total(queries), total(prompt_tokens), total(completion_tokens), total(seconds), total(price) "
    "FROM spent WHERE run = ?"
)


def cache_folder() -> Path:
    """The folder of Concord in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "concord"


@dataclass(frozen=True, slots=True)
class Spent:
    """Cost of queries.

    queries: those that a model answered. cached: those that cost nothing, since they had been answered before. seconds:
    of the answers together, so more than have passed where several were under way at once. price: in the currency of
    the prices.
    """

    queries: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    price: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens


class Store:
    """Answers by key, and the cost of each run; an answer and its cost are written together or not at all.

    path: a file, made where there is none, or ":memory:" for one that ends with the process. run: a name that no other
    run has, such as the path of its folder; a run that is resumed under its name counts on. Several processes and
    threads may share a file. One that is killed leaves it whole, and loses no answer that `keep` has returned; only if
    the machine itself stops may the last ones be missing. Raises InputError for a file that is none of ours, is of
    another version, or cannot be written.
    """

    def __init__(self, path: str | Path, run: str):
        self.path, self.run = str(path), run
        self._lock = threading.Lock()
        with self._explained("open"):
            if self.path != IN_MEMORY:
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            self._sql = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            with self._explained("open"):
                self._prepare()
        except BaseException:
            self._sql.close()
            raise

    def find(self, kind: Kind, key: str) -> Answer | Scores | None:
        """The answer of a key, with `cached` set, or None."""
        with self._lock, self._explained("read"):
            row = self._sql.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else self._read(kind, row[0], cached=True)

    def keep(self, kind: Kind, key: str, answer: A, cost: Spent) -> A:
        """Write an answer and its cost; returns the answer that the key has from now on.

        That is an earlier one where another process was faster: what this run goes on with is what any later run of the
        same config will find.
        """
        entry = (self.run, kind, cost.queries, cost.prompt_tokens, cost.completion_tokens, cost.seconds, cost.price)
        with self._lock, self._explained("write"), self._sql:
            self._sql.execute("BEGIN IMMEDIATE")
            written = self._sql.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, to_text(answer))).rowcount
            self._sql.execute(ADD, entry)
            row = self._sql.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return answer if written else self._read(kind, row[0], cached=answer.cached)

    def spent(self, run: str | None = None) -> Spent:
        """Cost of a run so far, of this one where none is named. What came from the cache is not in the file."""
        with self._lock, self._explained("read"):
            queries, prompt, completion, seconds, price = self._sql.execute(TOTAL, (run or self.run,)).fetchone()
        return Spent(int(queries), 0, int(prompt), int(completion), seconds, price)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._sql.close()

    def _read(self, kind: Kind, text: str, cached: bool) -> Any:
        try:
            return from_raw(KINDS[kind], {**json.loads(text), "cached": cached})
        except (ValueError, TypeError) as error:
            raise InputError(
                f"The cache {self.path} holds something that is no answer, so it was changed by hand or is damaged. "
                "Delete it, or name another file as model.cache."
            ) from error

    def _prepare(self) -> None:
        """Make the tables of a new file, or check that an old one has them."""
        with self._sql:
            self._sql.execute("BEGIN IMMEDIATE")  # of two processes that begin at once, one makes the tables
            application, version = (
                self._sql.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
            (tables,) = self._sql.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:
                for statement in TABLES:
                    self._sql.execute(statement)
                self._sql.execute(f"PRAGMA application_id = {APPLICATION}")
                self._sql.execute(f"PRAGMA user_version = {VERSION}")
            elif application != APPLICATION:
                raise InputError(
                    f"{self.path} is a database of another program, and was left as it is. Expected a cache of "
                    "language models, or a file that is not there yet: name another as model.cache."
                )
            elif version != VERSION:
                raise InputError(
                    f"The cache {self.path} was written by another version of Concord (its format is {version}; this "
                    f"one reads {VERSION}). Name another file as model.cache, or delete this one to ask anew."
                )
        self._log_ahead()
        # With a log that is written ahead, a killed process needs no sync at each answer; only a power cut would.
        self._sql.execute("PRAGMA synchronous = NORMAL")

    def _log_ahead(self) -> None:
        """Switch to a write-ahead log, so that readers and a writer need not wait for one another."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self._sql.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:  # the switch itself does not wait for other processes
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.02)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Tell the user what SQLite or the disk complain of."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            hint = (
                "It is no such database: name another file as model.cache"
                if "not a database" in str(error)
                else "Name a file as model.cache in a folder that can be written and has space, or none with "
                "model.cache=none"
            )
            raise InputError(f"Cannot {what} the cache of answers {self.path}: {error}. {hint}.") from error
