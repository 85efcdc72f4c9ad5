"""Folders of runs: who may write there, and seeds of named purposes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from envs.core import ConcordError, InputError

LACKS_CONFIG = (
    ", but no config.yaml. Write into config.yaml what report.json has under config (JSON is YAML), and a last line "
    "'...'; or move the folder away."
)


def refuse_used_folder(folder: Path) -> None:
    """Raise InputError where a folder already holds a run, a sweep or a report, or is none: nothing is overwritten."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"{place} is a file, so no folder can be made of {folder}. Choose another --out.")
    if any((folder / name).exists() for name in ("config.yaml", "sweep.json")):
        raise InputError(
            f"{folder} already holds a run. Continue it with `concord resume {folder}`, or choose another --out."
        )
    if (folder / "report.json").exists():
        raise InputError(f"{folder} already holds a report{LACKS_CONFIG}")
    others = [*folder.glob("*/config.yaml"), *folder.glob("*/sweep.json")]
    if others:
        raise InputError(
            f"{folder} holds other runs, such as {min(others).parent}. Choose a folder of its own: "
            f"--out {folder / 'NAME'}."
        )


@contextmanager
def sole_trainer(folder: Path) -> Iterator[None]:
    """Hold a folder while training in it. Raises ConcordError where another process does."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"Nothing can be written to {folder} ({error.strerror}). Choose another --out, or mend the permissions or "
            "the disk."
        ) from error
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConcordError(
                f"Another process is training in {folder}. Wait for it, or end it and run `concord resume {folder}`."
            ) from None
        yield
