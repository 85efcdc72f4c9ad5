"""Where what was compiled is kept, and what is said about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SMALL_CONFIG, Mortals, build

from envs.core import InputError, Tree, leaves, tree_map
from marl.commands.run import run_training
from marl.commands.sweep import resume_folder
from marl.config.load import resolve
from marl.learning import unroll
from marl.output.console import console
from marl.training import compiling
from marl.training.run import Run


class Doubler:
    """Has a pure method."""

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        """Twice x."""
        return 2 * x


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled, which takes long."""
    monkeypatch.setattr(torch, "compile", lambda method, **options: method)


def kept(monkeypatch: pytest.MonkeyPatch, home: Path, named: str | None = None) -> str:
    """The folder that is told."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setenv(compiling.CACHE, named or compiling.default_cache_dir())
    owner = Doubler()
    with console.capture() as told, compiling.compiled((owner, "loss")):
        assert float(owner.loss(torch.tensor(3.0))) == 6
        assert isinstance(owner.loss, compiling.Compiled)
    assert not isinstance(owner.loss, compiling.Compiled)
    return told.get().partition(" kept in ")[2].partition("\n")[0]


def test_it_is_kept_in_the_user_s_cache_under_the_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = Path(kept(monkeypatch, tmp_path))
    assert folder.is_relative_to(tmp_path)
    assert torch.__version__ in folder.name
    assert folder.is_dir()


def test_a_folder_that_the_user_names_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert kept(monkeypatch, tmp_path, str(tmp_path / "mine")) == str(tmp_path / "mine")


def test_a_cache_that_cannot_be_written_is_torch_s_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert kept(monkeypatch, tmp_path / "file") == compiling.default_cache_dir()


def test_a_torch_that_is_too_old_compiles_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "TRACES_GRADIENTS", "no_such_option")
    owner = Doubler()
    with console.capture() as told, compiling.compiled((owner, "loss")):
        assert not isinstance(owner.loss, compiling.Compiled)
    assert "not compiled: torch" in told.get()


class Failing:
    """Its method fails by itself, which has nothing to do with compiling."""

    calls = 0

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        """Nothing."""
        self.calls += 1
        raise InputError("of its own")


def test_a_failure_of_the_method_s_own_is_no_reason_to_run_it_again() -> None:
    owner = Failing()
    with console.capture() as told, compiling.compiled((owner, "loss")), pytest.raises(InputError, match="of its own"):
        owner.loss(torch.zeros(1))
    assert owner.calls == 1
    assert "not compiled" not in told.get()


def test_the_compiler_is_set_up_within_and_left_as_it_was() -> None:
    def found() -> tuple[Any, Any]:
        options = torch._dynamo.config, torch._functorch.config
        return tuple(
            getattr(option, name)
            for option, name in zip(options, (compiling.TRACES_GRADIENTS, compiling.KEEPS_GRADIENTS))
        )

    before = found()
    with compiling.compiled((Doubler(), "loss")):
        assert found() == (True, True)
    assert found() == before


def test_a_reason_names_the_place_in_the_code() -> None:
    error = ValueError(
        'Branching\n\nfrom user code:\n  File "a.py", line 3, in act\n    x\n  File "b.py", line 7, in look\n'
    )
    assert compiling._reason(error) == 'Branching, File "b.py", line 7, in look'


def test_a_folder_that_cannot_be_written_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda folder, mode: mode != os.W_OK)
    assert kept(monkeypatch, tmp_path) == compiling.default_cache_dir()


def recipe_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[list[Any], list[int], str]:
    """Options that a run asks the compiler for, steps that it takes at once, and what it says."""
    asked, at_once = [], []

    def compile_(method: Any, fullgraph: bool, options: dict[str, Any]) -> Any:
        asked.append((method.__func__.__name__, options["triton.cudagraphs"]))

        def call(*given: Any) -> Any:
            if asked and hasattr(given[-1], "world"):
                at_once.append(len(given[-1].world.start[0]))
            return method(*given)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    with console.capture() as told:
        run_training(resolve(SMALL_CONFIG, {"compile": True, **settings}), tmp_path / "run")
    return asked, at_once, told.get()


def test_a_run_compiles_gradient_steps_and_four_steps_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked, at_once, told = recipe_run(tmp_path, monkeypatch, cuda_graphs=True)
    assert asked == [("descent", False), ("steps", False)]
    assert set(at_once) == {4}
    assert "cuda_graphs: true changes nothing on cpu" in told


def test_where_one_step_takes_too_many_numbers_the_world_s_steps_are_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(unroll, "MOST_DRAWN", 1)
    asked, at_once, _ = recipe_run(tmp_path, monkeypatch)
    assert [name for name, _ in asked] == ["descent", "advance"]
    assert not at_once


def test_graphs_need_something_compiled() -> None:
    with pytest.raises(InputError, match=r"cuda_graphs: true replays what is compiled, so it needs compile: true"):
        resolve(SMALL_CONFIG, {"cuda_graphs": True})


def test_compiling_may_begin_when_a_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run_training(resolve(SMALL_CONFIG, {}), tmp_path / "plain")
    resume_folder(tmp_path / "plain", ["train.env_steps=128"])
    run_training(resolve(SMALL_CONFIG, {}), tmp_path / "changed")
    resume_folder(tmp_path / "changed", ["train.env_steps=128", "compile=true", "cuda_graphs=true"])
    one, other = (Run.open(tmp_path / name).load("train", "policy") for name in ("plain", "changed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


class Recording:
    """As a CUDA graph does: reads where it read first, and overwrites what it gave before."""

    def __init__(self, method: Callable[..., Any]):
        self.method, self.read, self.gave = method, (), None

    def __call__(self, *arguments: Tree) -> Any:
        if self.gave is None:
            self.read = tree_map(torch.clone, arguments)
            self.gave = tree_map(torch.clone, self.method(*self.read))
            return self.gave
        tree_map(torch.Tensor.copy_, self.read, arguments)
        return tree_map(torch.Tensor.copy_, self.gave, self.method(*self.read))


def test_what_a_replayed_graph_gives_outlives_the_next_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, asked, begun = [], [], []

    def recording(method: Callable[..., Any], fullgraph: bool, options: dict[str, Any]) -> Recording:
        asked.append(options["triton.cudagraphs"])
        recorded.append(Recording(method))
        return recorded[-1]

    plain, replayed = (build(Mortals(), seeds=(1, 2), select_rows=True) for _ in range(2))
    assert replayed.source.unroll is not None
    replayed.source.unroll.at_once = 4
    plain.train(3)
    monkeypatch.setattr(torch, "compile", recording)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(True))
    with compiling.compiled(*compiling.compilable_methods(replayed.source, replayed.learner), cuda_graphs=True):
        replayed.train(3)
    assert asked == [True, True]
    assert len(begun) == 3 * (8 // 4) + 3 * 2 * 2  # four steps of eight; two epochs of two minibatches
    assert all(leaves(recording.gave) for recording in recorded)
    for one, other in zip(replayed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_optimizer_s_tensors_are_recorded_where_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    run, marked = build(Mortals()), []
    monkeypatch.setattr(torch._dynamo, "mark_static_address", marked.append)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    with compiling.compiled(*compiling.compilable_methods(run.source, run.learner), cuda_graphs=True):
        places = [x.data_ptr() for x in marked]
        run.train(2)
    assert {x.data_ptr() for x in run.parameters()} < set(places)
    assert [x.data_ptr() for x in run.learner.optimizer.standing()] == places


def test_what_steps_read_and_write_is_told_to_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    run = build(Mortals())
    held = vars(run.learner.optimizer)
    wanted = {held[name].data_ptr() for name in ("_mean", "_square", "_length", "_unbias")}
    standing = {x.data_ptr() for x in run.learner.optimizer.standing()}
    assert standing == wanted | {x.data_ptr() for x in run.parameters()}


def test_without_graphs_none_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[bool] = []

    def compiled(method: Callable[..., Any], fullgraph: bool, options: dict[str, Any]) -> Callable[..., Any]:
        asked.append(options["triton.cudagraphs"])
        return method

    monkeypatch.setattr(torch, "compile", compiled)
    kept(monkeypatch, tmp_path)
    assert asked == [False]
