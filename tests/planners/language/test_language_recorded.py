"""Answers are asked for once, counted, kept within a budget, written down, and replayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.core import InputError
from planners.language.backends.replay import Replay
from planners.language.backends.scripted import Scripted
from planners.language.base import Answer, Completion, LanguageModel, Message, ModelError, Query, in_order
from planners.language.encoding import KINDS, from_raw
from planners.language.recorded import TEMPLATE, Budget, BudgetSpent, Prices, Recorded
from planners.language.store import Store
from planners.language.transcript import Exchange, Transcript, read_transcript


def asking(text: str, **options: object) -> Query:
    return Query((Message("user", text),), **options)


class Counting(Scripted):
    """Echoes a query's last message, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(self._echo, "echo", lambda query, text: -float(len(text)))

    def _echo(self, query: Query, number: int) -> str:
        self.asked.append(query.messages[-1].content)
        return f"{query.messages[-1].content} {number}"


Recording = Callable[..., Recorded]


@pytest.fixture
def model() -> Counting:
    return Counting()


@pytest.fixture
def record(model: Counting) -> Iterator[Recording]:
    """Makes `Recorded` models, and closes them."""
    opened = []

    def make(path: str | Path = ":memory:", run: str = "run", **options: object) -> Recorded:
        opened.append(Recorded(model, Store(path, run), **options))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_every_backend_is_a_language_model(model: Counting, record: Recording) -> None:
    assert isinstance(model, LanguageModel)
    assert isinstance(record(), LanguageModel)


def test_equal_queries_are_asked_once_and_every_place_is_answered(model: Counting, record: Recording) -> None:
    recorded = record()
    queries = [asking("a"), asking("b"), asking("a"), asking("a", attempt=1)]
    answers = in_order(recorded.complete(queries))
    assert model.asked == ["a", "b", "a"]
    assert [answer.completions[0].text for answer in answers] == ["a 0", "b 0", "a 0", "a 0"]
    assert [answer.cached for answer in answers] == [False, False, True, False]
    again = in_order(recorded.complete(queries))
    assert all(answer.cached for answer in again)
    assert [answer.completions for answer in again] == [answer.completions for answer in answers]
    spent = recorded.spent()
    assert (spent.queries, spent.cached, spent.prompt_tokens, spent.completion_tokens) == (3, 5, 3, 9)


def test_a_second_run_asks_nothing_and_pays_nothing(model: Counting, record: Recording, tmp_path: Path) -> None:
    queries = [asking(str(number), n=2) for number in range(50)]
    first = record(tmp_path / "cache.sqlite", "one", prices=Prices(prompt=2.0, completion=10.0))
    list(first.complete(queries))
    second = record(tmp_path / "cache.sqlite", "two", budget=Budget(queries=0))
    list(second.complete(queries))
    assert len(model.asked) == 100
    assert first.spent().queries == 50
    assert first.spent().price == pytest.approx((50 * 2.0 + 300 * 10.0) / 1e6)
    assert (second.spent().queries, second.spent().cached, second.spent().price) == (0, 50, 0.0)


