"""Measures claims again and records what came out: value, date, commit and machine.

A value is recorded only where it can be measured again: on a tree that is a commit, nothing changed since. A
command that fails by itself leaves no value: what was measured before would go on counting for what no longer runs.
"""

from __future__ import annotations

import datetime
import difflib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from envs.core import ConcordError, InputError
from marl.claims.entries import (
    Claim,
    Measured,
    definitions,
    dump_claims,
    figure,
    read_claims,
    read_systems,
    renew_tables,
)
from marl.claims.history import Checkout, file_at
from marl.output.console import console
from marl.output.files import write_atomically
from marl.output.report import Report
from marl.output.versions import machine

REPOSITORY = Path(__file__).resolve().parents[2]
TIERS = ("quick", "slow", "all")
CLAIMS, TABLES = "benchmarks/claims.yaml", "docs/claims.md"  # what recording itself writes
COLORS = {
    "holds": "green",
    "commit unknown": "yellow",
    "defined otherwise": "yellow",
    "falls short": "bold red",
    "failed": "bold red",
    "disputed": "yellow",
    "not measured": "dim",
}
STOPS = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
STOPPED = {130, *(-stop for stop in STOPS)}  # exit codes of a command that somebody else ended
PYTEST_STOPPED = 2  # also where a file could not be read, which then counts as an error


class StoppedError(ConcordError):
    """A command was ended from outside, which says nothing of its claims."""


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
    """Values that a command gave. missing: the reason for a metric that could not be measured here.

    failure: why the command gave nothing.
    """

    values: dict[str, float]
    missing: dict[str, str]
    failure: str | None = None


class Ledger:
    """Claims and systems of the repository in `root`, and the page with the tables of claims.

    Raises InputError where one of their files is missing or wrong.
    """

    def __init__(self, root: Path):
        self.root = root
        self.systems = read_systems(root)
        self.claims = read_claims(root, self.systems)
        self._defined: dict[str, dict[str, dict[str, Any]] | None] = {}

    def state(self, claim: Claim) -> str:
        """Its state; `defined otherwise` where git knows another command, metric, bar or seeds when it was measured."""
        if claim.commit is None:
            return claim.state
        then = self.defined_at(claim.commit)
        if then is None:
            return "commit unknown" if claim.state == "holds" else claim.state
        return claim.state if claim.defined_by(then.get(claim.id)) else "defined otherwise"

    def defined_at(self, commit: str) -> dict[str, dict[str, Any]] | None:
        """`definitions` of a commit; None where git does not know it."""
        if commit not in self._defined:
            text = file_at(self.root, commit, CLAIMS)
            self._defined[commit] = None if text is None else definitions(text)
        return self._defined[commit]

    def checkout(self, claims: Sequence[Claim]) -> Checkout:
        """The state of the tree; claims.yaml has changed where it, or one of these, is defined otherwise than there."""
        tree = Checkout.at(self.root, besides=(CLAIMS, TABLES))
        committed = self.defined_at(tree.commit) if tree.commit else None
        same = committed is not None and all(claim.defined_by(committed.get(claim.id)) for claim in claims)
        if tree.commit and not (same and definitions((self.root / CLAIMS).read_text()) == committed):
            return replace(tree, changed=[*tree.changed, CLAIMS])
        return tree

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
            write_atomically(page, renew_tables(page.read_text(), self.claims, self.state))


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
    before = ledger.checkout(claims)
    try:
        outcome = run_command(claims[0], ledger.root)
    except StoppedError as error:
        outcome = Measurement({}, {claim.metric: str(error) for claim in claims}, "stopped")
    except ConcordError as error:
        outcome = Measurement({}, {}, str(error))
    console.print(f"took {time.monotonic() - begun:.0f} s")
    measured = with_values(claims, outcome, before.commit)
    lines = [_line(claim, outcome) for claim in measured]
    for line in lines:
        line.print()
    obstacle = why_not_recorded(before, ledger.checkout(claims))
    if obstacle is not None:
        console.print(obstacle, style="yellow", markup=False)
        return lines
    ledger.record([claim for claim in measured if claim.metric not in outcome.missing])
    lost = [old.id for old, new in zip(claims, measured) if old.measured and not new.measured]
    if lost:
        console.print(f"no longer measured (the old values stand in git): {' '.join(lost)}", markup=False)
    return lines


