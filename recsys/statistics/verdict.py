"""RELIABLE, CAUTION or UNRELIABLE: all thresholds, with their reasons, and the sentence that names the deciding one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from recsys.statistics.diagnostics import Diagnosis

FEW = 20  # clusters that decide a difference, below which it is told with CAUTION
MANY = 100  # standard errors, beyond which it does not matter how many


class Level(IntEnum):
    """Trust in an estimate; the larger the worse."""

    RELIABLE = 0
    CAUTION = 1
    UNRELIABLE = 2


@dataclass(frozen=True)
class Check:
    """One question to a Diagnosis: `badness` grows with trouble and is compared with both thresholds; NaN passes.

    `says` is the sentence of a failed check, filled in from the Diagnosis; `why` gives the thresholds' reason.
    """

    name: str
    badness: Callable[[Diagnosis], int | float]
    caution: int | float
    unreliable: int | float
    says: str
    why: str


def _mean_off(d: Diagnosis) -> float:
    return abs(d.mean_z) if abs(d.mean_weight - 1) > d.mean_slack else 0.0


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
        "With 50 equally weighted rows the standard error of a standard error is 10 %, with 200 it is 5 %; with "
        "fewer neither "
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
        "ess_share",
        lambda d: -d.ess_share,
        -0.01,
        math.inf,
        "the weights leave {ess_share} of the log: the target policy does what was hardly tried",
        "A long log can afford this, so it is no more than a warning: all rests on the few rows where both "
        "policies agree.",
    ),
    Check(
        "mean_weight",
        _mean_off,
        3,
        4,
        "the mean weight is {mean_weight:.3f} where it should be 1 (z = {mean_z}): propensities are wrong, "
        "or the log "
        "lacks actions of the target policy",
        "|z| > 4 happens by chance once in 16,000 logs, 3 once in 370. A deviation of at most 1 % is let pass, "
        "for in long logs "
        "rounded propensities are significant and harmless.",
    ),
    Check(
        "tail",
        _tail_over,
        -0.2,
        0.0,
        "the largest weights have a Pareto tail of k = {tail_k:.2f}, so rows not yet seen may well change the estimate",
        "PSIS: beyond k = 0.7 (less for fewer than 2,200 rows) the error falls too slowly for any feasible "
        "sample; from 0.5 the "
        "variance is infinite.",
    ),
    Check(
        "support",
        lambda d: d.unsupported,
        0.01,
        0.1,
        "{unsupported:.1%} of the target policy's choices are actions that were hardly ever logged",
        "The bias is up to this share times the range of rewards, and no interval contains it: 10 % swamps most "
        "effects that a "
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
        "influence",
        lambda d: -d.influential,
        -30,
        math.inf,
        "it rests on few users or rows: their pulls on it are as uneven as of {influential:.1f} equal ones",
        "1 / 30 is the squared coefficient of variation of the variance estimate: with less, standard errors are off "
        "by a tenth or more, and intervals of heavy rewards, loud users and rare actions miss two to five times as "
        "often as they say. Studentized ones grow with it, so it is no more than a warning. No larger number is asked "
        "for: with heavy rewards it is reached just where the largest ones happened not to be seen.",
    ),
    Check(
        "influence_tail",
        lambda d: d.influence_k,
        0.5,
        math.inf,
        "the largest pulls of single users or rows on the estimate have a Pareto tail of k = {influence_k:.2f}, so "
        "some not yet seen may well change it",
        "From 0.5 the variance of what a cluster contributes is infinite, and no interval is wide enough for what has "
        "not been seen. Of the few events that most logs have, k itself is too uncertain to refuse by it.",
    ),
    Check(
        "change",
        lambda d: -d.changing,
        -FEW,
        math.inf,
        "what it would change of the log rests on few users or rows: their pulls on the difference are as uneven as of "
        "{changing:.1f} equal ones",
        "Where a policy does little else than the logger, but for a rare action, the estimate is well known and its "
        "change is not. With heavy rewards such changes miss as often as their estimates do, one in four below 16.",
    ),
    Check(
        "clusters",
        lambda d: -d.clusters,
        -40,
        -10,
        "the number of independent users (or other clusters) is only {clusters}",
        "Below 40 clusters intervals cover visibly less than they say, below 10 resampling means little.",
    ),
    Check(
        "fitted",
        lambda d: float(d.fitted),
        0.5,
        math.inf,
        "its propensities were fitted: it holds only if nothing beside the model's columns moved both what was shown "
        "and the reward",
        "No unmeasured confounding cannot be tested by the log itself; a random slice or known propensities can.",
    ),
    Check(
        "bias",
        lambda d: d.bias,
        0.5,
        2.0,
        "it is {bias} of its standard errors from what unchanged weights say (sndr or snips), more than chance "
        "explains, and its interval does not know",
        "A bias of half a standard error makes a 95 % interval miss 8 times in 100, of two standard errors every other "
        "time.",
    ),
    Check(
        "kept",
        lambda d: -d.kept,
        -0.95,
        -0.5,
        "after capping or shrinking, the weights speak for {kept:.0%} of the target policy's choices; the rest is bias",
        "E w = 1, so what the used weights lack of a mean of 1 is the share of the target policy that they ignore.",
    ),
    Check(
        "model",
        lambda d: d.model_share,
        0.05,
        math.inf,
        "the reward model alone speaks for {model_share:.0%} of the target policy's choices, and no interval here "
        "contains its error",
        "Direct estimates are as good as their model; weights hold them against the log. A twentieth, as for kept.",
    ),
    Check(
        "calibration",
        lambda d: d.calibration_error,
        0.05,
        0.2,
        "the fitted propensities put {calibration_error:.0%} of what was shown in the wrong place (|z| = "
        "{calibration_z})",
        "Weights are off by about as much. Below 5 % other errors are larger; at 20 % the model has missed what the "
        "logger did.",
    ),
    Check(
        "random_slice",
        lambda d: d.slice_z,
        3,
        4,
        "the random slice, whose propensities are known, says something else (|z| = {slice_z})",
        "The slice needs no model of the logger, so it is the judge; a difference of SNIPS below 5 % is let pass.",
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

    Capped, shrunken and model-based estimates are held against the plain weights too: where those fail, the bias that
    was traded for variance cannot be measured.
    """
    levels = [Level(int(_over(c, diagnosis, c.caution)) + int(_over(c, diagnosis, c.unreliable))) for c in CHECKS]
    worst = max(levels)
    if worst is Level.RELIABLE:
        d = diagnosis
        size = f"An effective sample of {d.ess:,.0f} of {d.rows:,} rows"
        # Not how even the pulls are: all estimates by the same weights share a sentence, and are told in one line.
        reason = f"{size}, no row with more than {_percent(d.max_share)} of the weight."
        return Verdict(worst, "", reason)
    check = CHECKS[levels.index(worst)]
    said = check.says.format(**vars(diagnosis) | _in_words(diagnosis))
    return Verdict(worst, check.name, said[0].upper() + said[1:] + ".")


def _in_words(diagnosis: Diagnosis) -> dict[str, str]:
    """Facts that may be beyond any reason, as they are told: no number of standard errors is of sixteen digits."""
    errors = {name: getattr(diagnosis, name) for name in ("mean_z", "bias", "calibration_z", "slice_z")}
    told = {name: f"{value:.1f}" if abs(value) < MANY else f"more than {MANY}" for name, value in errors.items()}
    return told | {"ess_share": _percent(diagnosis.ess_share)}


def _percent(share: float) -> str:
    """With two digits that say something, so that no share is 0.0 %."""
    return f"{share:.1%}" if share >= 0.01 else f"{100 * share:.2g}%"


def _over(check: Check, diagnosis: Diagnosis, threshold: int | float) -> bool:
    return check.badness(diagnosis) > threshold
