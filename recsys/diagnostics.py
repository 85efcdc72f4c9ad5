"""Can an off-policy estimate be believed? Facts about weights and events, thresholds with their reasons, and a verdict.

All of it is computed from sums, counts and the largest weights, which a scan of a log adds up chunk by chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Float

from envs.core import InputError
from recsys.tails import pareto_k

KEPT = 10_000  # largest weights that a scan keeps: the whole PSIS tail of logs up to 11 million rows


@dataclass(frozen=True)
class WeightSums:
    """What a scan keeps of the weights w = pi_e / pi_b of the logged actions: n, Σ w, Σ w², and the largest, descending."""

    rows: int
    total: float
    squares: float
    largest: Float[np.ndarray, "m"]

    def __add__(self, later: WeightSums) -> WeightSums:
        """Of two chunks together. Add chunks in their order and the bits do not depend on who scanned them."""
        largest = np.sort(np.concatenate([self.largest, later.largest]))[::-1][:KEPT]
        return WeightSums(
            self.rows + later.rows, self.total + later.total, self.squares + later.squares, largest.copy()
        )

    @property
    def mean(self) -> float:
        """The mean weight. Where every action that the target may choose can be logged, E w = 1."""
        return self.total / self.rows

    @property
    def ess(self) -> float:
        """Kish's effective sample size (Σ w)² / Σ w²: n for equal weights, 1 if one row has them all, 0 without any weight.

        (Kish, Survey Sampling, 1965; Kong, Liu and Wong, JASA 1994.)
        """
        return self.total**2 / self.squares if self.squares > 0 else 0.0

    @property
    def max_weight(self) -> float:
        """The largest weight."""
        return float(self.largest[0])

    @property
    def max_share(self) -> float:
        """The largest weight's share of all weight; 1 where there is none, for then nothing else carries the estimate."""
        return self.max_weight / self.total if self.total > 0 else 1.0

    @property
    def mean_z(self) -> float:
        """(mean w - 1) / standard error: large where propensities are wrong or actions are missing from the log.

        0 where all weights are 1, infinite where they all have one other value.
        """
        off = self.mean - 1
        if self.rows < 2 or abs(off) < 1e-12:
            return 0.0
        variance = (self.squares - self.total * self.mean) / (self.rows - 1)
        return off / math.sqrt(variance / self.rows) if variance > 0 else math.copysign(math.inf, off)


def weight_sums(weight: Float[np.ndarray, "n"]) -> WeightSums:
    """The sums of one chunk. Raises InputError for weights that are negative or not finite, or for no rows."""
    if not len(weight) or not np.isfinite(weight).all() or (weight < 0).any():
        raise InputError(
            "Importance weights must be finite numbers of at least 0, and there must be some; got "
            f"{len(weight)} rows, {int((~np.isfinite(weight)).sum())} of them not finite, {int((weight < 0).sum())} negative."
        )
    top = weight if len(weight) <= KEPT else np.partition(weight, len(weight) - KEPT)[-KEPT:]
    return WeightSums(len(weight), float(weight.sum()), float((weight**2).sum()), np.sort(top)[::-1].copy())


def unsupported_mass(
    target: Float[np.ndarray, "n A"], logging: Float[np.ndarray, "n A"], eps: float | None = None
) -> float:
    """The target policy's mean probability of actions whose logging probability is below eps.

    No weight repairs this: what such actions earn is not in the log, and IPS counts it as 0. The default eps is a hundredth of
    1/A, so that long catalogs are not called unsupported for being long.
    """
    least = 0.01 / target.shape[1] if eps is None else eps
    return float(np.where(logging < least, target, 0.0).sum(axis=1).mean())


def effective_events(weighted: Float[np.ndarray, "n K"]) -> Float[np.ndarray, "K"]:
    """(Σ w r)² / Σ (w r)²: how many equally weighted events would be as informative as those of each signal; 0 for none."""
    squares = (weighted**2).sum(axis=0)
    events: np.ndarray = np.where(squares > 0, weighted.sum(axis=0) ** 2 / np.where(squares > 0, squares, 1.0), 0.0)
    return events


@dataclass(frozen=True)
class Diagnosis:
    """The facts behind one estimate of one signal. NaN means not known, or not applicable, and raises no flag.

    `kept` is the mean of the weights that the estimator really uses, after capping, shrinking or switching, when it changes
    them; `events` the rows whose reward is not zero (NaN for a dense signal, of which every row is an observation);
    `clusters` the users, or the rows where there are none.
    """

    rows: int
    clusters: int
    ess: float
    max_weight: float
    max_share: float
    mean_weight: float
    mean_z: float
    tail_k: float
    unsupported: float = math.nan
    kept: float = math.nan
    events: float = math.nan
    effective_events: float = math.nan
    model_only: bool = False

    @property
    def ess_share(self) -> float:
        """Effective sample size over rows."""
        return self.ess / self.rows


