"""Steps from random numbers drawn ahead: what happens in them, and what must make no difference."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from small_runs import GRU, Mortals, Small, assert_close, build
from torch import Tensor

from envs.core import Decision, InputError, Observation, Step, Streams, Tree
from envs.games import Constant
from envs.world import RandomActor, TensorEnv
from marl.algorithms.bnpg.distillation import DistillationActor
from marl.algorithms.bnpg.policy import BayesianPolicy
from marl.algorithms.mean_field.policy import MeanRule, SwarmPolicy
from marl.learning import unroll
from marl.learning.batch import Batch
from marl.learning.rollout import OnPolicy
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


@pytest.mark.parametrize("policy", [{}, GRU])
def test_steps_happen_as_in_plain_words_with_the_same_random_numbers(policy: dict[str, Any]) -> None:
    run = small(seeds=(3,), policy=policy)
    (batch,) = batches(run, 1)
    env = TensorEnv(Mortals(), 3)
    obs = env.reset([305])
    clocks = Streams([304]).draw_ahead(lambda n, g: torch.empty(n, 3, 3).exponential_(generator=g), 3, 8)
    noise = env.draw_ahead(8)
    rows, memory, ends = env.rows, run.policy.initial_memory(3), 0
    for t in range(8):
        distribution, memory = run.policy(obs, memory)
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
            if memory is not None:
                memory[row] = 0
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


class Fickle:
    """Says that it draws alike; after the first time it draws otherwise."""

    draws_alike = True

    def __init__(self, how: str):
        self.how, self.acted = how, False

    def initial_memory(self, num_envs: int) -> None:
        """Nothing."""

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """The largest of some numbers, which are of another kind or shape later on, or more, or fewer."""
        now, self.acted = self.how if self.acted else "", True
        rows, size = len(obs.alive), 2 if now in ("shape", "default") else 3
        sample = torch.randn if now == "held" else torch.rand
        drawn = {
            "kind": lambda: (streams.exponential if now else streams.normal)((rows, 3, 3)),
            "shape": lambda: streams.exponential((rows, 3, size)),
            "default": lambda: streams.draw(lambda n, g, m=size: torch.rand(n, 3, m, generator=g), rows),
            "held": lambda: streams.draw(lambda n, g: sample((n, 3, 3), generator=g), rows),
            "partial": lambda: streams.draw(functools.partial(uniform, sample=size), rows),
        }
        numbers = drawn.get(self.how, drawn["shape"])()
        if now == "more" or (self.how == "fewer" and not now):
            streams.exponential((rows, 3, 3))
        if now == "directly":
            streams.permutation(rows)
        return Decision(numbers.argmax(-1, keepdim=True)), memory


def uniform(rows: int, generator: torch.Generator, sample: int) -> Tensor:
    return torch.rand(rows, 3, sample, generator=generator)


@pytest.mark.parametrize("how", ["kind", "shape", "default", "held", "more", "fewer", "directly"])
def test_an_actor_that_asks_for_other_numbers_than_at_first_is_told(how: str) -> None:
    run = small(seeds=(3,))
    source = type(run.source)(run.env, Fickle(how), steps=8, streams=Streams([1]), seeds=[2])
    with pytest.raises(InputError, match="draws_alike = False"):
        next(iter(source))


@pytest.mark.parametrize("how", ["nothing", "partial"])
def test_an_actor_that_asks_for_the_same_is_not(how: str) -> None:
    run = small(seeds=(3,))
    source = type(run.source)(run.env, Fickle(how), steps=8, streams=Streams([1]), seeds=[2])
    assert source.draws_ahead
    assert len({float(x) for x in next(iter(source)).reward.flatten()}) > 5


class Silent(Fickle):
    """Draws nothing."""

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """The first choice."""
        return Decision(torch.zeros(*obs.alive.shape, 1, dtype=torch.int64)), memory


def test_where_nothing_is_drawn_all_steps_are_taken_ahead() -> None:
    env = TensorEnv(Constant(), 2, time_limit=3)
    source = OnPolicy(env, Silent(""), steps=8, streams=Streams([1]), seeds=[2])
    assert source.draws_ahead
    assert int(next(iter(source)).ended.sum()) == 4


class Shock(Mortals):
    """A number that all rows share meets everybody at each step, and starts are spread evenly over the rows."""

    def noise(self, num: int, generator: torch.Generator) -> Tensor:
        """One shock for all."""
        return torch.rand(1, 1, 1, generator=generator).expand(num, 3, 2)


def test_rows_of_one_step_may_share_what_they_draw() -> None:
    env = TensorEnv(Shock(), 4)
    env.reset(0)
    drawn = env.draw_ahead(6).physics
    assert drawn.shape == (6, 4, 3, 2)
    assert bool((drawn == drawn[:, :1]).all())
    assert len(drawn[:, 0, 0, 0].unique()) == 6


class Counting(TensorEnv):
    """Has a step of its own."""

    count = 0

    def step(self, action: Tensor) -> Step:
        """Counted."""
        self.count += 1
        return super().step(action)


def test_an_environment_with_a_step_of_its_own_is_stepped() -> None:
    run, env = small(seeds=(3,), policy={}), Counting(Mortals(), 3)
    source = type(run.source)(env, run.policy, steps=8, streams=Streams([1]), seeds=[2])
    assert not source.draws_ahead
    next(iter(source))
    assert env.count == 8


class Reserved(IndependentPolicy):
    """Says that it does not draw alike."""

    draws_alike = False


def test_an_actor_that_says_so_is_asked_step_by_step() -> None:
    run = small(seeds=(3,), policy={})
    actor = Reserved(run.env.spec, PolicyConfig(), Streams([1]))
    source = type(run.source)(run.env, actor, steps=8, streams=Streams([1]), seeds=[2])
    assert source.unroll is None
    assert next(iter(source)).reward.isfinite().all()


def test_all_actors_of_one_s_own_house_draw_ahead() -> None:
    kinds = (IndependentPolicy, BayesianPolicy, DistillationActor, SwarmPolicy, MeanRule, RandomActor)
    assert all(kind.draws_alike for kind in kinds)


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
