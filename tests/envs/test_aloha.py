"""Aloha's rules by hand, and its scripted references against values known exactly or measured independently."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.aloha import Aloha, ladder
from envs.core import InputError
from envs.world import TensorEnv

EVEN = torch.tensor([1, 0, 1, 0, 1, 0, 1, 0, 1, 0])
QUIET = torch.zeros(1, 10, dtype=torch.bool)
Rule = Callable[[Tensor, int], Tensor]


def mean_return(rule: Rule, wrap_around: bool, rows: int = 20_000) -> float:
    """Of `rule(backlog, step) -> sends`, one whole episode a row."""
    world = Aloha(wrap_around)
    env = TensorEnv(world, rows)
    obs, total = env.reset(0), torch.zeros(rows)
    for t in range(20):
        backlog = (obs.agent[..., 0] * 5).round().long()
        step = env.step(rule(backlog, t).long().expand(rows, 10).unsqueeze(-1))
        obs, total = step.obs, total + step.reward[:, 0, 0]
        assert bool(step.ended.all()) == bool(step.terminated.all()) == (t == 19)
    assert total.max() <= world.bound
    return total.mean().item()


def neighbors(wrap_around: bool) -> list[list[int]]:
    pairs = ladder(wrap_around)
    return [[j for pair in pairs for j in pair if i in pair and j != i] for i in range(10)]


def in_index_order(wrap_around: bool) -> Rule:
    """Send if there is a message and no neighbor before sends."""

    def rule(backlog: Tensor, step: int) -> Tensor:
        sends: list[Tensor] = []
        for i, near in enumerate(neighbors(wrap_around)):
            heard = [sends[j] for j in near if j < i]
            sends.append((backlog[:, i] > 0) & ~torch.stack([*heard, torch.zeros(len(backlog)).bool()]).any(0))
        return torch.stack(sends, -1)

    return rule


def most_deliveries(wrap_around: bool) -> Rule:
    """The independent set that can deliver most; among equals, the one whose queues are longest."""
    near = neighbors(wrap_around)
    every = itertools.product((0, 1), repeat=10)
    sets = torch.tensor([s for s in every if not any(s[i] and s[j] for i in range(10) for j in near[i])])
    return lambda backlog, step: sets[((100 * (backlog > 0) + backlog) @ sets.T).argmax(-1)] & (backlog > 0)


def even(wrap_around: bool) -> Rule:
    return lambda backlog, step: EVEN


def in_turn(wrap_around: bool) -> Rule:
    return lambda backlog, step: EVEN if step % 2 == 0 else 1 - EVEN


def at_random(wrap_around: bool) -> Rule:
    generator = torch.Generator().manual_seed(0)
    return lambda backlog, step: torch.rand(len(backlog), 10, generator=generator) < 0.05


@pytest.mark.parametrize(
    ("rule", "published", "ladder_alone", "tolerance"),
    [
        (even, 0.5 * (1 + 19 * 0.6), 0.5 * (1 + 19 * 0.6), 0.01),
        (in_index_order, 9.22, 9.27, 0.015),
        (in_turn, 9.549, 9.549, 0.01),
        (most_deliveries, 9.70, 9.70, 0.01),
        (at_random, -12.4, -11.5, 0.3),
    ],
)
def test_scripted_rules_earn_what_is_known_of_them(
    rule: Callable[[bool], Rule], published: float, ladder_alone: float, tolerance: float
) -> None:
    assert mean_return(rule(True), wrap_around=True) == pytest.approx(published, abs=tolerance)
    assert mean_return(rule(False), wrap_around=False) == pytest.approx(ladder_alone, abs=tolerance)


def stepped(backlog: list[int], sends: list[int], arrivals: Tensor = QUIET, wrap_around: bool = True) -> Any:
    """The queues after one step, and the reward."""
    action = torch.zeros(1, 10, 1, dtype=torch.int64)
    action[0, sends] = 1
    state, reward, terminated = Aloha(wrap_around).transition(torch.tensor([backlog]), action, arrivals)
    assert terminated is None
    assert (reward == reward[:, :1]).all(), "the team earns together"
    return state[0].tolist(), pytest.approx(reward[0, 0, 0].item(), abs=1e-6)


def test_a_sender_whose_neighbors_wait_delivers_one_message() -> None:
    backlog = [2, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    assert stepped(backlog, [0, 9]) == ([1, 1, 0, 0, 0, 0, 0, 0, 0, 2], 0.2)


def test_neighbors_who_send_at_once_both_pay_and_keep_their_messages() -> None:
    backlog = [2, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert stepped(backlog, [0, 1]) == (backlog, -20)


def test_a_sender_without_messages_earns_nothing_but_jams() -> None:
    backlog = [0, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert stepped(backlog, [0, 1]) == (backlog, -10)
    assert stepped(backlog, [0]) == (backlog, 0)
    assert stepped(backlog, [0, 2]) == ([0, 1, 0, 0, 0, 0, 0, 0, 0, 0], 0.1)


def test_messages_arrive_after_service_up_to_five() -> None:
    backlog = [5, 5, 4, 0, 0, 0, 0, 0, 0, 0]
    everywhere = torch.ones(1, 10, dtype=torch.bool)
    assert stepped(backlog, [0], everywhere) == ([5, 5, 5, 1, 1, 1, 1, 1, 1, 1], 0.1)
    state = Aloha().initial(torch.empty(1, 0))
    assert state.tolist() == [[1] * 10]
    noise = Aloha().noise(20_000, torch.Generator().manual_seed(0))
    assert noise.float().mean().item() == pytest.approx(0.6, abs=0.005)


def test_who_jams_whom() -> None:
    ladder_alone = {(0, 1), (1, 2), (2, 3), (3, 4), (5, 6), (6, 7), (7, 8), (8, 9)} | {(i, i + 5) for i in range(5)}
    assert set(ladder(False)) == ladder_alone
    assert set(ladder()) == ladder_alone | {(4, 5)}
    for wrap_around in (False, True):
        for i, j in itertools.combinations(range(10), 2):
            _, reward = stepped([1] * 10, [i, j], wrap_around=wrap_around)
            assert reward == (-20 if (i, j) in ladder(wrap_around) else 0.2)


def test_a_station_sees_its_own_queue_alone_and_the_critic_all_and_the_clock() -> None:
    env = TensorEnv(Aloha(), 50)
    env.reset(0)
    for t in range(1, 20):
        obs = env.step(torch.zeros(50, 10, 1, dtype=torch.int64)).obs
        assert torch.equal(obs.agent[..., 0], obs.state[:, 1:])
        assert torch.equal(obs.agent[..., 1], torch.where(obs.state[:, 1:] > 0, 1.0, -1.0))
        assert torch.equal(obs.state[:, 0], torch.full((50,), t / 20))
    queues = torch.tensor([[0, 1, 5, 0, 0, 0, 0, 0, 0, 0]])
    assert Aloha().observe(queues).agent[0, :3].tolist() == [[0, -1], [pytest.approx(0.2), 1], [1, 1]]
    assert Aloha(horizon=40).bound == 2 * Aloha().bound == pytest.approx(20)


def test_the_picture_shows_the_queues() -> None:
    world = Aloha()
    full, empty = (world.frame(torch.full((1, 10), length)) for length in (5, 0))
    assert full.shape == (400, 400, 3)
    assert (full != empty).any()


def test_a_horizon_below_one_is_an_input_error() -> None:
    with pytest.raises(InputError, match="at least 1 step; got 0"):
        Aloha(horizon=0)
