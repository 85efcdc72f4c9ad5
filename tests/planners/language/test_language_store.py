"""The cache of answers and the ledger of their cost: whole after anything, shared by processes and threads."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from envs.core import InputError
from planners.language.backends.scripted import Scripted
from planners.language.base import Answer, Completion, Message, Query, Scores, in_order
from planners.language.recorded import Recorded
from planners.language.store import Spent, Store

ROOT = Path(__file__).parents[3]
ANSWER = Answer((Completion("wait\n\u2028é", 2, -0.1), Completion("", 1)), 12, 0.25)
COST = Spent(1, 0, 12, 3, 0.25, 0.5)


def asking(number: int) -> Query:
    return Query((Message("user", f"number {number}"),))


def test_answers_come_back_exactly_after_the_file_was_closed(tmp_path: Path) -> None:
    scores = Scores(((4, 2), (5, 2)), ((-0.1, 0.0), (-math.inf, -1e-300)), 9, 0.1)
    with closing(Store(tmp_path / "deep" / "cache.sqlite", "one")) as store:
        assert store.find("complete", "a") is None
        assert store.keep("complete", "a", ANSWER, COST) == ANSWER
        store.keep("score", "b", scores, Spent(1, 0, 9, 0, 0.1, 0.0))
    with closing(Store(tmp_path / "deep" / "cache.sqlite", "two")) as store:
        found, scored = store.find("complete", "a"), store.find("score", "b")
        assert found == Answer(ANSWER.completions, 12, 0.25, cached=True)
        assert scored == Scores(scores.tokens, scores.token_log_probs, 9, 0.1, cached=True)
        assert store.spent() == Spent()
        assert store.spent("one") == Spent(2, 0, 21, 3, 0.35, 0.5)


def test_the_first_answer_stays_and_the_second_is_paid_too(tmp_path: Path) -> None:
    other = Answer((Completion("serve", 2),), 12, 0.1)
    path = tmp_path / "cache.sqlite"
    with closing(Store(path, "one")) as one, closing(Store(path, "two")) as two:
        one.keep("complete", "a", ANSWER, COST)
        assert two.keep("complete", "a", other, COST) == ANSWER
        assert two.spent().queries == 1


def test_threads_share_a_store() -> None:
    with closing(Store(":memory:", "run")) as store:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: store.keep("complete", str(number), ANSWER, COST), range(200)))
        assert store.spent().queries == 200
        assert store.spent().completion_tokens == 600


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("CREATE TABLE recipes (name TEXT)")


def _newer(path: Path) -> None:
    Store(path, "run").close()
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("PRAGMA user_version = 2")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_text("no database, but more than sixteen bytes " * 50), "no such database"),
        (lambda path: path.mkdir(), "Cannot open"),
        (_foreign, "of another program, and was left as it is"),
        (_newer, r"its format is 2; this one reads 1"),
    ],
)
def test_a_file_that_is_no_cache_is_refused_and_stays(tmp_path: Path, spoil, message: str) -> None:
    path = tmp_path / "cache.sqlite"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(InputError, match=message) as refused:
        Store(path, "run")
    assert "model.cache" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert before == (path.read_bytes() if path.is_file() else None)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Cannot open .* model\.cache=none"):
        Store(tmp_path / "file" / "cache.sqlite", "run")


def test_an_answer_changed_by_hand_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with closing(Store(path, "run")) as store:
        store.keep("complete", "a", ANSWER, COST)
        for text in ("{", "[]", '{"completions": 3}'):
            with closing(sqlite3.connect(path)) as sql, sql:
                sql.execute("UPDATE answers SET answer = ?", (text,))
            with pytest.raises(InputError, match="something that is no answer"):
                store.find("complete", "a")


# Two processes begin at once, and ask 200 numbers each; every question is noted in a file when it is asked.
ASK = """
import os, sys, time
from pathlib import Path
from planners.language.base import Message, Query
from planners.language.recorded import Recorded
from planners.language.backends.scripted import Scripted
from planners.language.store import Store
folder = Path(sys.argv[1])
def answer(query, number):
    with (folder / "asked").open("a") as file:
        file.write(query.messages[0].content + "\\n")
    time.sleep(0.003)
    return "yes"
def ask(run, first):
    queries = [Query((Message("user", f"number {n}"),)) for n in range(first, first + 200)]
    store = Store(folder / "cache.sqlite", run)
    for _ in Recorded(Scripted(answer, "slow"), store, transcript=folder / f"{run}.jsonl").complete(queries):
        pass
children = []
for run, first in (("killed", 0), ("other", 200)):
    if not (child := os.fork()):
        ask(run, first)
        os._exit(0)
    children.append(child)
print(children[0], flush=True)
print(*(os.waitpid(child, 0)[1] for child in children), flush=True)
"""


def test_nothing_is_paid_twice_after_kill_9_beside_another_process(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    command = [sys.executable, "-c", ASK, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as both:
        assert both.stdout is not None
        victim = int(both.stdout.readline())
        until = time.monotonic() + 60
        while time.monotonic() < until and (not asked.exists() or "number 20\n" not in asked.read_text()):
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)
        assert both.stdout.readline() == f"{int(signal.SIGKILL)} 0\n"

    def answer(query: Query, number: int) -> str:
        with asked.open("a") as file:
            file.write(query.messages[0].content + "\n")
        return "yes"

    store = Store(tmp_path / "cache.sqlite", "killed")
    kept = store.spent().queries
    assert 20 <= kept < 200
    with closing(Recorded(Scripted(answer, "slow"), store, transcript=tmp_path / "killed.jsonl")) as model:
        answers = in_order(model.complete([asking(number) for number in range(400)]))
        # What the other process asked, and one that was killed before it was written down in the transcript.
        assert sum(answer.cached for answer in answers) in (200, 201)
        assert model.spent().queries == 200
        assert store.spent("other").queries == 200
    counts = Counter(asked.read_text().split("\n")[:-1])
    twice = [prompt for prompt, count in counts.items() if count > 1]
    assert len(counts) == 400
    assert len(twice) <= 1  # that which was asked, and not yet answered, when the process was killed
    assert not {f"number {number}" for number in range(kept)} & set(twice)


def test_where_another_process_was_faster_its_answer_is_given_and_both_are_paid(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    other = Recorded(Scripted(lambda query, number: "early", "echo"), Store(path, "other"))

    def late(query: Query, number: int) -> str:
        list(other.complete([query]))
        return "late"

    with closing(other), closing(Recorded(Scripted(late, "echo"), Store(path, "one"))) as one:
        (answer,) = in_order(one.complete([asking(0)]))
        assert (answer.completions[0].text, answer.cached) == ("early", False)
        assert (one.spent().queries, other.spent().queries) == (1, 1)
