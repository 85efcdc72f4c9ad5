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
    assert recommendations(("click", "watch"), estimates, {}) == [
        {"signal": "click", "policy": "new", "estimator": "ips", "sentence": "signal 0"},
        {"signal": "watch", "policy": "new", "estimator": None, "sentence": "signal 1"},
    ]
