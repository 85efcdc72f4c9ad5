"""Playing whole episodes, without favor to the short ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import GRU, Mortals
from torch import Tensor
from worlds import Misformed, Walk

from envs.core import Actor, Decision, Discrete, EnvSpec, InputError, Observation, Step, Streams, Tree
from envs.games import Constant
from envs.team import Team
from envs.world import RandomActor, Scripted, TensorEnv, Transition, World
from marl.evaluation.episodes import CHUNK, play, play_policies, steps_between_looks
from marl.models.distributions import ActionUnits, IndependentGaussian
from marl.models.policies import IndependentPolicy, PolicyConfig
from marl.output.report import Metric


class Lottery(World[Tensor]):
    """An episode lasts 1 step and pays 0, or `long` steps and pays 1 at the end: even chances, so 1/2 on average."""

    def __init__(self, long: float = 20, share: float = 0.5):
        self.long, self.share = long, share
        self.spec = EnvSpec(("only",), (0,), ("prize",), (1,), (Discrete((2,)),), 1)

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.rand(num, 1, generator=generator)

    def initial(self, noise: Tensor) -> Tensor:
        """Steps left."""
        return torch.where(noise < self.share, self.long, 1.0)

    def transition(self, state: Tensor, action: Tensor, noise: None) -> Transition:
        # A long episode's last step is told from a short one's by half a step.
        left = torch.where(state == self.long, state - 0.5, state) - 1
        prize = ((left == -0.5) & (state < 1)).float()
        return Transition(left, prize.unsqueeze(-1), left <= 0)

    def observe(self, state: Tensor) -> Observation:
        return Observation(state.unsqueeze(-1), state, torch.ones(len(state), 1, dtype=torch.bool))


def played(world: World[Any], rows: int, episodes: int, seed: int = 0, limit: int | None = None) -> Any:
    env = TensorEnv(world, rows, time_limit=limit)
    return play(env, RandomActor(env.spec), episodes, seed)


def test_every_row_plays_the_same_number_of_whole_episodes() -> None:
    episodes = played(Mortals(), 8, 50)
    assert episodes.returns.shape == (56, 2)
    assert len(episodes.lengths) == 56
    # The second channel pays an agent 1 + 2 + … + its lifetime, and the longest life is the episode's length.
    longest = episodes.lengths * (episodes.lengths + 1) / 2
    assert bool(((longest / 3 <= episodes.returns[:, 1]) & (episodes.returns[:, 1] <= longest)).all())
    alone = played(Mortals(agents=1), 8, 50)
    assert alone.returns[:, 1] == pytest.approx(alone.lengths * (alone.lengths + 1) / 2)


def test_returns_and_lengths_are_exact_whatever_the_episode_s_length_against_the_chunk() -> None:
    for horizon in (1, 3, CHUNK, CHUNK + 1, 3 * CHUNK):
        episodes = played(Constant(agents=2, horizon=horizon), 3, 7)
        assert episodes.lengths.tolist() == [horizon] * 9
        assert episodes.per_agent.tolist() == [horizon] * 9
        assert episodes.metrics(["one"])["return_team"].value == 2 * horizon


def test_short_episodes_are_not_favored() -> None:
    """Taking the first episodes that end, whichever the row, would count the short ones twice over."""
    rows, count = 400, 800
    found = played(Lottery(), rows, count).per_agent
    assert len(found) == count
    assert found.mean() == pytest.approx(0.5, abs=4 * 0.5 / count**0.5)
    env = TensorEnv(Lottery(), rows)
    env.reset(0)
    first: list[float] = []
    while len(first) < count:
        step = env.step(torch.zeros(rows, 1, 1, dtype=torch.int64))
        first += step.reward[step.ended].flatten().tolist()
    assert sum(first[:count]) / count < 0.4


def test_the_same_seed_plays_the_same_and_another_does_not() -> None:
    one, again, other = (played(Mortals(), 8, 16, seed).returns.tolist() for seed in (0, 0, 1))
    assert one == again != other


def test_channels_are_told_apart_and_both_returns_named() -> None:
    episodes = played(Mortals(), 8, 16)
    metrics = episodes.metrics(["bet", "age"], "mode/")
    assert set(metrics) == {
        "mode/return_per_agent",
        "mode/return_team",
        "mode/episode_length",
        "mode/return_per_agent/bet",
        "mode/return_per_agent/age",
    }
    assert metrics["mode/return_team"].value == pytest.approx(3 * metrics["mode/return_per_agent"].value)
    by_channel = sum(metrics[f"mode/return_per_agent/{name}"].value for name in ("bet", "age"))
    assert by_channel == pytest.approx(metrics["mode/return_per_agent"].value)


@pytest.mark.parametrize("share", [1.0, 0.3], ids=["no row ends", "some rows never end again"])
def test_endless_episodes_are_refused_when_patience_ends(share: float) -> None:
    env = TensorEnv(Lottery(float("inf"), share), 16)
    with pytest.raises(InputError, match=r"within 200 steps.*evaluation\.patience"):
        play(env, RandomActor(env.spec), 64, 0, patience=200)


def test_a_time_limit_ends_endless_episodes() -> None:
    episodes = played(Constant(), 2, 4, limit=6)
    assert episodes.per_agent.tolist() == [6.0] * 4


def test_actions_and_world_do_not_share_their_random_numbers() -> None:
    """A world that draws as the policy does must not be fed the same numbers: noise would then follow the action."""
    env = TensorEnv(Walk(), 500)
    drawn: dict[str, list[Tensor]] = {"action": [], "noise": []}

    def act(obs: Observation, streams: Streams) -> Tensor:
        shape = (*obs.alive.shape, 2)
        policy = IndependentGaussian(torch.zeros(shape), torch.zeros(shape), ActionUnits.of(env.spec.actions))
        drawn["action"].append(policy.sample(streams).action)
        return drawn["action"][-1]

    class Watched(Walk):
        def noise(self, num: int, generator: torch.Generator) -> Tensor:
            drawn["noise"].append(super().noise(num, generator))
            return drawn["noise"][-1]

    env.world = Watched()
    play(env, Scripted(act), 500, 0)
    steps = [step for step, action in enumerate(drawn["action"]) if len(action) == 500]
    drawn = {name: [values[step] for step in steps] for name, values in drawn.items()}
    pairs = torch.stack([torch.stack(drawn[name]).flatten() for name in ("action", "noise")])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.05


class Asked:
    """Plays as another actor does, and counts in how many rows it was asked, how often, and that as what it took."""

    def __init__(self, actor: Actor, keeps_rows: bool = False):
        self.actor, self.decisions, self.shown_alive = actor, 0, 0
        if keeps_rows:
            self.keeps_rows = True

    def initial_memory(self, num_envs: int) -> Tree:
        return self.actor.initial_memory(num_envs)

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        decision, memory = self.actor.act(obs, memory, streams)
        self.decisions += len(obs.alive)
        self.shown_alive += int(obs.alive.any(-1).sum())
        queries = torch.arange(len(obs.alive)) * 0 + 2
        return Decision(decision.action, counts={"queries": queries}), memory


def test_rows_that_have_finished_cost_no_decision() -> None:
    """One episode in each of 256 rows, of 1 to 40 steps: half of the decisions would be for nothing."""
    world = Mortals(agents=1, longest=40)
    actor = Asked(RandomActor(world.spec))
    episodes = play(TensorEnv(world, 256), actor, 256, 0)
    useful = int(episodes.lengths.sum())
    assert useful < 0.6 * 256 * episodes.lengths.max()
    assert actor.decisions <= 1.05 * useful
    assert actor.shown_alive == useful
    assert episodes.counts["queries"].tolist() == (2 * episodes.lengths).tolist()
    assert episodes.metrics(world.spec.channels)["count/queries"].value == pytest.approx(2 * episodes.lengths.mean())


def test_an_actor_that_keeps_rows_sees_all_of_them_but_nobody_alive_in_those_that_have_finished() -> None:
    world = Mortals(agents=1, longest=40)
    actor = Asked(RandomActor(world.spec), keeps_rows=True)
    episodes = play(TensorEnv(world, 64), actor, 64, 0)
    assert actor.decisions == 64 * episodes.lengths.max()
    assert actor.shown_alive == episodes.lengths.sum()
    assert episodes.counts["queries"].tolist() == (2 * episodes.lengths).tolist()


def test_rows_and_their_sums_stay_together_as_rows_finish() -> None:
    """The age channel pays 1 + 2 + … + length."""
    world = Mortals(agents=1, longest=12)
    env = TensorEnv(world, 32)
    policy = IndependentPolicy(env.spec, PolicyConfig(**GRU), Streams([0]))
    few = play(env, policy, 32, 3)
    assert few.returns[:, 1].tolist() == (few.lengths * (few.lengths + 1) / 2).tolist()
    many = play(env, policy, 96, 3)
    assert many.lengths.reshape(32, 3)[:, 0].tolist() == few.lengths.tolist()


class Remembers:
    """Bets 2 exactly where its memory says how old the episode is and what its row saw first."""

    def initial_memory(self, num_envs: int) -> Tree:
        return torch.zeros(num_envs, 2)

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        age, first = memory.unbind(-1)
        assert torch.equal(age, obs.state[:, 0])
        first = torch.where(age == 0, obs.state[:, 1], first)
        return Decision(torch.zeros(*obs.alive.shape, 1, dtype=torch.int64)), torch.stack([age + 1, first], -1)


def test_memory_follows_the_rows_that_are_left() -> None:
    world = Mortals(agents=1, longest=12)
    episodes = play(TensorEnv(world, 32), Remembers(), 64, 1)  # the actor checks its memory at every step
    assert len(episodes.lengths) == 64
    assert len(set(episodes.lengths.tolist())) > 1, "rows leave at different times"


@pytest.mark.parametrize("policy", [{}, GRU], ids=["feed-forward", "recurrent"])
def test_policies_that_play_together_play_as_each_would_alone(policy: dict[str, Any]) -> None:
    seeds, world = (5, 6, 7), Mortals()
    spec = TensorEnv(world, 1).spec
    together = play_policies(
        TensorEnv(world, 24), IndependentPolicy(spec, PolicyConfig(**policy), Streams(seeds)), 16, seeds
    )
    for seed, of_stack in zip(seeds, together, strict=True):
        alone = play(TensorEnv(world, 8), IndependentPolicy(spec, PolicyConfig(**policy), Streams([seed])), 16, seed)
        assert of_stack.lengths.tolist() == alone.lengths.tolist()
        np.testing.assert_allclose(of_stack.returns, alone.returns, atol=1e-5)


def test_returns_are_discounted_by_channel() -> None:
    episodes = play(
        TensorEnv(Constant(agents=2, horizon=4), 3),
        RandomActor(Constant(2, 4).spec),
        6,
        0,
        discount=torch.tensor([0.5]),
    )
    assert episodes.discounted is not None
    assert episodes.discounted.tolist() == [[1.875]] * 6
    world = Mortals(agents=1)
    env = TensorEnv(world, 4)
    paid = play(env, RandomActor(world.spec), 8, 0, discount=torch.tensor([1.0, 0.0]))
    assert paid.discounted is not None
    np.testing.assert_allclose(paid.discounted[:, 0], paid.returns[:, 0])
    assert paid.discounted[:, 1].tolist() == [1.0] * 8
    names = paid.metrics(world.spec.channels)
    assert {"discounted_return_per_agent", "discounted_return_per_agent/age"} <= set(names)
    assert names["discounted_return_per_agent/age"].value == 1


class Draws(World[Tensor]):
    """One step that pays what the start has drawn, of deviation 10, plus the action, 0 or 1."""

    def __init__(self) -> None:
        self.spec = EnvSpec(("only",), (0,), ("pay",), (1,), (Discrete((2,)),), 1)

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return 10 * torch.randn(num, 1, generator=generator)

    def initial(self, noise: Tensor) -> Tensor:
        return noise

    def transition(self, state: Tensor, action: Tensor, noise: None) -> Transition:
        return Transition(state, (state.unsqueeze(-1) + action), torch.ones(len(state), 1, dtype=torch.bool))

    def observe(self, state: Tensor) -> Observation:
        return Observation(state.unsqueeze(-1), state, torch.ones(len(state), 1, dtype=torch.bool))


def test_episodes_from_common_starts_are_compared_pair_by_pair() -> None:
    def always(choice: int) -> Scripted:
        return Scripted(lambda obs, streams: torch.full((*obs.alive.shape, 1), choice))

    env = TensorEnv(Draws(), 16)
    one, other = (play(env, always(choice), 64, 3) for choice in (1, 0))
    gap = one.above(other)
    assert (gap.value, gap.n) == (pytest.approx(1), 64)
    assert gap.high - gap.low < 1e-4
    apart = one.above(play(env, always(0), 128, 3))
    assert (apart.high - apart.low, apart.n) == (pytest.approx(2 * 3.5, rel=0.5), 64)


def test_a_share_s_interval_is_clopper_and_pearson_s() -> None:
    all_of_them = Metric.proportion(200, 200)
    assert (all_of_them.value, all_of_them.high) == (1, 1)
    assert all_of_them.low == pytest.approx(0.025 ** (1 / 200))
    assert str(all_of_them) == "1.000 [0.982, 1.000]"
    none = Metric.proportion(0, 10)
    assert (none.value, none.low, none.high) == (0, 0, pytest.approx(1 - 0.025**0.1))
    half = Metric.proportion(5, 10)
    assert half.low == pytest.approx(0.18709, abs=1e-5)
    assert math.isclose(half.high, 1 - half.low)


@pytest.mark.parametrize(
    ("episodes", "seeds", "discount", "message"),
    [
        (0, [0], None, "at least one episode to play; got episodes=0"),
        (-1, [0], None, "got episodes=-1"),
        (4, [], None, "got 0 seeds for 3 rows"),
        (4, [0, 1], None, "got 2 seeds for 3 rows"),
        (4, [0], torch.ones(2), r"a discount for each reward channel, \[1\] for one; got \[2\]"),
    ],
)
def test_what_cannot_be_played_is_refused_at_once(episodes: int, seeds: list[int], discount: Any, message: str) -> None:
    env = TensorEnv(Constant(horizon=3), 3)
    with pytest.raises(InputError, match=message):
        play_policies(env, RandomActor(env.spec), episodes, seeds, discount=discount)


def test_a_world_that_pays_once_for_all_agents_is_not_scored() -> None:
    with pytest.raises(InputError, match=r"reward must be float32 \[E,N,K\]"):
        played(Misformed("one reward for all"), 2, 2)


def test_as_many_episodes_of_other_rows_are_not_paired() -> None:
    one, other = (play(TensorEnv(Draws(), rows), RandomActor(Draws().spec), 64, 3) for rows in (16, 32))
    assert len(one.returns) == len(other.returns)
    assert one.above(other) == Metric.difference(Metric.mean(one.per_agent), Metric.mean(other.per_agent))


@pytest.mark.parametrize("horizon", [1, 4, 5])
def test_late_rewards_are_those_of_the_last_half_of_the_horizon(horizon: int) -> None:
    """A reward of 1 at every step has a mean of 1 over any of them."""
    world = Constant(agents=2, horizon=horizon)
    late = play(TensorEnv(world, 3), RandomActor(world.spec), 6, 0).late
    assert late is not None
    assert late.tolist() == [1.0] * 6


def test_independent_errors_add_up_as_squares() -> None:
    gap = Metric.difference(Metric(10.0, 7.0, 13.0, 20), Metric(4.0, 0.0, 8.0, 30))
    assert (gap.value, gap.low, gap.high, gap.n) == (6, 1, 11, 20)


class Listener:
    """Plays at random, and adds up what it hears by row."""

    def __init__(self, spec: Any, keeps_rows: bool):
        self.actor, self.keeps_rows = RandomActor(spec), keeps_rows
        self.shapes: list[tuple[int, int]] = []

    def initial_memory(self, num_envs: int) -> Tree:
        self.heard = torch.zeros(num_envs, dtype=torch.float64)
        return None

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        self.shown = obs.alive.any(-1)
        return self.actor.act(obs, memory, streams)

    def hear(self, step: Step) -> None:
        self.shapes.append((len(self.shown), len(step.ended)))
        if self.keeps_rows:
            self.heard += step.reward[..., 0].sum(-1) * self.shown


def test_rows_that_have_ended_take_no_decision_that_counts_on_any_device() -> None:
    costly = Decision(torch.zeros(1, 1, 1), counts={"queries": torch.ones(1)})
    free = Decision(torch.zeros(1, 1, 1))
    assert steps_between_looks(torch.device("cuda"), free) == CHUNK
    assert steps_between_looks(torch.device("cuda"), costly) == 1
    assert steps_between_looks(torch.device("cpu"), free) == 1


@pytest.mark.parametrize("keeps_rows", [False, True])
@pytest.mark.parametrize("in_a_team", [False, True])
def test_an_actor_that_hears_is_told_what_it_earned_in_the_rows_that_it_was_shown(
    keeps_rows: bool, in_a_team: bool
) -> None:
    world = Mortals(agents=1, longest=9)
    listener = Listener(world.spec, keeps_rows)
    actor = Team(world.spec, {0: listener}) if in_a_team else listener
    episodes = play(TensorEnv(world, 20), actor, 20, 0)
    assert len(listener.shapes) == episodes.lengths.max()
    assert all(shown == heard for shown, heard in listener.shapes)
    assert len({heard for _, heard in listener.shapes}) > 1 or keeps_rows
    if keeps_rows:
        assert listener.heard.tolist() == pytest.approx(episodes.returns[:, 0].tolist())
