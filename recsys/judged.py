"""The facts that a scan kept of its estimates, handed to the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from recsys.diagnostics import diagnose
from recsys.intervals import standard_error
from recsys.scan import Sums
from recsys.verdict import Verdict, verdict
from recsys.weighing import WEIGHT

MODELED = ("dr", "dros")  # how names of estimators end that hand the model what their weights leave


def judge(sums: Sums, names: Iterable[str], more: Sequence[Mapping[str, Any]] = ()) -> dict[str, list[Verdict]]:
    """Whether each of these estimates of each signal may be relied on, and why; more: facts of each signal."""
    clusters = len(sums.clusters[1])
    weights = diagnose(sums.weights, clusters, mean_z=_mean_z(sums), unsupported=sums.unsupported / sums.n)
    by_signal = [
        replace(weights, events=int(events), effective_events=float(weighted**2 / squares) if squares > 0 else 0.0)
        for events, weighted, squares in zip(sums.events, sums.weighted, sums.weighted_squares, strict=True)
    ]
    if more:
        by_signal = [replace(facts, **told) for facts, told in zip(by_signal, more, strict=True)]
    return {name: [verdict(replace(facts, **_changed(sums, name))) for facts in by_signal] for name in names}


def model_share(sums: Sums, name: str) -> float:
    """How much of the target's choices the reward model alone speaks for in an estimate."""
    if name == "dm":
        return 1.0
    return max(0.0, 1 - _kept(sums, name)) if name.endswith(MODELED) else 0.0


def _changed(sums: Sums, name: str) -> dict[str, Any]:
    """What becomes of the target's choices where an estimator changes weights, or has none."""
    modeled = name == "dm" or name.endswith(MODELED)
    return {"model_share": model_share(sums, name)} if modeled else {"kept": _kept(sums, name)}


def _kept(sums: Sums, name: str) -> float:
    """The mean of the weights that an estimator uses, 1 where it changes none."""
    return sums.kept[name] / sums.n if name in sums.kept else 1.0


def _mean_z(sums: Sums) -> float | None:
    """How far the mean weight is from 1, in standard errors over users; None where rows are independent."""
    if WEIGHT not in sums.slots:
        return None
    mean = sums.cluster_sums(WEIGHT)
    off, error = float(mean.value[0]) - 1, float(standard_error(mean)[0])
    return 0.0 if abs(off) < 1e-12 else off / error if error > 0 else math.copysign(math.inf, off)
