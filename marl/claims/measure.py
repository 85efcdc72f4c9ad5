"""Measures claims again and records what came out: value, date, commit and machine.

A value is recorded only where it can be measured again: on a tree that is a commit, nothing changed since.
"""

from __future__ import annotations

import datetime
import difflib
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
from marl.claims.entries import Claim, Measured, dump_claims, figure, read_claims, read_systems, renew_tables
from marl.claims.history import Checkout
from marl.output.console import console
from marl.output.files import write_atomically
from marl.output.report import Report
from marl.output.versions import machine

REPOSITORY = Path(__file__).resolve().parents[2]
TIERS = ("quick", "slow", "all")
CLAIMS, TABLES = "benchmarks/claims.yaml", "docs/claims.md"  # what recording itself writes
COLORS = {
    "holds": "green",
    "falls short": "bold red",
    "failed": "bold red",
    "disputed": "yellow",
    "not measured": "dim",
}


@dataclass(frozen=True)
class Line:
    """State of one claim. reason: why there is no new value."""

    claim: Claim
    state: str
    reason: str | None = None

    def print(self) -> None:
        """Id, value, bar and state, in color."""
        measured = None if self.reason else self.claim.measured
        value = "" if measured is None else figure(measured.value)
        console.print(f"{self.claim.id:<44} {value:>12}  {self.claim.bar:<14} ", markup=False, end="")
        console.print(self.state, style=COLORS[self.state], end="")
        proof = f", see {self.claim.disputed}" if self.state == "disputed" else ""
        console.print(proof + (f": {self.reason}" if self.reason else ""), markup=False)


@dataclass(frozen=True)
class Measurement:
    """Values that a command gave. missing: the reason for a metric that could not be measured here."""

    values: dict[str, float]
    missing: dict[str, str]


class Ledger:
    """Claims and systems of the repository in `root`, and the page with the tables of claims.

    Raises InputError where one of their files is missing or wrong.
    """

    def __init__(self, root: Path):
        self.root = root
        self.systems = read_systems(root)
        self.claims = read_claims(root, self.systems)

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
                hint = f"Did you mean {' or '.join(near)}?" if near else f"The systems are {', '.join(self.systems)}."
                raise InputError(f"No claim has the id {wanted!r}, nor begins with it. {hint}")

        def named(claim: Claim) -> bool:
            return not ids or any(claim.id == w or (w not in known and claim.id.startswith(w)) for w in ids)

        return [claim for claim in self.claims if tier in ("all", claim.tier) and named(claim)]

    def record(self, measured: Sequence[Claim]) -> None:
        """Save the measurements of some claims; whatever was edited in the file meanwhile stays."""
        fresh = {claim.id: claim.measured for claim in measured}
        self.claims = [
            claim.model_copy(update={"measured": fresh[claim.id]}) if claim.id in fresh else claim
            for claim in read_claims(self.root, self.systems)
        ]
        write_atomically(self.root / CLAIMS, dump_claims(self.claims))
        self.write_tables()

    def write_tables(self) -> None:
        """Rewrite the tables between `<!-- claims: PREFIX … -->` and `<!-- /claims -->` in docs/claims.md."""
        page = self.root / TABLES
        if page.exists():
            write_atomically(page, renew_tables(page.read_text(), self.claims))


def measure_claims(ids: Sequence[str], tier: str, root: Path = REPOSITORY) -> int:
    """Measure the chosen claims and print a line for each.

    Every command runs once, however many claims share it, and is saved when it is done. Returns the exit code: 1 where
    a claim falls short or a command failed, else 0. Raises InputError for bad input.
    """
    ledger = Ledger(root)
    lines: list[Line] = []
    for claims in by_command(ledger.select(ids, tier)).values():
        lines += _measure(ledger, claims)
    return conclude(lines)


