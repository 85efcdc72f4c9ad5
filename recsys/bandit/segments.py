"""Estimates in each segment of a log, with care for there being many of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from recsys.bandit.importance_weights import HALF, WEIGHT
from recsys.bandit.scan import Place, Sums
from recsys.bandit.verdict_facts import judge
from recsys.statistics.intervals import ClusterSums, student_t
from recsys.statistics.methods import LOGGED
from recsys.statistics.multiple_testing import benjamini_hochberg, holm, p_values

ADJUSTED = {"holm": holm, "bh": benjamini_hochberg}


def segments(
    sums: Mapping[Place, Sums],
    signals: Sequence[str],
    level: float,
    control: str,
    facts: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """A row for each segment, signal, policy and estimator.

    value with its interval by Student's t, and `low_all`, `high_all`: intervals that hold in all segments at once with
    probability `level` (Bonferroni). `difference` to what the segment's own rows earned as logged, with its p-value,
    `p`, and `adjusted` for all segments of that policy, estimator and signal: by Holm, or by Benjamini and Hochberg.
    facts: by policy, what verdicts must know.
    """
    sums = {place: of for place, of in sums.items() if place.segment and place.weights != HALF}
    verdicts = {
        place: judge(of, finite_estimates(of), [facts[place.policy]] * len(signals)) for place, of in sums.items()
    }
    rows = []
    for family in _families(sums).values():
        by_segment = [_rows(place, of, name, signals, level, family=len(family)) for place, of, name in family]
        for k in range(len(signals)):
            of_signal = [segment_rows[k] for segment_rows in by_segment]
            adjusted = ADJUSTED[control](np.array([row["p"] for row in of_signal]))
            for row, p, (place, _, name) in zip(of_signal, adjusted, family, strict=True):
                verdict = verdicts[place][name][k].level.name
                rows.append({**row, "adjusted": float(p), "verdict": verdict})
    return rows


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


def _rows(place: Place, of: Sums, name: str, signals: Sequence[str], level: float, family: int) -> list[dict[str, Any]]:
    """A row for each signal; family: how many segments the simultaneous intervals are for."""
    sums: ClusterSums = of.cluster_sums(name)
    alone = student_t(sums, level)
    together = student_t(sums, 1 - (1 - level) / family)
    above_log = sums - of.cluster_sums(LOGGED)
    p = p_values(above_log)
    weights = of.weights.facts
    rows = []
    for k, signal in enumerate(signals):
        row: dict[str, Any] = {
            "segment": "=".join(place.segment or ()),
            "signal": signal,
            "policy": place.policy,
            "estimator": name,
            "rows": of.n,
            "events": int(of.events[k]),
            "value": float(alone.value[k]),
            "low": float(alone.low[k]),
            "high": float(alone.high[k]),
            "low_all": float(together.low[k]),
            "high_all": float(together.high[k]),
            "difference": float(above_log.value[k]),
            "p": float(p[k]),
        }
        rows.append({**row, **weights})
    return rows
