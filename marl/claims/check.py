"""Lists the claims that need attention, without measuring anything."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.core import InputError
from marl.claims.entries import Claim
from marl.claims.history import Change, History
from marl.claims.measure import REPOSITORY, Ledger, Line, conclude
from marl.output.console import console


@dataclass(frozen=True)
class Outdated:
    """Claims of one system that were measured before the newest change of its files or of the claims' tests."""

    system: str
    change: Change
    claims: list[Claim]


def check_claims(ids: Sequence[str], tier: str, root: Path = REPOSITORY) -> int:
    """Print which claims fall short or are disputed, are not measured, were defined otherwise, or are out of date.

    Returns the exit code: 1 where a claim falls short, else 0. Raises InputError for bad input.
    """
    ledger = Ledger(root)
    chosen = ledger.select(ids, tier)
    lines = [Line(claim, ledger.state(claim)) for claim in chosen]

    short = [line for line in lines if line.state in ("falls short", "disputed")]
    _title("Fall short or are disputed", len(short))
    for line in short:
        line.print()

    unmeasured = [claim for claim in chosen if claim.measured is None]
    _title("Not measured", len(unmeasured))
    _print_ids(unmeasured)

    otherwise = [line.claim for line in lines if line.state == "defined otherwise"]
    _title("Defined otherwise (command, metric, bar or seeds) when they were measured", len(otherwise))
    _print_ids(otherwise)

    _print_outdated(ledger, chosen)
    return conclude(lines)


def outdated(claims: Sequence[Claim], systems: dict[str, list[str]], history: History) -> list[Outdated]:
    """Claims whose commit lacks a change of their system's files or own tests, with the newest such change.

    A commit that is not part of this history lacks all of them. Claims without a commit are left out.
    """
    missed: dict[tuple[str, Change], list[Claim]] = {}
    for claim in claims:
        if claim.commit is None:
            continue
        included = history.up_to(claim.commit)
        changes = history.changes([*systems[claim.system], *claim.tests])
        newest = next((change for change in changes if change.commit not in included), None)
        if newest is not None:
            missed.setdefault((claim.system, newest), []).append(claim)
    return [Outdated(system, change, late) for (system, change), late in missed.items()]


def _print_outdated(ledger: Ledger, claims: Sequence[Claim]) -> None:
    """The last list: by system, then the claims whose commit is not known."""
    undated = [claim for claim in claims if claim.measured and claim.commit is None]
    reason = None
    groups: list[Outdated] = []
    try:
        groups = outdated(claims, ledger.systems, History(ledger.root))
    except InputError as error:
        reason = str(error)
    _title(
        "Measured before their system or their tests last changed",
        len(undated) + sum(len(group.claims) for group in groups),
    )
    for group in groups:
        change = group.change
        console.print(f"  {group.system}, by {change.commit[:7]} of {change.date}, {change.subject}:", markup=False)
        _print_ids(group.claims)
    if undated:
        console.print("  measured before their commit was recorded, so measure them again:")
        _print_ids(undated)
    if reason:
        console.print(f"  and perhaps more. {reason}", markup=False)


def _title(text: str, count: int) -> None:
    console.print(f"{text}: {count or 'none'}", style="bold")


def _print_ids(claims: Sequence[Claim]) -> None:
    names = " ".join(claim.id for claim in claims)
    for line in textwrap.wrap(names, 116, break_on_hyphens=False, break_long_words=False):
        console.print(f"    {line}", markup=False)
