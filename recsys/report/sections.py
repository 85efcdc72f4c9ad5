"""The parts of the page. Each is empty where the report has nothing of its kind."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from marl.config.load import flatten, yaml_text
from recsys.report.charts import Bar, calibration, chip, intervals, shares
from recsys.report.markup import (
    Child,
    Element,
    decimals_for,
    details,
    exact,
    fixed,
    number,
    percent,
    rounded,
    signed,
    table,
    tag,
)
from recsys.report.results import COUNTED, Results, Rows, grouped, numbers, width_of
from recsys.statistics.diagnostics import WEIGHT_FACTS
from recsys.statistics.methods import LOGGED

DIGITS = re.compile(r"(\d+)")
LONGEST = 40  # segments in one table
IDLE = ("train.", "evaluation.", "resume.", "compile")  # settings that offline evaluation has no use for


def headline(results: Results) -> Iterable[Element]:
    """What each policy would change of each signal, by the estimator to read, and why that one."""
    rows = results.tables.get("recommendations", [])
    if not rows:
        return
    changes = {(row["signal"], row["policy"]): row for row in results.changes() if row["against"] == LOGGED}
    cells: list[list[Child]] = []
    for row in rows:
        signal, policy, estimator = row["signal"], row["policy"], row["estimator"]
        decimals = decimals_for(width_of(each) for (of, _), each in changes.items() if of == signal)
        change, between = _change_in_words(changes.get((signal, policy)), decimals)
        estimate = results.estimates.get((signal, policy, estimator))
        value: Child = tag("b", "none") if estimate is None else exact(estimate.value, fixed(estimate.value, decimals))
        level = chip("UNRELIABLE" if estimate is None else results.verdict(signal, policy, estimator))
        logged = results.logged(signal).value
        told = [change, between, level, value, exact(logged, fixed(logged, decimals))]
        cells.append([signal, policy, *told, estimator or "–", row["sentence"]])
    header = ["signal", "policy", "change", results.interval, "verdict", "would be", "in the log", "read", "why"]
    yield table(header, cells, "headline")


def _certificate(results: Results) -> Iterable[Element]:
    """The standing of each response that was to be held, and what it rests on."""
    rows = results.tables.get("certificate", [])
    if not rows:
        return
    yield tag("p", "; ".join(f"{row['response']}: {row['standing']}" for row in rows))
    header = ["response", "must be", "in the log", "would be", "above the threshold by", "events", "needed", "standing"]
    cells: list[list[Child]] = []
    for row in rows:
        between = f"[{percent(number(row['low']))}, {percent(number(row['high']))}]"
        told = [exact(number(row[name]), rounded(number(row[name]))) for name in ("logged", "learned")]
        counted = [exact(number(row[name]), rounded(number(row[name]))) for name in ("events", "needed")]
        cells.append([row["response"], row["must"], *told, between, *counted, row["standing"]])
    yield table(header, cells)
    yield _note(
        "By users that nothing was learned from or chosen by; one-sided bounds that hold for all responses at once, in "
        "units of the threshold. Needed are events that tell a change as large as the margin, at weights of 1."
    )


def _change_in_words(row: dict[str, Any] | None, decimals: int) -> tuple[Child, Child]:
    """A change with its sign, and its interval; nothing for none."""
    if row is None:
        return None, None
    value, low, high = (number(row[name]) for name in ("value", "low", "high"))
    between = f"[{signed(low, decimals)}, {signed(high, decimals)}]"
    return exact(value, signed(value, decimals)), tag("span", between, class_="n")


def _estimates(results: Results) -> Iterable[Element]:
    for signal in results.signals:
        logged = results.logged(signal)
        own = Bar(("the log itself",), logged.value, logged.low, logged.high)
        all_of = [(signal, policy, name) for s, policy, name in results.estimates if s == signal]
        to_read = [key for key in all_of if results.recommended(*key[:2]) == key[2]]
        bars = [_bar(results, *key, names=(key[1], key[2])) for key in to_read]
        groups: list[tuple[str, Sequence[Bar]]] = [("", [own])]
        for policy in results.policies:
            groups.append((policy, [_bar(results, *key) for key in all_of if key[1] == policy]))
        every = intervals(["estimator"], groups, logged.value, results.interval)
        yield tag("h3", signal)
        if bars:
            first = replace(own, before=("the log itself", ""))
            yield intervals(["policy", "estimator"], [("", [first, *bars])], logged.value, results.interval)
        yield details(f"all {len(all_of)} estimates", every) if bars else every
    if results.signals:
        shaded = " The shaded row is the one to read." if results.tables.get("recommendations") else ""
        yield _note(
            "The dashed line is the log's own mean. Triangles are estimates to be read with CAUTION; hollow marks and "
            f"struck numbers are UNRELIABLE, not to be read.{shaded}"
        )


def _bar(results: Results, signal: str, policy: str, estimator: str, names: tuple[str, ...] = ()) -> Bar:
    """An estimate; names: of the row, where the estimator's own is not enough."""
    estimate = results.estimates[signal, policy, estimator]
    level = results.verdict(signal, policy, estimator)
    chosen = not names and results.recommended(signal, policy) == estimator
    return Bar(names or (estimator,), estimate.value, estimate.low, estimate.high, level, chosen=chosen)


