"""The small model is trained once for a world, a wording and its settings, whoever asks and whatever is interrupted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from envs.core import InputError
from marl.config.schema import EnvConfig, TrainConfig
from marl.output.report import REPORT, Report
from planners.language.base import Message, Query, in_order
from planners.language.config import ModelConfig, open_model
from planners.tiny import find
from planners.tiny.config import Config, TinyConfig
from planners.tiny.find import config_of, find_or_train, fingerprint
from planners.tiny.imitation import Imitation
from planners.tiny.lessons import Lessons
from planners.tiny.recipe import MODEL

TINY = TinyConfig(lessons=90, rows=8, updates=12, hidden=8, layers=1, vocabulary=400)
MEETING = EnvConfig(world="worded_meetings:Meeting", time_limit=8)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("planners.tiny.recipe.ASKED", 6)
    return tmp_path / "concord" / "tiny"


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def in_a_child(function: Callable[[], Any]) -> int:
    """Start it in a process of its own; gives its number."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    return child


def outcome(child: int) -> int:
    """0, or less the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_each_update(monkeypatch: pytest.MonkeyPatch, told: Callable[[int], None]) -> None:
    """Tell of each update, by its number from 0 in this process, before it is done."""
    update, count = Imitation.update, iter(range(10_000))

    def spied(self: Imitation, batch: Any) -> Any:
        told(next(count))
        return update(self, batch)

    monkeypatch.setattr(Imitation, "update", spied)


def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*given: Any) -> Config:
        return config_of(*given).model_copy(update={"train": TrainConfig(save_seconds=0)})

    monkeypatch.setattr(find, "config_of", asked)


def test_the_second_call_trains_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    begin = Lessons.__init__

    def spied(self: Lessons, teacher: Any, seed: int) -> None:
        seeds.append(seed)
        begin(self, teacher, seed)

    monkeypatch.setattr(Lessons, "__init__", spied)
    folder = find_or_train(TINY, MEETING, "all")
    assert folder.parent.parent == home
    assert len(set(seeds)) == len(seeds) == 2  # it is examined in what it was not taught
    report = Report.load(folder.parent / REPORT)
    assert report.metrics["updates"].value == 12
    assert 0 < report.metrics["legal"].value <= 1
    assert report.metrics["divergence"].value > 0
    at_each_update(monkeypatch, lambda number: pytest.fail("trained again"))
    assert find_or_train(TINY, MEETING, "all") == folder
    # Only the world counts of an environment.
    elsewhere = MEETING.model_copy(update={"num_envs": 3, "time_limit": 99})
    assert find_or_train(TINY, elsewhere, "all") == folder


def test_it_leaves_the_threads_of_whoever_asks(home: Path) -> None:
    torch.set_num_threads(2)
    try:
        find_or_train(TINY, MEETING, "steps")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_of_two_processes_at_once_one_trains(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = home.parent.parent / "told"

    def tell(number: int) -> None:
        with told.open("a") as file:
            file.write(f"{number}\n")

    at_each_update(monkeypatch, tell)
    children = [in_a_child(lambda: find_or_train(TINY, MEETING, "all")) for _ in range(2)]
    assert [outcome(child) for child in children] == [0, 0]
    assert told.read_text().split() == [str(number) for number in range(12)]
    assert (find_or_train(TINY, MEETING, "all").parent / REPORT).is_file()


def test_a_killed_training_goes_on_to_the_same_bits(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights(find_or_train(TINY, MEETING, "all"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home.parent.parent / "other"))
    save_always(monkeypatch)

    def die_at_seven(number: int) -> None:
        if number == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as inner:
        at_each_update(inner, die_at_seven)
        assert outcome(in_a_child(lambda: find_or_train(TINY, MEETING, "all"))) == -signal.SIGKILL
    done: list[int] = []
    at_each_update(monkeypatch, done.append)
    resumed = weights(find_or_train(TINY, MEETING, "all"))
    assert len(done) == 5
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_one_that_was_killed_before_it_took_its_folder_begins_anew(home: Path) -> None:
    folder = home / fingerprint(config_of(TINY, MEETING, "all"))
    folder.mkdir(parents=True)
    (folder / "versions.json").write_text("{}")
    assert find_or_train(TINY, MEETING, "all").is_dir()


def test_another_world_wording_or_setting_is_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(tiny: TinyConfig = TINY, plans: Any = "all", **env: Any) -> str:
        return fingerprint(config_of(tiny, EnvConfig(world="worded_meetings:Meeting", **env), plans))

    first = of()
    assert first == of(num_envs=5, time_limit=3)
    others = [
        of(TINY.model_copy(update={"seed": 1})),
        of(TINY.model_copy(update={"noise": 0.1})),
        of(plans="steps"),
        of(args={"wording": "Five places."}),
        of(args={"starts": "anywhere"}),
        fingerprint(config_of(TINY, EnvConfig(world="worded_meetings:Wordless"), "all")),
    ]
    monkeypatch.setattr("planners.read.prompts.RULES", "Answer with {form}. You are {agents}.")
    monkeypatch.setattr("planners.tiny.find.ask_one", lambda *given: [Message("user", "asked otherwise")])
    assert len({first, *others, of()}) == 8


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (EnvConfig(world="worded_meetings:Wordless"), "a table of all states, and Wordless has none .* model.local"),
        (EnvConfig(world="worlds:TabularGame"), "needs a world with the methods words, plans and parse"),
        (EnvConfig(pettingzoo="mpe2.simple_spread_v3:parallel_env"), "set env.world, or ask another model"),
    ],
)
def test_where_none_can_be_trained_it_is_said(env: EnvConfig, message: str, home: Path) -> None:
    with pytest.raises(InputError, match=message):
        find_or_train(TINY, env, "all")
    assert not list(home.glob("*/"))


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"nothing can be written there .* XDG_CACHE_HOME"):
        find_or_train(TINY, MEETING, "all")


def test_where_no_model_is_named_it_is_the_small_one(home: Path) -> None:
    model = open_model(ModelConfig(tiny=TINY), "run", env=MEETING, plans="all")
    query = Query((Message("user", "What does ann do?"),), choices=("left", "go left"))
    assert in_order(model.complete([query]))[0].completions[0].text in query.choices
    assert len(in_order(model.score([query]))[0].whole) == 2
    model.close()
    with pytest.raises(InputError, match="give open_model its env"):
        open_model(ModelConfig(tiny=TINY, cache="none"), "run")


def test_a_training_that_was_not_finished_is_not_found(home: Path) -> None:
    (find.folder_of(config_of(TINY, MEETING, "all")) / MODEL).mkdir(parents=True)
    assert find.find(TINY, MEETING, "all") is None