def with_values(claims: Sequence[Claim], outcome: Measurement, commit: str | None) -> list[Claim]:
    """Claims with what their command gave, nothing if it failed; one that cannot be measured here stays as it was."""
    today = datetime.date.today().isoformat()
    measured = []
    for claim in claims:
        if claim.metric in outcome.values:
            value = outcome.values[claim.metric]
            entry = Measured(value=value, date=today, commit=commit, machine=machine())
            claim = claim.model_copy(update={"measured": entry})
        elif claim.metric not in outcome.missing:
            claim = claim.model_copy(update={"measured": None})
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
        return Line(claim, "failed" if outcome.failure else "not measured", reason=outcome.missing[claim.metric])
    if outcome.failure:
        return Line(claim, "failed", reason=outcome.failure)
    near = difflib.get_close_matches(claim.metric, outcome.values, 3) or outcome.values
    return Line(claim, "failed", reason=f"the report has no metric {claim.metric!r}; it has {', '.join(near)}.")


def run_command(claim: Claim, root: Path) -> Measurement:
    """Run a claim's command from the repository root, its output visible.

    Raises StoppedError where somebody ended it, and another ConcordError where it fails by itself.
    """
    folder = Path(tempfile.mkdtemp(prefix="concord-claims-"))
    words = shlex.split(claim.command)[1:]
    if claim.is_test:
        results = folder / "results.xml"
        code = subprocess.run([sys.executable, "-m", "pytest", *words, f"--junitxml={results}"], cwd=root).returncode
        outcome = Measurement({"passed": float(passed(results, code))}, {})
    else:
        code = subprocess.run([sys.executable, "-m", "marl", *words, "--out", str(folder / "out")], cwd=root).returncode
        if code in STOPPED:
            raise StoppedError(f"it was stopped with exit code {code}: measure it again.")
        if code:
            raise ConcordError(f"`{claim.command}` ended with exit code {code}; what it left is in {folder}.")
        report = Report.load(folder / "out" / "report.json")
        values = {name: metric.value for name, metric in report.metrics.items()}
        missing = {row["metric"]: row["reason"] for row in report.tables.get("not_measured", [])}
        outcome = Measurement(values, missing)
    shutil.rmtree(folder)
    return outcome


def passed(results: Path, code: int) -> bool:
    """True where some tests ran and none failed, by pytest's JUnit file and exit code; False where one failed.

    Raises StoppedError where somebody ended pytest, and another ConcordError where it shows neither: no test ran, or
    one was skipped or, which JUnit calls the same, was expected to fail.
    """
    root = xml.etree.ElementTree.parse(results).getroot() if results.exists() else xml.etree.ElementTree.Element("none")
    if root.find(".//failure") is not None or root.find(".//error") is not None:
        return False
    if code in STOPPED or code == PYTEST_STOPPED:
        raise StoppedError(f"pytest was stopped with exit code {code}: measure it again.")
    tests = list(root.iter("testcase"))
    skips = [(test.get("name"), skip.get("message", "")) for test in tests for skip in test.iter("skipped")]
    if skips:
        words = "; ".join(f"{name} ({reason})" if reason else str(name) for name, reason in skips)
        raise ConcordError(f"a claim holds where each of its tests runs and passes; skipped were {words}.")
    if code or not tests:
        raise ConcordError(
            f"pytest ended with exit code {code} after {len(tests)} tests; expected 0 after one or more."
        )
    return True
