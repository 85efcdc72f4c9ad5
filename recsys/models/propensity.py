"""Logs without propensities: fit who would have been shown what, and check the fit.

Axes: n rows, D features, A actions. Fitted propensities replace known ones at the price of an assumption: given the
features, nothing else moved both the logger's choice and the reward. `recsys.bandit.sensitivity` says what happens
as it fails; `recsys.bandit.fitted_propensities` does the whole for logs of any length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
        chosen = np.zeros((x.shape[1], actions))  # Σ x of the rows that show an action
        np.add.at(chosen.T, action, x)
        weigh = np.append(np.full(features.shape[1], l2), 1e-6)[:, None]

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            theta = flat.reshape(-1, actions)
            log_prob = special.log_softmax(x @ theta, axis=1)
            value = (weigh * theta**2).sum() / 2 - log_prob[np.arange(len(x)), action].sum()
            gradient = x.T @ np.exp(log_prob) - chosen + weigh * theta
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
    """Frequencies of each action in each context, the first feature taken as its number.

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
    return fit_folds(fit, features, action, fold, folds).held_out


@dataclass(frozen=True)
class CrossFitted:
    """A model for each fold that saw all others, its temperature, and what both say of the fold's own rows."""

    models: list[Predict]
    temperatures: list[float]
    held_out: Float[np.ndarray, "n A"]


def fit_folds(
    fit: Fit,
    features: Float[np.ndarray, "n D"],
    action: Int[np.ndarray, " n"],
    fold: Int[np.ndarray, " n"],
    folds: int,
) -> CrossFitted:
    """`cross_fit` with given folds, keeping the models."""
    models = [fit(features[fold != f], action[fold != f]) for f in range(folds)]
    held_out = [models[f](features[fold == f]) for f in range(folds)]
    log_prob = np.empty((len(action), held_out[0].shape[1]))
    for f in range(folds):
        log_prob[fold == f] = held_out[f]
    temperatures = [temperature(log_prob[fold != f], action[fold != f]) for f in range(folds)]
    return CrossFitted(models, temperatures, _softmax(log_prob / np.array(temperatures)[fold, None]))


def temperature(log_prob: Float[np.ndarray, "n A"], action: Int[np.ndarray, " n"]) -> float:
    """The t for which softmax(log_prob / t) has the least log-loss; above 1 where predictions are overconfident."""
    from scipy import optimize

    def loss(log_t: float) -> float:
        probability = _softmax(log_prob / math.exp(log_t))
        return -float(np.log(np.maximum(probability[np.arange(len(action)), action], 1e-300)).mean())

    return math.exp(optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)


@dataclass(frozen=True)
class CalibrationRow:
    """Pairs of rows and actions with nearly the same propensity: their number, the predicted and the shown share.

    The standard error is that of a binomial share with the predicted probabilities.
    """

    pairs: float
    predicted: float
    shown: float
    standard_error: float

    @property
    def z(self) -> float:
        """The excess of what was shown over what was predicted, in standard errors."""
        return (self.shown - self.predicted) / self.standard_error if self.standard_error > 0 else 0.0


class Calibration:
    """Predicted propensities against how often actions were shown, added up block by block.

    Kept are sums in fine bins, each a twelfth of an octave of propensities wide.
    """

    PER_OCTAVE, OCTAVES = 12, 64

    def __init__(self) -> None:
        self._sums = np.zeros((4, self.PER_OCTAVE * self.OCTAVES + 1))

    def add(
        self, probability: Float[np.ndarray, "n A"], shown: Float[np.ndarray, "n A"], rows: Float[np.ndarray, " n"]
    ) -> None:
        """Lines of propensities, each of so many rows, in which each action was shown so often."""
        p = probability.ravel()
        fine = np.floor(-np.log2(np.maximum(p, 2.0**-self.OCTAVES)) * self.PER_OCTAVE).astype(np.int64)
        pairs = np.repeat(rows, probability.shape[1])
        for sums, column in zip(self._sums, (pairs, pairs * p, shown.ravel(), pairs * p * (1 - p)), strict=True):
            sums += np.bincount(fine.clip(min=0), column, len(sums))

    def table(self, bins: int = 10) -> list[CalibrationRow]:
        """About `bins` rows from small propensities to large, each with about as many predicted showings.

        Equally many pairs would put a long catalog's showings into one row.
        """
        pairs, predicted, shown, variance = self._sums[:, ::-1]
        middle = (predicted.cumsum() - predicted / 2) / predicted.sum()
        place = np.minimum((bins * middle).astype(np.int64), bins - 1)
        columns = [np.bincount(place, column, bins) for column in (pairs, predicted, shown, variance)]
        return [
            CalibrationRow(float(n), float(p / n), float(seen / n), math.sqrt(v) / float(n))
            for n, p, seen, v in zip(*columns, strict=True)
            if n > 0
        ]


def calibration_table(
    probability: Float[np.ndarray, "n A"], action: Int[np.ndarray, " n"], bins: int = 10
) -> list[CalibrationRow]:
    """Table of the `Calibration` of rows that are all at hand.

    Differences of more than three standard errors mean propensities that are wrong on average.
    """
    calibration, shown = Calibration(), np.zeros_like(probability)
    shown[np.arange(len(action)), action] = 1
    calibration.add(probability, shown, np.ones(len(action)))
    return calibration.table(bins)


def calibration_error(table: Sequence[CalibrationRow]) -> float:
    """Σ |showings - predicted showings| / rows: the share of rows whose propensity is in the wrong place, up to 2.

    This is the expected calibration error over pairs, times the actions, so that long catalogs do not hide it. (Naeini,
    Cooper and Hauskrecht, AAAI 2015.)
    """
    off = sum(row.pairs * abs(row.shown - row.predicted) for row in table)
    return off / sum(row.pairs * row.predicted for row in table)


def _softmax(logits: np.ndarray) -> np.ndarray:
    from scipy import special

    probability: np.ndarray = special.softmax(logits, axis=1)
    return probability
