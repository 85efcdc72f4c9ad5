"""Dec-Tiger's rules by hand; its exact values against enumerations that play the world itself."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from envs.core import InputError
from envs.games import DecTiger
from envs.games.dec_tiger import TigerState
from envs.world import TensorEnv

HEARD_TRUE = 0.85


def two_step_return(first: Tensor, second: Tensor) -> Tensor:
    """Expected return of pairs of policies [policies, ...], by playing every chance of a horizon of 2.

    first [.., 3]: the first agent's choice at the start, after hearing left, after hearing right. second [.., 1 + 6]:
    the second's at the start, then for each side heard and each choice of the first that it sees.
    """
    world, policies = DecTiger(2), len(first)
    total = torch.zeros(policies, dtype=torch.float64)
    for tiger in (0, 1):
        start = world.initial(torch.full((policies,), tiger))
        action = torch.stack([first[:, 0], second[:, 0]], -1).unsqueeze(-1)
        both_listen = (action == 0).all(1).squeeze(-1)
        for ears in itertools.product((True, False), repeat=2):
            for door in (0, 1):
                # Numbers that fall on the same side of both thresholds, 0.5 and 0.85.
                noise = torch.tensor([[0.1 if ear else 0.9 for ear in ears] + [0.1 if door else 0.9]])
                state, reward, _ = world.transition(start, action, noise.expand(policies, -1))
                heard = [HEARD_TRUE if ear else 1 - HEARD_TRUE for ear in ears]
                chance = torch.where(both_listen, heard[0] * heard[1] / 2, 1 / 8).double() / 2
                rows = torch.arange(policies)
                one = first[rows, state.heard[:, 0]]
                other = second[rows, 1 + 3 * (state.heard[:, 1] - 1) + one]
                last = world.transition(state, torch.stack([one, other], -1).unsqueeze(-1), noise.expand(policies, -1))
                total += chance * (reward + last.reward)[:, 0, 0].double()
    return total


def tables(entries: int) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(3)] * entries)


def test_the_values_of_two_steps_are_those_of_an_enumeration() -> None:
    alone = tables(3)
    # Without an edge the second agent's choice is the same whatever the first one's is.
    blind = torch.cat([alone[:, :1], alone[:, 1:2].expand(-1, 3), alone[:, 2:].expand(-1, 3)], -1)
    pairs = torch.cartesian_prod(torch.arange(27), torch.arange(27))
    empty = two_step_return(alone[pairs[:, 0]], blind[pairs[:, 1]]).max().item()
    assert empty == pytest.approx(-4.0, abs=1e-6)
    assert DecTiger().optimal_value([]) == pytest.approx(empty, abs=1e-6)
    seeing = tables(7)
    pairs = torch.cartesian_prod(torch.arange(27), torch.arange(3**7))
    edge = two_step_return(alone[pairs[:, 0]], seeing[pairs[:, 1]]).max().item()
    assert edge == pytest.approx(7.5, abs=1e-5)
    assert DecTiger().optimal_value([(0, 1)]) == pytest.approx(edge, abs=1e-5)
    assert DecTiger().optimal_value([(1, 0)]) == pytest.approx(7.5, abs=1e-12)


def test_what_everybody_hears_together_is_worth_10_815_in_two_steps() -> None:
    # Listen; if both hear the same side, with probability .745, open the other door, else listen once more.
    agree = 0.85**2 + 0.15**2
    by_hand = -2 + 20 * 0.85**2 - 50 * 0.15**2 - 2 * (1 - agree)
    assert by_hand == pytest.approx(10.815)
    assert DecTiger().centralized_value() == pytest.approx(by_hand, abs=1e-12)
    assert DecTiger(1).centralized_value() == -2


def test_three_steps_are_worth_the_published_5_1908_and_more_with_an_edge() -> None:
    # Published, for instance by Szer et al., UAI 2005: 5.19.
    world = DecTiger(3)
    values = world.optimal_value([]), world.optimal_value([(1, 0)]), world.centralized_value()
    assert values == pytest.approx((5.190813, 10.273600, 13.015488), abs=1e-5)


def test_the_parent_s_choice_as_a_signal_earns_7_5() -> None:
    """Listen; then the parent opens away from what it heard, which costs it nothing, and the child weighs both."""
    rows = 200_000
    env = TensorEnv(DecTiger(), rows)
    obs, total = env.reset(0), torch.zeros(rows)
    for t in range(2):
        action = torch.zeros(rows, 2, 1, dtype=torch.int64)
        if t == 1:
            heard = obs.agent[..., 2:].argmax(-1)  # after the clock and `nothing yet`
            action[:, :, 0] = (2 - heard[:, :1]).expand(-1, 2)
        step = env.step(action)
        obs, total = step.obs, total + step.reward[:, 0, 0]
    # Both follow the parent's ear: 20 with probability 0.85, else -50.
    assert total.mean().item() == pytest.approx(-2 + 20 * 0.85 - 50 * 0.15, abs=0.3)


@pytest.mark.parametrize(
    ("choices", "reward"),
    [
        ((0, 0), -2),
        ((1, 1), -50),
        ((2, 2), 20),
        ((1, 2), -100),
        ((2, 1), -100),
        ((0, 1), -101),
        ((1, 0), -101),
        ((0, 2), 9),
        ((2, 0), 9),
    ],
)
def test_the_team_earns_by_the_tiger_s_door(choices: tuple[int, int], reward: float) -> None:
    mirrored = [{0: 0, 1: 2, 2: 1}[choice] for choice in choices]
    world = DecTiger()
    start = world.initial(torch.tensor([0, 1]))
    out = world.transition(start, torch.tensor([choices, mirrored]).unsqueeze(-1), torch.rand(2, 3))
    assert out.reward.flatten().tolist() == [reward] * 4


def test_listening_is_right_with_probability_085_and_any_door_opened_makes_everything_random() -> None:
    world, rows = DecTiger(), 40_000
    generator = torch.Generator().manual_seed(0)
    start = world.initial(world.initial_noise(rows, generator))
    assert start.tiger.float().mean().item() == pytest.approx(0.5, abs=0.01)
    for choices, true, stays in (((0, 0), 0.85, 1.0), ((0, 1), 0.5, 0.5), ((2, 2), 0.5, 0.5)):
        action = torch.tensor(choices).view(1, 2, 1).expand(rows, -1, -1)
        state = world.transition(start, action, world.noise(rows, generator)).state
        right = state.heard - 1 == state.tiger.unsqueeze(-1)
        assert right.float().mean(0).tolist() == pytest.approx([true] * 2, abs=0.01)
        assert right.all(-1).float().mean().item() == pytest.approx(true**2, abs=0.01), "independently"
        assert (state.tiger == start.tiger).float().mean().item() == pytest.approx(stays, abs=0.01)


def test_agents_see_what_they_heard_and_the_critic_the_tiger() -> None:
    obs = DecTiger().observe(TigerState(torch.tensor([0, 1]), torch.tensor([[0, 0], [1, 2]])))
    assert obs.agent.tolist() == [[[1, 0, 0], [1, 0, 0]], [[0, 1, 0], [0, 0, 1]]]
    assert obs.state.tolist() == [[-1, 1, 0, 0, 1, 0, 0], [1, 0, 1, 0, 0, 0, 1]]
    assert TensorEnv(DecTiger(), 1).spec.observation_sizes == (4, 4), "the clock is shown"


def test_what_cannot_be_computed_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"up to a horizon of 3; this game has 4"):
        DecTiger(4).optimal_value([])
    with pytest.raises(InputError, match="at least 1 step; got 0"):
        DecTiger(0)
    with pytest.raises(InputError, match=r"Edge \(0, 2\)"):
        DecTiger().optimal_value([(0, 2)])
