"""The files that a path names: one of that very name, those of a folder, or those that fit a pattern."""

from __future__ import annotations

from pathlib import Path

from envs.core import InputError

EXPECTED = ".csv, .csv.gz or .parquet"


def matching(path: str | Path) -> list[Path]:
    """The files that a path, a folder or a pattern such as logs/*/part-*.csv names, by name; ~ is the home.

    What exists by that very name is meant by it, also where the name holds [, ] or *. Raises InputError for none.
    """
    place = home(path)
    found = _found(place)
    files = [file for file in found if file.is_file()]
    if len(found) == 1 and found[0].is_dir():
        files = sorted(file for file in found[0].iterdir() if file.is_file() and kind_of(file) in ("csv", "parquet"))
    if not files and found == [place] and not place.exists():
        raise InputError(f"There is no log {place}: expected a file, a folder or a pattern of {EXPECTED}.")
    if not files:
        raise InputError(f"{path} matches no file: expected {EXPECTED}.")
    return files


def one_file(path: str | Path, what: str) -> Path:
    """The one file that a path names, as in `matching`. Raises InputError for none, or several."""
    found = [file for file in _found(home(path)) if file.is_file()]
    if not found:
        raise InputError(f"There is no {what} at {path}.")
    if len(found) > 1:
        raise InputError(f"{path} must name one {what}; it names {len(found)} files, {found[0]} first.")
    return found[0]


def home(path: str | Path) -> Path:
    """A path in which a leading ~ is the home. Raises InputError for a user without one."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path} begins with ~ and names nobody's home: {error}") from None


def kind_of(path: Path) -> str:
    """The ending of a file's name, without .gz."""
    return path.name.lower().removesuffix(".gz").rpartition(".")[2]


def _found(place: Path) -> list[Path]:
    """The path itself, or what fits it as a pattern; each part of it that exists as written is no pattern."""
    if place.exists() or not any(sign in str(place) for sign in "*?["):
        return [place]
    found = [Path(place.anchor)]
    for part in place.relative_to(place.anchor).parts:
        found = [deeper for base in found for deeper in _below(base, part)]
    return sorted(set(found))


def _below(base: Path, part: str) -> list[Path]:
    if (base / part).exists():
        return [base / part]
    return list(base.glob(part)) if any(sign in part for sign in "*?[") else []
