"""The one pipeline from sums by cluster to what a reader is told."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recsys.evaluation import PolicyEstimates, recommendations
from recsys.statistics.histograms import histograms
from recsys.statistics.intervals import Interval
from recsys.statistics.selection import Recommendation


def test_what_to_read_is_asked_for_each_signal_by_itself() -> None:
    def read(signal: int, intervals: Mapping[str, Interval]) -> Recommendation:
        return Recommendation(("ips", None)[signal], f"signal {signal}")

    estimates = PolicyEstimates("new", {}, {}, {}, histograms(np.ones(3), np.ones(3)), read)
    found = Interval(np.array([1.0, 2.0]), np.array([0.5, 1.5]), np.array([1.75, 2.5]), 3, 0.95, "t")
    assert recommendations(("click", "watch"), estimates, {"ips": found}) == [
        {"signal": "click", "policy": "new", "estimator": "ips", "sentence": "signal 0"}
        | {"value": 1.0, "low": 0.5, "high": 1.75},
        {"signal": "watch", "policy": "new", "estimator": None, "sentence": "signal 1"},
    ]
