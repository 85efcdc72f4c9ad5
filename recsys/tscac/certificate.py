"""HELD, NOT HELD or CANNOT TELL: thresholds against intervals of users that nothing was chosen by."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from jaxtyping import Float
from scipy import special


class Standing(StrEnum):
    """Whether a response stays above its threshold, as far as the data tell."""

    HELD = "HELD"
    NOT_HELD = "NOT HELD"
    CANNOT_TELL = "CANNOT TELL"


def level_of_each(level: float, constraints: int) -> float:
    """The level of one-sided bounds by which m constraints hold at once with probability `level` (Bonferroni)."""
    return 1 - (1 - level) / constraints


def quantile_of_each(level: float, constraints: int) -> float:
    """The standard normal's quantile at that level: 1.96 for two constraints at .95."""
    return float(special.ndtri(level_of_each(level, constraints)))


def standing(
    low: Float[np.ndarray, "*n m"], high: Float[np.ndarray, "*n m"], thresholds: Float[np.ndarray, " m"]
) -> np.ndarray:
    """The standing of each response whose one-sided bounds are low and high."""
    told = np.where(high < thresholds, Standing.NOT_HELD, Standing.CANNOT_TELL)
    return np.where(low >= thresholds, Standing.HELD, told)
