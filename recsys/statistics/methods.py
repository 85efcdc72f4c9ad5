"""The intervals that a config asks for: of estimates, and of differences between policies on the same users."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Literal, TypeVar

import numpy as np

from recsys.config import EstimatorsConfig, IntervalsConfig
from recsys.statistics.bootstrap import quantile_interval, replicates, studentized
from recsys.statistics.empirical_likelihood import empirical_likelihood
from recsys.statistics.intervals import ClusterSums, Interval, Range, empirical_bernstein, hoeffding, student_t

Name = TypeVar("Name", bound=Hashable)
Pair = tuple[str, str, str, str]  # a policy and its estimator, minus another's
Bounds = tuple[Range, Range]  # of a cluster's numerator and denominator
WITH_MODEL = ("dr", "capped_dr", "switch_dr", "dros", "subgaussian_dr", "mrdr")
# A fit to the log itself speaks for all, or for what is believed: how the log's rows vary is not how wrong it may be.
FITTED = ("dm", "fqe", "magic")
LOGGED = "logged"  # the log's own mean reward, beside the estimates
RESAMPLED = ("studentized", "bootstrap", "bca")
BOUNDED = ("hoeffding", "bernstein")  # whose widths are not those of standard errors
NORMALIZED = ("snips", "ncis", "replay", "sn_mips", "sn_balanced_ips")


class Intervals:
    """Intervals of many estimates; what a method does not apply to is in `without`, and has infinite ones."""

    def __init__(self, config: IntervalsConfig, estimators: EstimatorsConfig, seed: int, workers: int, dealt: int = 1):
        """dealt: how many rows that stand alone were dealt into a cluster, where there are no users."""
        self.config, self.estimators, self.seed, self.workers = config, estimators, seed, workers
        self.dealt = dealt
        self.without: set[str] = set()

    def of(self, estimates: Mapping[str, ClusterSums]) -> dict[str, Interval]:
        """Of estimates by name, on the same clusters; the resamples of a bootstrap are the same in every call."""
        fitted = {name: self._endless(sums) for name, sums in estimates.items() if name in FITTED}
        others = {name: sums for name, sums in estimates.items() if name not in fitted}
        if not others:
            return fitted
        if self.config.method in RESAMPLED:
            return fitted | self._resampled(others)
        return fitted | {name: self._closed(name, sums) for name, sums in others.items()}

    def of_differences(self, pairs: Mapping[Pair, tuple[ClusterSums, ClusterSums]]) -> dict[Pair, Interval]:
        """Of first minus second, paired cluster by cluster; by the names of two estimators, whose bounds are known."""
        both = {names: first - second for names, (first, second) in pairs.items()}
        fitted = {names: self._endless(sums) for names, sums in both.items() if {*names[1::2]} & {*FITTED}}
        others = {names: sums for names, sums in both.items() if names not in fitted}
        if self.config.method in RESAMPLED and others:
            return fitted | self._resampled(others)
        closed = {names: self._closed(f"{names[1]} - {names[3]}", sums, names[1::2]) for names, sums in others.items()}
        return fitted | closed

    def _endless(self, sums: ClusterSums) -> Interval:
        """An interval that says nothing."""
        nothing = np.full(sums.numerator.shape[2], math.inf)
        return Interval(sums.value, -nothing, nothing, sums.clusters, self.config.level, self.config.method)

    def _resampled(self, estimates: Mapping[Name, ClusterSums]) -> dict[Name, Interval]:
        if self.config.method == "studentized":
            level, replications = self.config.level, self.config.replications
            found = studentized(list(estimates.values()), level, replications, self.seed, self.workers)
            return dict(zip(estimates, found, strict=True))
        kind: Literal["percentile", "bca"] = "bca" if self.config.method == "bca" else "percentile"
        drawn = replicates(list(estimates.values()), self.config.replications, self.seed, self.workers)
        return {
            name: quantile_interval(sums, values, self.config.level, kind=kind)
            for (name, sums), values in zip(estimates.items(), drawn, strict=True)
        }

    def _closed(self, name: str, sums: ClusterSums, names: tuple[str, ...] = ()) -> Interval:
        method, level = self.config.method, self.config.level
        if method == "t":
            return student_t(sums, level)
        if sums.denominator.shape[1] != 1:  # a sum of two ratios
            self.without.add(name)
            return self._endless(sums)
        if method == "empirical_likelihood":
            return empirical_likelihood(sums, level)
        bounds = [self._bounds(part) for part in names or (name,)]
        numerator = bounds[0][0]
        if len(bounds) == 2:
            (low, high), (other_low, other_high) = numerator, bounds[1][0]
            numerator = (low - other_high, high - other_low)
        if method == "hoeffding":
            return hoeffding(sums, numerator, bounds[0][1], level, independent=self.dealt)
        return empirical_bernstein(sums, numerator, bounds[0][1], level)

    def _bounds(self, name: str) -> Bounds:
        """Bounds of a cluster's sums: rewards and weights within their bounds, for all its rows."""
        known = self.config.bounds
        assert known is not None  # as the config requires
        (least, most), rows = known.reward, known.rows * self.dealt
        capped = min(known.weight, self.estimators.cap) if name in ("capped_ips", "ncis", "capped_dr") else known.weight
        if name == LOGGED:
            each = (least, most)
        elif name in WITH_MODEL:
            reach = capped * (most - least)
            each = (least - reach, most + reach)
        else:
            each = (min(0.0, least * capped), max(0.0, most * capped))
        numerator = (min(each[0], each[0] * rows), max(each[1], each[1] * rows))
        fewest = float(self.dealt - 1) if self.dealt > 1 and known.rows == 1 else 1.0
        return numerator, ((0.0, capped * rows) if name in NORMALIZED else (fewest, float(rows)))
