"""Steps from random numbers drawn ahead: what happens in them, and what must make no difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_runs import GRU, Mortals, Small, assert_close, build
from torch import Tensor

from envs.core import Decision, InputError, Observation, Streams, Tree
from envs.world import TensorEnv
from marl.learning import unroll
from marl.learning.batch import Batch
from marl.models.policies import IndependentPolicy, PolicyConfig

SEEDS = (3, 4)


def small(at_once: int | None = None, **options: Any) -> Small:
    run = build(Mortals(), 3, **{"seeds": SEEDS, "steps": 8, "sequence_length": 4, "policy": GRU, **options})
    assert run.source.unroll is not None
    run.source.unroll.at_once = at_once
    return run


def batches(run: Small, count: int = 2) -> list[Batch]:
    return [batch for _, batch in zip(range(count), run.source)]


def assert_equal(found: list[Batch], wanted: list[Batch]) -> None:
    for one, other in zip(found, wanted, strict=True):
        for name in ("obs", "final_obs", "decision", "memory", "reward", "terminated", "truncated", "ended"):
            assert_close(getattr(one, name), getattr(other, name))


def test_steps_happen_as_in_plain_words_with_the_same_random_numbers() -> None:
    run = small(seeds=(3,), policy={})
    (batch,) = batches(run, 1)
    env = TensorEnv(Mortals(), 3)
    obs = env.reset([305])
    clocks = Streams([304]).draw_ahead(lambda n, g: torch.empty(n, 3, 3).exponential_(generator=g), 3, 8)
    noise = env.draw_ahead(8)
    rows, ends = env.rows, 0
    for t in range(8):
        distribution, _ = run.policy(obs, None)
        action = distribution.choose(clocks[t]).action
        rows, following, (reward, *_, ended), _ = env.advance(rows, obs.alive, action, noise.physics[t])
        held = slice(3 * t, 3 * t + 3)
        assert_close(
            (batch.obs.agent[held], batch.decision.action[held], batch.reward[held]), (obs.agent, action, reward), 1e-6
        )
        seen, lives = following.agent.clone(), [leaf.clone() for leaf in (rows.clock, *rows.state)]
        for row in ended.nonzero().flatten().tolist():
            start = Mortals().initial(tuple(x[t, row : row + 1] for x in noise.start))
            for leaf, fresh in zip(lives, (torch.zeros(1, dtype=torch.int64), *start), strict=True):
                leaf[row] = fresh[0]
            seen[row] = Mortals().observe(start).agent[0]
            ends += 1
        rows, obs = env.restart(rows, following, ended, tuple(x[t] for x in noise.start))
        assert_close((rows.clock, *rows.state), tuple(lives), 0)
        assert torch.equal(obs.agent, seen)
    assert ends > 2


@pytest.mark.parametrize("at_once", [1, 3, 4])
@pytest.mark.parametrize("options", [{}, {"policy": {}, "sequence_length": 1}, {"select_rows": True}])
def test_how_many_steps_are_taken_at_once_makes_no_difference(at_once: int, options: dict[str, Any]) -> None:
    assert_equal(batches(small(at_once, **options)), batches(small(**options)))


def test_rows_restart_by_selection_as_by_index() -> None:
    assert_equal(batches(small(select_rows=True)), batches(small(select_rows=False)))


@pytest.mark.parametrize("most", [10**6, 150, 50, 1])
def test_a_policy_plays_the_same_alone_and_among_others_however_many_numbers_are_drawn(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unroll, "MOST_DRAWN", most)
    together = batches(small())
    for p, seed in enumerate(SEEDS):
        for batch, alone in zip(together, batches(small(seeds=(seed,))), strict=True):
            assert_close(batch.reward.unflatten(0, (2, -1))[p], alone.reward, 1e-6)
            assert_close(batch.obs.agent.unflatten(0, (2, -1))[p], alone.obs.agent, 1e-6)


def test_numbers_are_drawn_for_as_many_steps_as_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of three rows takes 27 clocks, 18 numbers of physics and 9 + 18 of starts, for each policy.

    More than four come in fours, so that all of them are computed by the same compiled function.
    """
    for most, reach in ((71, 0), (72, 1), (72 * 3 + 71, 3), (72 * 5, 4), (72 * 11 + 71, 8)):
        monkeypatch.setattr(unroll, "MOST_DRAWN", most)
        run = small()
        assert run.source.unroll is not None
        present = run.env.reset([1, 2]), run.policy.initial_memory(6)
        assert run.source.unroll.reach(*present) == reach


def test_a_source_goes_on_bit_for_bit_with_other_steps_at_once() -> None:
    whole, cut, other = small(), small(), small(4)
    wanted = batches(whole, 4)[2:]
    batches(cut, 2)
    other.source.load_state_dict(cut.source.state_dict())
    assert_equal(batches(other, 2), wanted)


class Fickle(IndependentPolicy):
    """Draws otherwise after the first time, though it says that it draws alike."""

    def __init__(self, later: str, *given: Any):
        super().__init__(*given)
        self.later = later

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """As independent agents; later another kind or shape of numbers, or once more."""
        rows = len(obs.alive)
        shape = (rows, 3, 2) if self.later == "shape" else (rows, 3, 3)
        if getattr(self, "acted", False) and self.later != "once more":
            streams.normal(shape) if self.later == "kind" else streams.exponential(shape)
        found = super().act(obs, memory, streams)
        if getattr(self, "acted", False):
            streams.normal(shape)
        self.acted = True
        return found


@pytest.mark.parametrize("later", ["kind", "shape", "once more"])
def test_an_actor_that_asks_for_other_numbers_than_at_first_is_told(later: str) -> None:
    run = small(seeds=(3,))
    actor = Fickle(later, run.env.spec, PolicyConfig(), Streams([1]))
    source = type(run.source)(run.env, actor, steps=8, streams=Streams([1]), seeds=[2])
    with pytest.raises(InputError, match="draws_alike = False"):
        next(iter(source))


class Gambler:
    """Asks for other numbers now and then, so nothing can be drawn ahead."""

    def initial_memory(self, num_envs: int) -> None:
        """Nothing."""

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """By a coin for everybody, and by one for each."""
        size = 1 if float(streams.normal((1,))) > 0 else len(obs.alive)
        coin: Tensor = streams.normal((size, 1, 1)) > 0
        return Decision(coin.long().expand(len(obs.alive), obs.alive.shape[1], 1)), memory


def test_an_actor_that_does_not_draw_alike_is_asked_step_by_step() -> None:
    run = small(seeds=(3,))
    source = type(run.source)(run.env, Gambler(), steps=8, streams=Streams([1]), seeds=[2])
    assert source.unroll is None
    assert len({float(x) for x in next(iter(source)).reward.flatten()}) > 5
