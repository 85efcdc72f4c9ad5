"""Bandit estimators: what a policy that was not run would have earned, from what another one showed.

Each is a pure function of columns of n logged rows with K signals, named as in every module here:

weight [n]        w_i = π_e(a_i | x_i) / π_b(a_i | x_i), of the logged action
reward [n, K]     r_i
q_logged [n, K]   q(x_i, a_i), the reward that a model expects of the logged action
value [n, K]      Σ_a π_e(a | x_i) q(x_i, a), the reward that it expects of the policy

It returns `Ratio`s: the columns whose sums make the estimate, so that one scan over chunks suffices and a bootstrap can
weigh clusters of rows anew. All but `dm` assume that the logged probabilities are right and that the
target never shows what the logger cannot (support), and say only what they need besides.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from recsys.statistics.diagnostics import MOST_WEIGHT

Column = Float[np.ndarray, " n"]
Signals = Float[np.ndarray, "n K"]


class Ratio(NamedTuple):
    """The estimate Σ plain / n + Σ numerator / Σ denominator, by signal; a part that is None is absent."""

    plain: Signals | None
    numerator: Signals | None = None
    denominator: Column | None = None

    def estimate(self) -> Float[np.ndarray, " K"]:
        """The estimate from all rows; NaN where the denominators add up to 0."""
        parts = [] if self.plain is None else [self.plain.mean(0)]
        if self.numerator is not None and self.denominator is not None:
            with np.errstate(invalid="ignore", divide="ignore"):
                parts.append(self.numerator.sum(0) / self.denominator.sum())
        return np.sum(parts, axis=0)


def ips(weight: Column, reward: Signals) -> Ratio:
    """Inverse propensity scoring: mean of w r. Unbiased.

    Source: Horvitz and Thompson, JASA 1952; Strehl, Langford, Li and Kakade, NIPS 2010.
    """
    return Ratio(weight[:, None] * reward)


def snips(weight: Column, reward: Signals) -> Ratio:
    """Self-normalized IPS: Σ w r / Σ w. Biased by O(1/n), never outside the range of rewards.

    Source: Swaminathan and Joachims, NIPS 2015.
    """
    return Ratio(None, weight[:, None] * reward, weight)


def capped_ips(weight: Column, reward: Signals, cap: float) -> Ratio:
    """Mean of min(w, cap) r. For rewards ≥ 0 biased downwards, unless no weight exceeds the cap.

    Source: Ionides, JCGS 2008; Bottou et al., JMLR 2013.
    """
    return ips(np.minimum(weight, cap), reward)


def ncis(weight: Column, reward: Signals, cap: float) -> Ratio:
    """Normalized capped importance sampling: Σ min(w, cap) r / Σ min(w, cap). Biased unless no weight exceeds the cap.

    Source: Gilotte, Calauzènes, Nedelec, Abraham and Dollé, WSDM 2018.
    """
    return snips(np.minimum(weight, cap), reward)


def dm(value: Signals) -> Ratio:
    """Direct method: mean of Σ_a π_e(a|x) q(x,a). Assumes that q is right; needs no propensities.

    Source: Beygelzimer and Langford, KDD 2009.
    """
    return Ratio(value)


def dr(weight: Column, reward: Signals, q_logged: Signals, value: Signals) -> Ratio:
    """Doubly robust: mean of Σ_a π_e q + w (r - q). Unbiased if the propensities are right, or q is.

    Source: Dudík, Langford and Li, ICML 2011.
    """
    corrected = surprise(weight, reward, q_logged)
    corrected += value
    return Ratio(corrected)


def capped_dr(weight: Column, reward: Signals, q_logged: Signals, value: Signals, cap: float) -> Ratio:
    """DR with weights min(w, cap): mean of Σ_a π_e q + min(w, cap) (r - q). Unbiased if q is right or the cap not met.

    Source: Su, Dimakopoulou, Krishnamurthy and Dudík, ICML 2020 (pessimistic shrinkage).
    """
    return dr(np.minimum(weight, cap), reward, q_logged, value)


def sndr(weight: Column, reward: Signals, q_logged: Signals, value: Signals) -> Ratio:
    """Self-normalized DR: mean of Σ_a π_e q, plus Σ w (r - q) / Σ w. Biased by O(1/n).

    Source: Thomas and Brunskill, ICML 2016 (its weighted DR at horizon 1).
    """
    return Ratio(value, surprise(weight, reward, q_logged), weight)


def switch_dr(weight: Column, reward: Signals, q_logged: Signals, value: Signals, threshold: float) -> Ratio:
    """DR that trusts the model where w > threshold: mean of Σ_a π_e q + 1[w ≤ threshold] w (r - q).

    Unbiased if q is right there, or no weight exceeds the threshold.
    Source: Wang, Agarwal and Dudík, ICML 2017.
    """
    return dr(np.where(weight <= threshold, weight, 0.0), reward, q_logged, value)


def dros(weight: Column, reward: Signals, q_logged: Signals, value: Signals, shrinkage: float) -> Ratio:
    """DR with optimistic shrinkage: mean of Σ_a π_e q + λ w / (w² + λ) (r - q), λ = shrinkage; 0 is DM, ∞ is DR.

    Unbiased only if q is right.
    Source: Su, Dimakopoulou, Krishnamurthy and Dudík, ICML 2020.
    """
    return dr(optimistic(weight, shrinkage), reward, q_logged, value)


def subgaussian_ips(weight: Column, reward: Signals, shrinkage: float) -> Ratio:
    """IPS with weights w / (1 - λ + λ w), λ = shrinkage in [0, 1]; 0 is IPS, 1 the mean of the log. Biased for λ > 0.

    Source: Metelli, Russo and Restelli, NeurIPS 2021.
    """
    return ips(subgaussian(weight, shrinkage), reward)


def subgaussian_dr(weight: Column, reward: Signals, q_logged: Signals, value: Signals, shrinkage: float) -> Ratio:
    """DR with weights w / (1 - λ + λ w), λ = shrinkage in [0, 1]. Unbiased if q is right, or λ = 0.

    Source: Metelli, Russo and Restelli, NeurIPS 2021.
    """
    return dr(subgaussian(weight, shrinkage), reward, q_logged, value)


def mrdr(weight: Column, reward: Signals, q_logged: Signals, value: Signals) -> Ratio:
    """DR whose q was fitted to make its variance small, with the weights of `mrdr_regression_weight`. Unbiased as DR.

    Source: Farajtabar, Chow and Ghavamzadeh, ICML 2018.
    """
    return dr(weight, reward, q_logged, value)


def replay(agrees: Bool[np.ndarray, " n"], reward: Signals) -> Ratio:
    """Mean reward of the rows whose logged action a deterministic policy would have chosen. Assumes uniform logging.

    Source: Li, Chu, Langford and Wang, WSDM 2011.
    """
    return snips(agrees.astype(np.float64), reward)


def mips(
    target: Float[np.ndarray, "n A"],
    logging: Float[np.ndarray, "n A"],
    category: Int[np.ndarray, " A"],
    action: Int[np.ndarray, " n"],
    reward: Signals,
) -> Ratio:
    """IPS over categories of actions: mean of r Σ_{a in c} π_e / Σ_{a in c} π_b, c the logged action's category.

    target and logging are whole distributions. Assumes that an action affects the reward only through its
    category (no direct effect), and needs support of categories only.
    Source: Saito and Joachims, ICML 2022.
    """
    same = category[action][:, None] == category[None]
    return ips((target * same).sum(1) / (logging * same).sum(1), reward)


def balanced_ips(
    target: Column, propensities: Float[np.ndarray, "n L"], shares: Float[np.ndarray, " L"], reward: Signals
) -> Ratio:
    """IPS for L loggers: mean of r π_e(a|x) / Σ_l share_l π_l(a|x), with the share of rows that each logged.

    target is π_e(a|x) of the logged action, propensities what each logger would have given it. Needs support of the
    mixture only, and is never more variable than weighing each row by its own logger.
    Source: Agarwal, Basu, Schnabel and Joachims, KDD 2017.
    """
    return ips(target / (propensities @ shares), reward)


def kernel_ips(distance: Column, density: Column, reward: Signals, bandwidth: float) -> Ratio:
    """IPS for a real action: mean of K(u) r / (h π_b(a|x)), u = distance / h, h = bandwidth.

    distance is π_e(x) - a, of a deterministic policy; density is that of the logged action; K(u) = 3/4 (1 - u²)
    on [-1, 1] (Epanechnikov). Biased by O(h²) where the reward bends within a bandwidth.
    Source: Kallus and Zhou, AISTATS 2018.
    """
    return ips(kernel_weight(distance, density, bandwidth), reward)


def kernel_weight(distance: Column, density: Column, bandwidth: float) -> Column:
    """K(u) / (h π_b(a|x)), the weights of `kernel_ips`."""
    u = distance / bandwidth
    kernel: np.ndarray = np.where(np.abs(u) <= 1, 0.75 * (1 - u * u), 0.0)
    return kernel / (bandwidth * density)


def surprise(weight: Column, reward: Signals, q_logged: Signals) -> Signals:
    """w (r - q), in one array that stays in the processor's cache."""
    gap = reward - q_logged
    gap *= weight[:, None]
    return gap


def optimistic(weight: Column, shrinkage: float) -> Column:
    """λ w / (w² + λ), the shrunk weights of `dros`."""
    with np.errstate(over="ignore"):  # of an endless square nothing is left
        return shrinkage * weight / (weight * weight + shrinkage)


def subgaussian(weight: Column, shrinkage: float) -> Column:
    """w / (1 - λ + λ w), the shrunk weights of `subgaussian_ips`."""
    return weight / (1 - shrinkage + shrinkage * weight)


def mrdr_regression_weight(target: Column, propensity: Column) -> Column:
    """π_e(a|x) (1 - π_b(a|x)) / π_b(a|x)², by which MRDR weighs a row's squared error: its share of DR's variance."""
    return target * (1 - propensity) / np.maximum(propensity**2, 1 / MOST_WEIGHT)
