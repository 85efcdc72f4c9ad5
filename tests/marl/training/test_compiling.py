"""Where what was compiled is kept, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Mortals, build

from envs.core import Tree, leaves, tree_map
from marl.output.console import console
from marl.training import compiling


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
    with compiling.compiled(*compiling.pure_methods(replayed.source, replayed.learner), cuda_graphs=True):
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
    with compiling.compiled(*compiling.pure_methods(run.source, run.learner), cuda_graphs=True):
        places = [x.data_ptr() for x in marked]
        run.train(2)
    assert {x.data_ptr() for x in run.parameters()} < set(places)
    assert [x.data_ptr() for x in run.learner.optimizer.standing()] == places


def test_without_graphs_none_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def compiled(method: Callable[..., Any], fullgraph: bool, options: dict[str, Any]) -> Callable[..., Any]:
        asked.append(options["triton.cudagraphs"])
        return method

    monkeypatch.setattr(torch, "compile", compiled)
    kept(monkeypatch, Path("nowhere"))
    assert asked == [False]
