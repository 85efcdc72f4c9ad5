"""Files that are whole or not there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from envs.core import ConcordError


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step. Raises ConcordError where the disk refuses; the old file then stays."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> ConcordError:
    """The error for a disk that refuses."""
    return ConcordError(
        f"Cannot write {path}: {error.strerror or error}. What was saved before is intact; free some space or mend the "
        "permissions, then continue with `concord resume` on the run's folder."
    )
