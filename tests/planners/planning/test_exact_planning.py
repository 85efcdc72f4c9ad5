"""The truth about planners in a listed world, against the same computed by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.core import InputError, Observation
from envs.tabular import Digits, Table
from planners.planning.config import MethodConfig
from planners.planning.exact import (
    Listed,
    agreement,
    agreements,
    earned_once,
    exact_metrics,
    executed,
    in_scale,
    is_closed,
    most_probable,
    require_success,
    successes,
)
from planners.read.advantages import advantages, filtered
from planners.read.critics import ExactCritic

STATES, CHOICES, GOAL, DISCOUNT = 9, 3, 20.0, 0.9


class Seen:
    """A world that shows the number of its state."""

    def observe(self, state: Tensor) -> Observation:
        number = state.float().unsqueeze(1)
        return Observation(number.unsqueeze(1).expand(-1, 2, -1), number, torch.ones(len(state), 2, dtype=torch.bool))


class Known:
    """A critic that has the values of every prefix, and notes by which probabilities it was asked."""

    def __init__(self, values: list[Tensor], needs_behavior: bool = False):
        self.known, self.needs_behavior, self.scale = values, needs_behavior, 4.0
        self.told: list[tuple[Tensor, Tensor, Tensor]] = []

    def values(self, obs: Observation, action: Tensor, given: Tensor, behavior: Any = None) -> Tensor:
        count = int(given[0].sum())
        place = obs.state[:, 0].long()
        if self.needs_behavior:
            self.told.append((place, action[..., 0], behavior))
        return self.known[count][(place, *action[:, :count, 0].unbind(1))]


def table_of(seed: int = 0) -> Table:
    """A game of two agents that is over where it earns the goal."""
    generator = torch.Generator().manual_seed(seed)
    successor = torch.randint(STATES + 1, (STATES, CHOICES**2), generator=generator)
    reward = torch.where(successor == STATES, GOAL, 0.0).double()
    return Table(torch.arange(STATES), torch.zeros(STATES, dtype=torch.int64), successor, reward, CHOICES, 2)


def listed(seed: int = 0) -> Listed:
    generator = torch.Generator().manual_seed(seed + 100)
    policy = torch.rand(STATES, CHOICES, CHOICES, generator=generator, dtype=torch.float64) ** 3
    policy = policy / policy.sum((1, 2), keepdim=True)
    return Listed(Seen(), table_of(seed), policy, GOAL, DISCOUNT)


def q_of(one: Listed) -> Tensor:
    value = one.table.evaluate(one.policy.flatten(1), DISCOUNT)
    following = torch.cat([value, value.new_zeros(1)])[one.table.successor]
    return (one.table.reward + DISCOUNT * following).view(one.policy.shape) / GOAL


def known_values(one: Listed) -> list[Tensor]:
    q = q_of(one)
    first = one.policy.sum(2)
    q_first = (one.policy * q).sum(2) / first
    return [(first * q_first).sum(1), q_first, q]


def test_conditionals_multiply_to_the_policy_and_are_any_where_nothing_leads() -> None:
    one = listed()
    first, second = one.conditionals()
    torch.testing.assert_close(first.unsqueeze(-1) * second, one.policy)
    one.policy[3, 1] = 0
    one.policy[3] /= one.policy[3].sum()
    torch.testing.assert_close(one.conditionals()[1][3, 1], torch.full((CHOICES,), 1 / CHOICES).double())


def test_true_advantages_are_those_of_the_policy_in_units_of_the_goal() -> None:
    one = listed()
    first, second = one.true_advantages()
    wanted = advantages(q_of(one), one.policy, 2, (0, 1))
    torch.testing.assert_close(first, wanted[0].squeeze(2))
    torch.testing.assert_close(second, wanted[1])


@pytest.mark.parametrize("needs_behavior", [False, True])
def test_a_critic_is_asked_for_every_prefix_and_told_the_probabilities_along_it(needs_behavior: bool) -> None:
    one = listed()
    critic = Known(known_values(one), needs_behavior)
    first, second = one.learned_advantages(critic)
    true = one.true_advantages()
    torch.testing.assert_close(first, true[0] / critic.scale)
    torch.testing.assert_close(second, true[1] / critic.scale)
    shares = one.conditionals()
    for place, action, behavior in critic.told:
        given = behavior.sum(-1) > 0
        torch.testing.assert_close(behavior[given[:, 0], 0], shares[0][place[given[:, 0]]].float())
        rows = given[:, 1]
        torch.testing.assert_close(behavior[rows, 1], shares[1][place[rows], action[rows, 0]].float())


def test_planners_execute_what_theory_makes_of_the_model() -> None:
    one = listed()
    parts = one.true_advantages()
    shares = one.conditionals()
    in_turn = executed(one, parts, MethodConfig(plans="steps", threshold=0.01))
    by_hand = filtered(shares[0], parts[0], 0.01).unsqueeze(-1) * filtered(shares[1], parts[1], 0.01)
    torch.testing.assert_close(in_turn, by_hand)
    together = executed(one, parts, MethodConfig(plans="steps", mode="joint", rounds=9))
    total = (parts[0].unsqueeze(-1) + parts[1]).flatten(1)
    torch.testing.assert_close(together.flatten(1), filtered(one.policy.flatten(1), total, 0.0))
    drawn = executed(one, parts, MethodConfig(plans="steps", kind="reweigh", beta=0.05))
    weight = one.policy * ((parts[0] / 0.05).exp().unsqueeze(-1))
    first = weight.sum(2) / weight.sum((1, 2)).unsqueeze(-1)
    torch.testing.assert_close(drawn.sum(2), first)
    assert one.success(in_turn, 5) > one.success(one.policy, 5)


def test_success_is_the_share_of_episodes_that_reach_the_goal_in_time() -> None:
    one = listed()
    moves = torch.zeros(STATES + 1, STATES + 1, dtype=torch.float64)
    for state in range(STATES):
        moves[state] = moves[state].index_add(0, one.table.successor[state], one.policy[state].flatten())
    moves[STATES, STATES] = 1
    assert one.success(one.policy, 4) == pytest.approx(float(torch.linalg.matrix_power(moves, 4)[0, STATES]))
    arrives = [float(torch.linalg.matrix_power(moves, step)[0, STATES]) for step in range(5)]
    late = sum(step * (arrives[step] - arrives[step - 1]) for step in range(1, 5)) / arrives[4]
    assert one.steps(one.policy, 4) == pytest.approx(late)
    told = successes(one, one.policy, 4)
    assert told["exact/steps_above_fewest"] == pytest.approx(late - one.table.steps_to(one.goal))
    visits = sum(torch.linalg.matrix_power(moves, step)[0, :STATES] for step in range(4))
    assert isinstance(visits, Tensor)
    torch.testing.assert_close(one.visits(4), visits / visits.sum())


def test_what_is_not_known_in_closed_form_is_not_told() -> None:
    assert is_closed(MethodConfig(plans="steps"), listed())
    assert is_closed(MethodConfig(plans="steps", rounds=3), listed())
    assert is_closed(MethodConfig(plans="steps", kind="reweigh", rounds=1), listed())
    assert not is_closed(MethodConfig(plans="all"), listed())
    assert not is_closed(MethodConfig(plans="steps", relax=0.1), listed())
    assert not is_closed(MethodConfig(plans="steps", repeats=True), listed())
    assert not is_closed(MethodConfig(plans="steps", rounds=2), listed())
    assert not is_closed(MethodConfig(plans="steps", temperature=0), listed())
    assert not is_closed(MethodConfig(plans="steps", mode="joint", rounds=8), listed())
    assert not is_closed(MethodConfig(plans="steps", kind="reweigh", probabilities="whole"), listed())
    assert not is_closed(MethodConfig(plans="steps"), replace(listed(), at_once=False))
    assert is_closed(MethodConfig(plans="steps", kind="reweigh"), replace(listed(), at_once=False))
    assert is_closed(MethodConfig(plans="steps", propose="scored", tell=False), replace(listed(), at_once=False))
    with pytest.raises(ValueError, match="closed form"):
        executed(listed(), listed().true_advantages(), MethodConfig(plans="all"))
    found = exact_metrics(listed(), Known(known_values(listed())), MethodConfig(plans="all"), 5, {})
    assert "exact/success" not in found
    slow, critic = replace(listed(), at_once=False), Known(known_values(listed()))
    told = exact_metrics(slow, critic, MethodConfig(plans="steps"), 5, {"uniform": critic})
    assert {name for name in told if name.endswith("success")} == {
        "alone/exact/success",
        "alone/exact/most_probable/success",
        "uniform/exact/success",
    }
    assert "exact/correlation" in found


def test_agreement_is_weighted_and_counts_signs_only_where_they_matter() -> None:
    true = torch.tensor([0.5, -0.5, 0.001, 0.3]).double()
    weight = torch.tensor([1.0, 1.0, 5.0, 2.0]).double()
    same = agreement(true, 3 * true, weight)
    assert (same.correlation, same.signs) == (pytest.approx(1), 1)
    assert agreement(true, -true, weight).correlation == pytest.approx(-1)
    wrong_small = torch.tensor([0.5, -0.5, -0.001, 0.3]).double()
    assert agreement(true, wrong_small, weight).signs == 1
    blind_first = torch.tensor([-0.001, -0.5, 0.001, 0.3]).double()
    assert agreement(true, blind_first, weight).signs == pytest.approx(0.75)
    wrong_last = torch.tensor([0.5, -0.5, 0.001, -0.3]).double()
    assert agreement(true, wrong_last, weight).signs == pytest.approx(0.5)


def test_a_perfect_critic_agrees_and_plans_as_the_truth_does() -> None:
    one = listed()
    critic = Known(known_values(one))
    found = exact_metrics(one, critic, MethodConfig(plans="steps"), 5, {"uniform": critic})
    assert found["exact/success"] == pytest.approx(found["truth/exact/success"])
    assert found["exact/correlation"] == pytest.approx(1)
    assert found["exact/signs"] == found["exact/signs/0"] == 1
    assert found["alone/exact/discounted"] == pytest.approx(float(known_values(one)[0][0]) * GOAL)
    nobody = torch.full_like(one.policy, 1 / CHOICES**2)
    other = Listed(one.world, one.table, nobody, GOAL, DISCOUNT)
    policy = executed(other, other.learned_advantages(critic), MethodConfig(plans="steps"))
    assert found["uniform/exact/success"] == pytest.approx(other.success(policy, 5))


def test_agreement_of_joint_advantages_adds_up_the_agents() -> None:
    one = listed()
    flipped = [one.true_advantages()[0], -one.true_advantages()[1]]
    found = agreements(one, flipped, 5)
    assert found["exact/correlation/0"] == pytest.approx(1)
    assert found["exact/correlation/1"] == pytest.approx(-1)
    assert -1 < found["exact/correlation"] < 1


def test_true_advantages_in_a_critics_unit_have_a_mean_square_of_one() -> None:
    one = listed()
    first, second = in_scale(one, one.true_advantages(), in_order=True)
    squares = [(one.policy.sum(2) * first.square()).sum(), (one.policy * second.square()).sum()]
    assert float(sum(squares)) / 2 / STATES == pytest.approx(1)


def test_the_truth_beside_the_exact_critic_is_the_same_at_any_threshold() -> None:
    one = listed()

    class Numbers:
        """States are their numbers."""

        def state_of(self, code: Tensor) -> Tensor:
            return code[:, 0].long()

        def digits(self, state: Tensor) -> Digits:
            return Digits(state.unsqueeze(1), (STATES,))

    world = Numbers()
    critic = ExactCritic(one.table, one.policy, DISCOUNT, state_of=world.state_of, digits=world.digits)
    alone = in_scale(one, one.true_advantages(), in_order=False)
    for found, wanted in zip(one.learned_advantages(critic), alone, strict=True):
        torch.testing.assert_close(found, wanted)
    for threshold in (-1.0, 0.7, 1.5):
        metrics = exact_metrics(one, critic, MethodConfig(plans="steps", threshold=threshold), 5, {})
        assert metrics["exact/success"] == pytest.approx(metrics["truth/exact/success"])


def test_at_temperature_0_the_likeliest_is_taken_one_after_the_other() -> None:
    one = listed()
    greedy = most_probable(one).flatten(1)
    for state in range(STATES):
        first = int(one.policy[state].sum(1).argmax())
        assert int(greedy[state].argmax()) == first * CHOICES + int(one.policy[state, first].argmax())
    assert bool((greedy.sum(1) == 1).all())


def test_success_follows_from_returns_only_where_the_goal_is_earned_once() -> None:
    one = listed()
    assert earned_once(one.table, GOAL, 5)
    assert not earned_once(one.table, 10.0, 5)
    again = Table(
        one.table.states,
        one.table.steps,
        one.table.successor.clamp(max=STATES - 1),
        one.table.reward,
        CHOICES,
        2,
    )
    assert not earned_once(again, GOAL, 5)
    with pytest.raises(InputError, match="earned at once and but once"):
        require_success(again, GOAL, 5)
