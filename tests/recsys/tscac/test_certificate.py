"""HELD, NOT HELD and CANNOT TELL, and the level at which several hold at once."""

import numpy as np
import pytest
import torch
from small_constrained import random_problem

from recsys.tscac.certificate import Standing, level_of_each, quantile_of_each, standing


def test_a_threshold_is_held_from_the_lower_bound_and_not_below_the_upper() -> None:
    low = np.array([[1.0, 0.9, 0.5, 0.9]])
    high = np.array([[1.2, 1.1, 0.99, 1.0]])
    said = standing(low, high, np.ones(4))[0].tolist()
    assert said == [Standing.HELD, Standing.CANNOT_TELL, Standing.NOT_HELD, Standing.CANNOT_TELL]


def test_endless_bounds_tell_nothing() -> None:
    assert standing(np.array([-np.inf]), np.array([np.inf]), np.zeros(1)).tolist() == [Standing.CANNOT_TELL]


def test_each_of_several_has_a_share_of_the_error() -> None:
    assert level_of_each(0.95, 2) == pytest.approx(0.975)
    assert quantile_of_each(0.95, 2) == pytest.approx(1.959964, abs=1e-6)
    assert quantile_of_each(0.95, 1) == pytest.approx(1.644854, abs=1e-6)


def test_thresholds_that_a_policy_just_misses_are_certified_no_oftener_than_promised() -> None:
    problem = random_problem(2)
    policy = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(4), size=5))
    thresholds = (problem.process.returns(policy)[1:] + 1e-12).numpy()
    logs = problem.draw(20_000, 400, np.random.default_rng(1))
    everywhere = policy.expand(400, -1, -1)
    value = logs.process.returns(everywhere)[:, 1:].numpy()
    reach = quantile_of_each(0.9, 2) * logs.standard_error(everywhere)[:, 1:].numpy()
    said = standing(value - reach, value + reach, thresholds)
    assert 0.05 <= (said == Standing.HELD).any(1).mean() <= 0.14  # 10 % are promised at most
    assert 0.05 <= (said == Standing.NOT_HELD).any(1).mean() <= 0.15