def test_what_no_longer_fits_into_memory_is_still_known(
    model: Counting, record: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planners.language.recorded.KEPT", 3)
    queries = [asking(str(number % 10)) for number in range(20)]
    recorded = record()
    for _ in range(2):
        answers = in_order(recorded.complete(queries))
        assert [answer.completions[0].text for answer in answers] == [f"{number % 10} 0" for number in range(20)]
    assert len(model.asked) == 10
    assert recorded.spent().cached == 30


def test_scores_are_kept_apart_from_completions(model: Counting, record: Recording, tmp_path: Path) -> None:
    query = asking("which", choices=("up", "wait"))
    for run, cached in (("one", False), ("two", True)):
        recorded = record(tmp_path / "cache.sqlite", run)
        (scores,) = in_order(recorded.score([query]))
        assert scores.cached is cached
        assert scores.whole == scores.per_token == (-2.0, -4.0)
        assert math.fsum(math.exp(x) for x in scores.constrained()) == pytest.approx(1.0)
        assert next(recorded.complete([query]))[1].cached is cached


def test_scoring_a_model_that_cannot_is_refused(record: Recording) -> None:
    recorded = Recorded(Scripted(lambda query, number: "", "mute"), Store(":memory:", "run"))
    with closing(recorded), pytest.raises(InputError, match="only writes texts"):
        recorded.score([asking("a")])


def test_what_was_taken_is_kept_and_what_was_not_is_not_asked(model: Counting, record: Recording) -> None:
    recorded = record()
    answers = recorded.complete([asking("a"), asking("b")])
    next(answers)
    answers.close()
    assert model.asked == ["a"]
    assert recorded.spent().queries == 1


def test_a_budget_of_queries_is_spent_to_the_last_and_what_was_answered_is_kept(
    model: Counting, record: Recording, tmp_path: Path
) -> None:
    recorded = record(tmp_path / "cache.sqlite", budget=Budget(queries=3))
    given: list[tuple[int, Answer]] = []
    with pytest.raises(BudgetSpent, match=r"model\.budget\.queries=3 .* 2 queries were not asked") as refused:
        given.extend(recorded.complete([asking(str(number)) for number in range(5)]))
    assert [place for place, _ in given] == [0, 1, 2]
    assert "\n" not in str(refused.value)
    assert len(list(recorded.complete([asking("1"), asking("2")]))) == 2  # the cache goes on answering
    # The same run, resumed in another process with a larger budget.
    resumed = record(tmp_path / "cache.sqlite", budget=Budget(queries=4))
    with pytest.raises(BudgetSpent):
        list(resumed.complete([asking(str(number)) for number in range(5)]))
    assert model.asked == ["0", "1", "2", "3"]


def test_a_budget_of_0_answers_from_the_cache_alone(model: Counting, record: Recording, tmp_path: Path) -> None:
    list(record(tmp_path / "cache.sqlite", "one").complete([asking("a")]))
    prices = Prices(prompt=1.0)
    for limits in ({"queries": 0}, {"tokens": 0}, {"price": 0}):
        recorded = record(tmp_path / "cache.sqlite", "two", budget=Budget(**limits), prices=prices)
        given = []
        with pytest.raises(BudgetSpent, match="answers from the cache alone, and 1 query was not in it"):
            given.extend(recorded.complete([asking("new"), asking("a")]))
    assert model.asked == ["a"]


@pytest.mark.parametrize("limits", [{"tokens": 400}, {"price": 0.0004}])
def test_tokens_and_price_never_pass_the_budget(record: Recording, limits: dict[str, float]) -> None:
    recorded = record(budget=Budget(**limits), prices=Prices(prompt=1.0, completion=1.0))
    with pytest.raises(BudgetSpent):
        list(recorded.complete([asking(f"word {number}", max_tokens=20) for number in range(500)]))
    assert recorded.spent().tokens <= 400
    assert recorded.spent().tokens > 400 - 2 - 20 - 32  # what another query might have taken
    assert recorded.spent().price <= 0.0004


def test_a_limit_that_nobody_can_keep_is_refused(record: Recording) -> None:
    class Uncounted(Scripted):
        def complete(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
            return ((i, Answer((Completion("a", 0),), 0, 0.0)) for i, _ in enumerate(queries))

    store = Store(":memory:", "run")
    uncounted = Uncounted(lambda query, number: "", "uncounted")
    with closing(Recorded(uncounted, store, Budget(tokens=1000))) as recorded:
        with pytest.raises(InputError, match=r"does not say how many tokens .* model\.budget\.queries instead"):
            list(recorded.complete([asking("a"), asking("b")]))
        assert recorded.spent().queries == 1
    with pytest.raises(InputError, match="needs prices above 0"):
        Recorded(uncounted, store, Budget(price=1.0))


def test_a_model_that_leaves_a_query_out_is_an_error(record: Recording) -> None:
    class Lazy(Scripted):
        def complete(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
            return super().complete(queries[:1])

    recorded = Recorded(Lazy(lambda query, number: "", "lazy"), Store(":memory:", "run"))
    with closing(recorded), pytest.raises(ModelError, match="left 1 of 2 queries without an answer"):
        list(recorded.complete([asking("a"), asking("b")]))


def test_a_replayed_transcript_reproduces_answers_and_counts(
    model: Counting, record: Recording, tmp_path: Path
) -> None:
    list(record(tmp_path / "cache.sqlite", "before").complete([asking("b")]))
    queries = [asking("a", n=3, temperature=0.3), asking("b"), asking("a", n=3, temperature=0.3), asking("a")]
    scored = [asking("which", choices=("up", "wait"))]
    path = tmp_path / "run" / "transcript.jsonl"
    recorded = record(tmp_path / "cache.sqlite", "run", transcript=path)
    wanted = in_order(recorded.complete(queries)), in_order(recorded.score(scored)), recorded.spent()
    asked = list(model.asked)
    replay = Replay(path)
    with closing(Recorded(replay, Store(":memory:", "replay"))) as replayed:
        assert replayed.scores
        got = in_order(replayed.complete(queries)), in_order(replayed.score(scored)), replayed.spent()
    assert got == wanted
    assert model.asked == asked
    assert replay.count_tokens(queries[0].messages) == 1
    assert replay.identity == "replay:scripted:echo"


def test_a_transcript_that_begins_later_has_all_that_is_asked_from_then_on(
    model: Counting, record: Recording, tmp_path: Path
) -> None:
    path = tmp_path / "transcript.jsonl"
    before = record(budget=Budget(queries=3))
    list(before.complete([asking("a"), asking("b")]))
    later = before.transcribed(path)
    answers = in_order(later.complete([asking("b"), asking("c"), asking("c")]))
    assert [answer.cached for answer in answers] == [True, False, True]
    assert model.asked == ["a", "b", "c"]
    assert (before.spent().queries, later.spent().queries, later.spent().cached) == (3, 3, 2)
    with pytest.raises(BudgetSpent):
        list(later.complete([asking("d")]))
    later.close()
    before.close()
    replay = Replay(path)
    assert [answer.cached for answer in in_order(replay.complete([asking("b"), asking("c")]))] == [True, False]
    with pytest.raises(InputError, match="no answer to a query"):
        list(replay.complete([asking("a")]))


def test_a_query_that_was_not_recorded_is_refused_with_the_nearest(record: Recording, tmp_path: Path) -> None:
    path = tmp_path / "transcript.jsonl"
    list(record(transcript=path).complete([asking("The pot is empty.", seed=1), asking("other", n=2)]))
    replay = Replay(path)
    with pytest.raises(
        InputError, match=r"another config.*nearest of its 2 differs in message 1 from character 12"
    ) as no:
        list(replay.complete([asking("The pot is full.", seed=1)]))
    assert "'full.'" in str(no.value)
    assert "\n" not in str(no.value)
    with pytest.raises(InputError, match=r"differs in temperature \(asked 0\.5, recorded 1\.0\), seed \(asked 2"):
        list(replay.complete([asking("The pot is empty.", seed=2, temperature=0.5)]))
    with pytest.raises(InputError, match="none of the kind score at all"):
        list(replay.score([asking("a", choices=("up",))]))


def test_a_torn_last_line_is_cut_and_the_run_goes_on_without_a_cache(
    model: Counting, record: Recording, tmp_path: Path
) -> None:
    path = tmp_path / "transcript.jsonl"
    first = record(transcript=path, prices=Prices(prompt=1e6))
    list(first.complete([asking("a"), asking("b")]))
    first.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert len(list(Replay(path).complete([asking("a")]))) == 1
    resumed = record(transcript=path, prices=Prices(prompt=1e6))
    answers = in_order(resumed.complete([asking("a"), asking("b")]))
    assert [answer.cached for answer in answers] == [False, False]  # as they were when they were asked
    assert resumed.spent().cached == 0
    assert all(answer.cached for answer in in_order(resumed.complete([asking("a"), asking("b")])))
    assert (resumed.spent().queries, resumed.spent().price) == (2, 2.0)
    assert model.asked == ["a", "b", "b"]
    resumed.close()
    assert path.read_bytes() == whole


def test_a_transcript_that_goes_on_pays_neither_twice_nor_for_what_was_cached(
    record: Recording, tmp_path: Path
) -> None:
    cache, path = tmp_path / "cache.sqlite", tmp_path / "transcript.jsonl"
    list(record(cache, "before").complete([asking("a")]))
    list(record(cache, "run", transcript=path).complete([asking("a"), asking("b")]))
    for resumed in (record(cache, "run", transcript=path), record(transcript=path)):
        assert resumed.spent().queries == 1


def test_a_replay_tells_an_answer_as_it_was_when_it_was_asked_first(
    record: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planners.language.recorded.KEPT", 1)
    path, queries = tmp_path / "transcript.jsonl", [asking("a"), asking("b")]
    recorded = record(tmp_path / "cache.sqlite", transcript=path)
    wanted = in_order(recorded.complete(queries))
    assert next(recorded.complete(queries[:1]))[1].cached
    assert in_order(Replay(path).complete(queries)) == wanted


def test_a_transcript_torn_in_its_first_line_begins_anew(record: Recording, tmp_path: Path) -> None:
    path = tmp_path / "transcript.jsonl"
    path.write_text('{"concord_tr')
    assert read_transcript(path) is None
    with pytest.raises(InputError, match="is empty"):
        Replay(path)
    list(record(transcript=path).complete([asking("a")]))
    found = read_transcript(path)
    assert found is not None
    assert [exchange.query for exchange in found.exchanges] == [asking("a")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Dear diary", "line 1 is not"),
        ("Dear diary\n", "line 1 is not"),
        ("[1]\n", "line 1 is not"),
        ('{"concord_transcript":9,"identity":"a","scores":false}\n', "its format is 9; this one reads 1"),
        ('{"concord_transcript":1,"identity":"a","scores":false}\n{"kind":"complete"}\n', "line 2 is not"),
        ('{"concord_transcript":1,"identity":"a","scores":false}\n{"kind":"sing","query":{"messages":[]}}\n', "line 2"),
        ('{"concord_transcript":1,"identity":"a","scores":false}\n' + "[" * 100_000 + "\n", "line 2 is not"),
    ],
)
def test_a_file_that_is_no_transcript_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "transcript.jsonl"
    path.write_text(text)
    for read in (Replay, lambda path: Transcript(path, "a", False)):
        with pytest.raises(InputError, match=message):
            read(path)
    assert path.read_text() == text


def test_a_transcript_of_another_model_is_not_continued(record: Recording, tmp_path: Path) -> None:
    for identity in ("scripted:other", "scripted:echo:other"):
        path = tmp_path / f"{identity}.jsonl"
        Transcript(path, identity, False).close()
        with pytest.raises(InputError, match="is of another model"):
            record(transcript=path)
    with pytest.raises(InputError, match="Cannot read the transcript"):
        Replay(tmp_path / "none.jsonl")


numbers = st.floats(allow_nan=False)
counts = st.integers(0, 9)
queries = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.just("user"), "content": st.text(max_size=8)}), min_size=1
        )
    },
    optional={
        "choices": st.just(["\u2028", "b"]),
        "seed": counts,
        "temperature": st.floats(0, 3),
        "n": st.integers(1, 3),
    },
)
completions = st.fixed_dictionaries({"text": st.text(max_size=8), "tokens": counts, "log_prob": st.none() | numbers})
answers = st.fixed_dictionaries(
    {"completions": st.lists(completions, max_size=3), "prompt_tokens": counts, "seconds": st.floats(0, 10)},
    optional={"cached": st.booleans()},
)
scores = st.fixed_dictionaries(
    {
        "tokens": st.just([[1, 2], [3]]),
        "token_log_probs": st.tuples(st.tuples(numbers, numbers), st.tuples(numbers)),
        "prompt_tokens": counts,
        "seconds": st.floats(0, 10),
    }
)
exchanges = st.tuples(st.just("complete"), queries, answers) | st.tuples(st.just("score"), queries, scores)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(exchanges, max_size=4), st.integers(0, 200))
def test_any_exchange_comes_back_exactly_and_any_cut_loses_the_last_lines_alone(
    tmp_path: Path, raw: list[Any], cut: int
) -> None:
    written = [Exchange(kind, from_raw(Query, query), from_raw(KINDS[kind], answer)) for kind, query, answer in raw]
    path = tmp_path / "transcript.jsonl"
    path.unlink(missing_ok=True)
    transcript = Transcript(path, "é", True)
    for exchange in written:
        transcript.add(exchange)
    transcript.close()
    found = read_transcript(path)
    assert found is not None
    assert found.exchanges == written
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    remains = read_transcript(path)
    kept = remains.exchanges if remains else []
    assert kept == written[: len(kept)]
    assert len(kept) >= len(written) - 1 - whole[-cut:].count(b"\n") * (cut > 0)


