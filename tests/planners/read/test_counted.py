"""A critic that counts, against exact values of what its log contains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from worlds import TabularGame

from envs.core import InputError, Observation, Streams
from envs.kitchen import Kitchen
from envs.world import RandomActor, TensorEnv, Transition
from marl.learning.state_log import StateLog, record
from planners.baselines import uniform_prior
from planners.read.advantages import prefix_value
from planners.read.counted import CountedCritic
from planners.read.critics import PlanCritic
from planners.read.planner import PlannerConfig, ReadPlanner

GAMMA = 0.9


def played(world: Any, steps: int = 400, rows: int = 100, time_limit: int | None = None) -> StateLog:
    return record(TensorEnv(world, rows, time_limit=time_limit), RandomActor(world.spec), steps, seed=0)


def told(game: TabularGame, critic: CountedCritic, given: list[int]) -> Tensor:
    """Values of all states and joint choices, [S-1,A,…,A]; the last state ends and is never left."""
    agents = len(game.spec.agents)
    joint = torch.cartesian_prod(*[torch.arange(game.choices)] * agents).view(-1, agents, 1)
    states = torch.arange(game.states - 1).repeat_interleave(len(joint))
    pattern = torch.zeros(len(states), agents, dtype=torch.bool)
    pattern[:, given] = True
    values = critic.values(game.observe(states), joint.repeat(game.states - 1, 1, 1), pattern)
    return values.view(-1, *[game.choices] * agents)


def frequencies(game: TabularGame, log: StateLog) -> Tensor:
    """Joint choices as they were made, [S,J]; uniform where nothing was."""
    (state, _, _), _, action = log.states(torch.arange(len(log)))
    agents = action.shape[1]
    place = sum(action[:, i, 0] * game.choices ** (agents - 1 - i) for i in range(agents))
    joint = game.choices**agents
    counts = torch.bincount(state * joint + place, minlength=game.states * joint).view(-1, joint).double()
    total = counts.sum(1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp(min=1), 1 / joint)


@pytest.mark.parametrize("agents", [1, 2, 3])
def test_every_prefix_has_the_exact_value_of_play_as_frequent_as_the_log_has_it(agents: int) -> None:
    game = TabularGame(agents=agents)
    log = played(game)
    critic = CountedCritic(log, GAMMA)
    policy = frequencies(game, log)
    _, q = game.q_of(policy, GAMMA)
    shape = (-1, *[game.choices] * agents)
    q, policy = q[:-1].view(shape), policy[:-1].view(shape)
    for given in ([], [0], list(range(agents)), [agents - 1]):
        exact = prefix_value(q, policy, agents, given)
        assert_close(told(game, critic, given), exact.expand_as(q), rtol=0, atol=1e-7)


def test_a_long_log_of_random_play_gives_the_values_of_random_play() -> None:
    game = TabularGame()
    critic = CountedCritic(played(game, steps=1000, rows=200), GAMMA)
    value, q = game.q_of(torch.full((6, 9), 1 / 9), GAMMA)
    assert_close(told(game, critic, []).mean((1, 2)), value[:-1], rtol=0, atol=0.05)
    assert_close(told(game, critic, [0, 1]).flatten(1), q[:-1], rtol=0, atol=0.05)


def test_its_scale_is_the_root_mean_square_of_single_advantages_as_often_as_they_were_taken() -> None:
    game = TabularGame()
    log = played(game)
    critic = CountedCritic(log, GAMMA)
    batch = log.take(torch.arange(len(log)), 1, 1)
    squares = []
    for agent in range(2):
        given = torch.arange(2).expand(len(log), 2) == agent
        value = critic.values(batch.obs, batch.decision.action, torch.zeros_like(given))
        squares.append((critic.values(batch.obs, batch.decision.action, given) - value).square().mean())
    assert critic.scale == pytest.approx(float((sum(squares) / 2) ** 0.5))
    assert isinstance(critic, PlanCritic)


class Slippery(TabularGame):
    """The game in which a share of the steps leads elsewhere."""

    SHARE = 0.3

    def noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.rand(num, generator=generator)

    def transition(self, state: Tensor, action: Tensor, noise: Any) -> Transition:
        straight = super().transition(state, action, None)
        slipped = torch.where(noise < self.SHARE, (straight.state + 1) % self.states, straight.state)
        over = self.ends[slipped].unsqueeze(1).expand(-1, action.shape[1])
        return Transition(slipped, straight.reward, over)


def test_where_chance_decides_it_weighs_what_followed() -> None:
    game = Slippery(seed=1)
    critic = CountedCritic(played(game, steps=1000, rows=400), GAMMA)
    value = torch.zeros(6, dtype=torch.float64)
    for _ in range(500):
        onward = value * ~game.ends
        other = (game.successor + 1) % game.states
        q = game.reward + GAMMA * (0.7 * onward[game.successor] + 0.3 * onward[other])
        value = q.mean(1)
    assert_close(told(game, critic, [0, 1]).flatten(1), q[:-1], rtol=0, atol=0.06)


def by_hand(terminated: list[bool], truncated: list[bool], choices: list[int]) -> StateLog:
    """One agent that goes 0 -> 1 -> 2 -> 3, earning 1, 2 and 4."""

    def observe(state: Tensor) -> Observation:
        seen = state.float().unsqueeze(-1)
        return Observation(seen.unsqueeze(1), seen, torch.ones(len(state), 1, dtype=torch.bool))

    def column(x: list[Any]) -> Tensor:
        return torch.tensor(x).unsqueeze(-1)

    reward = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    ends = column(terminated), column(truncated)
    action = torch.tensor(choices).view(3, 1, 1)
    return StateLog(observe, torch.arange(3), action, reward, torch.arange(1, 4), *ends, rows=1)


def values_by_hand(log: StateLog, choices: list[int] | None = None, **options: Any) -> list[float]:
    """V of the states 0 to 4, or Q of choices there."""
    critic = CountedCritic(log, 0.5, **options)
    action = torch.tensor(choices or [0] * 5).view(5, 1, 1)
    given = torch.full((5, 1), choices is not None)
    return critic.values(log.observe(torch.arange(5)), action, given).tolist()


NEVER = [False, False, False]


def test_nothing_follows_a_termination_and_a_truncation_is_followed_by_what_was_seen_of_its_state() -> None:
    assert values_by_hand(by_hand(NEVER, NEVER, [0, 0, 0])) == [3.0, 4.0, 4.0, 0.0, 0.0]
    assert values_by_hand(by_hand([False, True, False], NEVER, [0, 0, 0])) == [2.0, 2.0, 4.0, 0.0, 0.0]
    assert values_by_hand(by_hand(NEVER, [False, True, False], [0, 0, 0])) == [3.0, 4.0, 4.0, 0.0, 0.0]


def test_weights_tell_what_a_reward_is_worth() -> None:
    log = by_hand(NEVER, NEVER, [0, 0, 0])
    assert values_by_hand(log, weights=torch.tensor([2.0])) == [6.0, 8.0, 8.0, 0.0, 0.0]


def test_what_was_never_chosen_is_worth_just_less_than_what_is_known_of_the_state() -> None:
    values = values_by_hand(by_hand(NEVER, NEVER, [0, 1, 0]), [0, 0, 5, 0, 0])
    assert values == pytest.approx([3.0, 4.0, 4.0, 0.0, 0.0], abs=1e-5)
    assert values[0] == 3.0
    assert values[1] < 4.0
    assert values[2] < 4.0
    assert values[3] < 0.0
    assert values[4] < 0.0


@pytest.mark.parametrize("mode", ["sequential", "joint"])
def test_a_plan_that_was_never_visited_is_not_accepted(mode: Any) -> None:
    kitchen = Kitchen("cramped_room_small", horizon=None, soups=1, counter_items=0)
    log = played(kitchen, steps=100, rows=30, time_limit=50)
    critic = CountedCritic(log, 0.97)
    assert critic.scale < 1  # it was seen that something is earned
    before, _, action = log.states(torch.arange(len(log)))
    known = log.observe(before).state.numpy()
    visited = {(state.tobytes(), *chosen) for state, chosen in zip(known, action.squeeze(-1).tolist(), strict=True)}
    planner = ReadPlanner(kitchen, uniform_prior(), critic, PlannerConfig(plans="steps", mode=mode, rounds=100))
    elsewhere = record(TensorEnv(kitchen, 60), RandomActor(kitchen.spec), 20, seed=1)
    obs = elsewhere.observe(elsewhere.states(torch.arange(60) + 19 * 60)[0])
    decision, _ = planner.act(obs, None, Streams([0]))
    assert decision.counts is not None
    unseen = 0
    for row, chosen in enumerate(decision.action.squeeze(-1).tolist()):
        if (obs.state[row].numpy().tobytes(), *chosen) not in visited:
            unseen += 1
            assert int(decision.counts["nothing_acceptable"][row]) > 0
    assert 0 < unseen < len(obs.alive)


def test_a_second_choice_is_below_the_first_and_below_no_choice_at_all() -> None:
    """In state 0 agent a made choice 1 once, which is worse than its choice 0, and agent b made 0 each time."""
    game = TabularGame(states=3)
    actions = torch.tensor([[0, 0], [1, 0]]).unsqueeze(-1)
    reward = torch.tensor([1.0, -1.0]).view(2, 1, 1).expand(2, 2, 1)
    never = torch.zeros(2, 2, dtype=torch.bool)
    log = StateLog(game.observe, torch.zeros(2).long(), actions, reward, torch.tensor([2, 2]), ~never, never, rows=2)
    critic = CountedCritic(log, GAMMA)

    def value(action: list[int], given: list[bool]) -> float:
        obs = game.observe(torch.zeros(1).long())
        return float(critic.values(obs, torch.tensor([action]).unsqueeze(-1), torch.tensor([given])))

    assert value([0, 0], [False, False]) == 0
    for first, worth in ((0, 1.0), (1, -1.0)):
        assert value([first, 0], [True, False]) == worth
        assert value([first, 1], [True, True]) < min(worth, 0.0)
    assert value([2, 1], [True, True]) < value([2, 0], [True, False]) < 0


def test_a_log_of_no_choices_and_a_discount_of_one_are_refused() -> None:
    log = by_hand(NEVER, NEVER, [0, 0, 0])
    with pytest.raises(InputError, match="below 1"):
        CountedCritic(log, 1.0)
    ends = log.terminated, log.truncated
    real = StateLog(log.observe, torch.arange(3), torch.zeros(3, 1, 1), log.reward, torch.arange(3), *ends, rows=1)
    with pytest.raises(InputError, match="one whole number an agent"):
        CountedCritic(real, 0.9)


def test_a_choice_that_nobody_ever_made_is_not_taken_for_one_of_another_state() -> None:
    values = values_by_hand(by_hand(NEVER, NEVER, [0, 0, 0]), [1] * 5)
    assert values == pytest.approx([3.0, 4.0, 4.0, 0.0, 0.0], abs=1e-5)
    assert all(value < known for value, known in zip(values, [3.0, 4.0, 4.0, 0.0, 0.0], strict=True))


def test_minus_0_and_0_are_one_number_in_a_state() -> None:
    log = by_hand(NEVER, NEVER, [0, 0, 0])
    critic = CountedCritic(log, 0.5)
    nobody = torch.zeros(1, 1, dtype=torch.bool)
    assert critic.values(log.observe(torch.tensor([-0.0])), torch.zeros(1, 1, 1).long(), nobody).tolist() == [3.0]
