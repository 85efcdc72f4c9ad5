import json
import math
from pathlib import Path

import numpy as np
import pytest
from open_bandit_logs import open_bandit

from envs.core import InputError
from recsys.statistics.intervals import cluster_sums, student_t
from recsys.statistics.selection import (
    cross_validated_mse,
    fit_subsampling,
    mse_proxy,
    pas_if,
    recommend,
    slope,
    subsample,
)
from recsys.statistics.verdict import Level, Verdict

FIXTURES = Path(__file__).parents[2] / "fixtures"
GOOD, SO_SO, BAD = (Verdict(level, "ess", f"It is {level.name.lower()}.") for level in Level)


def column(*values):
    return np.array(values, dtype=np.float64)[:, None]


def test_slope_stops_before_the_first_interval_that_parts_from_the_others():
    """Intervals [-4, 4], [-1, 3], [0, 2], [3, 4]: the last meets the first and the second, not all three."""
    value, half = column(0, 1, 1, 3.5), column(2, 1, 0.5, 0.25)
    assert slope(value, half)[0] == 2
    assert slope(value, half, factor=6)[0] == 3
    assert slope(value, half / 100)[0] == 0


def test_slope_needs_no_order_and_takes_signals_apart():
    value, half = column(3.5, 1, 0, 1), column(0.25, 0.5, 2, 1)
    both = np.concatenate([value, np.zeros((4, 1))], axis=1)
    np.testing.assert_array_equal(slope(both, np.repeat(half, 2, axis=1)), [1, 0])


def biased_log(seed, rows=400):
    random = np.random.default_rng(seed)
    weight = random.choice([0.2, 0.6, 3.4], size=rows, p=[0.5, 0.3, 0.2])
    weight = weight / (0.1 + 0.18 + 0.68)
    reward = (random.random(rows) < np.where(weight > 2, 0.8, 0.2)).astype(np.float64)[:, None]
    return weight, reward


def test_slope_is_nearly_as_good_as_the_best_cap():
    truth = 0.68 / 0.96 * 0.8 + 0.28 / 0.96 * 0.2
    caps = [math.inf, 3.0, 2.0, 1.0, 0.5]
    errors, chosen = [], []
    for seed in range(200):
        weight, reward = biased_log(seed)
        capped = [np.minimum(weight, cap)[:, None] * reward for cap in caps]
        value = np.stack([x.mean(axis=0) for x in capped])
        half = np.stack([x.std(axis=0, ddof=1) / 20 for x in capped])
        pick = slope(value, half)[0]
        errors.append((value[:, 0] - truth) ** 2)
        chosen.append(errors[-1][pick])
    mean = np.mean(errors, axis=0)
    assert np.mean(chosen) < 4 * mean.min()
    assert np.mean(chosen) < mean[-1] / 5


def test_cross_validation_sees_the_bias_of_a_cap():
    picks = []
    for seed in range(20):
        weight, reward = biased_log(seed)
        plain = cluster_sums(weight[:, None] * reward)
        capped = cluster_sums(np.minimum(weight, 0.5)[:, None] * reward)
        snips = cluster_sums(weight[:, None] * reward, weight)
        errors = cross_validated_mse([plain, capped, snips], plain)
        picks.append(int(errors[:, 0].argmin()))
        np.testing.assert_array_equal(errors, cross_validated_mse([plain, capped, snips], plain))
    assert 1 not in picks
    assert picks.count(2) > 15  # self-normalization removes most of the variance here


def test_cross_validation_splits_the_same_clusters():
    with pytest.raises(InputError, match="same clusters of all candidates"):
        cross_validated_mse([cluster_sums(np.ones((4, 1)))], cluster_sums(np.ones((5, 1))))


def test_the_mse_proxy_by_hand():
    found = mse_proxy(column(1, 2), column(0.5, 0.1), np.array([1.0]), column(0, 0.6))
    np.testing.assert_allclose(found, column(0.25, 0.01 + 1 - 0.36))
    assert mse_proxy(column(1.1), column(0.2), np.array([1.0]), column(0.5))[0, 0] == pytest.approx(0.04)


def bandit(rows=4_000, seed=0):
    random = np.random.default_rng(seed)
    context = random.integers(3, size=rows)
    logging = np.array([[0.6, 0.3, 0.1], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]])[context]
    target = np.array([[0.3, 0.4, 0.3], [0.4, 0.3, 0.3], [0.3, 0.3, 0.4]])[context]
    action = (random.random(rows)[:, None] > logging.cumsum(axis=1)).sum(axis=1).clip(max=2)
    mean = np.array([[0.9, 0.1, 0.5], [0.2, 0.4, 0.8], [0.7, 0.3, 0.1]])
    reward = (random.random(rows) < mean[context, action]).astype(np.float64)[:, None]
    return logging, target, action, reward, mean[context]