def test_scripted_texts_are_told_apart_and_wrong_ones_refused() -> None:
    model = Scripted(lambda query, number: f"{query.seed} {number}", "counter")
    (answer,) = in_order(model.complete([asking("one two", n=2, seed=5)]))
    assert [(c.text, c.tokens, c.log_prob) for c in answer.completions] == [("5 0", 3, None), ("5 1", 3, None)]
    assert answer.prompt_tokens == 2
    wrong = Scripted(lambda query, number: 3, "wrong")
    with pytest.raises(InputError, match="must return a text; got int"):
        list(wrong.complete([asking("a")]))
    torn = Scripted(lambda query, number: "half \ud83c", "torn")
    assert next(torn.complete([asking("a")]))[1].completions[0].text == "half ?"


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 1 + 20),  # a word, and what may be written
        ({"n": 3}, 1 + 3 * 20),
        ({"choices": ("up", "wait")}, 1 + (6 + 2) + 20),
    ],
)
def test_a_query_is_sent_where_the_most_that_it_may_take_just_fits(
    record: Recording, options: dict[str, Any], most: int
) -> None:
    query = asking("a", max_tokens=20, **options)
    with pytest.raises(BudgetSpent):
        next(record(budget=Budget(tokens=most - 1)).complete([query]))
    assert len(list(record(budget=Budget(tokens=most)).complete([query]))) == 1
    price = Prices(prompt=1e6, completion=1e6)
    with pytest.raises(BudgetSpent):
        next(record(budget=Budget(price=most - 1), prices=price).complete([query]))
    assert len(list(record(budget=Budget(price=most), prices=price).complete([query]))) == 1


