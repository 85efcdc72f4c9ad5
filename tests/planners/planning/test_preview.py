"""What a run would ask, told before anything is asked, trained or kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from walkers import RANDOM, SMALL, say, small

from envs.core import InputError
from envs.world import TensorEnv
from marl.__main__ import main
from marl.commands.run import run_training
from marl.config.load import dump, resolve
from marl.training.run import stage_seed
from planners.language.base import Query
from planners.language.config import ModelConfig
from planners.language.counting import counter_of
from planners.planning.preview import first_prompts, outlook
from planners.planning.recipe import recipe, world_of
from planners.tiny.config import TinyConfig
from planners.tiny.find import find, find_or_train
from planners.tiny.tokenizer import train_tokenizer

ASKED: list[Query] = []
FREE = {name.replace(".", "__"): value for name, value in RANDOM.items()}


def overheard(query: Query, number: int) -> str:
    """A model that is known to have been asked."""
    ASKED.append(query)
    return say(query, number)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def shown(config: Any) -> str:
    console = Console(width=200, soft_wrap=True)
    with console.capture() as captured:
        recipe.preview(config, console)
    return captured.get()


def test_prompts_and_their_tokens_are_told_and_nothing_is_asked(home: Path) -> None:
    text = shown(small(**FREE))
    assert re.search(r"^prompt for ann: \d+ tokens$", text, re.MULTILINE)
    assert "prompt for bob after ann: " in text
    assert "after a plan was sent back" in text
    assert "Ann is at 0.\nBob is at 4." in text
    assert "Nothing was asked. A run learns a critic from 64 steps of random play" in text
    assert "4 episodes of read, alone, uniform." in text
    assert not home.exists()


def test_prompts_are_those_of_the_run(tmp_path: Path) -> None:
    config = small(**FREE | {"model__scripted": "test_preview:overheard"})
    prompts = [messages for title, messages in first_prompts(config, world_of(config)) if "ann" in title]
    assert not ASKED
    run_training(config, tmp_path / "run")
    assert prompts[0] in {query.messages for query in ASKED}


def test_they_are_of_the_first_episode_wherever_it_begins() -> None:
    config = small(**FREE, env__args={"starts": "anywhere"})
    world: Any = world_of(config)
    obs = TensorEnv(world, config.evaluation.num_envs).reset(stage_seed(config.seed, "evaluation 0"))
    _, messages = first_prompts(config, world)[0]
    assert messages[-1].content.startswith(world.words(obs, 0))


@pytest.mark.parametrize(
    ("overrides", "titles"),
    [
        ({"planner__mode": "joint"}, ["prompt for ann and bob", "prompt for ann and bob, after a plan was sent back"]),
        ({"planner__mode": "joint", "planner__kind": "reweigh"}, ["prompt for ann and bob"]),
        ({"planner__mode": "joint", "critic__kind": "none"}, ["prompt for ann and bob"]),
        ({"planner__mode": "joint", "planner__tell": False}, ["prompt for ann and bob"]),
    ],
)
def test_a_refusal_is_shown_where_one_can_be(overrides: Any, titles: list[str]) -> None:
    config = small(**overrides)
    assert [title for title, _ in first_prompts(config, world_of(config))] == titles


def test_the_outlook_is_that_of_the_critic() -> None:
    assert "A run counts 64 steps of the model's own play" in outlook(small(critic__kind="counted"))
    assert "lists all states for the values of random play" in outlook(small(critic__kind="exact", **FREE))
    assert "A run takes no critic, then plays 4 episodes of reweigh." in outlook(
        small(critic__kind="none", planner__kind="reweigh")
    )


def test_the_small_model_is_not_trained_for_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planners.tiny.recipe.ASKED", 6)
    names = {"lessons": 90, "rows": 8, "updates": 2, "hidden": 8, "layers": 1, "vocabulary": 700}
    config = small(**{f"model__tiny__{name}": value for name, value in names.items()})
    assert "prompt for ann: tokens not counted, as the small model is trained at the first run only" in shown(config)
    assert not home.exists()
    tiny = TinyConfig(**names)  # type: ignore[arg-type]
    assert find(tiny, config.env, "steps") is None
    folder = find_or_train(tiny, config.env, "steps")
    assert find(tiny, config.env, "steps") == folder
    assert re.search(r"^prompt for ann: \d+ tokens$", shown(config), re.MULTILINE)


def test_a_server_is_not_asked_and_a_folder_that_is_not_there_is_told() -> None:
    server = ModelConfig(server="http://localhost:1/v1", name="m")
    assert counter_of(server, small().env, "steps").told([]) == "tokens not counted, which the server does"
    with pytest.raises(InputError, match="There is no folder /nowhere"):
        counter_of(ModelConfig(local="/nowhere"), small().env, "steps")


def test_tokens_are_counted_by_the_revision_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[Any, ...]] = []

    def opened(*given: Any) -> Any:
        read.append(given)
        return train_tokenizer(["left"], 300)

    monkeypatch.setattr("planners.language.backends.loading.load_tokenizer", opened)
    counter_of(ModelConfig(local="some/model", revision="abc"), small().env, "steps")
    assert read == [("some/model", None, "abc")]


def concord(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["concord", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_the_command_shows_each_point_and_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "walk.yaml").write_text(dump(resolve(SMALL, RANDOM)))
    assert concord(monkeypatch, "run", "walk.yaml", "planner.mode=sequential,joint", "--dry") == 0
    told = capsys.readouterr().out
    assert "planner.mode=sequential" in told
    assert "planner.mode=joint" in told
    assert "prompt for ann and bob:" in told
    assert [path.name for path in tmp_path.iterdir()] == ["walk.yaml"]


def test_a_recipe_without_preview_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert concord(monkeypatch, "run", "cooperative/spread", "--dry") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "marl.algorithms.mappo cannot say beforehand what it would do; run it without --dry." in error
    assert not list(tmp_path.iterdir())


def test_random_numbers_of_others_are_left_alone() -> None:
    torch.manual_seed(3)
    first = torch.rand(2)
    torch.manual_seed(3)
    shown(small(**FREE))
    assert torch.equal(torch.rand(2), first)
