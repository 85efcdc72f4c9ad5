import itertools
import math

import numpy as np
import pytest
from scipy import special

from envs.core import InputError
from recsys.bandit.sensitivity import breaking_odds, sensitivity_bounds
from recsys.models.propensity import calibration_table, cross_fit, frequency, logistic, temperature


def softmax_log(rows=6_000, seed=0, scale=1.0):
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, 3))
    theta = scale * np.array([[1.0, -0.5, 0.0, 0.3], [0.0, 0.8, -0.6, 0.1], [0.2, 0.0, 0.5, -0.9]])
    probability = special.softmax(features @ theta + np.array([0.0, 0.5, 0.0, -0.5]), axis=1)
    action = (random.random(rows)[:, None] > probability.cumsum(axis=1)).sum(axis=1).clip(max=3)
    return features, action, probability


def test_a_logistic_logger_is_found_and_calibrated():
    features, action, truth = softmax_log()
    fitted = cross_fit(logistic(4), features, action)
    np.testing.assert_allclose(fitted.sum(axis=1), 1)
    assert np.abs(fitted - truth).mean() < 0.012
    for row in calibration_table(fitted, action):
        assert abs(row.shown - row.predicted) < 4 * row.standard_error


def test_a_wrong_model_shows_in_the_calibration_table():
    _, action, truth = softmax_log(scale=2.0)
    overconfident = special.softmax(3 * np.log(truth), axis=1)
    table = calibration_table(overconfident, action)
    assert max(abs(row.shown - row.predicted) / row.standard_error for row in table) > 10
    assert sum(row.pairs for row in table) == truth.size


@pytest.mark.parametrize("t", [0.5, 1.0, 3.0])
def test_the_temperature_takes_back_confidence(t):
    _, action, truth = softmax_log(rows=30_000)
    assert temperature(np.log(truth) * t, action) == pytest.approx(t, rel=0.06)


def test_an_overconfident_model_is_tempered():
    features, action, truth = softmax_log()

    def boastful(features, action):
        predict = logistic(4)(features, action)
        return lambda x: 3 * predict(x)

    assert np.abs(cross_fit(boastful, features, action) - truth).mean() < 0.015


def test_frequencies_by_hand():
    features = np.array([[0.0], [0.0], [0.0], [2.0]])
    predict = frequency(2, strength=1.0)(features, np.array([0, 0, 1, 1]))
    share = np.array([2.5, 2.5]) / 5
    expected = [(np.array([2, 1]) + share) / 4, (np.array([0, 1]) + share) / 2, share]
    np.testing.assert_allclose(np.exp(predict(np.array([[0.0], [2.0], [1.0]]))), expected)


def test_a_row_is_predicted_without_its_user():
    """Every user has one action for good: seen, the model would know it; unseen, it can only guess."""
    random = np.random.default_rng(0)
    user = np.arange(300) // 3
    action = random.integers(2, size=100)[user]
    features = user[:, None].astype(np.float64)
    blind = cross_fit(frequency(2, 0.1), features, action, user)
    seeing = cross_fit(frequency(2, 0.1), features, action)
    rows = np.arange(300)
    assert blind[rows, action].max() < 0.7
    assert seeing[rows, action].mean() > 0.9
    with pytest.raises(InputError, match="got 5 folds, 2 clusters"):
        cross_fit(frequency(2), features, action, user // 60)


def test_fitted_propensities_recover_the_value_of_another_policy():
    features, action, _ = softmax_log(rows=20_000)
    reward = action + features[:, 0]  # the action matters and so does who it was shown to
    fitted = cross_fit(logistic(4), features, action)
    rows = np.arange(len(action))
    weight = 0.25 / fitted[rows, action]
    assert (weight * reward).sum() / weight.sum() == pytest.approx(1.5, abs=0.06)
    assert abs(reward.mean() - 1.5) > 0.1


def test_the_sorted_solution_is_the_best_of_all_corners():
    random = np.random.default_rng(0)
    reward, target, propensity = random.normal(size=(8, 2)), random.random(8), random.uniform(0.1, 0.9, 8)
    low, high = sensitivity_bounds(reward, target, propensity, 2.5)
    ends = [target * (1 + (1 / propensity - 1) * factor) for factor in (1 / 2.5, 2.5)]
    corners = [np.where(picks, ends[0], ends[1]) for picks in itertools.product([True, False], repeat=8)]
    values = np.array([(w[:, None] * reward).sum(axis=0) / w.sum() for w in corners])
    np.testing.assert_allclose(low, values.min(axis=0))
    np.testing.assert_allclose(high, values.max(axis=0))


def test_bounds_are_the_estimate_itself_if_propensities_are_right_and_widen_as_they_may_be_wrong():
    random = np.random.default_rng(0)
    reward, target, propensity = random.random((500, 1)), random.random(500), random.uniform(0.1, 0.9, 500)
    snips = (target / propensity * reward[:, 0]).sum() / (target / propensity).sum()
    low, high = sensitivity_bounds(reward, target, propensity, 1)
    assert low[0] == pytest.approx(snips)
    assert high[0] == pytest.approx(snips)
    widths = []
    for odds in (1.1, 1.5, 3.0):
        low, high = sensitivity_bounds(reward, target, propensity, odds)
        widths.append(high[0] - low[0])
        assert low[0] < snips < high[0]
    assert widths == sorted(widths)
    with pytest.raises(InputError, match="at least 1"):
        sensitivity_bounds(reward, target, propensity, 0.5)


def test_the_breaking_odds_put_a_bound_on_the_threshold():
    random = np.random.default_rng(0)
    reward, target, propensity = random.random(500), random.random(500), random.uniform(0.1, 0.9, 500)
    odds = breaking_odds(reward, target, propensity, 0.4)
    assert sensitivity_bounds(reward[:, None], target, propensity, odds)[0][0] == pytest.approx(0.4, abs=1e-6)
    assert breaking_odds(reward, target, propensity, -1.0) == math.inf
    estimate = (target / propensity) @ reward / (target / propensity).sum()
    assert breaking_odds(reward, target, propensity, float(estimate)) == pytest.approx(1, abs=1e-6)
