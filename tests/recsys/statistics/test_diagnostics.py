import math
from dataclasses import replace

import numpy as np
import pytest
from open_bandit_logs import open_bandit

from envs.core import InputError
from recsys.statistics.diagnostics import Diagnosis, diagnose, effective_events, weight_sums
from recsys.statistics.pareto_tail import generalized_pareto, pareto_k, tail_length
from recsys.statistics.verdict import CHECKS, Level, verdict

HEALTHY = Diagnosis(
    rows=100_000,
    clusters=5_000,
    ess=40_000.0,
    max_weight=12.0,
    max_share=0.0001,
    mean_weight=1.001,
    mean_z=0.4,
    tail_k=0.2,
    unsupported=0.0,
    events=4_000,
    effective_events=900.0,
)


def judged(weight, click):
    weighted = effective_events(weight, click[:, None])[0]
    return diagnose(weight_sums(weight), events=float(click.sum()), effective_events=float(weighted))


def test_women_bts_to_random_is_refused_for_its_effective_sample_size():
    found = judged(*open_bandit("women", "bts"))
    assert found.ess == pytest.approx(2.077822692483707, rel=1e-10)
    assert found.max_weight == pytest.approx(21739.130434782608)
    assert found.mean_weight == pytest.approx(3.13419002089746)
    answer = verdict(found)
    assert answer.level is Level.UNRELIABLE
    assert answer.check == "ess"
    assert str(answer) == "UNRELIABLE: The weights leave an effective sample of 2.1 of 10,000 rows."
    assert found.max_share > 0.3  # which alone would be enough
    for other in (replace(found, model_share=1.0), replace(found, kept=0.76)):  # no cap or model repairs this
        assert verdict(other).level is Level.UNRELIABLE


def test_all_random_to_bts_is_let_pass_with_its_few_clicks_named():
    found = judged(*open_bandit("all", "random"))
    assert found.ess == pytest.approx(1639.5018736079446, rel=1e-10)
    assert found.mean_weight == pytest.approx(0.9533163999999998)
    assert found.mean_z == pytest.approx(-2.2, abs=0.05)
    answer = verdict(found)
    assert answer.level is Level.CAUTION
    assert answer.reason == "Only 38 events stand behind this signal."


@pytest.mark.parametrize("campaign", ["all", "men", "women"])
def test_uniform_logs_are_never_unreliable(campaign):
    assert verdict(judged(*open_bandit(campaign, "random"))).level < Level.UNRELIABLE


def test_effective_sample_sizes_that_are_known():
    assert weight_sums(np.full(40, 0.3)).ess == pytest.approx(40)
    assert weight_sums(np.array([0.0, 7.0, 0.0])).ess == 1
    assert weight_sums(np.zeros(3)).ess == 0
    weight = np.random.default_rng(0).lognormal(0, 1, 500)
    cv = weight.std() / weight.mean()
    assert weight_sums(weight).ess == pytest.approx(500 / (1 + cv**2))
    assert weight_sums(weight * 9).ess == pytest.approx(weight_sums(weight).ess)


def test_the_mean_weights_z_by_hand():
    sums = weight_sums(np.array([0.0, 2.0, 3.0, 1.0]))
    assert sums.mean_z == pytest.approx(0.5 / math.sqrt((5 / 3) / 4))
    assert weight_sums(np.ones(5)).mean_z == 0
    assert weight_sums(np.full(5, 2.0)).mean_z == math.inf
    assert weight_sums(np.zeros(5)).max_share == 1


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [1.0, -0.1]])
def test_weights_that_are_none_are_refused(bad):
    with pytest.raises(InputError, match="finite numbers of at least 0"):
        weight_sums(np.array(bad))


@pytest.mark.parametrize("k", [-0.3, 0.1, 0.5, 0.8, 1.2])
def test_the_pareto_fit_finds_the_shape_and_scale_of_a_known_distribution(k):
    random = np.random.default_rng(0)
    fits = [generalized_pareto(2.0 * (random.random(2_000) ** -k - 1) / k) for _ in range(40)]
    shape, scale = np.mean(fits, axis=0)
    assert shape == pytest.approx(k, abs=0.03)
    assert scale == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("k", [0.3, 0.7, 1.0])
def test_pareto_k_of_weights_with_a_known_tail(k):
    random = np.random.default_rng(1)
    found = [pareto_k(random.random(20_000) ** -k, 20_000) for _ in range(40)]
    assert np.mean(found) == pytest.approx(k, abs=0.05)
    weight = random.random(5_000) ** -k
    assert pareto_k(weight * 1e3, 5_000) == pytest.approx(pareto_k(weight, 5_000))


