"""The facts that a scan kept of its estimates, handed to the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from recsys.bandit.importance_weights import WEIGHT
from recsys.bandit.scan import Sums
from recsys.statistics.diagnostics import diagnose, effective_of_change, influence_facts, mean_z
from recsys.statistics.intervals import ClusterSums, standard_error
from recsys.statistics.methods import LOGGED
from recsys.statistics.verdict import Verdict, verdict

REFERENCES = ("sndr", "snips", "ips")  # consistent wherever propensities are right
MODELED = ("dr", "dros")  # how names of estimators end that hand the model what their weights leave


def judge(
    sums: Sums, names: Iterable[str], more: Sequence[Mapping[str, Any]] = (), half: Sums | None = None
) -> dict[str, list[Verdict]]:
    """Verdicts on these estimates, by estimator and signal.

    more: facts of each signal. half: the same estimates by kernels of half the bandwidth, to be held against.
    """
    clusters = len(sums.clusters[1])
    # Where rows are independent, the weights tell it by themselves.
    z = mean_z(sums.cluster_sums(WEIGHT)) if WEIGHT in sums.slots else None
    weights = diagnose(sums.weights, clusters, mean_z=z, unsupported=sums.unsupported / sums.n)
    by_signal = [
        replace(weights, events=int(events), effective_events=float(total**2 / squares) if squares > 0 else 0.0)
        for events, total, squares in zip(sums.events, sums.event_weight / sums.unit, sums.event_squares, strict=True)
    ]
    if more:
        by_signal = [replace(facts, **told) for facts, told in zip(by_signal, more, strict=True)]
    verdicts = {}
    for name in names:
        off = biases(sums, name, None if half is None else half.cluster_sums(name))
        pulls = _pulls(sums, name)
        verdicts[name] = [
            verdict(replace(facts, bias=float(bias), **pull, **_changed(sums, name)))
            for facts, bias, pull in zip(by_signal, off, pulls, strict=True)
        ]
    return verdicts


def biases(sums: Sums, name: str, reference: ClusterSums | None = None) -> Float[np.ndarray, " K"]:
    """Bias of an estimate in its own standard errors, by signal; NaN where it is consistent by itself.

    What it is held against has no such bias: SNDR, SNIPS or IPS by the same rows, or the `reference`. 0 where the
    paired difference is within two of its standard errors.
    """
    nothing = np.full(len(sums.events), math.nan)
    if not np.isfinite(sums.estimate(name)).all():
        return nothing
    if reference is None:
        known = [other for other in REFERENCES if other in sums.slots and np.isfinite(sums.estimate(other)).all()]
        if not known or (name != "dm" and name not in sums.kept):
            return nothing
        reference = sums.cluster_sums(known[0])
    own = sums.cluster_sums(name)
    apart = own - reference
    off, chance = np.abs(apart.value), 2 * standard_error(apart)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: np.ndarray = np.where(
            off > np.maximum(chance, 1e-12 * np.abs(own.value)), off / standard_error(own), 0.0
        )
    return ratio


def _pulls(sums: Sums, name: str) -> list[dict[str, Any]]:
    """Facts of the estimate's own influence values, by signal; nothing of an estimate that is not finite."""
    if not np.isfinite(sums.estimate(name)).all():
        return [{} for _ in sums.events]
    own, logged = sums.cluster_sums(name), sums.cluster_sums(LOGGED)
    changing = effective_of_change(own, logged).tolist()
    facts = influence_facts(own).by_signal()
    return [{**told, "changing": effective} for told, effective in zip(facts, changing, strict=True)]


def consistent(sums: Sums, name: str) -> bool:
    """True where the interval is about the truth: weights are used as they are, and so no bias is left."""
    if name == "dm":
        return False
    return name not in sums.kept or abs(sums.kept[name] - sums.weight) <= 1e-9 * sums.weight


def model_share(sums: Sums, name: str) -> float:
    """The share of the target's choices for which the reward model alone speaks in an estimate."""
    if name == "dm":
        return 1.0
    return max(0.0, 1 - _kept(sums, name)) if name.endswith(MODELED) else 0.0


def _changed(sums: Sums, name: str) -> dict[str, Any]:
    """The share of the target's choices that is left where an estimator changes weights, or has none."""
    modeled = name == "dm" or name.endswith(MODELED)
    return {"model_share": model_share(sums, name)} if modeled else {"kept": _kept(sums, name)}


def _kept(sums: Sums, name: str) -> float:
    """The mean of the weights that an estimator uses, 1 where it changes none."""
    return sums.kept[name] / sums.n if name in sums.kept else 1.0
