"""Where what was compiled is kept, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

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
