"""Facts about weights and events that speak for or against an off-policy estimate. `verdict` judges them.

All of it is computed from sums, counts and the largest weights, which a scan of a log adds up chunk by chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from envs.core import InputError
from recsys.statistics.intervals import ClusterSums, in_units_of_the_largest, influence, standard_error, unit_of
from recsys.statistics.pareto_tail import pareto_k

WEIGHT_FACTS = ("ess", "max_weight", "mean_weight")  # of weights, beside the estimates among metrics
MOST_WEIGHT = 1e290  # of one row: larger ones count as that, for sums of many must be numbers
ROUNDING = 1e-9  # relative, of sums
KEPT = 10_000  # largest weights that a scan keeps: the whole PSIS tail of logs up to 11 million rows


@dataclass(frozen=True)
class WeightSums:
    """Sums of the weights w = pi_e / pi_b of the logged actions: n, Σ w, Σ (w / unit)², and the largest, descending.

    unit: 1, but where squares of w would be no numbers.
    """

    rows: int
    total: float
    squares: float
    largest: Float[np.ndarray, " m"]
    unit: float = 1.0

    @property
    def mean(self) -> float:
        """The mean weight. Where every action that the target may choose can be logged, E w = 1."""
        return self.total / self.rows

    @property
    def ess(self) -> float:
        """The effective sample size (Σ w)² / Σ w²: n for equal weights, 1 if one row has them all, 0 for no weight.

        (Kish, Survey Sampling, 1965; Kong, Liu and Wong, JASA 1994.)
        """
        return (self.total / self.unit) ** 2 / self.squares if self.squares > 0 else 0.0

    @property
    def max_weight(self) -> float:
        """The largest weight."""
        return float(self.largest[0])

    @property
    def max_share(self) -> float:
        """The largest weight's share of all weight; 1 where there is none, for then nothing carries the estimate."""
        return self.max_weight / self.total if self.total > 0 else 1.0

    @property
    def facts(self) -> dict[str, float]:
        """The numbers that are told of weights, by name."""
        return dict(zip(WEIGHT_FACTS, (self.ess, self.max_weight, self.mean), strict=True))

    @property
    def mean_z(self) -> float:
        """(mean w - 1) / standard error: large where propensities are wrong or actions are missing from the log.

        0 where all weights are 1, infinite where they all have one other value.
        """
        off = self.mean - 1
        if self.rows < 2 or abs(off) < 1e-12:
            return 0.0
        squares = self.squares - (self.total / self.unit) * (self.mean / self.unit)
        variance = squares / (self.rows - 1)
        return off / self.unit / math.sqrt(variance / self.rows) if variance > 0 else math.copysign(math.inf, off)


def weight_sums(weight: Float[np.ndarray, " n"]) -> WeightSums:
    """The sums of one chunk. Raises InputError for weights that are negative or not finite, or for no rows."""
    if not len(weight) or not np.isfinite(weight).all() or (weight < 0).any():
        raise InputError(
            "Importance weights must be finite numbers of at least 0, and there must be some; got "
            f"{len(weight)} rows, {int((~np.isfinite(weight)).sum())} not finite, {int((weight < 0).sum())} negative."
        )
    unit = float(unit_of(weight.max()))
    squares = float(((weight / unit) ** 2).sum())
    return WeightSums(len(weight), float(weight.sum()), squares, largest_of(weight), unit)


