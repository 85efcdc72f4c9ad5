"""Rollouts: what happened, in order, wherever the environment runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_runs import ATTENTION, GRU, Mortals, assert_close, build
from torch import Tensor
from worlds import Walk

from envs.core import Observation, Streams, tree_map
from envs.games import Constant, climbing
from envs.speaker_listener import SpeakerListener
from envs.world import RandomActor, Scripted, TensorEnv, World
from marl.learning.rollout import OnPolicy, rollout


def step_by_step(env: TensorEnv, policy: Any, streams: Streams, seed: int, steps: int) -> list[Any]:
    """What `rollout` does, in plain words."""
    obs, memory = env.reset([seed]), policy.initial_memory(env.num_envs)
    trail = []
    with torch.no_grad():
        for _ in range(steps):
            before = memory
            decision, memory = policy.act(obs, memory, streams)
            step = env.step(decision.action)
            trail.append(
                (obs, step.final_obs, decision, step.reward, step.terminated, step.truncated, step.ended, before)
            )
            obs = step.obs
            if memory is not None:
                memory = memory.clone()
                memory[step.ended] = 0.0
    return trail


@pytest.mark.parametrize("policy", [{}, GRU, ATTENTION], ids=["mlp", "gru", "attention"])
def test_batches_hold_what_happened_step_by_step_one_after_the_other(policy: dict[str, Any]) -> None:
    small = build(Mortals(), 3, steps=8, sequence_length=4, policy=policy)
    small.source.unroll = None
    batches = [batch for _, batch in zip(range(3), small.source)]
    trail = step_by_step(TensorEnv(Mortals(), 3), small.policy, Streams([4]), 5, 24)
    assert any(bool(step[6].any()) for step in trail)
    for number, batch in enumerate(batches):
        for t in range(8):
            obs, final_obs, decision, reward, terminated, truncated, ended, memory = trail[8 * number + t]
            rows = slice(3 * t, 3 * t + 3)
            held = tree_map(
                lambda x, rows=rows: x[rows],
                (
                    batch.obs,
                    batch.final_obs,
                    batch.decision,
                    batch.reward,
                    batch.terminated,
                    batch.truncated,
                    batch.ended,
                ),
            )
            assert_close(held, (obs, final_obs, decision, reward, terminated, truncated, ended), 1e-6)
            if t % 4 == 0 and memory is not None:
                assert_close(batch.memory[3 * (t // 4) : 3 * (t // 4) + 3], memory, 1e-6)


def test_the_final_observation_is_the_true_successor_and_the_next_one_a_new_start() -> None:
    small = build(Constant(horizon=3), 1, steps=6)
    batch = next(iter(small.source))
    assert batch.obs.state[:, 0].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 0, 1 / 3, 2 / 3])
    assert batch.final_obs.state[:, 0].tolist() == pytest.approx([1 / 3, 2 / 3, 1, 1 / 3, 2 / 3, 1])


@pytest.mark.parametrize(
    ("world", "limit"), [(Walk(), 5), (Walk(horizon=4), None), (Constant(2), 3), (climbing(), None)]
)
@pytest.mark.parametrize("policies", [1, 2])
def test_restarting_by_index_or_by_selection_gives_the_same_rollout_where_starts_are_not_random(
    world: World[Any], limit: int | None, policies: int
) -> None:
    seeds = tuple(range(policies))
    by_index, by_selection = (
        build(world, 6, seeds=seeds, time_limit=limit, select_rows=select, steps=32, policy=GRU)
        for select in (False, True)
    )
    for _, one, other in zip(range(2), by_index.source, by_selection.source):
        assert bool(one.ended.any())
        for name in ("obs", "final_obs", "decision", "memory", "reward", "terminated", "truncated", "ended", "outcome"):
            assert_close(getattr(one, name), getattr(other, name))


def test_a_small_rollout_is_a_slice_of_a_large_one_given_equal_noise() -> None:
    """Streams draw row by row, so 1000 rows begin with the noise of the first; the world must not mix rows."""
    world = SpeakerListener(dtype=torch.float64)
    positions, goal = world.initial_noise(1000, torch.Generator().manual_seed(0))
    state = world.initial((positions, goal))
    alone = world.initial((positions[:1], goal[:1]))
    draw = torch.Generator().manual_seed(1)
    for _ in range(25):
        action = torch.randint(3, (1000, 2, 1), generator=draw)
        state, reward, _ = world.transition(state, action, None)
        alone, own, _ = world.transition(alone, action[:1], None)
        torch.testing.assert_close(own, reward[:1], atol=1e-12, rtol=0)
        assert_close(world.observe(alone), tree_map(lambda x: x[:1], world.observe(state)), 1e-12)


def test_any_actor_can_be_rolled_out() -> None:
    env = TensorEnv(Mortals(), 4)

    def never(obs: Observation, streams: Streams) -> Tensor:
        return torch.zeros(4, 3, 1, dtype=torch.int64)

    for actor in (RandomActor(env.spec), Scripted(never)):
        batch, obs, memory = rollout(env, actor, env.reset(0), None, Streams([0]), 5)
        assert memory is None
        assert batch.decision.log_prob is None
        assert batch.reward.shape == (20, 3, 2)
        assert obs.agent.shape == (4, 3, 2)


def test_batches_can_be_learned_from() -> None:
    """They are made under inference mode, whose tensors may not enter a graph."""
    batch = next(iter(build(Mortals(), policy=GRU).source))

    def ordinary(leaf: Tensor) -> Tensor:
        assert not leaf.is_inference()
        assert not leaf.requires_grad
        return leaf

    tree_map(ordinary, (batch.obs, batch.final_obs, batch.decision, batch.memory, batch.reward, batch.ended))


def test_without_a_discount_outcomes_are_plain_returns() -> None:
    env = TensorEnv(Constant(horizon=4), 2)
    source = OnPolicy(env, RandomActor(env.spec), steps=8, streams=Streams([0]), seeds=[0])
    outcome = next(iter(source)).outcome
    assert outcome is not None
    assert (outcome.discounted.tolist(), outcome.length.tolist(), outcome.episodes.tolist()) == ([[4]], [4], [4])


class Restarting:
    """An environment that says at loading that its second row began anew."""

    def __init__(self, env: TensorEnv):
        self.env, self.restarted = env, [1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)


def test_rows_that_began_anew_at_loading_start_without_memory_and_without_a_return_so_far() -> None:
    small = build(Mortals(longest=50), 3, policy=GRU, sequence_length=4)
    next(iter(small.source))
    saved = copy.deepcopy(small.source.state_dict())
    assert bool(saved["memory"][1].any())
    assert bool(saved["carry"]["total"][1].any())
    small.source.env = Restarting(small.env)  # type: ignore[assignment]
    small.source.load_state_dict(saved)
    for whole, kept in ((saved["memory"], small.source._memory), (saved["carry"], small.source.tracker.carry)):
        wanted = tree_map(lambda x: x * torch.tensor([1.0, 0.0, 1.0]).view(-1, *[1] * (x.dim() - 1)), whole)
        assert_close(kept, wanted)