def diagnose(weights: WeightSums, clusters: int | None = None, mean_z: float | None = None, **facts: float) -> Diagnosis:
    """The facts that weights tell, with those of `facts` (`unsupported`, `kept`, `events`, `effective_events`, `model_only`).

    `clusters` are the rows if not given. `mean_z` replaces the z of independent rows where users have several.
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


class Level(IntEnum):
    """How far an estimate may be trusted; the larger the worse."""

    RELIABLE = 0
    CAUTION = 1
    UNRELIABLE = 2


@dataclass(frozen=True)
class Check:
    """One question to a Diagnosis: `badness` grows with trouble and is compared with both thresholds; NaN passes.

    `says` is the sentence of a failed check, filled in from the Diagnosis; `why` gives the thresholds' reason.
    """

    name: str
    badness: Callable[[Diagnosis], float]
    caution: float
    unreliable: float
    says: str
    why: str


def _mean_off(d: Diagnosis) -> float:
    return abs(d.mean_z) if abs(d.mean_weight - 1) > 0.01 else 0.0


def _tail_over(d: Diagnosis) -> float:
    """k beyond what n rows can carry: PSIS asks for k < min(0.7, 1 - 1 / log10 n)."""
    return d.tail_k - min(0.7, 1 - 1 / math.log10(max(d.rows, 11)))


# In the order in which a reason is named. A lower bound is written as a negative.
CHECKS = (
    Check(
        "ess",
        lambda d: -d.ess,
        -200,
        -50,
        "the weights leave an effective sample of {ess:.1f} of {rows:,} rows",
        "With 50 equally weighted rows the standard error of a standard error is 10 %, with 200 it is 5 %; with fewer neither "
        "an interval nor any other check can be trusted.",
    ),
    Check(
        "max_share",
        lambda d: d.max_share,
        0.05,
        0.3,
        "one row carries {max_share:.0%} of all weight (the largest weight is {max_weight:.6g})",
        "The central limit theorem needs every single share to vanish; at 0.3 the estimate is mostly one reward.",
    ),
    Check(
        "mean_weight",
        _mean_off,
        3,
        4,
        "the mean weight is {mean_weight:.3f} where it should be 1 (z = {mean_z:.1f}): propensities are wrong, or the log "
        "lacks actions of the target policy",
        "|z| > 4 happens by chance once in 16,000 logs, 3 once in 370. A deviation of at most 1 % is let pass, for in long logs "
        "rounded propensities are significant and harmless.",
    ),
    Check(
        "tail",
        _tail_over,
        -0.2,
        0.0,
        "the largest weights have a Pareto tail of k = {tail_k:.2f}, so rows not yet seen would change the estimate",
        "PSIS: beyond k = 0.7 (less for fewer than 2,200 rows) the error falls too slowly for any feasible sample; from 0.5 the "
        "variance is infinite.",
    ),
    Check(
        "support",
        lambda d: d.unsupported,
        0.01,
        0.1,
        "{unsupported:.1%} of the target policy's choices are actions that were hardly ever logged",
        "The bias is up to this share times the range of rewards, and no interval contains it: 10 % swamps most effects that a "
        "launch is decided by.",
    ),
    Check(
        "events",
        lambda d: -d.events,
        -50,
        -10,
        "only {events:.0f} events stand behind this signal",
        "A count of 10 has a relative standard error of 32 %, of 50 14 %, before any weight.",
    ),
    Check(
        "effective_events",
        lambda d: -d.effective_events,
        -10,
        -2,
        "the {events:.0f} events count no more than {effective_events:.1f} once weighted",
        "As for events; below 2 a single one decides.",
    ),
    Check(
        "clusters",
        lambda d: -d.clusters,
        -40,
        -10,
        "only {clusters} users (or other clusters) are independent",
        "Below 40 clusters intervals cover visibly less than they say, below 10 resampling means little.",
    ),
    Check(
        "kept",
        lambda d: -d.kept,
        -0.9,
        -0.5,
        "after capping or shrinking, the weights speak for {kept:.0%} of the target policy's choices; the rest is bias",
        "E w = 1, so what the used weights lack of a mean of 1 is the share of the target policy that they ignore.",
    ),
    Check(
        "model",
        lambda d: float(d.model_only),
        1,
        math.inf,
        "it rests on the reward model alone, whose error no interval here contains",
        "Direct estimates are as good as their model; weights are what holds them against the log.",
    ),
)


@dataclass(frozen=True)
class Verdict:
    """RELIABLE, CAUTION or UNRELIABLE, the check that decided (empty if none did), and why in a sentence."""

    level: Level
    check: str
    reason: str

    def __str__(self) -> str:
        return f"{self.level.name}: {self.reason}"


def verdict(diagnosis: Diagnosis) -> Verdict:
    """The worst answer of all checks, with the first check that gives it.

    Capped, shrunken and model-based estimates are held against the plain weights too: where those fail, the bias that was
    traded for variance cannot be measured.
    """
    levels = [Level(int(_over(c, diagnosis, c.caution)) + int(_over(c, diagnosis, c.unreliable))) for c in CHECKS]
    worst = max(levels)
    if worst is Level.RELIABLE:
        d = diagnosis
        reason = f"An effective sample of {d.ess:,.0f} of {d.rows:,} rows, no row with more than {d.max_share:.1%} of the weight."
        return Verdict(worst, "", reason)
    check = CHECKS[levels.index(worst)]
    said = check.says.format(**vars(diagnosis))
    return Verdict(worst, check.name, said[0].upper() + said[1:] + ".")


def _over(check: Check, diagnosis: Diagnosis, threshold: float) -> bool:
    return check.badness(diagnosis) >= threshold if check.name == "model" else check.badness(diagnosis) > threshold
