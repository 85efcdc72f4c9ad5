"""The configs that come with Concord."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel

from envs.core import InputError
from marl.config.load import yaml_text
from marl.config.schema import Section, section_of, walk


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
    near = difflib.get_close_matches(plain, known, 3, 0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else "`concord list` shows the names."
    raise InputError(f"There is no config {name!r}: neither a file nor a config that comes with Concord. {hint}")


def describe(config: BaseModel, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(key, value, range, meaning) of every field that holds a value, in order; options of a kind after its fields."""
    rows = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            rows += describe(value, f"{prefix}{name}.")
            continue
        rows.append(_row(f"{prefix}{name}", field, value))
        section = section_of(field.annotation)
        if section is not None:
            rows += [_row(key, below, None) for key, below, _ in walk(section, f"{prefix}{name}.")]
    if isinstance(config, Section) and config.options is not None:
        rows += describe(config.options, prefix)
    return rows


def _row(key: str, field: Any, value: Any) -> tuple[str, str, str, str]:
    return key, yaml_text(value), _range(field), field.description or ""


def _range(field: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥"}
    limits = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in signs.items() if hasattr(m, name)]
    annotation = field.annotation
    if getattr(annotation, "__origin__", None) is Literal:
        return " | ".join(str(choice) for choice in get_args(annotation))
    kind = getattr(annotation, "__name__", None) if isinstance(annotation, type) else str(annotation)
    kind = re.sub(r"typing\.|NoneType|<class '|'>", "", str(kind).replace("None", "null")).replace("Any", "any")
    return ", ".join([kind, *limits])
