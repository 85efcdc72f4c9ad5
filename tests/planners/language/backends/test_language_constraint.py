"""Servers that know a query's choices, several completions and the length of a text under names of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from fake_language_server import CHOICES, Response, ask, asking, completion, echo, fake_server, model_of

from envs.core import InputError


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


def test_a_server_counts_as_deaf_after_three_odd_answers() -> None:
    with fake_server(_deaf) as server:
        ask(server, *(asking(str(number), choices=CHOICES) for number in range(5)), concurrency=1)
    told = ["structured_outputs" in body or "response_format" in body for body in server.bodies]
    assert told == [True, True, False] * 3 + [False, False]


def test_one_odd_answer_is_a_slip_after_which_the_constraint_is_still_found() -> None:
    def respond(body: dict[str, Any], number: int) -> Response:
        return completion("") if number < 2 else _vllm(body, number)

    with fake_server(respond) as server:
        answers = ask(server, *(asking(str(number), choices=CHOICES) for number in range(3)), concurrency=1)
    assert [answer.completions[0].text for answer in answers] == ["free", "move to pot", "move to pot"]


def test_a_cut_answer_does_not_tell_that_the_constraint_was_ignored() -> None:
    with fake_server(lambda body, number: completion("move", finish="length")) as server:
        ask(server, asking("a", choices=CHOICES), asking("b", choices=CHOICES), concurrency=1)
    assert all("structured_outputs" in body for body in server.bodies)
    assert len(server.bodies) == 2


def test_a_query_that_the_constraint_cannot_take_is_asked_without() -> None:
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


def test_one_completion_after_the_other_is_no_sign_that_several_are_too_many() -> None:
    with fake_server(echo) as server:
        ask(server, asking("a"), asking("b", n=3), concurrency=1)
    assert [body.get("n") for body in server.bodies] == [None, 3]


def test_a_text_that_was_cut_says_nothing_against_a_constraint_whatever_follows_it() -> None:
    def respond(body: dict[str, Any], number: int) -> Response:
        return completion("mo", finish="length") if number == 0 else completion("wait")

    with fake_server(respond) as server:
        ask(server, asking(choices=CHOICES, n=2))
    assert ["structured_outputs" in body for body in server.bodies] == [True, True]