def conclude(lines: Sequence[Line]) -> int:
    """Print how many claims are in each state; gives the exit code, 1 where one falls short or failed, else 0."""
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
    """Run the one command of some claims, record what it gave if the tree is clean, and print their lines."""
    console.print(f"{claims[0].command}  (about {claims[0].minutes:g} min)", markup=False, style="bold")
    begun = time.monotonic()
    before = Checkout.at(ledger.root, besides=(CLAIMS, TABLES))
    try:
        outcome = run_command(claims[0], ledger.root)
    except ConcordError as error:
        lines = [Line(claim, "failed", reason=str(error)) for claim in claims]
        obstacle = None
    else:
        console.print(f"took {time.monotonic() - begun:.0f} s")
        measured = with_values(claims, outcome, before.commit)
        lines = [_line(claim, outcome) for claim in measured]
        obstacle = why_not_recorded(before, Checkout.at(ledger.root, besides=(CLAIMS, TABLES)))
        if obstacle is None:
            ledger.record([claim for claim in measured if claim.metric in outcome.values])
    for line in lines:
        line.print()
    if obstacle is not None:
        console.print(obstacle, style="yellow", markup=False)
    return lines


def with_values(claims: Sequence[Claim], outcome: Measurement, commit: str | None) -> list[Claim]:
    """Claims with what their command gave; one whose metric is missing stays as it was."""
    today = datetime.date.today().isoformat()
    measured = []
    for claim in claims:
        if claim.metric in outcome.values:
            value = outcome.values[claim.metric]
            entry = Measured(value=value, date=today, commit=commit, machine=machine())
            claim = claim.model_copy(update={"measured": entry})
        measured.append(claim)
    return measured


def why_not_recorded(before: Checkout, after: Checkout) -> str | None:
    """One sentence that says why a measurement is not recorded and how to mend it; None where it is."""
    if before.commit is None:
        return "Not recorded, since no git commit says what was measured: measure in a clone of the repository."
    changed = before.changed or after.changed
    if changed:
        names = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
        return f"Not recorded, since the tree has uncommitted changes ({names}): commit first, then measure again."
    if after.commit != before.commit:
        return "Not recorded, since the tree moved to another commit meanwhile: measure again."
    return None


def _line(claim: Claim, outcome: Measurement) -> Line:
    if claim.metric in outcome.values:
        return Line(claim, claim.state)
    if claim.metric in outcome.missing:
        return Line(claim, "not measured", reason=outcome.missing[claim.metric])
    near = difflib.get_close_matches(claim.metric, outcome.values, 3) or outcome.values
    return Line(claim, "failed", reason=f"the report has no metric {claim.metric!r}; it has {', '.join(near)}.")


def run_command(claim: Claim, root: Path) -> Measurement:
    """Run a claim's command from the repository root, its output visible. Raises ConcordError where it fails."""
    folder = Path(tempfile.mkdtemp(prefix="concord-claims-"))
    words = shlex.split(claim.command)[1:]
    if claim.is_test:
        results = folder / "results.xml"
        code = subprocess.run([sys.executable, "-m", "pytest", *words, f"--junitxml={results}"], cwd=root).returncode
        passed = code == 0 and passing_tests(results) > 0
        outcome = Measurement({"passed": float(passed)}, {})
    else:
        code = subprocess.run([sys.executable, "-m", "marl", *words, "--out", str(folder / "out")], cwd=root).returncode
        if code:
            raise ConcordError(f"`{claim.command}` ended with exit code {code}; what it left is in {folder}.")
        report = Report.load(folder / "out" / "report.json")
        values = {name: metric.value for name, metric in report.metrics.items()}
        missing = {row["metric"]: row["reason"] for row in report.tables.get("not_measured", [])}
        outcome = Measurement(values, missing)
    shutil.rmtree(folder)
    return outcome


def passing_tests(results: Path) -> int:
    """Number of tests that passed, from pytest's JUnit file; 0 where any failed or none ran."""
    if not results.exists():
        return 0
    suites = list(xml.etree.ElementTree.parse(results).getroot().iter("testsuite"))

    def count(*names: str) -> int:
        return sum(int(suite.get(name, 0)) for suite in suites for name in names)

    return 0 if count("failures", "errors") else count("tests") - count("skipped")
