"""Thresholds: margins by hand, bounds that hold as often as they say, and multipliers that follow them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from small_offline import TableCritic, TablePolicy
from torch import Tensor

from envs.core import InputError
from marl.learning.offline_actor_critic import LoggedActorCritic, LoggedLearnerConfig
from marl.learning.offline_batch import transitions
from recsys.statistics.intervals import ClusterSums, cluster_sums, standard_error
from recsys.tscac.constraints import (
    Constraint,
    ThresholdConfig,
    certified,
    constraints_of,
    lower_bounds,
    margins,
    units,
)
from recsys.tscac.multipliers import Multipliers

LIKE, HATE = Constraint("like", 1, 1, 0.9, True), Constraint("hate", 2, -1, 1.2, True)
PLAIN = Constraint("like", 1, 1, 0.3, False)


def sums_of(rows: int, seed: int, mean: tuple[float, ...] = (0.5, 0.4, 0.1)) -> tuple[ClusterSums, ClusterSums]:
    """A self-normalized estimate and the log's own mean, of clicks."""
    random = np.random.default_rng(seed)
    weight, reward = random.exponential(size=rows), (random.random((rows, 3)) < mean) * 1.0
    return cluster_sums(weight[:, None] * reward, weight), cluster_sums(reward)


def test_margins_are_above_at_least_and_below_at_most() -> None:
    policy, logged = sums_of(200, 0)
    found = margins(policy, logged, [LIKE, HATE, PLAIN]).value
    v, own = policy.value, logged.value
    np.testing.assert_allclose(found, [v[1] - 0.9 * own[1], 1.2 * own[2] - v[2], v[1] - 0.3])
    np.testing.assert_allclose(units(logged, [LIKE, HATE, PLAIN]), [0.9 * own[1], 1.2 * own[2], 0.3])
    assert units(logged, [Constraint("like", 1, 1, 0.0, False)]).tolist() == [1.0]


def test_a_relative_margin_is_paired_and_surer_than_one_to_a_number() -> None:
    _, logged = sums_of(400, 1)
    share = Constraint("like", 1, 1, 1.0, True)
    number = Constraint("like", 1, 1, float(logged.value[1]), False)
    apart, alone = (standard_error(margins(logged, logged, [one]))[0] for one in (share, number))
    assert apart == pytest.approx(0.0, abs=1e-15)
    assert alone > 0.01


def test_bounds_for_choosing_lie_slack_standard_errors_below_those_for_telling() -> None:
    margin = margins(*sums_of(5_000, 2), [LIKE, HATE])
    plain, slack = (lower_bounds(margin, 0.95, s) for s in (0.0, 2.0))
    np.testing.assert_allclose(plain - slack, 2.0 * standard_error(margin), rtol=2e-3)
    np.testing.assert_allclose(margin.value - plain, 1.96 * standard_error(margin), rtol=2e-3)  # 1 - .05 / 2
    one = cluster_sums(np.ones((1, 1)))
    assert lower_bounds(one, 0.95, 1.0).tolist() == [-np.inf]


def test_policies_that_just_miss_a_threshold_are_certified_no_oftener_than_promised() -> None:
    wrongly = 0
    for seed in range(300):
        policy, logged = sums_of(400, seed, (0.5, 0.4, 0.3))
        on_the_edge = [Constraint("like", 1, 1, 1.0001, True), Constraint("hate", 2, -1, 0.9999, True)]
        low, high = certified(margins(policy, logged, on_the_edge), 0.95, seed, 200)
        wrongly += bool((low >= 0).any())
        assert (low < high).all()
    assert 3 <= wrongly <= 26  # 5 % of 300 at most, and three standard errors


def test_thresholds_name_responses_of_the_log_and_one_side() -> None:
    told = {"like": ThresholdConfig(at_least=0.9), "hate": ThresholdConfig(at_most=1.2)}
    assert constraints_of(told, ("watch", "like", "hate"), "watch") == [LIKE, HATE]
    for names, main in ((("watch", "like"), "watch"), (("like", "hate"), "watch")):
        with pytest.raises(InputError, match="name responses of the log"):
            constraints_of(told, names, main)
    for both in ({"at_least": 1.0, "at_most": 1.0}, {}):
        with pytest.raises(ValueError, match="either at_least or at_most"):
            ThresholdConfig(**both)  # type: ignore[arg-type]


def test_events_that_a_margin_needs() -> None:
    assert Constraint("comment", 0, 1, 0.99, True).needed_events(0.0032, 0.95) == pytest.approx(26_970, rel=1e-3)
    assert Constraint("hate", 0, -1, 1.05, True).needed_events(0.00023, 0.95) == pytest.approx(1_082, rel=1e-3)
    assert Constraint("like", 0, 1, 1.0, True).needed_events(0.01, 0.95) == np.inf
    assert Constraint("like", 0, 1, 0.009, False).needed_events(0.01, 0.95) == pytest.approx(268, rel=1e-2)


def learner_of(policies: int = 1) -> LoggedActorCritic:
    weights = torch.tensor([[1.0, 0.0, 0.0]]).expand(policies, -1)
    critic = TableCritic(np.zeros((policies, 2, 3)))
    return LoggedActorCritic(TablePolicy([[0.0, 0.0]]), critic, LoggedLearnerConfig(), policies, weights=weights)


BATCH = transitions(torch.ones(2, 1), torch.tensor([0, 1]), torch.full((2,), 0.5), torch.ones(2, 3))


def test_multipliers_rise_where_a_threshold_is_missed_fall_where_it_is_held_and_never_below_0() -> None:
    learner, said = learner_of(), iter([[-0.2, 0.5], [-0.1, 0.5], [0.4, 0.5], [0.4, -3.0]])

    def judge() -> Float[Tensor, "1 m"]:
        return torch.tensor([next(said)])

    parts = Multipliers(learner, [LIKE, HATE], judge, every=2)
    seen = []
    for _ in range(9):
        told = parts.update(BATCH)
        seen.append(round(float(told["multiplier_like"]), 6))
    assert seen[:2] == [0.0, 0.0]
    assert seen[2] == seen[3] == pytest.approx(1.1 * 0.2)  # after every second update
    assert seen[4] == pytest.approx(0.22 + 1.21 * 0.1)
    assert seen[6] == pytest.approx(0.341 - 0.605 * 0.4)  # half the step where it turns back
    assert parts.multiplier[0, 1].item() == pytest.approx(0.6655)  # more than the whole threshold counts as that
    assert learner.weights[0].tolist() == pytest.approx(
        [1.0, float(parts.multiplier[0, 0]), -float(parts.multiplier[0, 1])]
    )


def test_a_threshold_on_the_main_goal_adds_to_its_weight() -> None:
    learner = learner_of()
    parts = Multipliers(learner, [Constraint("watch", 0, 1, 1.0, True)], lambda: torch.tensor([[-0.5]]), every=1)
    for _ in range(2):
        parts.update(BATCH)
    assert learner.weights[0].tolist() == pytest.approx([1.55, 0.0, 0.0])


def test_saved_multipliers_go_on_and_bring_their_weights() -> None:
    def judged(_: Any = None) -> Float[Tensor, "1 m"]:
        return torch.tensor([[-0.3]])

    first, second = learner_of(), learner_of()
    one = Multipliers(first, [LIKE], judged, every=1)
    for _ in range(3):
        one.update(BATCH)
    other = Multipliers(second, [LIKE], judged, every=1)
    other.load_state_dict(one.state_dict())
    assert torch.equal(second.weights, first.weights)
    for each in (one, other):
        each.update(BATCH)
    assert torch.equal(second.weights, first.weights)
