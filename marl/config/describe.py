"""Every field of a config with its value, range and meaning."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from pydantic import BaseModel

from marl.config.load import yaml_text
from marl.config.schema import Section, section_of, walk


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
