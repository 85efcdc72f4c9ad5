"""What policies would change, how far to trust it, and segments, on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from marl.output.tables import LONGEST_TABLE, number, print_columns
from recsys.report.markup import decimals_for
from recsys.report.markup import number as as_number
from recsys.report.results import changes_to_read, width_of
from recsys.statistics.methods import LOGGED

# Tables that say what policies would change, and whether to believe it.
JUDGED = ("log", "recommendations", "differences", "verdicts", "notes")
STEPS = "steps"  # the table of weights by step, which sessions alone have
Row = Mapping[str, Any]
FAR = 1e12  # rows that no log has


def print_judgments(tables: Mapping[str, Sequence[Row]], console: Console, others: str = "report.html") -> None:
    """For each signal what each policy would change by the estimator to read, then why that is to be believed.

    Then how many rows would tell what these do not, notes, and what is to be read of each segment. others: where all
    other estimates are.
    """
    read = tables.get("recommendations", [])
    chosen = {(row["signal"], row["policy"]): row["estimator"] for row in read}
    verdicts = {row["estimate"]: row["verdict"] for row in tables.get("verdicts", [])}
    changes = changes_to_read(tables.get("differences", []), chosen)
    own = {row["signal"]: row for row in tables.get("log", [])}
    for signal in dict.fromkeys(row["signal"] for row in read):
        mine = [row for row in read if row["signal"] == signal]
        _print_signal(
            signal, own.get(signal), mine, [row for row in changes if row["signal"] == signal], verdicts, console
        )
    _print_reasons(read, console)
    if len(verdicts) > len(read) > 0:
        console.print(f"{len(verdicts) - len(read)} other estimates, with a verdict on each: {others}", markup=False)
    _print_rows_to_tell(changes, "sessions" if STEPS in tables else "rows", console)
    for row in tables.get("notes", []):
        console.print(row["note"], markup=False)
    _print_segments(tables.get("segments", []), chosen, console)


def _print_signal(
    signal: str,
    own: Row | None,
    read: Sequence[Row],
    changes: Sequence[Row],
    verdicts: Mapping[str, str],
    console: Console,
) -> None:
    """A row a policy: its change to the log, its estimate, by what, and its verdict; then changes between policies."""
    decimals = _decimals([*changes, *read, *([] if own is None else [own])])
    to_log = {row["policy"]: row for row in changes if row["against"] == LOGGED}
    header = ["policy", "change", "would be", "by", "verdict"]
    cells = []
    for row in read:
        policy, estimator = row["policy"], row["estimator"]
        verdict = verdicts.get(f"{signal}/{policy}/{estimator}", "") if estimator else "UNRELIABLE"
        change = _told(to_log.get(policy), decimals, "+")
        cells.append([policy, change, _fixed(row.get("value"), decimals), estimator or "none", verdict])
    if any("truth" in row for row in read):
        for line, truth in zip([header, *cells], ["truth", *(_fixed(row.get("truth"), decimals) for row in read)]):
            line.insert(3, truth)
    for row in (row for row in changes if row["against"] != LOGGED):
        pair = [f"{row['policy']} - {row['against']}", _told(row, decimals, "+")]
        cells.append([*pair, *[""] * (len(header) - 4), row["estimator"], row.get("verdict", "")])
    title = signal if own is None else f"{signal}: {_told(own, decimals)} in the log"
    print_columns(title, header, cells, console)


def _decimals(rows: Sequence[Row]) -> int:
    """Decimals that show two digits of the narrowest interval among these, so that no two policies look the same."""
    widths = [width_of(row) for row in rows if "low" in row]
    return decimals_for([min((width for width in widths if 0 < width < math.inf), default=0.0)])


def _told(row: Row | None, decimals: int, sign: str = "") -> str:
    """A value with its interval; nothing for none."""
    if row is None or "value" not in row:
        return ""
    value, low, high = (_fixed(row[name], decimals, sign) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _fixed(value: Any, decimals: int, sign: str = "") -> str:
    """A number of a report, which has infinities as words; nothing for none."""
    value = as_number(value)
    if math.isnan(value):
        return ""
    return f"{value:{sign}.4g}" if abs(value) >= 1e9 else f"{value:{sign}z,.{decimals}f}"


def _print_reasons(read: Sequence[Row], console: Console) -> None:
    """Why each estimate is the one to read, a reason that several share once."""
    about: dict[str, list[Row]] = {}
    for row in read:
        about.setdefault(row["sentence"], []).append(row)
    for sentence, rows in about.items():
        names = "; ".join(
            f"{signal}: {', '.join(row['policy'] for row in rows if row['signal'] == signal)}"
            for signal in dict.fromkeys(row["signal"] for row in rows)
        )
        console.print(f"{names}. {sentence}", markup=False)


def _print_rows_to_tell(changes: Sequence[Row], unit: str, console: Console) -> None:
    """How much larger logs must be to tell changes that these do not tell from none."""
    for row in changes:
        needed = as_number(row.get("rows_to_tell"))
        if as_number(row["low"]) <= 0 <= as_number(row["high"]) and needed < FAR:
            what = f"{row['signal']}, {row['policy']} - {row['against']}"
            size = float(f"{needed:.2g}")
            console.print(
                f"{what}: a change of this size is told from none by some {size:,.0f} {unit} like these", markup=False
            )


def _print_segments(
    rows: Sequence[Mapping[str, Any]], chosen: Mapping[tuple[str, str], str | None], console: Console
) -> None:
    """For each signal and policy the largest segments that may be read, by the estimator to read."""
    families: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["signal"], row["policy"])
        if row["estimator"] == chosen.get(key):
            families.setdefault(key, []).append(row)
    columns = ("segment", "rows", "change", "adjusted p", "would be", "verdict")
    for (signal, policy), family in families.items():
        readable = [row for row in family if row["verdict"] != "UNRELIABLE"]
        largest = sorted(readable, key=lambda row: -row["rows"])[:LONGEST_TABLE]
        decimals = _decimals(largest)
        cells = []
        for row in largest:
            change = _fixed(row["difference"], decimals, "+")
            p = "not tested" if row["adjusted"] is None else number(as_number(row["adjusted"]))
            told = (change, p, _told(row, decimals), row["verdict"])
            cells.append((row["segment"], number(float(row["rows"])), *told))
        title = f"segments: {signal}, {policy} ({family[0]['estimator']})"
        if cells:
            print_columns(title, columns, cells, console)
        left = {"with fewer rows": len(readable) - len(largest), "not to be read": len(family) - len(readable)}
        also = ", ".join(f"{count:,} {what}" for what, count in left.items() if count)
        if also:
            console.print(f"{title}: {also}; all are in the table segments", markup=False)