def test_ties_are_no_tail():
    random = np.random.default_rng(0)
    assert math.isnan(pareto_k(random.choice([0.5, 3.0, 9.0], 10_000), 10_000))
    assert math.isnan(pareto_k(np.minimum(random.lognormal(0, 2, 10_000), 10.0), 10_000))
    assert math.isnan(pareto_k(np.arange(4.0), 4))
    assert tail_length(10_000) == 300
    assert tail_length(100) == 20


def test_ties_at_the_threshold_are_no_excess():
    random = np.random.default_rng(0)
    tails = 2 + (random.random((40, 200)) ** -0.3 - 1) / 0.3
    found = [pareto_k(np.concatenate([np.full(9_800, 2.0), tail]), 10_000) for tail in tails]
    assert np.mean(found) == pytest.approx(0.3, abs=0.05)


def test_short_tails_are_shrunk_to_a_half():
    weight = np.random.default_rng(0).random(100)
    tail = np.sort(weight)[-20:] - np.sort(weight)[-21]
    assert pareto_k(weight, 100) == pytest.approx((20 * generalized_pareto(tail)[0] + 5) / 30)


def test_effective_events_discount_weights():
    reward = np.array([[1.0, 0.0, 2.0], [1.0, 0.0, -2.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.1]])
    found = effective_events(np.array([1.0, 1.0, 5.0, 8.0]), reward)
    np.testing.assert_allclose(found, [100 / 66, 0, 100 / 66])  # losses and gains tell as much


def test_a_healthy_estimate_is_reliable():
    assert verdict(HEALTHY).level is Level.RELIABLE
    assert str(verdict(HEALTHY)).startswith("RELIABLE: An effective sample of 40,000 of 100,000 rows")
    unknown = replace(HEALTHY, tail_k=math.nan, unsupported=math.nan, events=math.nan, effective_events=math.nan)
    assert verdict(unknown).level is Level.RELIABLE


@pytest.mark.parametrize(
    ("trouble", "check", "level", "says"),
    [
        ({"ess": 49.9}, "ess", Level.UNRELIABLE, "49.9 of 100,000 rows"),
        ({"ess": 150.0}, "ess", Level.CAUTION, "150.0"),
        ({"ess": 800.0}, "ess_share", Level.CAUTION, "0.8%"),
        ({"max_share": 0.31}, "max_share", Level.UNRELIABLE, "31%"),
        ({"max_share": 0.06}, "max_share", Level.CAUTION, "6%"),
        ({"mean_weight": 1.2, "mean_z": 4.5}, "mean_weight", Level.UNRELIABLE, "1.200"),
        ({"mean_weight": 0.8, "mean_z": -3.5}, "mean_weight", Level.CAUTION, "z = -3.5"),
        ({"tail_k": 0.72}, "tail", Level.UNRELIABLE, "k = 0.72"),
        ({"tail_k": 0.6}, "tail", Level.CAUTION, "k = 0.60"),
        ({"tail_k": 0.6, "rows": 200, "ess": 200.0}, "tail", Level.UNRELIABLE, "k = 0.60"),
        ({"unsupported": 0.11}, "support", Level.UNRELIABLE, "11.0%"),
        ({"unsupported": 0.02}, "support", Level.CAUTION, "2.0%"),
        ({"events": 9}, "events", Level.UNRELIABLE, "9 events"),
        ({"events": 30}, "events", Level.CAUTION, "30 events"),
        ({"effective_events": 1.5}, "effective_events", Level.UNRELIABLE, "no more than 1.5"),
        ({"changing": 19.0}, "change", Level.CAUTION, "as uneven as of 19.0"),
        ({"clusters": 8}, "clusters", Level.UNRELIABLE, "is only 8"),
        ({"bias": 1591436711822582.8}, "bias", Level.UNRELIABLE, "more than 100 of its standard errors"),
        ({"kept": 0.4}, "kept", Level.UNRELIABLE, "40%"),
        ({"kept": 0.8}, "kept", Level.CAUTION, "80%"),
        ({"model_share": 1.0}, "model", Level.CAUTION, "reward model alone"),
    ],
)
def test_each_trouble_is_named_with_its_number(trouble, check, level, says):
    answer = verdict(replace(HEALTHY, **trouble))
    assert (answer.check, answer.level) == (check, level)
    assert says.lower() in answer.reason.lower()


def test_a_significant_but_tiny_deviation_of_the_mean_weight_is_let_pass():
    assert verdict(replace(HEALTHY, mean_weight=1.004, mean_z=9.0)).level is Level.RELIABLE


def test_the_worst_trouble_decides_and_every_threshold_has_its_reason():
    answer = verdict(replace(HEALTHY, ess=150.0, events=3))
    assert (answer.level, answer.check) == (Level.UNRELIABLE, "events")
    assert all(check.caution < check.unreliable and len(check.why) > 40 for check in CHECKS)
