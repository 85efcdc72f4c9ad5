"""Entries of `benchmarks/claims.yaml`, and their tables in `docs/claims.md`.

A claim is one sentence, the command that shows it, the metric in which it shows, and the bar that the metric must meet.
That it holds is computed from value, bar and git's history, never stored. `marl.claims.measure` measures claims,
`marl.claims.check` looks at what is recorded.
"""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator

from envs.core import InputError
from marl.config.schema import Section

BAR = re.compile(r"(>=|<=|==|>|<) (-?\d+(?:\.\d+)?(?:e-?\d+)?)")
COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda value, limit: value >= limit,
    "<=": lambda value, limit: value <= limit,
    "==": lambda value, limit: value == limit,
    ">": lambda value, limit: value > limit,
    "<": lambda value, limit: value < limit,
}
HEADER = """\
# What this project claims, and how to check it: `concord claims ID…` measures a claim again (a prefix such as `core/`
# selects many), `make claims` the quick tier, `make claims-slow` the rest, `concord claims --check` only looks.
# A claim holds where `measured.value` itself, not an end of its interval, meets `bar`, and where command, metric, bar
# and seeds are those that this file had at `measured.commit`; that is computed each time and written nowhere.
# `measured` and the tables of docs/claims.md are rewritten by the command, all else by hand. Comments are not kept.
# `measured.commit` is null where a value was measured before its commit was recorded; such a claim cannot be checked.
"""
DEFINING = ("command", "metric", "bar", "seeds")  # fields without which a value says nothing
TABLE = re.compile(r"(<!-- claims: ([^\n]*?) -->\n)(.*?)(<!-- /claims -->)", re.DOTALL)


class Measured(Section):
    """One measurement."""

    value: float = Field(allow_inf_nan=True)  # a metric may be no number; its claim then falls short
    date: str
    commit: str | None = Field(pattern="^[0-9a-f]{40}$", description="the tree it was measured on, nothing changed")
    machine: str


class Claim(Section):
    """One entry of claims.yaml."""

    id: str = Field(description="system/name")
    claim: str = Field(min_length=1, description="one sentence")
    command: str = Field(description="concord … or pytest …")
    metric: str = Field(min_length=1, description="its name in report.json; passed, 1 or 0, for a test")
    bar: str = Field(description="one comparison and one number")
    tier: Literal["quick", "slow"] = Field(description="quick: part of `make claims`")
    seeds: int = Field(ge=1, description="seeds that the figure summarizes")
    minutes: float = Field(gt=0, description="what the command takes on two cores")
    disputed: str | None = Field(default=None, description="path of the proof that the bar cannot be met")
    measured: Measured | None = Field(default=None, description="written by `concord claims`")

    @field_validator("id")
    @classmethod
    def _system_and_name(cls, value: str) -> str:
        if not re.fullmatch(r"\w+/[\w.-]+", value):
            raise ValueError(f"expected system/name; got {value!r}")
        return value

    @field_validator("bar")
    @classmethod
    def _one_comparison(cls, value: str) -> str:
        if not BAR.fullmatch(value):
            raise ValueError(f"expected one of {', '.join(COMPARE)} and a number, such as '>= 0.97'; got {value!r}")
        return value

    @field_validator("command")
    @classmethod
    def _known_command(cls, value: str) -> str:
        words = shlex.split(value)
        if words[:1] != ["pytest"] and words[:2] not in (["concord", "run"], ["concord", "bench"]):
            raise ValueError(f"expected concord run …, concord bench … or pytest …; got {value!r}")
        return value

    @property
    def system(self) -> str:
        """The first half of its id."""
        return self.id.partition("/")[0]

    @property
    def is_test(self) -> bool:
        """True where pytest measures it."""
        return shlex.split(self.command)[0] == "pytest"

    @property
    def tests(self) -> list[str]:
        """The files and folders of tests that its command names."""
        words = shlex.split(self.command)[1:] if self.is_test else []
        return [word.partition("::")[0] for word in words if word.startswith("tests")]

    @property
    def commit(self) -> str | None:
        """The commit that it was measured at, where it is known."""
        return self.measured.commit if self.measured else None

    def defined_by(self, entry: Mapping[str, Any] | None) -> bool:
        """True where an entry, as `definitions` gives it, has the same command, metric, bar and seeds."""
        return entry is not None and all(entry.get(name) == getattr(self, name) for name in DEFINING)

    def meets_bar(self, value: float) -> bool:
        """True where this value meets the bar; what is no number never does."""
        match = BAR.fullmatch(self.bar)
        assert match
        return not math.isnan(value) and COMPARE[match[1]](value, float(match[2]))

    @property
    def state(self) -> str:
        """holds, commit unknown (meets its bar), falls short, disputed (short, as is proved) or not measured."""
        if self.measured is None:
            return "not measured"
        if self.meets_bar(self.measured.value):
            return "holds" if self.commit else "commit unknown"
        return "disputed" if self.disputed else "falls short"