def test_subsampling_imitates_the_real_shift():
    logging, target, action, _, _ = bandit()
    rule = fit_subsampling(target, logging)
    assert (logging * rule).sum(axis=1).mean() == pytest.approx(0.2, abs=1e-9)
    split = subsample(rule, action, logging, seed=0)
    assert (~split.logged).mean() == pytest.approx(0.2, abs=0.02)
    for policy in (split.logging, split.target):
        np.testing.assert_allclose(policy.sum(axis=1), 1)
    weight = target / logging
    error = (logging * (weight - split.target / split.logging) ** 2).sum(axis=1).mean()
    assert error < 0.05 * (logging * (weight - 1) ** 2).sum(axis=1).mean()


def test_rows_of_each_side_are_distributed_as_their_pseudo_policy_says():
    logging, target, action, _, _ = bandit(rows=20_000)
    split = subsample(fit_subsampling(target, logging), action, logging, seed=1)
    for rows, policy in ((split.logged, split.logging), (~split.logged, split.target)):
        for context in np.unique(logging[:, 0]):
            here = rows & (logging[:, 0] == context)
            seen = np.bincount(action[here], minlength=3) / here.sum()
            np.testing.assert_allclose(seen, policy[here][0], atol=0.03)


def test_users_share_their_draw():
    logging, _, action, _, _ = bandit(rows=1_000)
    rule = np.full_like(logging, 0.3)
    user = np.arange(1_000) // 5
    logged = subsample(rule, action, logging, seed=0, cluster=user).logged.reshape(200, 5)
    assert (logged.all(axis=1) | ~logged.any(axis=1)).all()
    assert (~logged).mean() == pytest.approx(0.3, abs=0.1)


def test_pas_if_tells_a_right_model_from_a_wrong_one_and_from_noisy_weights():
    logging, target, action, reward, mean = bandit()
    rule = fit_subsampling(target, logging)
    splits = [subsample(rule, action, logging, seed) for seed in range(30)]

    def direct(model):
        return lambda split: (split.target * model).sum(axis=1)[split.logged].mean(keepdims=True)

    def ips(split):
        rows = np.flatnonzero(split.logged)
        weight = split.target[rows, action[rows]] / split.logging[rows, action[rows]]
        return (weight[:, None] * reward[rows]).mean(axis=0)

    errors = pas_if({"right": direct(mean), "wrong": direct(mean + 0.15), "ips": ips}, reward, splits)
    assert errors["right"][0] < errors["ips"][0] < errors["wrong"][0]
    assert errors["wrong"][0] == pytest.approx(0.15**2, rel=0.3)


def test_pas_if_refuses_what_it_cannot_split():
    logging, target, action, reward, _ = bandit(rows=5)
    with pytest.raises(InputError, match="without rows"):
        pas_if({}, reward, [subsample(np.full_like(logging, 1e-9), action, logging, 0)])
    with pytest.raises(InputError, match="gives every action a probability"):
        fit_subsampling(target, np.eye(3)[action])


def test_the_recommendation_is_a_sentence_about_the_best_verdicts():
    verdicts = {"ips": SO_SO, "snips": GOOD, "dr": GOOD, "dm": BAD}
    value, half = {"ips": 1.0, "snips": 1.0, "dr": 1.1, "dm": 1.0}, {"ips": 0.1, "snips": 0.4, "dr": 0.2, "dm": 0.01}
    by_slope = recommend(verdicts, value, half)
    assert by_slope.estimator == "dr"
    assert by_slope.sentence == "Read dr: its interval is the narrowest of 2 that agrees with all wider ones (SLOPE)."
    by_error = recommend(verdicts, value, half, {"ips": 1e-9, "snips": 1e-4, "dr": 4e-4, "dm": 0.0})
    assert by_error.estimator == "snips"
    assert "0.01" in by_error.sentence
    cautious = recommend({"ips": SO_SO}, value, half)
    assert cautious.sentence.endswith("but with caution: it is caution.")


def test_none_is_recommended_where_none_is_reliable():
    found = recommend({"ips": BAD, "dm": BAD}, {}, {})
    assert found.estimator is None
    assert found.sentence == "Read none of these estimates. It is unreliable."


@pytest.mark.parametrize("campaign", ["all", "women"])
@pytest.mark.parametrize(("logged_by", "target"), [("random", "bts"), ("bts", "random")])
def test_slope_chooses_the_peers_cap_on_real_logs(campaign, logged_by, target):
    """The recorded choice of obp 0.5.7 and its estimate, from plain 95 % intervals."""
    peer = json.loads((FIXTURES / "expected_obp_0.5.7.json").read_text())["cases"][f"{campaign}:{logged_by}->{target}"]
    weight, click = open_bandit(campaign, logged_by)
    caps = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 1_000.0]
    capped = [cluster_sums((np.minimum(weight, cap) * click)[:, None]) for cap in caps]
    found = [student_t(sums) for sums in capped]
    value = np.stack([interval.value for interval in found])
    chosen = slope(value, value - np.stack([interval.low for interval in found]), factor=1)[0]
    assert caps[chosen] == peer["tuned"]["ipw_slope"]
    assert value[chosen, 0] == pytest.approx(peer["values"]["ipw_slope"], rel=1e-10)
