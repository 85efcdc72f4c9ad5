"""Recursions over time against definitions that share no code with them."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from small_runs import Mortals, build
from torch import Tensor

from marl.learning.returns import episode_age, episode_sums, gae

STEPS, ROWS, AGENTS, CHANNELS = 12, 3, 3, 3


class Past(NamedTuple):
    """The arguments of `gae` up to the discount."""

    reward: Tensor
    value: Tensor
    next_value: Tensor
    terminated: Tensor
    truncated: Tensor
    alive: Tensor


def random_past(seed: int) -> Past:
    """Agents leave, are gone for a while and come back; a value foretells the next one only while an agent stays."""
    draw = torch.Generator().manual_seed(seed)
    flags, shape = (STEPS, ROWS, AGENTS), (STEPS, ROWS, AGENTS, CHANNELS)
    terminated, truncated, dead = (torch.rand(flags, generator=draw) < p for p in (0.15, 0.1, 0.2))
    reward, value, next_value = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(3))
    past = Past(reward, value, next_value, terminated, truncated & ~terminated, ~dead)
    stays = ~(terminated | truncated)[:-1] & past.alive[1:]
    next_value[:-1][stays] = value[1:][stays]
    return past


def mean_of_returns(past: Past, discount: list[float], trace: float) -> Tensor:
    """A_t = (1-λ) Σ_{n<M} λ^{n-1} G_t^n + λ^{M-1} G_t^M - V_t, where G_t^n bootstraps after n of M steps left."""
    advantage = torch.zeros_like(past.reward)
    leaves = past.terminated | past.truncated
    for t, row, agent in past.alive.nonzero().tolist():
        end = t
        while end + 1 < STEPS and not leaves[end, row, agent] and past.alive[end + 1, row, agent]:
            end += 1
        for k, gamma in enumerate(discount):
            returns, earned = [], 0.0
            for n, now in enumerate(range(t, end + 1)):
                earned += gamma**n * float(past.reward[now, row, agent, k])
                hope = 0.0 if past.terminated[now, row, agent] else float(past.next_value[now, row, agent, k])
                returns.append(earned + gamma ** (n + 1) * hope)
            mean = sum((1 - trace) * trace**n * g for n, g in enumerate(returns[:-1]))
            total = mean + trace ** (len(returns) - 1) * returns[-1]
            advantage[t, row, agent, k] = total - float(past.value[t, row, agent, k])
    return advantage


@pytest.mark.parametrize("trace", [0.0, 0.3, 0.95, 1.0])
def test_gae_is_the_weighted_mean_of_n_step_returns_for_each_agent_and_channel(trace: float) -> None:
    discount = [0.99, 0.5, 1.0]
    for seed in range(13):
        past = random_past(seed)
        found = gae(*past, torch.tensor(discount, dtype=torch.float64), trace)
        torch.testing.assert_close(found, mean_of_returns(past, discount, trace), atol=1e-10, rtol=0)


def test_without_trace_gae_is_the_temporal_difference() -> None:
    past = random_past(0)
    hope = past.next_value * ~past.terminated.unsqueeze(-1)
    expected = (past.reward + 0.9 * hope - past.value) * past.alive.unsqueeze(-1)
    discount = torch.full((CHANNELS,), 0.9, dtype=torch.float64)
    torch.testing.assert_close(gae(*past, discount, 0.0), expected, atol=1e-14, rtol=0)


def test_with_full_trace_gae_is_the_discounted_return_less_the_value() -> None:
    past = random_past(1)
    never = torch.zeros_like(past.alive)
    next_value = torch.cat([past.value[1:], past.next_value[-1:]])
    past = past._replace(terminated=never, truncated=never, alive=~never, next_value=next_value)
    weights = 0.9 ** torch.arange(STEPS + 1, dtype=torch.float64)
    rewards = torch.cat([past.reward, past.next_value[-1:]])
    returns = torch.stack([torch.einsum("t...,t->...", rewards[t:], weights[: STEPS + 1 - t]) for t in range(STEPS)])
    discount = torch.full((CHANNELS,), 0.9, dtype=torch.float64)
    torch.testing.assert_close(gae(*past, discount, 1.0), returns - past.value, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("ends", "worth"), [("truncated", 10.0), ("terminated", (1 - 0.9**STEPS) / 0.1)])
def test_reward_one_is_worth_the_endless_sum_through_truncation_and_the_finite_one_before_an_end(
    ends: str, worth: float
) -> None:
    """Values that are replaced by their targets over and over settle at the true ones."""
    one = torch.ones(STEPS, 1, 1, 1, dtype=torch.float64)
    never = torch.zeros(STEPS, 1, 1, dtype=torch.bool)
    last = never.clone()
    last[-1] = True
    flags = {"terminated": never, "truncated": never, ends: last}
    value = torch.zeros_like(one)
    for _ in range(300):
        # The successor of the last step is another step of the same endless life.
        next_value = torch.cat([value[1:], value[:1]])
        value = value + gae(
            one, value, next_value, **flags, alive=~never, discount=one.new_tensor([0.9]), gae_lambda=0.95
        )
    assert float(value[0]) == pytest.approx(worth, abs=1e-9)


def test_episode_sums_and_ages_are_those_of_a_plain_loop_over_many_batches() -> None:
    draw = torch.Generator().manual_seed(0)
    carry, age = torch.zeros(4, 2), torch.zeros(4)
    running, steps = torch.zeros(4, 2), torch.zeros(4)
    for length in (1, 7, 3, 16):
        amount = torch.randn(length, 4, 2, generator=draw)
        ended = torch.rand(length, 4, generator=draw) < 0.2
        sums, carry = episode_sums(amount, ended, carry)
        ages, age = episode_age(ended, age)
        for t in range(length):
            running = running + amount[t]
            torch.testing.assert_close(sums[t], running, atol=1e-5, rtol=0)
            torch.testing.assert_close(ages[t], steps)
            running, steps = running * ~ended[t].unsqueeze(-1), (steps + 1) * ~ended[t]
        torch.testing.assert_close(carry, running, atol=1e-5, rtol=0)
        torch.testing.assert_close(age, steps)


def test_outcomes_are_each_policy_s_own_means_over_the_episodes_that_ended() -> None:
    discount = (0.9, 0.5)
    small = build(Mortals(), 2, seeds=(0, 1, 2), steps=4, discount=discount)
    total, faded = torch.zeros(6, 3, 2), torch.zeros(6, 3, 2)
    age = torch.zeros(6)
    without_end = 0
    for _, batch in zip(range(8), small.source):
        reward, ended = (x.flatten(1, 2) for x in batch.over_time((batch.reward, batch.ended)))
        finished: list[list[tuple[Tensor, Tensor, float]]] = [[], [], []]
        for t in range(4):
            for row in range(6):
                total[row] += reward[t, row]
                faded[row] += torch.tensor(discount) ** age[row] * reward[t, row]
                age[row] += 1
                if ended[t, row]:
                    finished[row // 2].append((total[row].clone(), faded[row].mean(0), float(age[row])))
                    total[row], faded[row], age[row] = 0.0, 0.0, 0.0
        outcome = batch.outcome
        assert outcome is not None
        assert outcome.episodes.tolist() == [len(episodes) for episodes in finished]
        for p, episodes in enumerate(finished):
            without_end += not episodes
            wanted = [torch.stack([torch.as_tensor(e[i]) for e in episodes]).mean(0) for i in range(3) if episodes]
            found = [getattr(outcome, name)[p] for name in ("total", "discounted", "length")]
            for value, expected in zip(found, wanted or [0 * x for x in found], strict=True):
                torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    assert without_end, "some policy should have had a batch without an episode's end"
