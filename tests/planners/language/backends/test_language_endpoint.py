"""Addresses and keys: no key stands anywhere but in the header of a request."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest
from fake_language_server import Response, ask, asking, completion, echo, fake_server, model_of

from envs.core import ConcordError, InputError
from planners.language.backends.endpoint import QUOTED, Endpoint
from planners.language.backends.server import LONGEST_TEXT, Server
from planners.language.base import ModelError
from planners.language.recorded import Recorded
from planners.language.store import Store

SECRET = "sk-never/written-4711"


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
        assert "written-4711" not in text  # digits alone may stand in any time


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


def test_the_shortest_key_that_is_no_placeholder_is_cut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k-471147")
    with fake_server(lambda body, number: completion("your key is k-471147")) as server:
        assert ask(server)[0].completions[0].text == "your key is ***"


def test_no_part_of_a_key_stays_where_a_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with fake_server(lambda body, number: completion("x" * (LONGEST_TEXT - 9) + SECRET)) as server:
        assert "sk-never" not in ask(server)[0].completions[0].text
    spaces = Response(" " * (10 * QUOTED - 9) + SECRET, 404)
    with fake_server(lambda body, number: spaces) as server, pytest.raises(InputError, match="404") as refused:
        ask(server)
    assert "sk-never" not in str(refused.value)


@pytest.mark.parametrize(("status", "message"), [(403, "wants a key"), (422, "refuses the query")])
def test_a_refusal_is_told_by_what_its_status_means(status: int, message: str) -> None:
    with fake_server(lambda body, number: Response("no", status)) as server, pytest.raises(InputError, match=message):
        ask(server)


class Waits(Event):
    """Keeps the pauses that are asked for, and makes none."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout)
        return False


@pytest.mark.parametrize(
    ("pause", "headers", "seconds"),
    [(1.0, {}, [1, 2, 4]), (50.0, {}, [50, 100, 120]), (1.0, {"Retry-After": "120"}, [120, 120, 120])],
)
def test_pauses_double_up_to_the_longest_unless_the_server_says(
    pause: float, headers: dict[str, str], seconds: list[float]
) -> None:
    stop = Waits()
    with fake_server(lambda body, number: Response("", 429, headers)) as server:
        endpoint = Endpoint(server.url, None, 5.0, 3, pause)
        with closing(endpoint), pytest.raises(ModelError, match="in 4 tries"):
            endpoint.post({}, lambda raw: raw, stop)
    assert stop.seconds == seconds


def test_a_server_that_has_answered_before_is_tried_again_where_nobody_listens_any_more() -> None:
    with fake_server(lambda body, number: Response(hang_up=True) if number else echo(body, number)) as server:
        model = model_of(server, retries=1)
        assert len(list(model.complete([asking()]))) == 1
    with closing(model), pytest.raises(ModelError, match="gave no answer of use in 2 tries"):
        list(model.complete([asking("again")]))


def test_a_proxy_is_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with fake_server(echo) as server:
        assert len(ask(server, retries=0)) == 1
