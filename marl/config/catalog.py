"""The configs that come with Concord."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from envs.core import InputError


@dataclass(frozen=True)
class Entry:
    """A config's name and what its header comment says."""

    name: str
    path: Path
    summary: str


def config_root() -> Path:
    """The folder of configs, which in a checkout is a link to `configs/`."""
    return Path(__file__).resolve().parents[1] / "configs"


def catalog() -> list[Entry]:
    """Every config, by name."""
    root = config_root()
    paths = sorted(root.rglob("*.yaml"))
    return [Entry(str(p.relative_to(root).with_suffix("")), p, header(p)) for p in paths]


def header(path: Path) -> str:
    """The comment at the top of a file."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)


def find_config(name: str) -> Path:
    """A file by path, or a config by its name. Raises InputError with the nearest names."""
    path = Path(name)
    if path.is_file():
        return path
    known = {entry.name: entry.path for entry in catalog()}
    plain = name.removesuffix(".yaml").removeprefix("configs/")
    if plain in known:
        return known[plain]
    # A name may lack its folder.
    names = {name.rpartition("/")[2]: name for name in known} | {name: name for name in known}
    near = dict.fromkeys(names[name] for name in difflib.get_close_matches(plain, names, 3, 0.7))
    hint = f"Did you mean {' or '.join(near)}?" if near else "`concord list` shows the names."
    raise InputError(f"There is no config {name!r}: neither a file nor a config that comes with Concord. {hint}")