def read_systems(root: Path) -> dict[str, list[str]]:
    """The files and folders of each system, from benchmarks/systems.yaml. Raises InputError where it is wrong."""
    path = root / "benchmarks" / "systems.yaml"
    try:
        systems = TypeAdapter(dict[str, list[str]]).validate_python(_read_yaml(path))
    except ValidationError:
        raise InputError(f"{path} must hold, for each system, the list of its files and folders.") from None
    for system, places in systems.items():
        for place in places:
            if not (root / place).exists():
                raise InputError(f"{path}: {system} names {place}, which does not exist. Name the place it moved to.")
    return systems


def read_claims(root: Path, systems: Collection[str]) -> list[Claim]:
    """The checked entries of benchmarks/claims.yaml. Raises InputError, naming entry and field, for what is wrong."""
    path = root / "benchmarks" / "claims.yaml"
    raw = _read_yaml(path)
    if not isinstance(raw, list):
        raise InputError(f"{path} must hold a list of claims; got a {type(raw).__name__}.")
    try:
        claims = TypeAdapter(list[Claim]).validate_python(raw)
    except ValidationError as error:
        raise InputError("\n".join(_explain(path, raw, problem) for problem in error.errors())) from None
    ids = [claim.id for claim in claims]
    repeated = sorted(name for name in set(ids) if ids.count(name) > 1)
    if repeated:
        raise InputError(f"{path}: each id is used once; got {', '.join(repeated)} several times.")
    for claim in claims:
        if claim.system not in systems:
            known = ", ".join(systems)
            raise InputError(f"{path}: {claim.id}: id: expected one of benchmarks/systems.yaml before the /: {known}.")
        if claim.disputed is not None and not (root / claim.disputed).exists():
            raise InputError(f"{path}: {claim.id} is disputed by {claim.disputed}, which does not exist.")
    return claims


def definitions(text: str) -> dict[str, dict[str, Any]]:
    """By id, what some version of claims.yaml says of each claim besides `measured`; nothing if it is damaged."""
    try:
        raw = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return {}
    entries = [entry for entry in raw if isinstance(entry, dict)] if isinstance(raw, list) else []
    return {str(entry.get("id")): {key: entry[key] for key in entry if key != "measured"} for entry in entries}


def _read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"There is no {path}. Claims are measured in a clone of the repository, which has this file.")
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None


def _explain(path: Path, raw: list[Any], problem: Mapping[str, Any]) -> str:
    number, *fields = problem["loc"]
    entry = raw[number]
    name = entry.get("id", f"entry {number + 1}") if isinstance(entry, dict) else f"entry {number + 1}"
    place = ".".join(map(str, fields))
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(place, Claim.model_fields, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(Claim.model_fields)}."
        return f"{path}: {name} has an unknown key {place}. {hint}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "missing":
        return f"{path}: {name} lacks {place}."
    if problem["type"] == "value_error":
        return f"{path}: {name}: {place}: {message}."
    return f"{path}: {name}: {place}: expected {message}; got {problem['input']!r}."


def dump_claims(claims: Sequence[Claim]) -> str:
    """claims.yaml: one block an entry, keys in order, a sentence on one line."""
    blocks = []
    for claim in claims:
        entry = claim.model_dump()
        if claim.disputed is None:
            del entry["disputed"]
        if claim.measured is not None:
            entry["measured"]["value"] = _short(claim.measured.value)
        entry["minutes"] = _short(claim.minutes)
        blocks.append(yaml.safe_dump([entry], sort_keys=False, width=math.inf, allow_unicode=True))
    return HEADER + "\n" + "\n".join(blocks)


def _short(value: float) -> float | int:
    return int(value) if math.isfinite(value) and value == int(value) else value


def renew_tables(text: str, claims: Sequence[Claim], state: Callable[[Claim], str]) -> str:
    """A document with its tables of claims made anew; `state` gives that of each."""

    def table(match: re.Match[str]) -> str:
        prefixes = tuple(match[2].split())
        chosen = [claim for claim in claims if claim.id.startswith(prefixes)]
        return match[1] + results_table(chosen, state) + match[4]

    return TABLE.sub(table, text)


def results_table(claims: Sequence[Claim], state: Callable[[Claim], str]) -> str:
    """A Markdown table: claim, measured, bar, its verdict, the commit it was measured at, command."""
    rows = ["| claim | measured | bar | holds? | commit | command |", "| --- | --- | --- | --- | --- | --- |"]
    for claim in claims:
        verdict, commit = _verdict(claim, state(claim)), (claim.commit or "")[:7]
        cells = [claim.claim, _measured(claim), claim.bar, verdict, commit, f"`{claim.command}`"]
        escaped = [cell.replace("|", "\\|") for cell in cells]
        rows.append(f"| {' | '.join(escaped)} |")
    return "\n".join(rows) + "\n"


def _measured(claim: Claim) -> str:
    if claim.measured is None:
        return ""
    if claim.is_test:
        return "passed" if claim.measured.value else "failed"
    return figure(claim.measured.value)


def _verdict(claim: Claim, state: str) -> str:
    words = {
        "holds": "yes",
        "commit unknown": "yes, commit unknown",
        "defined otherwise": "defined otherwise when measured",
        "falls short": "**no**",
        "disputed": f"no, [disputed](../{claim.disputed})",
    }
    return words.get(state, state)


def figure(value: float) -> str:
    """A number with four significant digits, thousands set apart."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
