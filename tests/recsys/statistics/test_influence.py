"""Facts of an estimate's own influence values, the verdict on them, and intervals that follow their skewness."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recsys.statistics.bootstrap import studentized
from recsys.statistics.diagnostics import Diagnosis, diagnose, effective_of_change, influence_facts, weight_sums
from recsys.statistics.intervals import ClusterSums, cluster_sums, student_t
from recsys.statistics.verdict import Level, verdict


def mean_of(values: np.ndarray) -> ClusterSums:
    return cluster_sums(np.asarray(values, dtype=np.float64).reshape(len(values), -1))


def facts(**told: float) -> Diagnosis:
    return diagnose(weight_sums(np.ones(10_000)), **told)


def test_pulls_that_are_all_alike_count_as_many_as_there_are() -> None:
    found = influence_facts(mean_of(np.tile([0.0, 1.0], 50)))
    assert found.effective[0] == pytest.approx(100)


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_one_cluster_that_decides_counts_as_one_in_any_unit(scale: float) -> None:
    values = np.zeros(1000)
    values[7] = scale
    found = influence_facts(mean_of(values))
    assert found.effective[0] == pytest.approx(1, abs=0.01)


def test_the_effective_number_is_squares_squared_over_fourth_powers_of_the_influence() -> None:
    values = np.random.default_rng(0).lognormal(size=(500, 2))
    deviation = values - values.mean(0)
    expected = (deviation**2).sum(0) ** 2 / (deviation**4).sum(0)
    np.testing.assert_allclose(influence_facts(mean_of(values)).effective, expected)


def test_of_a_ratio_it_is_of_the_ratios_influence() -> None:
    rng = np.random.default_rng(1)
    weight, reward = rng.lognormal(size=400), rng.random(400)
    ratio = cluster_sums((weight * reward)[:, None], weight)
    pull = weight * (reward - (weight * reward).sum() / weight.sum())
    expected = (pull**2).sum() ** 2 / (pull**4).sum()
    assert influence_facts(ratio).effective[0] == pytest.approx(expected)


def test_nothing_is_said_of_an_estimate_that_does_not_vary() -> None:
    found = influence_facts(mean_of(np.ones(100)))
    assert math.isnan(found.effective[0])
    assert verdict(facts(**found.by_signal()[0])).level is Level.RELIABLE


def test_the_tail_is_that_of_pulls_in_both_directions() -> None:
    values = np.random.default_rng(2).standard_t(1.5, size=20_000)
    assert influence_facts(mean_of(values)).tail_k[0] == pytest.approx(1 / 1.5, abs=0.15)
    assert influence_facts(mean_of(-values)).tail_k[0] == pytest.approx(1 / 1.5, abs=0.15)


@pytest.mark.parametrize(
    ("told", "level", "check"),
    [
        ({"influential": 30.0}, Level.RELIABLE, ""),
        ({"influential": 29.9}, Level.CAUTION, "influence"),
        ({"influential": 1.1}, Level.CAUTION, "influence"),
        ({"influence_k": 0.5}, Level.RELIABLE, ""),
        ({"influence_k": 0.51}, Level.CAUTION, "influence_tail"),
        ({"influence_k": 2.0}, Level.CAUTION, "influence_tail"),
    ],
)
def test_verdicts_know_how_few_decide(told: dict[str, float], level: Level, check: str) -> None:
    said = verdict(facts(**told))
    assert (said.level, said.check) == (level, check)


def test_reliable_estimates_by_the_same_weights_are_told_in_one_sentence() -> None:
    one, other = (verdict(facts(influential=effective)) for effective in (123.4, 56.7))
    assert one == other
    assert one.reason.endswith("no row with more than 0.01% of the weight.")


@pytest.mark.parametrize("seed", range(3))
def test_a_studentized_interval_is_nowhere_within_students(seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(sigma=1.5, size=(300, 2))
    (found,), own = studentized([mean_of(values)], replications=400), student_t(mean_of(values))
    assert (found.low <= own.low).all()
    assert (found.high > own.high * 1.02).all()  # the long tail is above
    np.testing.assert_array_equal(found.value, own.value)


def test_it_holds_the_mean_of_skewed_values_more_often() -> None:
    rng, held, by_t = np.random.default_rng(3), 0, 0
    for _ in range(200):
        sums = mean_of(rng.lognormal(-0.72, 1.2, size=60))  # of mean 1
        (found,), own = studentized([sums], replications=300), student_t(sums)
        held += bool(found.low[0] <= 1 <= found.high[0])
        by_t += bool(own.low[0] <= 1 <= own.high[0])
    assert by_t <= 180
    assert held >= by_t + 8


def test_estimates_on_the_same_clusters_are_resampled_together_whatever_the_workers() -> None:
    values = np.random.default_rng(4).exponential(size=(200, 2))
    both, ratio = mean_of(values), cluster_sums(values, values[:, 0])
    together = studentized([both, ratio], replications=200, seed=5)
    alone = [studentized([sums], replications=200, seed=5, workers=2)[0] for sums in (both, ratio)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.low, other.low, rtol=1e-12)
        np.testing.assert_allclose(one.high, other.high, rtol=1e-12)


def test_what_never_varies_has_no_width_and_one_cluster_no_end() -> None:
    (found,) = studentized([mean_of(np.ones(50))], replications=100)
    assert (found.low[0], found.high[0]) == (1, 1)
    (single,) = studentized([mean_of(np.array([2.0]))], replications=100)
    assert (single.low[0], single.high[0]) == (-math.inf, math.inf)


def test_a_change_is_known_by_the_clusters_that_differ_from_the_log() -> None:
    """Of 1,000 clicks four are by a rare action that the policy wants ten times as often as the logger."""
    reward = np.zeros(10_000)
    reward[:1000] = 1
    weight = np.where(np.arange(10_000) < 4, 10.0, 0.99)
    estimate, logged = mean_of(weight * reward), mean_of(reward)
    assert influence_facts(estimate).effective[0] > 40
    assert effective_of_change(estimate, logged)[0] == pytest.approx(4, rel=0.1)


def test_what_changes_nothing_says_nothing_of_a_change() -> None:
    logged = mean_of(np.random.default_rng(0).random((100, 2)))
    assert np.isnan(effective_of_change(logged, logged)).all()
    assert verdict(facts(changing=math.nan)).level is Level.RELIABLE
    assert verdict(facts(changing=19.9)).check == "change"