def _differences(results: Results) -> Iterable[Element]:
    rows = results.tables.get("differences", [])
    read = dict(grouped(results.changes(), "signal"))
    for signal, some in grouped(rows, "signal"):
        groups = [
            (_pair(pairs[0]), [_bar_of(row, (row["estimator"],), row.get("verdict", "")) for row in pairs])
            for _, pairs in grouped(some, "policy", "against")
        ]
        every = intervals(["estimator"], groups, 0.0, results.interval)
        yield tag("h3", signal)
        chosen = read.get(signal, [])
        bars = [_bar_of(row, (_pair(row), row["estimator"]), row.get("verdict", "")) for row in chosen]
        if bars:
            yield intervals(["change", "estimator"], [("", bars)], 0.0, results.interval)
        yield details("by all estimators", every) if bars else every
    if rows:
        yield _note("Both policies are judged by the same rows. An interval without 0 tells them apart.")


def _pair(row: dict[str, Any]) -> str:
    return f"{row['policy']} − {row['against']}"


def _weights(results: Results) -> Iterable[Element]:
    charts = []
    for policy, rows in grouped(numbers(results.tables.get("weights", [])), "policy"):
        words = tag("p", _weights_in_words(results, policy))
        charts.append(tag("div", tag("h3", policy), words, shares(rows, "importance weight")))
    if charts:
        yield tag("div", *charts, class_="side")


def _weights_in_words(results: Results, policy: str) -> str:
    metrics, facts = results.report.metrics, results.facts.get(policy)
    unit = next((name for name in COUNTED if name in metrics), None)
    if facts is None or unit is None:
        return ""
    count = metrics[unit].value
    ess, largest, mean = (facts[name] for name in WEIGHT_FACTS)
    share = largest / (mean * count) if mean > 0 else math.nan
    return (
        f"The weights leave an effective sample of {rounded(ess)} of {rounded(count)} {unit} "
        f"({percent(ess / count)}). The largest weight is {rounded(largest)}, {percent(share)} of all. "
        f"The mean weight is {rounded(mean)}; where the log holds all that the target does, it should be near 1."
    )


def _overlap(results: Results) -> Iterable[Element]:
    charts = []
    for policy, rows in grouped(numbers(results.tables.get("overlap", [])), "policy"):
        words = tag("p", _overlap_in_words(rows))
        charts.append(tag("div", tag("h3", policy), words, shares(rows, "propensity of the logged action")))
    if charts:
        yield tag("div", *charts, class_="side")
        yield _note("Where the weight's share is much larger than the rows', few rows speak for many choices.")


def _overlap_in_words(rows: Rows) -> str:
    """The part of the rows that holds half of the target's weight."""
    if len(rows) == 1:
        return f"All was logged with a probability between {rounded(rows[0]['low'])} and {rounded(rows[0]['high'])}."
    below = weight = 0.0
    for row in rows:
        below, weight = below + row["rows_share"], weight + row["weight_share"]
        if weight >= 0.5:
            break
    return (
        f"Actions that were logged with a probability up to {rounded(row['high'])} are {percent(below)} of the rows "
        f"and have {percent(weight)} of the target's weight."
    )


def _segments(results: Results) -> Iterable[Element]:
    rows = results.tables.get("segments", [])
    columns = results.report.config.get("data", {}).get("segments", [])
    named = [{**row, "column": _column(row["segment"], columns)} for row in rows]
    for place, ((column, signal, policy), some) in enumerate(grouped(named, "column", "signal", "policy")):
        estimator = results.read(signal, policy)
        chosen = [row for row in some if row["estimator"] == estimator]
        if not chosen:
            continue
        most = sorted(chosen, key=lambda row: -number(row["rows"]))[:LONGEST]
        bars = [
            _segment_bar(row, column)
            for row in sorted(most, key=lambda row: _natural(row["segment"][len(column) + 1 :]))
        ]
        whole = results.estimates.get((signal, policy, estimator))
        line = math.nan if whole is None else whole.value
        extra = [name for name in ("p", "adjusted") if name in chosen[0]]
        header = [column, "rows", "events", "ess", "change", *extra]
        told = f"{signal}, {policy}, by {column} ({estimator}, {len(chosen)} segments)"
        left = len(chosen) - len(most)
        rest = _note(f"The {LONGEST} with the most rows; {left} more are in report.json.") if left else None
        shown = tag("details", tag("summary", told), intervals(header, [("", bars)], line, results.interval), rest)
        if place == 0:
            shown.set("open", "open")
        yield shown
    if rows:
        yield _note(
            "The dashed line is the policy's estimate on the whole log, the bar in a row the log's own mean in that "
            "segment, the change what the policy earns above that. Other estimators are in report.json."
        )