def largest_of(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """At most `KEPT` of the values, the largest, in descending order."""
    top = values if len(values) <= KEPT else np.partition(values, len(values) - KEPT)[-KEPT:]
    return np.sort(top)[::-1].copy()


def mean_z(mean: ClusterSums) -> float:
    """(mean weight - 1) / standard error over clusters; infinite where it misses 1 without varying."""
    off, error = float(mean.value[0]) - 1, float(standard_error(mean)[0])
    if abs(off) < 1e-12:
        return 0.0
    return off / error if error > 0 else math.copysign(math.inf, off)


@dataclass(frozen=True)
class Influence:
    """Facts of the pulls ψ of clusters on an estimate, by signal, [K].

    effective: (Σ ψ²)² / Σ ψ⁴, how many clusters of equal pull would be as uneven: C where all pull alike, 1 where one
    cluster decides, NaN where none pulls. tail_k: the shape of the Pareto tail of |ψ|, NaN where there is none to fit.
    """

    effective: Float[np.ndarray, " K"]
    tail_k: Float[np.ndarray, " K"]

    def by_signal(self) -> list[dict[str, Any]]:
        """Of each signal, by the names of `Diagnosis`."""
        pairs = zip(self.effective.tolist(), self.tail_k.tolist(), strict=True)
        return [{"influential": effective, "influence_k": tail} for effective, tail in pairs]


def influence_facts(sums: ClusterSums) -> Influence:
    """The facts of an estimate's own influence values.

    The variance of an estimate is Σ ψ² / C², and 1 / effective is to first order the squared coefficient of variation
    of that sum: with few effective clusters the standard error itself is a guess, whatever the weights look like.
    """
    pull = np.abs(in_units_of_the_largest(influence(sums)))
    squares, fourth = (pull**2).sum(axis=0), (pull**4).sum(axis=0)
    effective = np.where(fourth > 0, squares**2 / np.where(fourth > 0, fourth, 1.0), math.nan)
    tail_k = np.array([pareto_k(largest_of(column), len(pull)) for column in pull.T])
    return Influence(effective, tail_k)


def effective_of_change(sums: ClusterSums, logged: ClusterSums) -> Float[np.ndarray, " K"]:
    """`Influence.effective` of what an estimate changes of the log's own mean; NaN where it changes nothing.

    A policy that hardly differs from the logger's, but in a rare action, is known well by all that both do alike; what
    it would change is known by the few clusters where they differ.
    """
    change = sums - logged
    moved = np.abs(influence(change)).max(axis=0) > ROUNDING * np.abs(influence(sums)).max(axis=0)
    return np.where(moved, influence_facts(change).effective, math.nan)


def effective_events(weight: Float[np.ndarray, " n"], reward: Float[np.ndarray, "n K"]) -> Float[np.ndarray, " K"]:
    """(Σ w)² / Σ w² over the rows whose reward is not 0: how many equally weighted events they are worth, by signal.

    Not of w r: a signal that may be negative can add up to nothing, however much is known of it.
    """
    happened = reward != 0
    weight = weight / unit_of(weight.max(initial=0.0))
    squares = (weight[:, None] ** 2 * happened).sum(axis=0)
    total = (weight[:, None] * happened).sum(axis=0)
    events: np.ndarray = np.where(squares > 0, total**2 / np.where(squares > 0, squares, 1.0), 0.0)
    return events


@dataclass(frozen=True)
class Diagnosis:
    """The facts behind one estimate of one signal. NaN means not known, or not applicable, and raises no flag.

    `kept` is the mean of the weights that the estimator really uses, after capping, shrinking or switching, when it
    changes them; `events` the rows whose reward is not zero (NaN for a dense signal, of which every row is an
    observation); `clusters` the users, or the rows where there are none; `model_share` how much of the target's choices
    the reward model alone speaks for: all of them for DM, what the shrunken weights leave for DR's kin. `fitted`:
    propensities were fitted, with `calibration_error` of the rows misplaced (0 where chance explains it) and
    `calibration_z`; `bias`: how many of its own standard errors an estimate of changed weights, or of the model, is
    from one that is consistent, 0 where chance explains it; `mean_slack`: by how much the mean weight may miss 1
    without a reason; `slice_z` is how far the estimate is from that of a random slice. `influential`, `influence_k`:
    of the estimate's own influence values (`Influence`); `changing`: `effective_of_change`.
    """

    rows: int
    clusters: int
    ess: float
    max_weight: float
    max_share: float
    mean_weight: float
    mean_z: float
    tail_k: float
    unsupported: int | float = math.nan
    kept: int | float = math.nan
    events: int | float = math.nan
    effective_events: int | float = math.nan
    model_share: int | float = 0.0
    fitted: bool = False
    calibration_error: int | float = math.nan
    calibration_z: int | float = math.nan
    bias: int | float = math.nan
    mean_slack: int | float = 0.01
    slice_z: int | float = math.nan
    influential: int | float = math.nan
    influence_k: int | float = math.nan
    changing: int | float = math.nan

    @property
    def ess_share(self) -> float:
        """Effective sample size over rows."""
        return self.ess / self.rows


def diagnose(
    weights: WeightSums, clusters: int | None = None, mean_z: float | None = None, **facts: int | float
) -> Diagnosis:
    """The facts that weights tell, with those of `facts`.

    `facts` may hold `unsupported`, `kept`, `events`, `effective_events`, `model_share`, `fitted`, `calibration_error`,
    `calibration_z`, `slice_z`, `influential` and `influence_k`. `clusters` are the rows if not given. `mean_z` replaces
    the z of independent rows where users have several.
    """
    return Diagnosis(
        rows=weights.rows,
        clusters=weights.rows if clusters is None else clusters,
        ess=weights.ess,
        max_weight=weights.max_weight,
        max_share=weights.max_share,
        mean_weight=weights.mean,
        mean_z=weights.mean_z if mean_z is None else mean_z,
        tail_k=pareto_k(weights.largest, weights.rows),
        **facts,  # type: ignore[arg-type]
    )
