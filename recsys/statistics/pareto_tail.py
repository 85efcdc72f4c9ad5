"""The tail of importance weights: a generalized Pareto fit to the largest ones."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

PRIOR_DRAWS, PRIOR_SHAPE = 10, 0.5  # the weakly informative prior of PSIS: ten tail values with k = 0.5
LEAST = 5  # tail values without which nothing can be said


def tail_length(rows: int) -> int:
    """The number of largest weights that PSIS calls the tail: min(n/5, 3 √n)."""
    return math.ceil(min(rows / 5, 3 * math.sqrt(rows)))


def pareto_k(largest: Float[np.ndarray, " m"], rows: int) -> float:
    """The shape k of a generalized Pareto fit to the tail of n weights, of which the m largest are given.

    Weights with shape k have finite moments below 1/k only: above 0.5 the variance, above 1 the mean is infinite.
    Large k means that rows not yet seen would change the estimate. The tail are the `tail_length(rows)` largest
    weights (fewer where fewer are given), their excess over the next one is fitted as in `generalized_pareto`, and k
    is shrunk towards 0.5 by a prior worth ten values. NaN where there is no tail to fit: fewer than five values, or
    fewer than half of them distinct, as with capped weights or a short list of actions, each of whose weights was
    seen many times; a continuous distribution fitted to such ties finds any k. (Vehtari, Simpson, Gelman, Yao and
    Gabry, Pareto Smoothed Importance Sampling, JMLR 2024.)
    """
    x = np.sort(np.asarray(largest, dtype=np.float64))
    length = min(tail_length(rows), len(x) - 1)
    if length < LEAST:
        return math.nan
    tail = x[-length:][x[-length:] > x[-length - 1]]
    if len(np.unique(tail)) < max(LEAST, length / 2):
        return math.nan
    k, _ = generalized_pareto(tail - x[-length - 1])
    length = len(tail)
    return (length * k + PRIOR_DRAWS * PRIOR_SHAPE) / (length + PRIOR_DRAWS)


def generalized_pareto(excess: Float[np.ndarray, " m"]) -> tuple[float, float]:
    """Shape k and scale σ of positive values with P(X > x) = (1 + k x / σ)^(-1/k).

    The posterior mean of θ = -k/σ on a grid, under the profile likelihood m (log(-θ / k(θ)) - k(θ) - 1) with
    k(θ) = mean log(1 - θ x), and a prior that the first quartile scales. (Zhang and Stephens, Technometrics 2009; k has
    the sign of PSIS, opposite to theirs.)
    """
    x = np.sort(excess)
    m = len(x)
    quartile, points = x[max(int(m / 4 + 0.5) - 1, 0)], 30 + int(math.sqrt(m))
    theta = 1 / x[-1] + (1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))) / (3 * quartile)
    shape = np.log1p(-theta[:, None] * x).mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = m * (np.log(-theta / shape) - shape - 1)
    likelihood = np.where(np.isnan(likelihood), -math.inf, likelihood)
    posterior = np.exp(likelihood - likelihood.max())
    mean = float(posterior @ theta / posterior.sum())
    k = float(np.log1p(-mean * x).mean())
    return k, -k / mean if mean else float(x.mean())
