"""The section model: one origin, nothing that it ignores, and the model that it opens."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_language_server import completion, fake_server
from pydantic import ValidationError

from envs.core import InputError
from marl.config.schema import over, walk
from planners.language.base import Message, Query, in_order
from planners.language.config import ModelConfig, open_model
from planners.language.recorded import Budget, BudgetSpent

QUERIES = [Query((Message("user", f"number {number}"),)) for number in range(3)]
SERVER = {"server": "http://localhost:8000/v1", "name": "m"}


def shout(query: Query, number: int) -> str:
    """A scripted model, by its dotted path."""
    return query.messages[-1].content.upper()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "concord" / "language.sqlite"


def test_each_origin_is_enough() -> None:
    for origin in ({}, {"local": "folder"}, SERVER, {"replay": "t.jsonl"}, {"scripted": "module:function"}):
        assert ModelConfig(**origin).cache is None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"local": "a", "replay": "b"}, r"got model\.local|got local and replay"),
        ({"local": " "}, r"model\.local is empty"),
        ({"server": "http://localhost/v1"}, r"needs model\.name"),
        ({"server": "localhost/v1", "name": "m"}, "must begin with http:// or https://"),
        ({"server": "http://me:4711@host/v1", "name": "m"}, "no user or password"),
        ({"local": "a", "name": "m"}, r"model\.name is for model\.server; model\.local does not use it"),
        ({"local": "a", "retries": 1}, r"model\.retries is for model\.server"),
        ({**SERVER, "gguf": "a.gguf"}, r"model\.gguf is for model\.local"),
        ({**SERVER, "dtype": "bfloat16"}, r"model\.dtype is for model\.local"),
        ({"replay": "a", "cache": "b"}, r"model\.cache is for model\.local and model\.server"),
        ({"scripted": "a:b", "batch": 2}, r"model\.batch is for model\.local"),
        ({"scripted": "module.function"}, "expected module:function"),
        ({"local": "a", "budget": {"price": 1.0}}, r"needs model\.prices"),
        ({"local": "a", "budget": {"queries": -1}}, "greater than or equal to 0"),
        ({"local": "a", "batch": 0}, "greater than or equal to 1"),
        ({**SERVER, "timeout": 0}, "greater than 0"),
        ({**SERVER, "constraint": "guided_choice"}, "structured_outputs"),
        ({**SERVER, "key_variable": "sk-4711"}, "a key itself is never written in a config"),
        ({**SERVER, "key_variable": "a4711bc"}, "a key itself is never written in a config"),
    ],
)
def test_what_does_not_fit_is_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as refused:
        ModelConfig(**raw)
    assert all("4711" not in error["msg"] for error in refused.value.errors())


def test_every_field_is_described() -> None:
    for name, field, section in walk(ModelConfig):
        assert field.description or section, name


def test_another_origin_takes_the_place_of_the_default() -> None:
    default = ModelConfig(local="folder", cache="answers.sqlite")
    assert ModelConfig(**over(default, SERVER)) == ModelConfig(**SERVER, cache="answers.sqlite")


def test_a_scripted_model_leaves_no_cache(cache: Path, tmp_path: Path) -> None:
    config = ModelConfig(scripted=f"{__name__}:shout", budget=Budget(queries=3))
    with closing(open_model(config, "run", tmp_path / "t.jsonl")) as model:
        texts = [answer.completions[0].text for answer in in_order(model.complete(QUERIES))]
        wanted = model.spent()
    assert texts == ["NUMBER 0", "NUMBER 1", "NUMBER 2"]
    assert not cache.exists()
    with closing(open_model(ModelConfig(replay=str(tmp_path / "t.jsonl")), "run")) as model:
        assert [answer.completions[0].text for answer in in_order(model.complete(QUERIES))] == texts
        assert model.spent() == wanted
    assert not cache.exists()


def test_a_server_s_answers_are_kept_in_the_user_s_cache(cache: Path) -> None:
    with fake_server(lambda body, number: completion("a")) as server:
        for run, queries in (("one", 3), ("two", 0)):
            config = ModelConfig(server=server.url, name="m", budget=Budget(queries=queries))
            with closing(open_model(config, run)) as model:
                assert len(list(model.complete(QUERIES))) == 3
                assert (model.spent().queries, model.spent().cached) == (queries, 3 - queries)
        nothing_kept = ModelConfig(server=server.url, name="m", cache="none", budget=Budget(queries=0))
        with closing(open_model(nothing_kept, "one")) as model, pytest.raises(BudgetSpent):
            list(model.complete(QUERIES))
    assert cache.exists()
    assert len(server.bodies) == 3


def test_a_local_model_gets_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    module = ModuleType("planners.language.backends.local")

    def local(name: str, **options: Any) -> Any:
        given.append((name, options))
        raise InputError("stop here")

    module.Local = local
    monkeypatch.setitem(sys.modules, "planners.language.backends.local", module)
    with pytest.raises(InputError, match="stop here"):
        open_model(ModelConfig(local="folder", gguf="a.gguf", batch=2, cache="none"), "run", device="cuda")
    options = {"gguf": "a.gguf", "revision": None, "dtype": "float32", "batch": 2, "device": "cuda"}
    assert given == [("folder", options)]


@pytest.mark.parametrize("path", ["no_such_module:function", f"{__name__}:QUERIES"])
def test_a_script_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(InputError, match=r"no such module|is no function, but a list"):
        open_model(ModelConfig(scripted=path), "run")