def test_a_prompt_that_nobody_can_count_is_taken_for_a_token_a_byte_and_its_template() -> None:
    class Countless(Scripted):
        def count_tokens(self, messages: Sequence[Message]) -> Any:
            return None

        def complete(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
            return ((place, Answer((Completion("a", 1),), 5, 0.0)) for place, _ in enumerate(queries))

    most = len("zwölf".encode()) + 2 * TEMPLATE + 20
    for tokens, fits in ((most - 1, False), (most, True)):
        recorded = Recorded(Countless(lambda query, number: "", "c"), Store(":memory:", "run"), Budget(tokens=tokens))
        with closing(recorded), nullcontext() if fits else pytest.raises(BudgetSpent):
            list(recorded.complete([asking("zwölf", max_tokens=20)]))


def test_what_memory_forgot_is_transcribed_once_and_counts_alike_when_resumed(
    record: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planners.language.recorded.KEPT", 2)
    path = tmp_path / "transcript.jsonl"
    for _ in range(2):
        with closing(record(tmp_path / "cache.sqlite", "run", transcript=path)) as recorded:
            told = [next(recorded.complete([asking(text)]))[1].cached for text in "abcabc"]
        assert told == [False] * 3 + [True] * 3
        assert len(path.read_text().splitlines()) == 4  # the first line says whose answers these are
