"""Logs without propensities: fit who would have been shown what, check the fit, and bound what it may have missed.

Axes: n rows, D features, A actions, K signals. Fitted propensities replace known ones at the price of an assumption:
given the features, nothing else moved both the logger's choice and the reward. `sensitivity_bounds` say what happens
as it fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from envs.core import InputError

Predict = Callable[[np.ndarray], np.ndarray]  # features [n,D] -> log-probabilities [n,A]
Fit = Callable[[np.ndarray, np.ndarray], Predict]  # features [n,D], action [n] -> Predict


def logistic(actions: int, l2: float = 1.0) -> Fit:
    """Multinomial logistic regression with an intercept: log π(a|x) = θ_a·x + c_a - log Σ_b exp(θ_b·x + c_b).

    Maximizes Σ log π(a_i|x_i) - l2/2 |θ|² by L-BFGS, intercepts unpenalized. Features should be of a scale near 1.
    """

    def fit(features: np.ndarray, action: np.ndarray) -> Predict:
        from scipy import optimize, special

        x = np.concatenate([features, np.ones((len(features), 1))], axis=1)
        chosen = np.eye(actions)[action]
        weigh = np.append(np.full(features.shape[1], l2), 1e-6)[:, None]

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            theta = flat.reshape(-1, actions)
            log_prob = special.log_softmax(x @ theta, axis=1)
            value = -(log_prob * chosen).sum() + (weigh * theta**2).sum() / 2
            gradient = x.T @ (np.exp(log_prob) - chosen) + weigh * theta
            return float(value), gradient.ravel()

        start = np.zeros(x.shape[1] * actions)
        theta = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
        theta = theta.reshape(-1, actions)

        def predict(features: np.ndarray) -> np.ndarray:
            log_prob: np.ndarray = special.log_softmax(features @ theta[:-1] + theta[-1], axis=1)
            return log_prob

        return predict

    return fit


def frequency(actions: int, strength: float = 10.0) -> Fit:
    """How often each action was shown in each context, the first feature taken as its number.

    (count(x, a) + strength · share(a)) / (count(x) + strength), where share(a) is smoothed by one row in all:
    contexts that were never seen get the share of all.
    """

    def fit(features: np.ndarray, action: np.ndarray) -> Predict:
        share = (np.bincount(action, minlength=actions) + 1 / actions) / (len(action) + 1)
        contexts, index = np.unique(features[:, 0], return_inverse=True)
        counts = np.zeros((len(contexts) + 1, actions))
        np.add.at(counts, (index, action), 1)
        log_prob = np.log((counts + strength * share) / (counts.sum(axis=1, keepdims=True) + strength))

        def predict(features: np.ndarray) -> np.ndarray:
            at = np.searchsorted(contexts, features[:, 0]).clip(max=len(contexts) - 1)
            known: np.ndarray = log_prob[np.where(contexts[at] == features[:, 0], at, len(contexts))]
            return known

        return predict

    return fit


def cross_fit(
    fit: Fit,
    features: Float[np.ndarray, "n D"],
    action: Int[np.ndarray, " n"],
    cluster: Int[np.ndarray, " n"] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Float[np.ndarray, "n A"]:
    """Each row's propensities from a model that saw neither the row nor its cluster, with the temperature calibrated.

    The temperature of a fold minimizes the log-loss of the other folds' held-out predictions: one number, which takes
    back over- or underconfidence. (Cross-fitting: Chernozhukov et al., Econometrics Journal 2018; temperature: Guo,
    Pleiss, Sun and Weinberger, ICML 2017.)
    """
    units = np.arange(len(action)) if cluster is None else np.unique(cluster, return_inverse=True)[1]
    count = int(units.max()) + 1 if len(units) else 0
    if not 3 <= folds <= count:
        raise InputError(
            f"Cross-fitting needs at least 3 folds and a cluster in each; got {folds} folds, {count} clusters."
        )
    fold = (np.random.default_rng(seed).permutation(count) % folds)[units]
    held_out: list[np.ndarray] = [
        fit(features[fold != f], action[fold != f])(features[fold == f]) for f in range(folds)
    ]
    log_prob = np.empty((len(action), held_out[0].shape[1]))
    for f in range(folds):
        log_prob[fold == f] = held_out[f]
    probability = np.empty_like(log_prob)
    for f in range(folds):
        t = temperature(log_prob[fold != f], action[fold != f])
        probability[fold == f] = _softmax(log_prob[fold == f] / t)
    return probability


def temperature(log_prob: Float[np.ndarray, "n A"], action: Int[np.ndarray, " n"]) -> float:
    """The t for which softmax(log_prob / t) has the least log-loss; above 1 where predictions are overconfident."""
    from scipy import optimize

    def loss(log_t: float) -> float:
        probability = _softmax(log_prob / math.exp(log_t))
        return -float(np.log(np.maximum(probability[np.arange(len(action)), action], 1e-300)).mean())

    return math.exp(optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)


@dataclass(frozen=True)
class CalibrationRow:
    """Pairs of rows and actions with nearly the same propensity: how many, what was predicted and how often it was
    shown.
    """

    pairs: int
    predicted: float
    shown: float
    standard_error: float


def calibration_table(
    probability: Float[np.ndarray, "n A"], action: Int[np.ndarray, " n"], bins: int = 10
) -> list[CalibrationRow]:
    """Predicted propensities against how often actions were shown, in bins of equally many pairs of a row and an
    action.

    The standard error is that of a binomial share with the predicted probabilities; rows more than three of them
    apart mean propensities that are wrong on average.
    """
    shown = np.zeros_like(probability)
    shown[np.arange(len(action)), action] = 1
    order = np.argsort(probability, axis=None, kind="stable")
    table = []
    for part in np.array_split(order, bins):
        p, seen = probability.ravel()[part], shown.ravel()[part]
        if len(part):
            error = math.sqrt(float((p * (1 - p)).sum())) / len(part)
            table.append(CalibrationRow(len(part), float(p.mean()), float(seen.mean()), error))
    return table


def sensitivity_bounds(
    reward: Float[np.ndarray, "n K"],
    target: Float[np.ndarray, " n"],
    propensity: Float[np.ndarray, " n"],
    odds: int | float,
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """The least and the largest SNIPS estimate if propensities are wrong by up to the factor `odds` in their odds.

    The marginal sensitivity model lets the true propensity p_i of the shown action have odds within [1/Λ, Λ] times
    the nominal ones, so 1/p_i lies in [1 + (1/e_i - 1)/Λ, 1 + Λ (1/e_i - 1)]. Σ π_e r / p over Σ π_e / p is largest
    with the upper end for rewards above a threshold and the lower end below: all thresholds are tried, after sorting.
    Sharp for the rows at hand; knowing in addition that weights average 1 in every context could only narrow it.
    (Tan, JASA 2006; sorted solution: Zhao, Small and Bhattacharya, JRSS B 2019; policies: Kallus and Zhou, NeurIPS
    2018; sharper: Dorn and Guo, JASA 2023.)
    """
    if odds < 1 or (propensity <= 0).any() or (propensity > 1).any():
        raise InputError(f"The factor on odds is at least 1 and propensities lie in (0, 1]; got a factor of {odds}.")
    rest = 1 / propensity - 1
    few, many = target * (1 + rest / odds), target * (1 + rest * odds)
    high = np.array([_largest(column, few, many) for column in reward.T])
    low = -np.array([_largest(-column, few, many) for column in reward.T])
    return low, high


def breaking_odds(
    reward: Float[np.ndarray, " n"],
    target: Float[np.ndarray, " n"],
    propensity: Float[np.ndarray, " n"],
    threshold: float,
    most: int | float = 100,
) -> float:
    """How wrong propensities would have to be for the estimate to reach a threshold: the least `odds`; inf beyond
    `most`.
    """
    from scipy import optimize

    def gap(odds: int | float) -> float:
        low, high = sensitivity_bounds(reward[:, None], target, propensity, odds)
        return float(max(low[0] - threshold, threshold - high[0]))

    if gap(1) <= 0:
        return 1.0
    return math.inf if gap(most) > 0 else float(optimize.brentq(gap, 1, most, xtol=1e-9))


def _largest(reward: np.ndarray, few: np.ndarray, many: np.ndarray) -> float:
    order = np.argsort(reward)
    r, a, b = reward[order], few[order], many[order]
    below, above = np.append(0, np.cumsum(a)), np.append(np.cumsum(b[::-1])[::-1], 0)
    worth = np.append(0, np.cumsum(a * r)) + np.append(np.cumsum((b * r)[::-1])[::-1], 0)
    total = below + above
    if total[0] <= 0:
        raise InputError("The target policy chose none of the logged actions: there is no estimate to bound.")
    return float((worth[total > 0] / total[total > 0]).max())


def _softmax(logits: np.ndarray) -> np.ndarray:
    from scipy import special

    probability: np.ndarray = special.softmax(logits, axis=1)
    return probability
