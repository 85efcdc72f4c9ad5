"""Estimates in each segment of a log, with care for there being many of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool

from envs.core import InputError
from recsys.bandit.importance_weights import HALF, WEIGHT
from recsys.bandit.scan import Place, Sums
from recsys.bandit.verdict_facts import judge
from recsys.logs.log import Log
from recsys.statistics.diagnostics import effective_of_change
from recsys.statistics.intervals import ClusterSums, skewness_corrected
from recsys.statistics.methods import FITTED, LOGGED
from recsys.statistics.multiple_testing import benjamini_hochberg, holm, p_values
from recsys.statistics.verdict import Level

FEWEST_PULLS = 40  # on a difference; with fewer, tests of many segments err more often than they say
FEWEST_ROWS = 50  # fewer are UNRELIABLE, whatever their weights
ENDLESS = (-math.inf, math.inf)
ADJUSTED = {"holm": holm, "bh": benjamini_hochberg}


def require_groups(log: Log) -> None:
    """Raise InputError for a segment column that cannot be judged.

    One of what was done or came of it, or of many values that are all rare.
    """
    columns = log.columns
    followed = {name for name in (columns.action, columns.propensity, *columns.rewards) if name is not None}
    for column in columns.segments:
        if column in followed:
            raise InputError(
                f"{log.name}: segments {column!r} is what was done, or what came of it, and rows that are picked by "
                "that say nothing of a policy. Name columns that were known before, such as the country."
            )
        size = pl.col("size")
        sizes = log.frame.group_by(column).agg(pl.len().alias("size"))
        many, most, rows = sizes.select(size.len(), size.max().alias("most"), size.sum().alias("rows")).collect().row(0)
        if many > FEWEST_ROWS > most:
            raise InputError(
                f"{log.name}: segments {column!r} has {many:,} values in {rows:,} rows, {most:,} rows of one at most. "
                f"A segment needs some {FEWEST_ROWS} rows before anything can be told of it: name a column of fewer "
                "values, such as the day instead of the time, or leave it out."
            )


def segments(
    sums: Mapping[Place, Sums],
    signals: Sequence[str],
    level: float,
    control: str,
    facts: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """A row for each segment, signal, policy and estimator.

    value with its interval, corrected for skewness, and `low_all`, `high_all`: intervals that hold in all segments at
    once with probability `level` (Bonferroni). `difference` to what the segment's own rows earned as logged, with its
    p-value, `p`, and `adjusted` for all segments of that policy, estimator and signal: by Holm, or by Benjamini and
    Hochberg. "All" are for intervals those that may be read: one that is UNRELIABLE has a value, endless intervals and
    a p-value of 1, and counts for none of the others. For tests they are those that are RELIABLE and in which forty
    clusters pull on the difference: with less, what is rare and was not seen makes small p-values ten times as frequent
    as they say. The others have none that is adjusted. facts: by policy, what verdicts must know.
    """
    sums = {place: of for place, of in sums.items() if place.segment and place.weights != HALF}
    verdicts = {
        place: judge(of, finite_estimates(of), [facts[place.policy]] * len(signals)) for place, of in sums.items()
    }
    rows = []
    for family in _families(sums).values():
        tested = np.array([_tells_changes(of, name) for _, of, name in family])
        levels = np.array([[verdict.level for verdict in verdicts[place][name]] for place, _, name in family])
        readable = levels < Level.UNRELIABLE
        together = [level if n == 0 else 1 - (1 - level) / n for n in readable.sum(axis=0).tolist()]
        by_segment = [
            _rows(place, of, name, signals, level, together, may)
            for (place, of, name), may in zip(family, readable.tolist(), strict=True)
        ]
        for k in range(len(signals)):
            of_signal = [segment_rows[k] for segment_rows in by_segment]
            may_be_tested = tested[:, k] & (levels[:, k] == Level.RELIABLE)
            adjusted = _adjusted(np.array([row["p"] for row in of_signal]), may_be_tested, control)
            for row, p, told in zip(of_signal, adjusted, levels[:, k], strict=True):
                rows.append({**row, "adjusted": p, "verdict": Level(int(told)).name})
    return rows


def _tells_changes(of: Sums, name: str) -> Bool[np.ndarray, " K"]:
    """Whether enough clusters pull on an estimate's difference to the log for a small p-value of it to be one."""
    with np.errstate(invalid="ignore"):
        return effective_of_change(of.cluster_sums(name), of.cluster_sums(LOGGED)) >= FEWEST_PULLS


def _adjusted(p: np.ndarray, tested: np.ndarray, control: str) -> list[float | None]:
    """For as many tests as there are; None for what is not tested."""
    adjusted: list[float | None] = [None] * len(p)
    if tested.any():
        for place, value in zip(np.flatnonzero(tested), ADJUSTED[control](p[tested]).tolist(), strict=True):
            adjusted[place] = value
    return adjusted


def _families(sums: Mapping[Place, Sums]) -> dict[tuple[str, str], list[tuple[Place, Sums, str]]]:
    """By policy and estimator: the segments where there is such an estimate."""
    families: dict[tuple[str, str], list[tuple[Place, Sums, str]]] = {}
    for place, of in sums.items():
        for name in finite_estimates(of):
            families.setdefault((place.policy, name), []).append((place, of, name))
    return families


def finite_estimates(of: Sums) -> Iterator[str]:
    """The names of finite estimates."""
    for name in of.slots:
        if name not in (LOGGED, WEIGHT) and np.isfinite(of.estimate(name)).all():
            yield name


def _rows(
    place: Place,
    of: Sums,
    name: str,
    signals: Sequence[str],
    level: float,
    together: Sequence[float],
    readable: Sequence[bool],
) -> list[dict[str, Any]]:
    """A row for each signal; together: the level at which its intervals hold in all segments that may be read."""
    sums: ClusterSums = of.cluster_sums(name)
    above_log = sums - of.cluster_sums(LOGGED)
    value, difference = sums.value, above_log.value
    told = name not in FITTED and any(readable)
    at = {one: skewness_corrected(sums, one) for one in (level, *together)} if told else {}
    p = p_values(above_log) if told else np.ones(len(signals))
    rows = []
    for k, signal in enumerate(signals):
        both = [(at[one].low[k], at[one].high[k]) if told and readable[k] else ENDLESS for one in (level, together[k])]
        (low, high), (low_all, high_all) = both
        row: dict[str, Any] = {
            "segment": "=".join(place.segment or ()),
            "signal": signal,
            "policy": place.policy,
            "estimator": name,
            "rows": of.n,
            "events": int(of.events[k]),
            "value": float(value[k]),
            "low": float(low),
            "high": float(high),
            "low_all": float(low_all),
            "high_all": float(high_all),
            "difference": float(difference[k]),
            "p": float(p[k]) if readable[k] else 1.0,
        }
        rows.append({**row, **of.weights.facts})
    return rows
