"""Checkpoints: safetensors for tensors, JSON for the rest, whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.core import ConcordError
from marl.output.console import console
from marl.output.files import cannot_write

TENSOR = "__tensor__"
KEPT = 2


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a tree of dicts, lists, tensors and JSON values to `folder`, which appears in one step or not at all.

    Raises ConcordError where the disk refuses; checkpoints written before stay as they are.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    skeleton = _split(state, "", tensors)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        blob = save(tensors)
        _write(partial / "tensors.safetensors", blob)
        digest = hashlib.sha256(blob).hexdigest()
        _write(partial / "state.json", json.dumps({"sha256": digest, "state": skeleton}).encode())
        partial.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise cannot_write(folder, error) from error


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The tree that was saved. Raises ConcordError for a checkpoint that is damaged."""
    from safetensors.torch import load

    try:
        blob = (folder / "tensors.safetensors").read_bytes()
        saved = json.loads((folder / "state.json").read_text())
        if hashlib.sha256(blob).hexdigest() != saved["sha256"]:
            raise ValueError("its tensors are not those that were written")
        tensors = load(blob)
        return _join(saved["state"], tensors, torch.device(device))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConcordError(
            f"The checkpoint {folder} cannot be read: {error}. Delete that folder, and the run resumes from the one "
            "before it, or from its beginning if there is none."
        ) from error


def load_newest(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The newest checkpoint of a stage that can be read; what cannot is told. Raises ConcordError where none can."""
    *older, oldest = reversed(checkpoints(folder))
    for newest in older:
        try:
            return load_checkpoint(newest, device)
        except ConcordError as error:
            console.print(f"{error} Here the one before it is taken.", markup=False)
    return load_checkpoint(oldest, device)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    return sorted(p for p in folder.glob("[0-9]*") if p.is_dir()) if folder.is_dir() else []


def remove_old(folder: Path) -> None:
    """Keep the newest checkpoints only."""
    for old in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _split(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        name = path or "tensor"
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {TENSOR: name}
    if isinstance(tree, dict):
        return {str(key): _split(value, f"{path}/{key}", tensors) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_split(value, f"{path}/{i}", tensors) for i, value in enumerate(tree)]
    return tree


def _join(skeleton: Any, tensors: dict[str, Tensor], device: torch.device) -> Any:
    if isinstance(skeleton, dict):
        if TENSOR in skeleton:
            return tensors[skeleton[TENSOR]].to(device)
        return {key: _join(value, tensors, device) for key, value in skeleton.items()}
    if isinstance(skeleton, list):
        return [_join(value, tensors, device) for value in skeleton]
    return skeleton


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        if file.write(content) != len(content):
            raise OSError(errno.ENOSPC, "the disk took only a part")
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
