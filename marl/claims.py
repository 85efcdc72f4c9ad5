"""Claims that re-measure themselves: `benchmarks/claims.yaml`, what each rests on, and the tables of the documentation.

A claim is one sentence, the command that shows it, the metric in which it shows, and the bar that the metric must meet.
Whether it holds is computed from value and bar, never stored. What a measurement rests on is its digest: the claim's
command and metric, the configs and test files that the command names, and every module of the project that the
command's processes loaded. Modules that only orchestrate or display (`ORCHESTRATION`) are left out: they cannot
change a figure.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator

from envs.core import ConcordError, InputError
from marl import PACKAGES
from marl.catalog import find_config
from marl.config import Section
from marl.display import console
from marl.report import Report, machine, versions, write_atomically

SYSTEMS = ("core", "bnpg", "mean_field", "ope", "tscac", "cmorl", "slim", "kitchen", "read")
TIERS = ("quick", "slow", "all")
ORCHESTRATION = frozenset(f"marl.{name}" for name in ("__main__", "catalog", "claims", "display", "pictures", "tables"))
BAR = re.compile(r"(>=|<=|==|>|<) (-?\d+(?:\.\d+)?(?:e-?\d+)?)")
COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda value, limit: value >= limit,
    "<=": lambda value, limit: value <= limit,
    "==": lambda value, limit: value == limit,
    ">": lambda value, limit: value > limit,
    "<": lambda value, limit: value < limit,
}
COLORS = {
    "holds": "green",
    "falls short": "bold red",
    "failed": "bold red",
    "disputed": "yellow",
    "not measured": "dim",
}
HEADER = """\
# What this project claims, and how to check it: `concord claims ID…` measures a claim again (a prefix such as `core/`
# selects many), `make claims` the quick tier, `make claims-slow` the rest, `concord claims --check` only looks.
# A claim holds where `measured.value` meets `bar`; that is computed each time and written nowhere. `measured` and the
# tables of README and docs are rewritten by the command; everything else is written by hand. Comments are not kept.
"""
TABLE = re.compile(r"(<!-- claims: ([^\n]*?) -->\n)(.*?)(<!-- /claims -->)", re.DOTALL)


class Measured(Section):
    """One measurement, and what it rested on."""

    value: float = Field(allow_inf_nan=True)  # a metric may be no number; its claim then falls short
    date: str
    versions: dict[str, str]
    machine: str
    digest: str


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
    def _known_system(cls, value: str) -> str:
        system, slash, name = value.partition("/")
        if not slash or not re.fullmatch(r"[\w.-]+", name) or system not in SYSTEMS:
            raise ValueError(f"expected system/name with a system among {', '.join(SYSTEMS)}; got {value!r}")
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
    def is_test(self) -> bool:
        """Whether pytest measures it."""
        return shlex.split(self.command)[0] == "pytest"

    def meets_bar(self, value: float) -> bool:
        """Whether this value meets the bar; what is no number never does."""
        match = BAR.fullmatch(self.bar)
        assert match
        return not math.isnan(value) and COMPARE[match[1]](value, float(match[2]))

    @property
    def state(self) -> str:
        """holds, falls short, disputed (short, with a proof that it must be) or not measured."""
        if self.measured is None:
            return "not measured"
        if self.meets_bar(self.measured.value):
            return "holds"
        return "disputed" if self.disputed else "falls short"


@dataclass(frozen=True)
class Line:
    """How one claim stands. reason: why there is no new value."""

    claim: Claim
    state: str
    stale: bool = False
    reason: str | None = None

    def print(self) -> None:
        """Id, value, bar and state, in color."""
        measured = None if self.reason else self.claim.measured
        value = "" if measured is None else figure(measured.value)
        console.print(f"{self.claim.id:<44} {value:>12}  {self.claim.bar:<14} ", markup=False, end="")
        console.print(self.state, style=COLORS[self.state], end="")
        console.print(", stale" if self.stale else "", style="yellow", end="")
        proof = f", see {self.claim.disputed}" if self.state == "disputed" else ""
        console.print(proof + (f": {self.reason}" if self.reason else ""), markup=False)


@dataclass(frozen=True)
class Outcome:
    """What a command gave. missing: the reason for a metric that could not be measured here."""

    values: dict[str, float]
    missing: dict[str, str]
    versions: dict[str, str]
    modules: list[str]


class Ledger:
    """claims.yaml and modules.json in `root`/benchmarks, and the documents with tables of claims in `root`.

    Raises InputError where claims.yaml is missing or wrong.
    """

    def __init__(self, root: Path):
        self.root = root
        self.path = root / "benchmarks" / "claims.yaml"
        self._modules_path = root / "benchmarks" / "modules.json"
        self.claims = read_claims(self.path, root)
        self.modules: dict[str, list[str]] = {}
        if self._modules_path.exists():
            self.modules = json.loads(self._modules_path.read_text())

    def select(self, ids: Sequence[str], tier: str) -> list[Claim]:
        """The claims of this tier that `ids` name: each is an id, or else the beginning of some.

        Raises InputError for one that fits no claim.
        """
        if tier not in TIERS:
            raise InputError(f"--tier is one of {', '.join(TIERS)}; got {tier!r}.")
        known = {claim.id for claim in self.claims}
        for wanted in ids:
            if not any(name.startswith(wanted) for name in known):
                near = difflib.get_close_matches(wanted, known, 3)
                hint = f"Did you mean {' or '.join(near)}?" if near else f"The systems are {', '.join(SYSTEMS)}."
                raise InputError(f"No claim has the id {wanted!r}, nor begins with it. {hint}")

        def named(claim: Claim) -> bool:
            return not ids or any(claim.id == w or (w not in known and claim.id.startswith(w)) for w in ids)

        return [claim for claim in self.claims if tier in ("all", claim.tier) and named(claim)]

    def current(self, claim: Claim) -> Claim:
        """The claim with its newest measurement."""
        return next(c for c in self.claims if c.id == claim.id)

    def is_stale(self, claim: Claim) -> bool:
        """Whether what the recorded value rested on has changed, is gone, or is not known."""
        if claim.measured is None:
            return False
        try:
            return claim.measured.digest != digest(claim, self.modules[claim.command], self.root)
        except (KeyError, OSError, InputError):
            return True

    def record(self, outcome: Outcome, claims: Sequence[Claim]) -> None:
        """Save what one command measured for some claims; whatever was edited in the file meanwhile stays."""
        self.modules[claims[0].command] = outcome.modules
        known = dict(outcome.versions)
        where = known.pop("machine", machine())
        fresh = {
            claim.id: Measured(
                value=outcome.values[claim.metric],
                date=datetime.date.today().isoformat(),
                versions=known,
                machine=where,
                digest=digest(claim, outcome.modules, self.root),
            )
            for claim in claims
            if claim.metric in outcome.values
        }
        self.claims = [
            claim.model_copy(update={"measured": fresh[claim.id]}) if claim.id in fresh else claim
            for claim in read_claims(self.path, self.root)
        ]
        commands = {claim.command for claim in self.claims}
        kept = {command: self.modules[command] for command in sorted(self.modules) if command in commands}
        write_atomically(self._modules_path, json.dumps(kept, indent=1) + "\n")
        write_atomically(self.path, dump_claims(self.claims))
        self.write_tables()

    def write_tables(self) -> None:
        """Rewrite the tables between `<!-- claims: PREFIX … -->` and `<!-- /claims -->` in README.md and docs/*.md."""
        stale = {claim.id for claim in self.claims if self.is_stale(claim)}
        for path in [self.root / "README.md", *sorted((self.root / "docs").glob("*.md"))]:
            if path.exists():
                text = path.read_text()
                renewed = renew_tables(text, self.claims, stale)
                if renewed != text:
                    write_atomically(path, renewed)


def run_claims(ids: Sequence[str], tier: str, check: bool, root: Path | None = None) -> int:
    """Measure the chosen claims, or only look at what is recorded, and print a line for each.

    Every command runs once, however many claims share it, and is saved when it is done. Returns the exit code: 1 where
    a claim falls short or a command failed, else 0. Raises InputError for bad input.
    """
    ledger = Ledger(root or Path(__file__).resolve().parent.parent)
    chosen = ledger.select(ids, tier)
    if check:
        lines = [Line(claim, claim.state, stale=ledger.is_stale(claim)) for claim in chosen]
        for line in lines:
            line.print()
    else:
        lines = [line for claims in by_command(chosen).values() for line in _measure(ledger, claims)]
    states = [line.state for line in lines]
    console.print(", ".join(f"{states.count(state)} {state}" for state in COLORS if state in states) or "no claims")
    return 1 if {"falls short", "failed"} & set(states) else 0


def by_command(claims: Sequence[Claim]) -> dict[str, list[Claim]]:
    """Claims that one command measures, in order."""
    groups: dict[str, list[Claim]] = {}
    for claim in claims:
        groups.setdefault(claim.command, []).append(claim)
    return groups


def _measure(ledger: Ledger, claims: Sequence[Claim]) -> list[Line]:
    """Run the one command of some claims, record what it gave, and print their lines."""
    console.print(f"{claims[0].command}  (about {claims[0].minutes:g} min)", markup=False, style="bold")
    begun = time.monotonic()
    try:
        outcome = run_command(claims[0], ledger.root)
    except ConcordError as error:
        lines = [Line(claim, "failed", reason=str(error)) for claim in claims]
    else:
        console.print(f"took {time.monotonic() - begun:.0f} s")
        ledger.record(outcome, claims)
        lines = [_line(ledger.current(claim), outcome) for claim in claims]
    for line in lines:
        line.print()
    return lines


def _line(claim: Claim, outcome: Outcome) -> Line:
    if claim.metric in outcome.values:
        return Line(claim, claim.state)
    if claim.metric in outcome.missing:
        return Line(claim, "not measured", reason=outcome.missing[claim.metric])
    near = difflib.get_close_matches(claim.metric, outcome.values, 3) or outcome.values
    return Line(claim, "failed", reason=f"the report has no metric {claim.metric!r}; it has {', '.join(near)}.")


def run_command(claim: Claim, root: Path) -> Outcome:
    """Run a claim's command from the repository root, its output visible. Raises ConcordError where it fails."""
    folder = Path(tempfile.mkdtemp(prefix="concord-claims-"))
    loaded = folder / "loaded.txt"
    environment = {**os.environ, "CONCORD_LOADED": str(loaded)}
    words = shlex.split(claim.command)
    if claim.is_test:
        results = folder / "results.xml"
        arguments = [sys.executable, "-m", "pytest", *words[1:], f"--junitxml={results}"]
        code = subprocess.run(arguments, cwd=root, env=environment).returncode
        passed = code == 0 and passing_tests(results) > 0
        outcome = Outcome({"passed": float(passed)}, {}, versions(), modules_in(loaded, root))
    else:
        arguments = [sys.executable, "-m", "marl", *words[1:], "--out", str(folder / "out")]
        code = subprocess.run(arguments, cwd=root, env=environment).returncode
        if code:
            raise ConcordError(f"`{claim.command}` ended with exit code {code}; what it left is in {folder}.")
        report = Report.load(folder / "out" / "report.json")
        values = {name: metric.value for name, metric in report.metrics.items()}
        missing = {row["metric"]: row["reason"] for row in report.tables.get("not_measured", [])}
        outcome = Outcome(values, missing, report.versions, modules_in(loaded, root))
    shutil.rmtree(folder)
    return outcome


def passing_tests(results: Path) -> int:
    """How many tests passed, from pytest's JUnit file; 0 where any failed or none ran."""
    if not results.exists():
        return 0
    suites = list(xml.etree.ElementTree.parse(results).getroot().iter("testsuite"))
    total, failed, skipped = (
        sum(sum(int(suite.get(name, 0)) for name in names) for suite in suites)
        for names in (("tests",), ("failures", "errors"), ("skipped",))
    )
    return 0 if failed else total - skipped


def modules_in(loaded: Path, root: Path) -> list[str]:
    """The project's modules that processes wrote down; all there are, if none did (tests that never import marl)."""
    if loaded.exists():
        names = set(loaded.read_text().split()) - ORCHESTRATION
        return sorted(name for name in names if module_file(name, root).is_file())
    paths = [path.relative_to(root) for package in PACKAGES for path in (root / package).rglob("*.py")]
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths}
    return sorted(names - ORCHESTRATION)


def digest(claim: Claim, modules: Sequence[str], root: Path) -> str:
    """SHA-256 over a claim's command and metric and the names and bytes of the files that its value rests on.

    Raises OSError or InputError where one of them is gone.
    """
    total = hashlib.sha256(f"{claim.command}\n{claim.metric}\n".encode())
    for path in sorted({*named_files(claim, root), *(module_file(name, root) for name in modules)}):
        content = path.read_bytes()
        total.update(f"{os.path.relpath(path, root)} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()


def named_files(claim: Claim, root: Path) -> list[Path]:
    """The configs or test files that a command names."""
    words = shlex.split(claim.command)
    if words[:2] == ["concord", "run"]:
        path = root / words[2]
        return [path if path.is_file() else find_config(words[2]).resolve()]
    if not claim.is_test:
        return []
    paths = [root / word.partition("::")[0] for word in words[1:] if word.startswith("tests")]
    return [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


def module_file(name: str, root: Path) -> Path:
    """The source of a module of the project."""
    path = root.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def read_claims(path: Path, root: Path) -> list[Claim]:
    """The checked entries of claims.yaml. Raises InputError, naming entry and field, for whatever is wrong."""
    if not path.is_file():
        raise InputError(
            f"There is no {path}. Claims are measured in a checkout of the repository, where benchmarks/claims.yaml is."
        )
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
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
        if claim.disputed is not None and not (root / claim.disputed).exists():
            raise InputError(f"{path}: {claim.id} is disputed by {claim.disputed}, which does not exist.")
    return claims


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


def renew_tables(text: str, claims: Sequence[Claim], stale: set[str]) -> str:
    """A document with its tables of claims made anew."""

    def table(match: re.Match[str]) -> str:
        prefixes = tuple(match[2].split())
        chosen = [claim for claim in claims if claim.id.startswith(prefixes)]
        return match[1] + results_table(chosen, stale) + match[4]

    return TABLE.sub(table, text)


def results_table(claims: Sequence[Claim], stale: set[str]) -> str:
    """A Markdown table: claim, measured, bar, whether it holds, command."""
    rows = ["| claim | measured | bar | holds? | command |", "| --- | --- | --- | --- | --- |"]
    for claim in claims:
        cells = (claim.claim, _measured(claim), claim.bar, _verdict(claim, claim.id in stale), f"`{claim.command}`")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def _measured(claim: Claim) -> str:
    if claim.measured is None:
        return ""
    if claim.is_test:
        return "passed" if claim.measured.value else "failed"
    return figure(claim.measured.value)


def _verdict(claim: Claim, stale: bool) -> str:
    words = {"holds": "yes", "falls short": "**no**", "disputed": f"no, [disputed]({claim.disputed})"}
    return words.get(claim.state, claim.state) + (" (stale)" if stale else "")


def figure(value: float) -> str:
    """A number with four significant digits, thousands set apart."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
