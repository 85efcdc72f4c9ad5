"""The one pipeline from sums by cluster to what a reader is told."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recsys.evaluation import PolicyEstimates, levels_of_change, recommendations
from recsys.statistics.histograms import histograms
from recsys.statistics.intervals import Interval, cluster_sums
from recsys.statistics.selection import Recommendation
from recsys.statistics.verdict import Level, Verdict


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


def test_a_difference_is_as_trustworthy_as_the_worse_estimate_and_the_clusters_that_decide_it() -> None:
    rewards = np.random.default_rng(0).random((200, 2))
    one, other = cluster_sums(rewards), cluster_sums(rewards + np.random.default_rng(1).normal(size=(200, 2)))
    few = rewards.copy()
    few[:3] += 5.0
    reliable, caution, unreliable = (Verdict(level, "", "") for level in Level)
    assert levels_of_change(one, other, [[reliable, caution], [reliable, reliable]]) == [0, 1]
    assert levels_of_change(one, other, [[reliable, caution], [caution, unreliable]]) == [1, 2]
    assert levels_of_change(cluster_sums(few), one, [[reliable, unreliable]]) == [1, 2]
    assert levels_of_change(one, one, [[reliable, reliable]]) == [0, 0]
