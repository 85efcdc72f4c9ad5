"""The choice of an estimator, or of its settings: SLOPE, cross-validation, and PAS-IF, in pure functions.

Axes: M candidates, K signals, n rows, A actions, C clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from envs.core import InputError
from recsys.statistics.intervals import ClusterSums
from recsys.statistics.verdict import Level, Verdict


def slope(
    value: Float[np.ndarray, "M K"], half_width: Float[np.ndarray, "M K"], factor: int | float = 2
) -> Int[np.ndarray, " K"]:
    """SLOPE: the narrowest candidate whose interval still meets those of all wider ones, for each signal.

    Candidates are taken from the widest confidence half width to the narrowest, which must be from the least biased
    to the most, as caps and shrinkage are when loosened to tightened. I_i = value_i ± factor · half_width_i, and the
    choice is max {i : I_1 ∩ … ∩ I_i is not empty}; its error is within a constant of the best candidate's. The
    deviations alone are compared, so no bias has to be known. A half width of one standard error tolerates a bias of
    about the size of the noise; that of a 95 % interval, as in the theorem, twice as much. (Su, Srinath and
    Krishnamurthy, ICML 2020, with factor 2; after Lepski.)
    """
    chosen = np.empty(value.shape[1], dtype=np.int64)
    for k in range(value.shape[1]):
        order = np.argsort(-half_width[:, k], kind="stable")
        low = np.maximum.accumulate((value[:, k] - factor * half_width[:, k])[order])
        high = np.minimum.accumulate((value[:, k] + factor * half_width[:, k])[order])
        apart = np.flatnonzero(low > high)
        chosen[k] = order[apart[0] - 1 if len(apart) else -1]
    return chosen


def cross_validated_mse(
    candidates: Sequence[ClusterSums], validator: ClusterSums, folds: int = 20, share: float = 0.5, seed: int = 0
) -> Float[np.ndarray, "M K"]:
    """The mean square distance of each candidate on one part of the clusters from an unbiased estimate on the rest.

    E (candidate - validator)² = the candidate's squared error + the validator's variance, which is the same for all
    candidates: their order is that of their errors at `share` of the data, which makes variance weigh more than it
    does in the whole log. The validator is one that is unbiased, such as IPS or DR. All are sums by cluster, so a
    split is a mask and nothing is fitted again; a reward model that a candidate uses must come from other rows.
    (Cief, Kveton and Kompan, Cross-Validated Off-Policy Evaluation, AAAI 2025.) NaN where a split leaves a candidate
    without weight.
    """
    C = validator.clusters
    taken = round(share * C)
    if not 0 < taken < C or folds < 1 or any(candidate.clusters != C for candidate in candidates):
        raise InputError(
            f"Cross-validation splits the same clusters of all candidates in two parts; got {C} clusters, a share of "
            f"{share} and {folds} folds."
        )
    random = np.random.default_rng(seed)
    squares = np.zeros((len(candidates), validator.numerator.shape[2]))
    for _ in range(folds):
        train = np.zeros(C, dtype=bool)
        train[random.permutation(C)[:taken]] = True
        truth = _on(validator, ~train)
        squares += np.stack([(_on(candidate, train) - truth) ** 2 for candidate in candidates])
    return squares / folds


def mse_proxy(
    value: Float[np.ndarray, "M K"],
    error: Float[np.ndarray, "M K"],
    unbiased: Float[np.ndarray, " K"],
    difference_error: Float[np.ndarray, "M K"],
) -> Float[np.ndarray, "M K"]:
    """Variance plus squared bias, without new splits: error² + max(0, (value - unbiased)² - difference_error²).

    The squared distance from an unbiased estimate overstates the bias by the variance of their paired difference,
    whose standard error is `difference_error`; that is taken off. (The plug-in rule of Thomas and Brunskill, ICML
    2016, for MAGIC, and of Wang, Agarwal and Dudík, ICML 2017, for Switch.)
    """
    return error**2 + np.maximum(0.0, (value - unbiased) ** 2 - difference_error**2)


@dataclass(frozen=True)
class Split:
    """A log cut in two by PAS-IF: rows for a pseudo logger, rows for a pseudo target policy, and both policies."""

    logged: Bool[np.ndarray, " n"]
    logging: Float[np.ndarray, "n A"]
    target: Float[np.ndarray, "n A"]


def fit_subsampling(
    target: Float[np.ndarray, "n A"], logging: Float[np.ndarray, "n A"], share: float = 0.2, grid: int = 21
) -> Float[np.ndarray, "n A"]:
    """The probability ρ(x, a) with which PAS-IF gives a row to its pseudo target policy, fitted to the real weights.

    Rows given with ρ look as if logged by π̃_e ∝ π_b ρ, the others by π̃_b ∝ π_b (1-ρ). ρ minimizes the mean square
    of w - w̃ over π_b, where w = π_e/π_b and w̃ = π̃_e/π̃_b, while E ρ = share. Here logit ρ = b log w + c: c is
    found for each b on a grid from 0 to 1. At b = 1 and a small share w̃ is w. (Udagawa, Kiyohara, Narita, Saito and
    Tateno, Policy-Adaptive Estimator Selection for Off-Policy Evaluation, AAAI 2023; they fit a network, which needs
    tuning itself.)
    """
    if not 0 < share < 1 or (logging <= 0).any():
        raise InputError(
            "PAS-IF needs a share between 0 and 1 and a logging policy that gives every action a probability."
        )
    weight = target / logging
    log = np.log(np.maximum(weight, 1e-12))
    best, rule = np.inf, np.full_like(weight, share)
    for b in np.linspace(0, 1, grid):
        trial = _at_share(b * log, logging, share)
        pseudo_target, pseudo_logging = _induced(trial, logging)
        loss = float((logging * (weight - pseudo_target / pseudo_logging) ** 2).sum(axis=1).mean())
        if loss < best:
            best, rule = loss, trial
    return rule


def subsample(
    rule: Float[np.ndarray, "n A"],
    action: Int[np.ndarray, " n"],
    logging: Float[np.ndarray, "n A"],
    seed: int,
    cluster: Int[np.ndarray, " n"] | None = None,
) -> Split:
    """One split by the rule ρ.

    Rows of one cluster share their uniform number, so that a user mostly falls to one side.
    """
    random = np.random.default_rng(seed)
    names, index = (None, np.arange(len(action))) if cluster is None else np.unique(cluster, return_inverse=True)
    uniform = random.random(len(action) if names is None else len(names))[index]
    pseudo_target, pseudo_logging = _induced(rule, logging)
    return Split(uniform >= rule[np.arange(len(action)), action], pseudo_logging, pseudo_target)


def pas_if(
    estimators: Mapping[str, Callable[[Split], Float[np.ndarray, " K"]]],
    reward: Float[np.ndarray, "n K"],
    splits: Sequence[Split],
) -> dict[str, Float[np.ndarray, " K"]]:
    """Each estimator's mean squared error in the pseudo problems that the splits pose, where the truth is nearly known.

    An estimator is a function of a split: it evaluates `split.target` from the rows `split.logged`, whose
    propensities are `split.logging`; the rest of the log, on which the pseudo target policy acted itself, gives the
    mean reward it is held against. The least error is the choice. Unlike SLOPE it compares estimators of any kind,
    and unlike plain cross-validation the shift between the pseudo policies resembles the real one. (Udagawa et al.,
    AAAI 2023, equation 5.)

    Raises InputError where a split leaves a side empty.
    """
    errors = {name: np.zeros(reward.shape[1]) for name in estimators}
    for split in splits:
        if split.logged.all() or not split.logged.any():
            raise InputError(
                "A split of PAS-IF left one side without rows: use a share nearer to a half, or a longer log."
            )
        truth = reward[~split.logged].mean(axis=0)
        for name, estimate in estimators.items():
            errors[name] += (estimate(split) - truth) ** 2 / len(splits)
    return errors


@dataclass(frozen=True)
class Recommendation:
    """The estimator to read for one signal (None for none of them) and why, in a sentence."""

    estimator: str | None
    sentence: str


# In the order in which they are read, whatever the log says, with what speaks for each.
DESCRIBED = {
    "sndr": "doubly robust, and its weights add up to one",
    "dr": "doubly robust",
    "snips": "its weights add up to one",
    "ips": "it is unbiased wherever propensities are right",
}


def recommend(
    verdicts: Mapping[str, Verdict],
    value: Mapping[str, float],
    error: Mapping[str, float],
    mse: Mapping[str, float] | None = None,
) -> Recommendation:
    """The estimator to read: of those with the best verdict, that of least estimated error, or else SLOPE's.

    `error` are standard errors, for SLOPE; `mse` are estimates such as those of `pas_if` or `cross_validated_mse`.
    Where all are UNRELIABLE none is recommended, for picking among them would only pick an error.
    """
    names = _of_best_verdict(verdicts)
    if verdicts[names[0]].level is Level.UNRELIABLE:
        return _none_of(verdicts[names[0]])
    if mse is not None:
        known = {name: mse[name] for name in names if np.isfinite(mse.get(name, np.nan))}
        if known:
            chosen = min(known, key=lambda name: known[name])
            how = f"its estimated error is the least of {len(known)}, a root mean square of {known[chosen] ** 0.5:.3g}"
            return Recommendation(chosen, _sentence(chosen, how, verdicts[chosen]))
    values, widths = [np.array([[numbers[name]] for name in names]) for numbers in (value, error)]
    chosen = names[int(slope(values, widths)[0])]
    how = f"its interval is the narrowest of {len(names)} that agrees with all wider ones (SLOPE)"
    return Recommendation(chosen, _sentence(chosen, how, verdicts[chosen]))


def recommend_first(verdicts: Mapping[str, Verdict]) -> Recommendation:
    """The estimator to read: of those with the best verdict the first of `DESCRIBED`; others follow as they come."""
    names = _of_best_verdict(verdicts)
    if verdicts[names[0]].level is Level.UNRELIABLE:
        return _none_of(verdicts[names[0]])
    chosen = next((name for name in DESCRIBED if name in names), names[0])
    how = DESCRIBED.get(chosen, f"it comes first of {', '.join(names)}")
    return Recommendation(chosen, _sentence(chosen, how, verdicts[chosen]))


def recommend_narrowest(verdicts: Mapping[str, Verdict], width: Mapping[str, float]) -> Recommendation:
    """The estimator to read among consistent ones: of those with the best verdict, that of the narrowest interval."""
    names = _of_best_verdict(verdicts)
    if verdicts[names[0]].level is Level.UNRELIABLE:
        return _none_of(verdicts[names[0]])
    chosen = min(names, key=lambda name: width[name])
    how = f"its interval is the narrowest of {', '.join(names)}"
    return Recommendation(chosen, _sentence(chosen, how, verdicts[chosen]))


def recommend_none(verdicts: Mapping[str, Verdict]) -> Recommendation:
    """Of estimates without intervals none."""
    best = verdicts[_of_best_verdict(verdicts)[0]]
    if best.level is Level.UNRELIABLE:
        return _none_of(best)
    return Recommendation(
        None,
        f"Read none of these estimates: {', '.join(verdicts)} have no interval by this method; by "
        "intervals.method: studentized they have.",
    )


def _of_best_verdict(verdicts: Mapping[str, Verdict]) -> list[str]:
    best = min(verdict.level for verdict in verdicts.values())
    return [name for name, verdict in verdicts.items() if verdict.level == best]


def _none_of(verdict: Verdict) -> Recommendation:
    return Recommendation(None, f"Read none of these estimates. {verdict.reason}")


def _sentence(name: str, how: str, verdict: Verdict) -> str:
    read = f"Read {name}: {how}"
    return (
        f"{read}."
        if verdict.level is Level.RELIABLE
        else f"{read}; but with caution: {verdict.reason[0].lower()}{verdict.reason[1:]}"
    )


def _on(sums: ClusterSums, rows: np.ndarray) -> np.ndarray:
    below = sums.denominator[rows].sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = sums.numerator[rows].sum(axis=0) / np.where(below > 0, below, np.nan)[:, None]
    value: np.ndarray = ratios.sum(axis=0)
    return value


def _induced(rule: np.ndarray, logging: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """π̃_e and π̃_b."""
    taken, left = logging * rule, logging * (1 - rule)
    return taken / taken.sum(axis=1, keepdims=True), left / left.sum(axis=1, keepdims=True)


def _at_share(logit: np.ndarray, logging: np.ndarray, share: float) -> np.ndarray:
    """sigmoid(logit + c) with c such that its mean over the logging policy is the share."""
    from scipy import optimize, special

    def rule(c: float) -> np.ndarray:
        sigmoid: np.ndarray = special.expit(logit + c)
        return sigmoid

    def excess(c: float) -> float:
        return float((logging * rule(c)).sum(axis=1).mean()) - share

    return rule(float(optimize.brentq(excess, -40.0 - logit.max(), 40.0 - logit.min(), xtol=1e-12)))