def _segment_bar(row: dict[str, Any], column: str) -> Bar:
    after = [exact(number(row[name]), rounded(number(row[name]))) for name in ("rows", "events", "ess")]
    change = number(row["difference"])
    after.append(exact(change, signed(change, decimals_for([number(row["high"]) - number(row["low"])]))))
    logged = number(row["value"]) - change
    after += [exact(number(row[name]), rounded(number(row[name]), 2)) for name in ("p", "adjusted") if name in row]
    name = row["segment"][len(column) + 1 :] or "(empty)"
    return _bar_of(row, (name,), row["verdict"], logged, tuple(after))


def _calibration(results: Results) -> Iterable[Element]:
    rows = [{key: number(value) for key, value in row.items()} for row in results.tables.get("calibration", [])]
    if rows:
        yield tag("p", "Propensities were not in the log but predicted. On the dashed line they are right on average.")
        yield calibration(rows)
        cells = [[exact(row[key], rounded(row[key])) for key in CALIBRATION] for row in rows]
        yield details("numbers", table([name.replace("_", " ") for name in CALIBRATION], cells))


CALIBRATION = ("pairs", "predicted", "shown", "standard_error")


def _sensitivity(results: Results) -> Iterable[Element]:
    rows = results.tables.get("sensitivity", [])
    for (signal, policy), some in grouped(rows, "signal", "policy"):
        bars = [Bar((rounded(number(row["odds"])),), math.nan, number(row["low"]), number(row["high"])) for row in some]
        yield tag("h3", f"{signal}, {policy}")
        logged = results.logged(signal).value if signal in results.signals else math.nan
        yield intervals(["odds off by"], [("", bars)], logged, "range")
    if rows:
        yield _note(
            "If the odds of the true propensities differ from the assumed ones by up to such a factor, the estimate "
            "lies in this range, before any sampling error. The dashed line is the log's own mean."
        )


def _random_slice(results: Results) -> Iterable[Element]:
    rows = results.tables.get("random_slice", [])
    for signal, some in grouped(rows, "signal"):
        groups = [
            (f"{policy}, {estimator}", [_bar_of(row, (row["source"],)) for row in pair])
            for (policy, estimator), pair in grouped(some, "policy", "estimator")
        ]
        yield tag("h3", signal)
        yield intervals(["source"], groups, math.nan, results.interval)


def _verdicts(results: Results) -> Iterable[Element]:
    about: dict[tuple[str, str, str, str], list[str]] = {}
    for (signal, policy, estimator), row in results.verdicts.items():
        about.setdefault((signal, policy, row["verdict"], row["reason"]), []).append(estimator)
    if about:
        cells = [[s, p, ", ".join(names), chip(level), reason] for (s, p, level, reason), names in about.items()]
        yield table(["signal", "policy", "estimators", "verdict", "reason"], cells)


def notes(results: Results) -> Iterable[Element]:
    """The sentences of the table `notes`."""
    for row in results.tables.get("notes", []):
        yield tag("p", row["note"])


def _settings(results: Results) -> Iterable[Element]:
    flat = {k: v for k, v in flatten(results.report.config).items() if not k.startswith(IDLE)}
    if flat:
        yield details(
            "the resolved config", table(["setting", "value"], [[key, yaml_text(x)] for key, x in flat.items()])
        )


def _versions(results: Results) -> Iterable[Element]:
    if results.report.versions:
        yield details("what made this", table(["of", "version"], list(results.report.versions.items())))


def _bar_of(
    row: dict[str, Any],
    before: tuple[Child, ...],
    level: str = "",
    mark: float = math.nan,
    after: tuple[Child, ...] = (),
) -> Bar:
    value, low, high = (number(row[name]) for name in ("value", "low", "high"))
    return Bar(before, value, low, high, level, mark, after)


def _column(segment: str, columns: Sequence[str]) -> str:
    """The column of a segment such as tab=3; names may contain = too."""
    return max((name for name in columns if segment.startswith(f"{name}=")), key=len, default=segment.partition("=")[0])


def _natural(text: str) -> tuple[bool, float, list[tuple[bool, float, str]]]:
    """A key that sorts 2 before 10, numbers before words, and item2 before item10."""
    value = number(text)
    parts = [(not part.isdecimal(), number(part) if part.isdecimal() else 0.0, part) for part in DIGITS.split(text)]
    return (False, value, parts) if math.isfinite(value) else (True, 0.0, parts)


def _note(text: str) -> Element:
    return tag("p", text, class_="note")


@dataclass(frozen=True)
class Section:
    """A part of the page; `content` is empty where the report has nothing of the kind."""

    name: str
    title: str
    content: Callable[[Results], Iterable[Element]]


SECTIONS = (
    Section("certificate", "What is held", _certificate),
    Section("headline", "What to read", headline),
    Section("differences", "What policies would change", _differences),
    Section("estimates", "Estimates", _estimates),
    Section("weights", "Importance weights", _weights),
    Section("overlap", "Overlap", _overlap),
    Section("segments", "Segments", _segments),
    Section("calibration", "Calibration of predicted propensities", _calibration),
    Section("sensitivity", "If propensities are wrong", _sensitivity),
    Section("random_slice", "Against the random slice", _random_slice),
    Section("verdicts", "Verdicts", _verdicts),
    Section("notes", "Notes", notes),
    Section("settings", "Settings", _settings),
    Section("versions", "Versions", _versions),
)
