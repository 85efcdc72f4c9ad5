"""Logs that keep states and observe them when they are drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from worlds import TabularGame, Walk

from envs.core import Decision, InputError, Observation, Streams, Tree, leaves, tree_map
from envs.foraging import Foraging
from envs.kitchen import Kitchen
from envs.world import RandomActor, TensorEnv, World
from marl.learning.offline_batch import Logged
from marl.learning.state_log import StateLog, record

WORLDS = {
    "kitchen": lambda: Kitchen("cramped_room_small", horizon=20, starts="random"),
    "foraging": Foraging,
    "game": TabularGame,
}


@pytest.mark.parametrize("name", WORLDS)
def test_what_is_drawn_is_what_was_played(name: str) -> None:
    world: World = WORLDS[name]()
    env = TensorEnv(world, 5, time_limit=6)
    log = record(env, RandomActor(world.spec), 20, seed=1)
    batch = log.take(torch.arange(100), 1, 1)
    (state, clock, alive), (after, _, _), action = log.states(torch.arange(100))
    assert_close(batch.obs.agent, env.observe(state, clock).agent)
    assert torch.equal(batch.obs.alive, alive)
    assert bool(alive[:5].all())
    result = world.transition(state, action, None)
    assert_close(batch.reward, result.reward * alive.unsqueeze(-1))
    tree_map(assert_close, after, result.state)
    # Each row goes on where its last step led, unless its episode was over.
    later, led = batch.obs.agent[5:], batch.final_obs.agent[:-5]
    goes_on = clock[5:] == clock[:-5] + 1
    assert 50 < int(goes_on.sum()) < 95
    assert_close(later[goes_on], led[goes_on])
    assert bool((clock[5:][~goes_on] == 0).all())


def test_it_plays_what_is_drawn_alike_for_equal_seeds() -> None:
    env = TensorEnv(Walk(7), 5)
    first, again, other = (record(env, RandomActor(env.spec), 30, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.reward, again.reward)
    assert not torch.equal(first.reward, other.reward)
    batch = first.take(torch.arange(150), 1, 1)
    assert not bool(batch.obs.alive.all())  # walkers leave one by one
    assert bool((batch.reward[~batch.obs.alive] == 0).all())


def test_whole_numbers_take_a_byte_and_come_back_as_they_were() -> None:
    kitchen = Kitchen("cramped_room", horizon=None, starts="random")
    log = record(TensorEnv(kitchen, 64, time_limit=20), RandomActor(kitchen.spec), 50, seed=0)
    assert log.bytes() / len(log) < 64
    state, following, action = log.states(torch.tensor([0, 7, 7]))
    assert state[0].pose.dtype == action.dtype == torch.int64
    after = kitchen.transition(state[0], action, None).state
    for got, expected in zip(following[0], after, strict=True):
        assert torch.equal(got, expected)


def test_values_out_of_a_byte_are_kept_whole() -> None:
    numbers = torch.tensor([-3, 40_000, 7])
    one = torch.ones(3, 1, 1)
    log = StateLog(lambda state: None, numbers, one.long(), one, numbers.flip(0), one[..., 0] > 0, one[..., 0] > 0, 1)  # type: ignore[arg-type,return-value]
    assert log.states(torch.tensor([1, 0]))[0].tolist() == [40_000, -3]


def test_segments_are_steps_that_follow_one_another_of_each_policy() -> None:
    game = TabularGame()
    log = record(TensorEnv(game, 3, time_limit=6), RandomActor(game.spec), 10, seed=4)
    assert log.starts(4) == 21
    batch = log.take(torch.tensor([20, 1, 5, 5]), 2, 4)
    assert (batch.policies, batch.steps, batch.rows) == (2, 4, 2)
    places = [20, 1, 23, 4, 26, 7, 29, 10, 5, 5, 8, 8, 11, 11, 14, 14]
    single = log.take(torch.tensor(places), 1, 1)
    assert_close(leaves((batch.obs, batch.reward)), leaves((single.obs, single.reward)))
    assert torch.equal(batch.ended, (single.terminated | single.truncated)[:, 0])
    assert bool(log.truncated.any())
    with pytest.raises(InputError, match=r"10 steps of each row, fewer than steps=11"):
        log.starts(11)


def test_minibatches_are_of_whole_segments() -> None:
    game = TabularGame()
    log = record(TensorEnv(game, 3, time_limit=6), RandomActor(game.spec), 10, seed=4)
    batch = next(iter(Logged(log, rows=12, steps=4, streams=Streams([0, 1]))))
    assert (batch.policies, batch.steps, batch.rows) == (2, 4, 3)
    with pytest.raises(InputError, match=r"multiple of steps, both at least 1; got rows=10, steps=4"):
        Logged(log, rows=10, steps=4, streams=Streams([0]))


@pytest.mark.parametrize(
    ("numbers", "dtype"),
    [
        ([0, 255], torch.uint8),
        ([0, 256], torch.int16),
        ([-1, 127], torch.int8),
        ([-129, 0], torch.int16),
        ([0, 2**31], torch.int64),
    ],
)
def test_whole_numbers_are_kept_in_the_smallest_type_that_holds_them(numbers: list[int], dtype: torch.dtype) -> None:
    one, never = torch.ones(2, 1, 1), torch.zeros(2, 1, dtype=torch.bool)
    log = StateLog(lambda state: state, torch.tensor(numbers), one.long(), one, torch.tensor(numbers), never, never, 1)  # type: ignore[arg-type,return-value]
    assert log._kept[0].dtype == dtype
    assert log.states(torch.arange(2))[0].tolist() == numbers


class Remembering:
    """Chooses how many steps its episode has had, as it remembers."""

    def initial_memory(self, num_envs: int) -> Tensor:
        return torch.zeros(num_envs, dtype=torch.int64)

    def act(self, obs: Observation, memory: Tensor, streams: Streams) -> tuple[Decision, Tensor]:
        return Decision(memory.clamp(max=2).view(-1, 1, 1).expand(-1, 2, 1)), memory + 1


def test_memory_begins_anew_with_an_episode_which_ends_when_all_are_gone() -> None:
    env = TensorEnv(TabularGame(), 4, time_limit=3)
    log = record(env, Remembering(), 12, seed=0)
    (_, clock, _), _, action = log.states(torch.arange(48))
    assert torch.equal(action[:, 0, 0], clock)
    walk = TensorEnv(Walk(9), 64)
    batch = record(walk, RandomActor(walk.spec), 20, seed=0).take(torch.arange(64 * 20), 1, 1)
    over = batch.terminated | batch.truncated
    alone = over.any(-1) & ~over.all(-1) & batch.obs.alive.all(-1)
    assert bool(alone.any())
    assert not bool(batch.ended[alone].any())
    assert bool(batch.final_obs.alive[alone].any(-1).all())
    assert not bool(batch.final_obs.alive[alone].all(-1).any())


def test_what_is_legal_is_observed_again() -> None:
    class Limited(TabularGame):
        def observe(self, state: Tensor) -> Observation:
            seen = super().observe(state)
            legal = torch.ones(len(state), 2, 3, dtype=torch.bool)
            legal[:, 0, 2] = False
            return Observation(seen.agent, seen.state, seen.alive, legal)

    env = TensorEnv(Limited(), 3, time_limit=4)
    batch = record(env, RandomActor(env.spec), 5, seed=0).take(torch.arange(15), 1, 1)
    assert batch.obs.legal is not None
    assert not bool(batch.obs.legal[:, 0, 2].any())
    assert int(batch.decision.action[:, 0].max()) < 2


def test_a_log_of_nothing_is_refused() -> None:
    empty, nobody = torch.zeros(0, 2, 1), torch.zeros(0, 2, dtype=torch.bool)
    with pytest.raises(InputError, match=r"at least one step"):
        StateLog(lambda state: state, empty, empty.long(), empty, empty, nobody, nobody, 1)
    with pytest.raises(InputError, match=r"at least one step; got steps=0"):
        record(TensorEnv(TabularGame(), 2), RandomActor(TabularGame().spec), 0, seed=0)


def test_returns_add_up_what_followed_where_the_end_is_known() -> None:
    env, discount = TensorEnv(TabularGame(), 3, time_limit=6), torch.tensor([0.5])
    log = record(env, RandomActor(env.spec), 20, seed=4)
    returns = log.returns(discount)
    reward = log.reward.view(20, 3, 2)
    ended = (log.terminated | log.truncated)[:, 0].view(20, 3)
    expected, following = [], torch.zeros(3, 2)
    known, over = torch.zeros(3, dtype=torch.bool), []
    for step in reversed(range(20)):
        following = reward[step] + 0.5 * following * ~ended[step].unsqueeze(-1)
        known = known | ended[step]
        expected.append(following)
        over.append(known)
    kept = torch.stack(over[::-1]).flatten()
    assert 40 < int(kept.sum()) < 60
    assert_close(returns.reward[..., 0], torch.stack(expected[::-1]).flatten(0, 1)[kept])
    assert bool(returns.terminated.all())
    assert returns.starts(1) == len(returns) == int(kept.sum())
    with pytest.raises(InputError, match=r"No episode ends in this log"):
        record(env, RandomActor(env.spec), 1, seed=4).returns(discount)


def test_the_actors_chance_is_not_the_worlds() -> None:
    """With one stream for both, where a walker is blown would seem to follow from its choice."""
    env = TensorEnv(Walk(), 2048, time_limit=1)
    batch = record(env, RandomActor(env.spec), 1, seed=0).take(torch.arange(2048), 1, 1)
    moved, chosen = batch.final_obs.state[:, 0], batch.decision.action[:, 0, 0]
    slope = torch.cov(torch.stack([chosen, moved]))[0, 1] / chosen.var()
    assert abs(float(slope) - 0.2) < 0.05


def test_an_episode_that_is_cut_is_no_end_of_the_game() -> None:
    game = TabularGame()
    game.ends[:] = False
    batch = record(TensorEnv(game, 3, time_limit=4), RandomActor(game.spec), 9, seed=0).take(torch.arange(27), 1, 1)
    assert not bool(batch.terminated.any())
    assert torch.equal(batch.truncated.all(-1), batch.ended)
    assert batch.ended.view(9, 3).all(-1).nonzero().flatten().tolist() == [3, 7]


class Numbering(RandomActor):
    """Plays at random; its latent is the first two numbers of what each agent sees, or no tensor."""

    def __init__(self, world: World, tensor: bool):
        super().__init__(world.spec)
        self.tensor = tensor

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        decision, memory = super().act(obs, memory, streams)
        latent = obs.agent[..., :2]
        return Decision(decision.action, latent if self.tensor else {"view": latent}), memory


def test_latents_are_kept_where_they_are_tensors_and_belong_to_their_decisions() -> None:
    game = TabularGame()
    log = record(TensorEnv(game, 3, time_limit=6), Numbering(game, tensor=True), 20, seed=4)
    silent = record(TensorEnv(game, 3, time_limit=6), Numbering(game, tensor=False), 20, seed=4)
    batch = log.take(torch.tensor([20, 1, 5, 5]), 2, 4)
    assert torch.equal(batch.decision.latent, batch.obs.agent[..., :2])
    returns = log.returns(torch.tensor([0.5]))
    single = returns.take(torch.arange(len(returns)), 1, 1)
    assert torch.equal(single.decision.latent, single.obs.agent[..., :2])
    assert silent.take(torch.arange(4), 1, 1).decision.latent is None
    assert log.bytes() - silent.bytes() == 60 * 2 * 2 * 4


def test_weights_make_one_reward_of_all_channels_and_leave_the_log_as_it_was() -> None:
    world = Foraging()
    log = record(TensorEnv(world, 8), RandomActor(world.spec), 20, seed=0)
    channels = len(world.spec.channels)
    weights = torch.arange(1.0, channels + 1)
    one = log.weighted(weights)
    assert one.reward.shape == (len(log), len(world.spec.agents), 1)
    assert_close(one.reward[..., 0], (log.reward * weights).sum(-1))
    assert log.reward.shape[-1] == channels
    places = torch.arange(10)
    assert_close(one.take(places, 1, 1).obs.state, log.take(places, 1, 1).obs.state)
    with pytest.raises(InputError, match=f"A weight for each of {channels} reward channels; got"):
        log.weighted(torch.ones(channels + 1))
