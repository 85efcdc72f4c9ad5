"""Histograms of importance weights and propensities in fixed bins, that a scan of a log adds up chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

ONE = 1023  # the exponent bits of 1.0
SMALLEST = -32  # powers of 2 outside [2^-32, 2^32) share the outermost bins
WEIGHT_BINS = 1 + 64  # 0 alone, then an octave each
PROPENSITY_BINS = 33  # as far as [1, 2), which holds 1 alone


@dataclass(frozen=True, slots=True)
class Histograms:
    """Rows and Σ w by bin of the weight w, and the same by bin of the propensity of the logged action."""

    weights: Float[np.ndarray, "2 weight_bins"] = field(default_factory=lambda: np.zeros((2, WEIGHT_BINS)))
    overlap: Float[np.ndarray, "2 propensity_bins"] = field(default_factory=lambda: np.zeros((2, PROPENSITY_BINS)))

    def __add__(self, later: Histograms) -> Histograms:
        """Of two chunks together; in the order of chunks the bits never differ."""
        return Histograms(self.weights + later.weights, self.overlap + later.overlap)


def histograms(
    weight: Float[np.ndarray, " n"],
    propensity: Float[np.ndarray, " n"],
    multiplicity: Float[np.ndarray, " n"] | None = None,
) -> Histograms:
    """Of one chunk: weights ≥ 0, propensities in (0, 1]; a row counts as often as its multiplicity, or once."""
    place = _octave(weight, WEIGHT_BINS - 1) + np.int16(1)
    place *= weight != 0
    place *= np.int16(PROPENSITY_BINS)
    place += _octave(propensity, PROPENSITY_BINS)
    both, size = place.astype(np.intp), WEIGHT_BINS * PROPENSITY_BINS  # one pass for both histograms
    counted = weight if multiplicity is None else weight * multiplicity
    rows, weights = np.bincount(both, multiplicity, size), np.bincount(both, counted, size)
    joint = np.stack([rows, weights]).reshape(2, WEIGHT_BINS, PROPENSITY_BINS)
    return Histograms(joint.sum(2), joint.sum(1))


def weight_table(drawn: Mapping[str, Histograms]) -> list[dict[str, Any]]:
    """Table of weights by policy, for each bin with any rows.

    low ≤ w < high (both 0 for w = 0), its rows, its shares of rows and of all weight.
    """
    edges = [(0.0, 0.0), *_edges(WEIGHT_BINS - 1)]
    edges[-1] = (edges[-1][0], math.inf)
    return [row for policy, of in drawn.items() for row in _table(policy, edges, of.weights)]


def overlap_table(drawn: Mapping[str, Histograms]) -> list[dict[str, Any]]:
    """By policy, for each bin of propensities with any rows: low, high, its rows, its shares of rows and of weight.

    The share of weight estimates how often the target shows what was logged with such a propensity.
    """
    edges = _edges(PROPENSITY_BINS)
    edges[-1] = (1.0, 1.0)
    return [row for policy, of in drawn.items() for row in _table(policy, edges, of.overlap)]


def _octave(x: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " n"]:
    """The place among `count` octaves from 2^SMALLEST on; read off the exponent's bits, far faster than frexp."""
    exponent = (x.view(np.int64) >> 52).astype(np.int16)
    np.clip(exponent, ONE + SMALLEST, ONE + SMALLEST + count - 1, out=exponent)
    exponent -= np.int16(ONE + SMALLEST)
    return exponent


def _edges(count: int) -> list[tuple[float, float]]:
    """Ends of octaves; the first holds all that is smaller too."""
    edges = [2.0 ** (SMALLEST + k) for k in range(count + 1)]
    return list(zip([0.0, *edges[1:]], edges[1:], strict=False))


def _table(policy: str, edges: list[tuple[float, float]], bins: Float[np.ndarray, "2 bins"]) -> list[dict[str, Any]]:
    rows, weight = bins
    rows_share, weight_share = rows / rows.sum(), weight / (weight.sum() or 1.0)
    names = ("policy", "low", "high", "rows", "rows_share", "weight_share")
    columns = (rows.tolist(), rows_share.tolist(), weight_share.tolist())
    return [dict(zip(names, (policy, *edge, *row))) for edge, *row in zip(edges, *columns) if row[0] > 0]
