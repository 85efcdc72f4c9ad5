"""States of few numbers as inputs: which of its values each number has."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from envs.core import Discrete, EnvSpec, Observation, Streams
from marl.learning.regression import Regression, RegressionConfig
from marl.models.critics import CriticConfig
from marl.models.layers import NetworkConfig
from marl.models.levels import MOST, LevelCritic, level_inputs, levels_of
from marl.models.ordered_critic import OrderedCritic
from marl.models.prefix_critic import PrefixCritic

# A place, one that never changes, one of many values.
STATE = torch.stack([torch.tensor([0.0, 2.0, 1.0]).repeat(20), torch.full((60,), 0.5), torch.linspace(0, 1, 60)], 1)
KINDS = [OrderedCritic, PrefixCritic]


def levels() -> list[list[float]]:
    return levels_of(STATE)


def observed(state: Tensor) -> Observation:
    alive = torch.ones(len(state), 2, dtype=torch.bool)
    return Observation(state.unsqueeze(1).expand(-1, 2, -1), state, alive)


def critic(kind: Any = OrderedCritic, members: int = 1) -> LevelCritic:
    spec = EnvSpec(("a", "b"), (0, 0), ("worth",), (3, 3), (Discrete((3,)),) * 2, level_inputs(levels()))
    shape = CriticConfig(network=NetworkConfig(hidden=(8,)), output="team")
    return LevelCritic(kind(spec, shape, Streams(list(range(members)))), levels())


def test_numbers_of_few_values_have_levels_and_others_none() -> None:
    assert levels() == [[0.0, 1.0, 2.0], [0.5], []]
    assert level_inputs(levels()) == 3 + 0 + 1


@pytest.mark.parametrize(("count", "known"), [(MOST, MOST), (MOST + 1, 0)])
def test_the_most_levels_are_told_apart(count: int, known: int) -> None:
    assert [len(values) for values in levels_of(torch.arange(count).float().view(-1, 1))] == [known]


def test_values_that_rounding_parts_are_one() -> None:
    thirds = torch.tensor([[1 / 3], [1 / 3 + 1e-7], [2 / 3]])
    assert [len(values) for values in levels_of(thirds)] == [2]
    first, second, _ = LevelCritic(critic().critic, levels_of(thirds)).inputs(thirds)
    assert torch.equal(first, second)


def test_inputs_say_which_value_each_number_has() -> None:
    seen = torch.tensor([[0.0, 0.5, 0.25], [2.0, 0.5, 0.75], [7.0, 3.0, 9.0]])
    expected = [[1, 0, 0, 0.25], [0, 0, 1, 0.75], [0, 0, 0, 9.0]]  # 7 is not known, and 3 is of a number left out
    assert_close(critic().inputs(seen), torch.tensor(expected))


def test_levels_that_were_kept_as_json_are_the_same() -> None:
    state = torch.rand(30, 2, generator=torch.Generator().manual_seed(0))
    found = levels_of(state)
    again = json.loads(json.dumps(found))
    assert again == found
    one, two = (LevelCritic(critic().critic, each).inputs(state) for each in (found, again))
    assert torch.equal(one, two)
    assert bool((one.sum(1) == 2).all())


def test_states_that_never_change_are_one_input() -> None:
    state = torch.full((4, 2), 3.0)
    assert level_inputs(levels_of(state)) == 1
    assert_close(LevelCritic(critic().critic, levels_of(state)).inputs(state), torch.ones(4, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_critic_inside_for_these_inputs(kind: Any) -> None:
    outer = critic(kind)
    obs = observed(STATE[:6])
    action = torch.randint(3, (6, 2, 1), generator=torch.Generator().manual_seed(0))
    given = torch.tensor([[False, False], [True, False], [True, True]]).unsqueeze(1).expand(3, 6, 2)
    behavior = torch.full((6, 2, 3), 1 / 3) if outer.needs_behavior else None
    value = outer(obs, action, given, behavior)
    assert value.shape == (3, 6, 2, 1)
    within = Observation(obs.agent, outer.inputs(obs.state), obs.alive)
    assert torch.equal(value, outer.critic(within, action, given, behavior))
    assert torch.equal(outer(obs), outer.critic(within))


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_of_itself_what_the_critic_inside_says(kind: Any) -> None:
    outer = critic(kind, members=3)
    assert (outer.policies, outer.channels, outer.copies) == (3, 1, outer.critic.copies)
    assert outer.needs_behavior is outer.critic.needs_behavior


@pytest.mark.parametrize("kind", KINDS)
def test_regression_saves_all_that_it_learns(kind: Any) -> None:
    def learner(seed: int) -> Regression:
        return Regression(critic(kind), RegressionConfig(rows=8, steps=2), Streams([seed]), 4)

    one, other = learner(0), learner(1)
    with torch.no_grad():
        for parameter in one.critic.parameters():
            parameter.add_(1.0)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.values(observed(STATE)), other.values(observed(STATE)))
