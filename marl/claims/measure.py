"""Measures claims again, records what came out, and says which recorded values may no longer be true.

What a measurement rests on is its digest: the claim's command and metric, the configs and test files that the command
names, and every module of the project that the command's processes loaded. Modules that only orchestrate or display
(`ORCHESTRATION`) are left out: they cannot change a figure.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.core import ConcordError, InputError
from marl import PACKAGES
from marl.claims.entries import SYSTEMS, Claim, Measured, dump_claims, figure, read_claims, renew_tables
from marl.config.catalog import find_config
from marl.output.console import console
from marl.output.report import Report, machine, versions, write_atomically

TIERS = ("quick", "slow", "all")
ORCHESTRATION = frozenset(
    f"marl.{name}" for name in ("__main__", "catalog", "claims", "display", "measuring", "pictures", "tables")
)
COLORS = {
    "holds": "green",
    "falls short": "bold red",
    "failed": "bold red",
    "disputed": "yellow",
    "not measured": "dim",
}


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
    ledger = Ledger(root or Path(__file__).resolve().parents[2])
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
        named = words[2].split(",")
        return [root / name if (root / name).is_file() else find_config(name).resolve() for name in named]
    if not claim.is_test:
        return []
    paths = [root / word.partition("::")[0] for word in words[1:] if word.startswith("tests")]
    return [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


def module_file(name: str, root: Path) -> Path:
    """The source of a module of the project."""
    path = root.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
