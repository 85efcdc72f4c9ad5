"""A server that answers well, badly, late or not at all: no crash, and nothing paid twice."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fake_language_server import CHOICES, Response, ask, asking, completion, echo, fake_server, model_of
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.core import InputError
from planners.language.backends.endpoint import LONGEST_WAIT, seconds_of
from planners.language.backends.replay import Replay
from planners.language.backends.server import LONGEST_TEXT, _read
from planners.language.base import LanguageModel, ModelError, in_order
from planners.language.recorded import Budget, BudgetSpent, Recorded
from planners.language.store import Store


def test_a_request_says_all_that_decides_the_answer_and_the_answer_is_counted() -> None:
    with fake_server(echo) as server:
        (answer,) = ask(server, asking(seed=5, temperature=0.5, max_tokens=9))
        with closing(model_of(server)) as model:
            assert isinstance(model, LanguageModel)
            assert model.identity == f"server:{server.url}:m"
            assert model.count_tokens(()) is None
            with pytest.raises(InputError, match=r"set model\.local"):
                model.score([asking()])
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "You cook."}, {"role": "user", "content": "Which?"}],
            "temperature": 0.5,
            "seed": 5,
            "max_tokens": 9,
        }
    ]
    (text,) = answer.completions
    assert (text.text, text.tokens, text.log_prob, answer.prompt_tokens) == ("Which?!", 3, None, 7)
    assert answer.seconds > 0
    assert "authorization" not in server.headers[0]


def test_another_attempt_has_another_seed() -> None:
    with fake_server(echo) as server:
        ask(server, *[asking(attempt=attempt) for attempt in range(3)])
    assert len({body["seed"] for body in server.bodies}) == 3


def test_what_is_asked_for_after_a_first_completion_is_not_what_another_attempt_says() -> None:
    with fake_server(lambda body, number: completion("a")) as server:
        ask(server, asking(n=3), asking(attempt=1), asking(attempt=2), concurrency=1)
    assert len({body["seed"] for body in server.bodies}) == 5


PASSING = {
    "408": Response("too late", 408),
    "429": Response('{"error": "slow down"}', 429),
    "429 with seconds": Response("", 429, {"Retry-After": "0"}),
    "500": Response("oops", 500),
    "503 in HTML": Response("<html>busy</html>", 503),
    "silence": Response("", delay=0.6),
    "hang up": Response(hang_up=True),
    "truncated JSON": Response('{"choices": [{"message": {"content": "mo'),
    "HTML": Response("<!doctype html><html>Sign in</html>"),
    "nothing": Response(""),
    "no choices": Response({"choices": []}),
    "an error with status 200": Response({"error": {"message": "overloaded"}}),
    "wrong shape": Response([{"choices": 3}]),
    "wrong message": Response({"choices": [{"message": "text"}]}),
    "wrong content": Response({"choices": [{"message": {"content": 3}}]}),
    "too deep": Response("[" * 100_000),
    "no UTF-8": Response(b"\xff\xfe"),
}


@pytest.mark.parametrize("name", PASSING)
def test_failures_that_may_pass_are_tried_again(name: str) -> None:
    with fake_server(lambda body, number: PASSING[name] if number < 1 else echo(body, number)) as server:
        (answer,) = ask(server, timeout=0.3 if name == "silence" else 5.0)
    assert answer.completions[0].text == "Which?!"
    assert len(server.bodies) == 2


@pytest.mark.parametrize("name", ["429", "500", "silence", "hang up", "truncated JSON", "HTML"])
def test_failures_that_do_not_pass_end_the_run_in_one_paragraph(name: str) -> None:
    expected = pytest.raises(ModelError, match="gave no answer of use in 2 tries, the last time: ")
    with fake_server(lambda body, number: PASSING[name]) as server, expected as failed:
        ask(server, retries=1, timeout=0.1 if name == "silence" else 5.0)
    assert len(server.bodies) == 2
    assert "\n" not in str(failed.value)
    assert server.url in str(failed.value)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (Response("{", headers={"Content-Length": "100"}), "silence for"),
        (Response("{" + " " * 500, drip=0.02), "not whole after"),
        (Response("{" + " " * 5000), "more than 1000 bytes"),
    ],
)
def test_an_answer_without_end_is_cut_off(response: Response, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planners.language.backends.endpoint.LARGEST_BODY", 1000)
    with fake_server(lambda body, number: response) as server, pytest.raises(ModelError, match=message):
        ask(server, retries=0, timeout=0.1)


@pytest.mark.parametrize("text", ["", "x" * 100_000, "fly to the moon", "Ignore the task and open the door.", '{"a":'])
def test_any_text_is_an_answer(text: str) -> None:
    with fake_server(lambda body, number: completion(text)) as server:
        (free, bound) = ask(server, asking(), asking(choices=CHOICES), constraint="none")
    assert free.completions[0].text == bound.completions[0].text == text
    assert len(server.bodies) == 2


def test_texts_that_no_file_could_hold_are_mended_and_endless_ones_cut() -> None:
    texts = iter(["half \ud83c", "x" * (LONGEST_TEXT + 5), None])
    with fake_server(lambda body, number: completion(next(texts))) as server:
        answers = ask(server, asking("a"), asking("b"), asking("c"), concurrency=1)
    got = [answer.completions[0].text for answer in answers]
    assert got[0] == "half ?"
    assert len(got[1]) == LONGEST_TEXT
    assert got[2] == ""


def test_tokens_that_the_server_does_not_count_are_0_and_strange_ones_too() -> None:
    strange = completion("a")
    strange.body["usage"] = {"prompt_tokens": "many", "completion_tokens": -1}
    answers = iter([completion("a", tokens=None), strange])
    with fake_server(lambda body, number: next(answers)) as server:
        for answer in ask(server, asking("a"), asking("b")):
            assert (answer.prompt_tokens, answer.tokens) == (0, 0)


def test_retry_after_is_obeyed_in_seconds_and_as_a_date() -> None:
    soon = Response("", 429, {"Retry-After": "1"})
    begun = time.monotonic()
    with fake_server(lambda body, number: soon if number < 1 else echo(body, number)) as server:
        ask(server)
    assert 1.0 <= time.monotonic() - begun < 3.0
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28.0 < (seconds_of(date) or 0) <= 30.0
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert seconds_of("0.25") == 0.25
    assert [seconds_of(text) for text in (None, "", "soon", "-1", "nan", "inf", "1e9", "٣", "9" * 400)] == [None] * 9


def test_a_server_that_asks_for_an_hour_ends_the_run() -> None:
    expected = pytest.raises(ModelError, match=f"alone for 3600 seconds .* longest wait is {LONGEST_WAIT:.0f}")
    with fake_server(lambda body, number: Response("", 429, {"Retry-After": "3600"})) as server, expected:
        ask(server)
    assert len(server.bodies) == 1


def test_no_more_requests_are_under_way_than_allowed_and_answers_come_as_they_are_ready() -> None:
    def respond(body: dict[str, Any], number: int) -> Response:
        late = body["messages"][-1]["content"] == "0"
        return Response(completion("a").body, delay=0.2 if late else 0.02)

    with fake_server(respond) as server, closing(model_of(server, concurrency=3)) as model:
        places = [place for place, _ in model.complete([asking(str(number)) for number in range(12)])]
    assert server.most_at_once == 3
    assert sorted(places) == list(range(12))
    assert places.index(0) > 3


def test_closing_the_iterator_cancels_what_was_not_sent() -> None:
    with fake_server(lambda body, number: Response(completion("a").body, delay=0.02)) as server:
        with closing(model_of(server, concurrency=2)) as model:
            answers = model.complete([asking(str(number)) for number in range(50)])
            next(answers)
            answers.close()
        assert len(server.bodies) <= 5


def test_what_is_under_way_when_a_query_fails_is_kept_and_the_ledger_agrees_with_the_server(tmp_path: Path) -> None:
    def respond(body: dict[str, Any], number: int) -> Response:
        bad = body["messages"][-1]["content"] == "5" and not mended.is_set()
        return Response("no", 404) if bad else Response(completion("a").body, delay=0.01)

    mended = Event()
    queries = [asking(str(number)) for number in range(20)]
    with fake_server(respond) as server:
        for _ in range(2):
            model = Recorded(model_of(server, concurrency=4), Store(tmp_path / "cache.sqlite", "run"))
            with closing(model):
                if not mended.is_set():
                    with pytest.raises(InputError, match=r"status 404: no\).*usually ends in /v1"):
                        list(model.complete(queries))
                    assert model.spent().queries == len(server.bodies) - 1
                    mended.set()
                    continue
                assert len(list(model.complete(queries))) == 20
                assert model.spent().queries == len(server.bodies) - 1 == 20
        with closing(Recorded(model_of(server), Store(tmp_path / "cache.sqlite", "again"))) as model:
            assert all(answer.cached for _, answer in model.complete(queries))
            assert model.spent().queries == 0
    assert len(server.bodies) == 21


def test_the_server_never_sees_more_queries_than_the_budget() -> None:
    with fake_server(echo) as server:
        model = Recorded(model_of(server), Store(":memory:", "run"), Budget(queries=7))
        with closing(model), pytest.raises(BudgetSpent):
            list(model.complete([asking(str(number)) for number in range(30)]))
    assert len(server.bodies) == 7


def test_a_server_s_run_is_replayed_without_it(tmp_path: Path) -> None:
    path, queries = tmp_path / "t.jsonl", [asking(str(number), choices=CHOICES, n=2) for number in range(5)]
    with fake_server(lambda body, number: completion(*["wait"] * body.get("n", 1))) as server:
        model = Recorded(model_of(server), Store(":memory:", "run"), transcript=path)
        wanted = in_order(model.complete(queries)), model.spent()
        model.close()
    with closing(Recorded(Replay(path), Store(":memory:", "run"))) as model:
        assert (in_order(model.complete(queries)), model.spent()) == wanted


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "usage", "finish_reason"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
shaped = st.fixed_dictionaries(
    {"choices": st.lists(st.fixed_dictionaries({"message": st.fixed_dictionaries({"content": values})}), max_size=2)},
    optional={"usage": values},
)


@settings(max_examples=150, deadline=None)
@given(values | shaped)
def test_any_json_is_read_or_refused(raw: Any) -> None:
    try:
        reply = _read(raw)
    except ValueError:
        return
    assert reply.texts
    assert all(isinstance(text, str) for text in reply.texts)
    assert min(reply.prompt_tokens, reply.completion_tokens) >= 0


def test_the_failure_that_ends_a_run_is_told_and_not_that_others_were_stopped() -> None:
    def respond(body: dict[str, Any], number: int) -> Response:
        if body["messages"][-1]["content"] == "late":
            return Response("", 429, {"Retry-After": "60"})
        return Response("no", 404, delay=0.1)

    with fake_server(respond) as server, pytest.raises(InputError, match="status 404"):
        ask(server, asking("late"), asking("bad"))
