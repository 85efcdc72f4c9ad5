"""A server that answers well, badly, late or not at all: no crash, nothing paid twice, and no key anywhere."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fake_language_server import FakeServer, Response, completion, fake_server
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.core import ConcordError, InputError
from planners.language.base import Answer, LanguageModel, Message, ModelError, Query, in_order
from planners.language.endpoint import LONGEST_WAIT, Endpoint, seconds_of
from planners.language.recorded import Budget, BudgetSpent, Recorded
from planners.language.replay import Replay
from planners.language.server import LONGEST_TEXT, Server, _read
from planners.language.store import Store

SECRET = "sk-never/written-4711"
CHOICES = ("move to pot", "wait")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("planners.language.server._FOUND", {})  # an earlier server may have had the same port


def asking(text: str = "Which?", **options: Any) -> Query:
    return Query((Message("system", "You cook."), Message("user", text)), **options)


def echo(body: dict[str, Any], number: int) -> Response:
    return completion(*[f"{body['messages'][-1]['content']}!"] * body.get("n", 1))


def model_of(server: FakeServer, **options: Any) -> Server:
    return Server(server.url, "m", **{"pause": 0.005, "timeout": 5.0, "retries": 3, **options})


def ask(server: FakeServer, *queries: Query, **options: Any) -> list[Answer]:
    with closing(model_of(server, **options)) as model:
        return in_order(model.complete(queries or [asking()]))


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


PASSING = {
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
    monkeypatch.setattr("planners.language.endpoint.LARGEST_BODY", 1000)
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


def test_several_completions_of_a_server_that_gives_several() -> None:
    with fake_server(echo) as server:
        (answer,) = ask(server, asking(n=4))
    assert [body.get("n") for body in server.bodies] == [4]
    assert [text.tokens for text in answer.completions] == [1, 1, 1, 0]


def _one_at_a_time(body: dict[str, Any], number: int) -> Response:
    return completion(f"text {number}")


def _refuses_n(body: dict[str, Any], number: int) -> Response:
    return Response("n must be 1", 400) if "n" in body else completion(f"text {number}")


@pytest.mark.parametrize(("respond", "requests"), [(_one_at_a_time, 6), (_refuses_n, 7)])
def test_several_completions_of_a_server_that_gives_one(respond: Callable[..., Response], requests: int) -> None:
    with fake_server(respond) as server, closing(model_of(server)) as model:
        for _ in range(2):
            ((_, answer),) = model.complete([asking(n=3)])
            assert len({text.text for text in answer.completions}) == 3
            assert (answer.prompt_tokens, answer.tokens) == (21, 9)
    assert len(server.bodies) == requests
    answered = [body for body in server.bodies if respond is _one_at_a_time or "n" not in body]
    assert len({body["seed"] for body in answered[:3]}) == 3


def test_the_newer_name_of_max_tokens() -> None:
    def respond(body: dict[str, Any], number: int) -> Response:
        words = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return Response(words, 400) if "max_tokens" in body else echo(body, number)

    with fake_server(respond) as server:
        ask(server, asking("a", n=2, max_tokens=9), asking("b"), concurrency=1)
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None, 9, 64]
    assert server.bodies[1]["n"] == 2


def _vllm(body: dict[str, Any], number: int) -> Response:
    return completion(body["structured_outputs"]["choice"][0] if "structured_outputs" in body else "free")


def _openai(body: dict[str, Any], number: int) -> Response:
    if "structured_outputs" in body:
        return Response({"error": {"message": "Unrecognized request argument: structured_outputs"}}, 400)
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    return completion(json.dumps({"choice": schema["properties"]["choice"]["enum"][0]}) if schema else "free")


def _ollama(body: dict[str, Any], number: int) -> Response:
    return completion("free") if "structured_outputs" in body else _openai(body, number)


def _plain(body: dict[str, Any], number: int) -> Response:
    strange = {"structured_outputs", "response_format"} & set(body)
    return Response("extra fields not permitted", 422) if strange else completion("free")


def _deaf(body: dict[str, Any], number: int) -> Response:
    return completion("free")


@pytest.mark.parametrize(
    ("respond", "text", "probes", "field"),
    [
        (_vllm, "move to pot", 1, "structured_outputs"),
        (_openai, "move to pot", 2, "response_format"),
        (_ollama, "move to pot", 2, "response_format"),
        (_plain, "free", 3, None),
        (_deaf, "free", 3, None),
    ],
)
def test_the_constraint_is_looked_for_once(
    respond: Callable[..., Response], text: str, probes: int, field: str | None
) -> None:
    queries = [asking(str(number), choices=CHOICES) for number in range(6)]
    with fake_server(respond) as server:
        answers = ask(server, *queries)
        ask(server, asking("later", choices=CHOICES), asking("free"))
    assert {answer.completions[0].text for answer in answers} == {text}
    assert len(server.bodies) == probes + 5 + 2
    for body in server.bodies[probes:]:
        told = {"structured_outputs", "response_format"} & set(body)
        assert told == ({field} if field and body["messages"][-1]["content"] != "free" else set())


def test_a_cut_answer_does_not_tell_that_the_constraint_was_ignored() -> None:
    with fake_server(lambda body, number: completion("move", finish="length")) as server:
        ask(server, asking("a", choices=CHOICES), asking("b", choices=CHOICES), concurrency=1)
    assert all("structured_outputs" in body for body in server.bodies)
    assert len(server.bodies) == 2


def test_a_query_that_the_constraint_cannot_take_is_asked_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(body: dict[str, Any], number: int) -> Response:
        many = len(body.get("structured_outputs", {}).get("choice", ())) > 2
        return Response("too many choices", 400) if many else _vllm(body, number)

    with fake_server(respond) as server:
        queries = [asking("a", choices=CHOICES), asking("b", choices=("x", "y", "z")), asking("c", choices=CHOICES)]
        texts = [answer.completions[0].text for answer in ask(server, *queries, concurrency=1)]
    assert texts == ["move to pot", "free", "move to pot"]


def test_a_constraint_that_is_named_is_not_looked_for() -> None:
    with fake_server(_openai) as server:
        (answer,) = ask(server, asking(choices=CHOICES), constraint="json_schema")
        assert answer.completions[0].text == "move to pot"
        assert server.bodies[0]["max_tokens"] > 64
        with pytest.raises(InputError, match="Unrecognized request argument"):
            ask(server, asking(choices=CHOICES), constraint="structured_outputs")
        with closing(model_of(server, constraint="none")) as plain:
            assert plain.identity.endswith(":m:none")
    assert len(server.bodies) == 2


@pytest.fixture
def loud(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


# Servers that say the key again, in a text, in JSON as PHP writes it, and in what is no JSON at all.
TOLD = json.dumps(completion(f"your key is {SECRET}").body)
ECHOES = [
    Response(TOLD),
    Response(TOLD.replace("/", "\\/")),
    Response(TOLD.replace("/", "\\/")[:-1]),
    *(Response({"error": f"your key is {SECRET}"}, status) for status in (400, 401, 404, 429, 500)),
]


@pytest.mark.parametrize("response", ECHOES)
def test_the_key_is_sent_and_stands_nowhere_else(
    response: Response, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loud: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {SECRET}\n")
    with fake_server(lambda body, number: response) as server:
        store = Store(tmp_path / "c.sqlite", "run")
        model = Recorded(model_of(server, retries=1), store, transcript=tmp_path / "t.jsonl")
        said = model.identity
        try:
            said += repr(list(model.complete([asking()])))
        except ConcordError as error:
            said += f"{error} {error!r} {error.__cause__!r} {error.__context__!r}"
        files = [path.read_bytes() for path in tmp_path.iterdir()]
        model.close()
    assert all(headers["authorization"] == f"Bearer {SECRET}" for headers in server.headers)
    assert "***" in said
    for text in (said, loud.text, *(file.decode("latin-1") for file in files)):
        assert "4711" not in text


def test_a_key_that_is_missing_or_wrong_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_server(lambda body, number: Response("no", 401)) as server:
        with pytest.raises(InputError, match="set the environment variable OPENAI_API_KEY"):
            ask(server)
        monkeypatch.setenv("MY_KEY", SECRET)
        with pytest.raises(InputError, match="does not accept the key of the environment variable MY_KEY"):
            ask(server, key_variable="MY_KEY")
        monkeypatch.delenv("MY_KEY")
        with pytest.raises(InputError, match="MY_KEY, which is not set"):
            ask(server, key_variable="MY_KEY")
        monkeypatch.setenv("MY_KEY", "two\nlines 4711")
        with pytest.raises(InputError, match="MY_KEY holds no key") as refused:
            ask(server, key_variable="MY_KEY")
    assert "4711" not in str(refused.value)
    assert len(server.bodies) == 2


def test_a_placeholder_is_not_cut_out_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "pot")
    with fake_server(lambda body, number: completion("move to pot")) as server:
        assert ask(server)[0].completions[0].text == "move to pot"


def test_no_key_goes_to_another_machine_over_plain_http_unless_its_variable_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    sent = {}
    for url, variable in (
        ("http://example.org/v1", None),
        ("http://example.org/v1", "OPENAI_API_KEY"),
        ("https://example.org/v1", None),
        ("http://[::1]:9/v1", None),
    ):
        with closing(Endpoint(url, variable, 1.0, 0, 0.0)) as endpoint:
            sent[url, variable] = "Authorization" in endpoint._client.headers
    assert list(sent.values()) == [False, True, True, True]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000/v1", "must begin with http:// or https://"),
        ("ftp://host/v1", "must begin with http:// or https://"),
        ("http://", "must begin with http:// or https://"),
        ("http://host:port/v1", "is no address"),
        ("http://me:4711@host/v1", "must hold no user or password"),
        ("http://host/v1?key=4711", r"without \? and #"),
        ("http://host/v1/chat/completions", "is the address before"),
        ("http://a b/v1", "must not hold spaces"),
    ],
)
def test_addresses_that_are_none_are_refused_without_repeating_them(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        Server(url, "m")
    assert "4711" not in str(refused.value)


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with fake_server(echo) as server:
        pass
    with pytest.raises(ModelError, match=r"cannot be reached: .*start it, or mend model\.server") as refused:
        ask(server, pause=30.0)
    assert "\n" not in str(refused.value)


def test_a_redirect_is_not_followed() -> None:
    away = Response("", 307, {"Location": "http://127.0.0.1:9/"})
    with fake_server(lambda body, number: away) as server, pytest.raises(InputError, match=r"\(status 307\)"):
        ask(server)
    assert len(server.bodies) == 1


def test_a_server_s_run_is_replayed_without_it(tmp_path: Path) -> None:
    path, queries = tmp_path / "t.jsonl", [asking(str(number), choices=CHOICES, n=2) for number in range(5)]
    with fake_server(_ollama) as server:
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
