"""Many segments, policies or signals at once: p-values that stay honest. Simultaneous intervals are in `bootstrap`."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from envs.core import InputError
from recsys.statistics.intervals import ClusterSums, skewed_t, skewness, standard_error


def p_values(sums: ClusterSums, null: float = 0.0) -> Float[np.ndarray, " K"]:
    """Two-sided p-values for estimate = null: of Student's t, or of that corrected for skewness where it is larger.

    P(|t_{C-1}| ≥ |t|), t = (estimate - null) / standard error, or its `skewed_t`. Below 1 - level, the interval
    `skewness_corrected` leaves out the null. Of a difference, the null is 0: both policies earn the same.
    """
    from scipy import special

    error, off = standard_error(sums), sums.value - null
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(off != 0, off / error, 0.0)
        corrected = np.where(np.isinf(t), np.abs(t), skewed_t(t, skewness(sums)) * np.sign(t))
    nearest = np.minimum(np.abs(t), np.maximum(corrected, 0.0))
    p: np.ndarray = 2 * special.stdtr(max(sums.clusters - 1, 1), -nearest)
    return p


def holm(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Adjusted p-values by Holm's method.

    Rejecting those ≤ a, the chance of even one false rejection is at most a, whatever the dependence. Sorted p_(i)
    becomes max_{j ≤ i} min(1, (m-j+1) p_(j)). (Holm, Scandinavian Journal of Statistics 1979.)
    """
    _require_probabilities(p)
    order, m = np.argsort(p, kind="stable"), len(p)
    adjusted = np.empty(m)
    adjusted[order] = np.maximum.accumulate((m - np.arange(m)) * p[order]).clip(max=1.0)
    return adjusted


def benjamini_hochberg(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Adjusted p-values: rejecting those ≤ a, at most a share a of the rejections is false on average.

    Sorted p_(i) becomes min_{j ≥ i} min(1, m p_(j) / j). Assumes independent or positively dependent tests.
    (Benjamini and Hochberg, JRSS B 1995; dependence: Benjamini and Yekutieli, Annals of Statistics 2001.)
    """
    from scipy import stats

    _require_probabilities(p)
    adjusted: np.ndarray = stats.false_discovery_control(p, method="bh")
    return adjusted


def _require_probabilities(p: np.ndarray) -> None:
    if not ((p >= 0) & (p <= 1)).all():
        raise InputError(f"p-values lie between 0 and 1; got {p.tolist()[:10]}.")
