"""What `TensorEnv` makes of a world: clocks, restarts, agents that leave, seeds, saved states; and simple actors."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from worlds import ALTERED, Misformed, Walk

from envs.aloha import Aloha
from envs.core import Continuous, Discrete, EnvSpec, InputError, Observation, Step, Streams, Tree, leaves, tree_map
from envs.foraging import Foraging
from envs.games import (
    BudgetGame,
    Constant,
    CoordinationGame,
    CopyGame,
    DecTiger,
    Identity,
    PermutationGame,
    WhoIsInformed,
    climbing,
)
from envs.particles import SimpleSpread
from envs.speaker_listener import SpeakerListener
from envs.world import RandomActor, Scripted, TensorEnv, Transition, World

WORLDS: list[World[Any]] = [
    climbing(),
    PermutationGame(3),
    CopyGame(),
    WhoIsInformed(3),
    CoordinationGame(3, horizon=7),
    Constant(2, horizon=3),
    Identity(3, agents=2),
    SimpleSpread(3, dtype=torch.float64),
    SpeakerListener(),
    Aloha(),
    DecTiger(3),
    Foraging(6, 3, 2, sight=2, horizon=8),
    BudgetGame(),
]


class Lives(NamedTuple):
    age: Tensor
    lifetime: Tensor


class Mortal(World[Lives]):
    """Three agents with random lifetimes of 1 to `longest` steps; each earns 1 plus its age at every step."""

    def __init__(self, longest: int = 6):
        self.longest = longest
        self.spec = EnvSpec(
            agents=("a", "b", "c"),
            kind=(0, 0, 0),
            channels=("one", "age"),
            observation_sizes=(2, 2, 2),
            actions=(Discrete((2,)),) * 3,
            state_size=4,
        )

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.randint(1, self.longest + 1, (num, 3), generator=generator)

    def initial(self, noise: Tensor) -> Lives:
        return Lives(torch.zeros(len(noise), dtype=torch.int64), noise)

    def transition(self, state: Lives, action: Tensor, noise: Tree) -> Transition:
        age = state.age + 1
        reward = torch.stack([torch.ones(len(age), 3), age.float().unsqueeze(-1).expand(-1, 3)], -1)
        return Transition(Lives(age, state.lifetime), reward, age.unsqueeze(-1) >= state.lifetime)

    def observe(self, state: Lives) -> Observation:
        age, lifetime = state.age.float().unsqueeze(-1), state.lifetime.float()
        agent = torch.stack([age.expand(-1, 3), lifetime], -1)
        return Observation(agent, torch.cat([age, lifetime], -1), torch.ones(len(age), 3, dtype=torch.bool))


def play(env: TensorEnv, obs: Observation, steps: int, seeds: list[int]) -> list[Step]:
    actor, streams, out = RandomActor(env.spec), Streams(seeds), []
    for _ in range(steps):
        out.append(env.step(actor.act(obs, None, streams)[0].action))
        obs = out[-1].obs
    return out


def assert_equal(one: Tree, other: Tree) -> None:
    def same(a: Tensor, b: Tensor) -> Tensor:
        assert torch.equal(a, b)
        return a

    tree_map(same, one, other)


def still(env: TensorEnv) -> Tensor:
    return torch.zeros(env.num_envs, len(env.spec.agents), 1, dtype=torch.int64)


def test_a_time_limit_truncates_and_a_horizon_terminates() -> None:
    for horizon, limit, ends in (
        (4, None, "terminated"),
        (None, 4, "truncated"),
        (9, 4, "truncated"),
        (4, 4, "terminated"),
    ):
        env = TensorEnv(Constant(2, horizon), 3, time_limit=limit)
        env.reset(0)
        steps = [env.step(still(env)) for _ in range(8)]
        other = {"terminated": "truncated", "truncated": "terminated"}[ends]
        for t, step in enumerate(steps, 1):
            assert bool(step.ended.all()) == bool(step.ended.any()) == (t % 4 == 0)
            assert bool(getattr(step, ends).all()) == bool(getattr(step, ends).any()) == (t % 4 == 0)
            assert not getattr(step, other).any()
            assert step.obs.alive.all()


@pytest.mark.parametrize(("horizon", "limit", "ends"), [(5, None, "terminated"), (None, 5, "truncated")])
def test_the_clock_ends_whoever_is_left_among_agents_who_leave_one_by_one(
    horizon: int | None, limit: int | None, ends: str
) -> None:
    env = TensorEnv(Walk(horizon), 200, time_limit=limit)
    obs = env.reset(0)
    age = torch.zeros(200, dtype=torch.int64)
    by_clock = 0
    for step in play(env, obs, 30, [0]):
        age += 1
        inside = step.final_obs.state[:, -2:].abs() <= 2
        timed_out = step.final_obs.alive & inside & (age == 5).unsqueeze(-1)
        by_clock += int(timed_out.sum())
        assert torch.equal(getattr(step, ends) & inside, timed_out)
        assert torch.equal(step.terminated & ~inside, step.final_obs.alive & ~inside)
        assert not (step.terminated & step.truncated).any()
        age[step.ended] = 0
        assert (age < 5).all()
    assert by_clock > 100


def test_the_clock_is_seen_by_the_critic_and_by_agents_unless_the_world_hides_it() -> None:
    shown, hidden = TensorEnv(Constant(2, horizon=4), 3), TensorEnv(CoordinationGame(2, horizon=4), 3)
    assert shown.spec.observation_sizes == (3, 3)
    assert shown.spec.state_size == 2
    assert hidden.spec.observation_sizes == (2, 2) == hidden.world.spec.observation_sizes
    assert hidden.spec.state_size == 3
    for env in (shown, hidden):
        obs = env.reset(0)
        for t in range(1, 9):
            now = (t - 1) % 4 / 4
            assert (obs.state[:, 0] == now).all()
            step = env.step(still(env))
            obs = step.obs
            assert (step.final_obs.state[:, 0] == now + 0.25).all(), "the true successor is one step later"
            if env is shown:
                assert (step.final_obs.agent[:, :, 0] == now + 0.25).all()
                assert (obs.agent[:, :, 0] == t % 4 / 4).all()
    for env in (TensorEnv(Constant(2), 3), TensorEnv(Constant(2), 3, time_limit=4)):
        assert env.spec.state_size == 1, "a time limit is not part of the task, so nobody sees it"


@pytest.mark.parametrize(("horizon", "limit"), [(None, None), (6, None), (None, 6), (9, 4)])
def test_restarting_by_index_and_by_selection_are_the_same(horizon: int | None, limit: int | None) -> None:
    plays = []
    for select_rows in (False, True):
        env = TensorEnv(Walk(horizon), 50, time_limit=limit, select_rows=select_rows)
        plays.append(play(env, env.reset(3), 60, [1]))
    assert sum(int(step.ended.sum()) for step in plays[0]) > 100
    for by_index, by_selection in zip(*plays, strict=True):
        assert_equal(by_index, by_selection)


@pytest.mark.parametrize("select_rows", [False, True])
def test_a_row_that_ended_starts_anew_and_final_obs_is_what_was_before(select_rows: bool) -> None:
    env = TensorEnv(Mortal(), 30, select_rows=select_rows)
    obs = env.reset(0)
    for step in play(env, obs, 40, [0]):
        assert (step.obs.state[step.ended, 0] == 0).all()
        assert step.obs.alive[step.ended].all()
        assert torch.equal(step.final_obs.state[step.ended, 0], step.final_obs.state[step.ended, 1:].amax(-1))
        quiet = ~step.ended
        assert torch.equal(step.obs.state[quiet], step.final_obs.state[quiet])
        assert torch.equal(step.obs.agent[quiet], step.final_obs.agent[quiet])


def test_agents_die_one_by_one_and_earn_nothing_afterwards() -> None:
    env = TensorEnv(Mortal(), 40)
    obs = env.reset(0)
    for _ in range(30):
        age, lifetime = obs.state[:, 0], obs.state[:, 1:]
        assert torch.equal(obs.alive, age.unsqueeze(-1) < lifetime)
        step = env.step(still(env))
        assert torch.equal(step.final_obs.alive, obs.alive), "final_obs belongs to those who acted"
        assert torch.equal(step.reward[..., 0], obs.alive.float())
        assert torch.equal(step.reward[..., 1], obs.alive * (age + 1).unsqueeze(-1))
        assert torch.equal(step.terminated, lifetime == (age + 1).unsqueeze(-1))
        assert torch.equal(step.ended, age + 1 == lifetime.amax(-1))
        obs = step.obs


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: type(world).__name__)
def test_one_row_is_the_same_alone_and_among_a_thousand(world: World[Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = world.initial_noise(1000, generator)
    rows = [0, 1, 500, 999]
    many, alone = (
        world.initial(noise),
        {r: world.initial(tree_map(lambda leaf, r=r: leaf[r : r + 1], noise)) for r in rows},
    )
    actor, streams = RandomActor(world.spec), Streams([1])
    for _ in range(10):
        action = actor.act(world.observe(many), None, streams)[0].action
        noise = world.noise(1000, generator)
        step = world.transition(many, action, noise)
        many = step.state
        for r in rows:
            single = world.transition(alone[r], action[r : r + 1], tree_map(lambda leaf, r=r: leaf[r : r + 1], noise))
            alone[r] = single.state
            torch.testing.assert_close(single.reward[0], step.reward[r], rtol=0, atol=1e-9)
            torch.testing.assert_close(
                world.observe(alone[r]).agent[0], world.observe(many).agent[r], rtol=0, atol=1e-9
            )


@pytest.mark.parametrize("select_rows", [False, True])
@pytest.mark.parametrize(
    "make", [lambda: Mortal(), lambda: Walk(8), lambda: CoordinationGame(3, horizon=5), SpeakerListener]
)
def test_each_seed_rules_its_own_block_of_rows_as_if_alone(make: Any, select_rows: bool) -> None:
    def rollout(num_envs: int, seeds: list[int]) -> list[Step]:
        env = TensorEnv(make(), num_envs, time_limit=6, select_rows=select_rows)
        return play(env, env.reset(seeds), 25, seeds)

    together = rollout(12, [5, 9, 7])
    for block, seed in enumerate([5, 9, 7]):
        rows = slice(4 * block, 4 * block + 4)
        for one, step in zip(rollout(4, [seed]), together, strict=True):
            assert_equal(one, tree_map(lambda leaf, rows=rows: leaf[rows], step))


@pytest.mark.parametrize("world", [*WORLDS, Mortal(), Walk(), Walk(5)], ids=lambda world: type(world).__name__)
def test_a_saved_state_continues_exactly_in_a_fresh_environment(world: World[Any]) -> None:
    env, other = (TensorEnv(world, 6, time_limit=4) for _ in range(2))
    before = play(env, env.reset([3, 4]), 7, [0])
    saved = env.state_dict()
    after = play(env, before[-1].obs, 12, [1])
    obs = other.load_state_dict(saved)
    assert_equal(obs, before[-1].obs)
    for one, two in zip(after, play(other, obs, 12, [1]), strict=True):
        assert_equal(one, two)


def test_whole_episodes_are_a_function_of_the_seed() -> None:
    plays = []
    for seed in (1, 1, 2):
        env = TensorEnv(Mortal(), 20)
        plays.append(play(env, env.reset(seed), 40, [0]))
    for one, two in zip(plays[0], plays[1], strict=True):
        assert_equal(one, two)
    assert any(not torch.equal(one.obs.state, two.obs.state) for one, two in zip(plays[0], plays[2], strict=True))


def test_wrong_arguments_are_input_errors() -> None:
    with pytest.raises(InputError, match="num_envs must be at least 1; got 0"):
        TensorEnv(Mortal(), 0)
    with pytest.raises(InputError, match="time_limit must be at least 1"):
        TensorEnv(Mortal(), 1, time_limit=0)
    with pytest.raises(InputError, match="horizon is at least 1 step; Walk has 0"):
        TensorEnv(Walk(0), 1)
    for seeds in ([1, 2], []):
        with pytest.raises(InputError, match="cannot be shared equally"):
            TensorEnv(Mortal(), 3).reset(seeds)
    env = TensorEnv(Mortal(), 3)
    env.reset(0)
    with pytest.raises(InputError, match="has no picture"):
        env.frame()


def test_frame_shows_one_row_of_a_world_that_can_be_drawn() -> None:
    for world in (SimpleSpread(2), SpeakerListener(), Aloha(), Foraging()):
        env = TensorEnv(world, 3)
        env.reset(0)
        picture = env.frame()
        assert picture.shape == (400, 400, 3)
        assert picture.std() > 0


def random_actions(spec: EnvSpec, rows: int, legal: Tensor | None = None) -> Tensor:
    agents = len(spec.agents)
    alive = torch.ones(rows, agents, dtype=torch.bool)
    obs = Observation(torch.zeros(rows, agents, 1), torch.zeros(rows, 1), alive, legal)
    return RandomActor(spec).act(obs, None, Streams([0]))[0].action


def spec_of(*spaces: Discrete | Continuous) -> EnvSpec:
    n = len(spaces)
    return EnvSpec(tuple(map(str, range(n))), (0,) * n, ("r",), (1,) * n, spaces, 1)


def test_random_choices_are_uniform_over_what_is_legal() -> None:
    legal = torch.tensor([[[True, False, True, True, False, True]]]).expand(20_000, -1, -1)
    action = random_actions(spec_of(Discrete((4, 2))), 20_000, legal)
    assert action.shape == (20_000, 1, 2)
    shares = torch.bincount(action[:, 0, 0], minlength=4) / 20_000
    assert shares[1] == 0
    assert torch.allclose(shares[[0, 2, 3]], torch.tensor(1 / 3), atol=0.02)
    assert (action[:, 0, 1] == 1).all()
    free = random_actions(spec_of(Discrete((4, 2))), 20_000)
    assert torch.allclose(torch.bincount(free[:, 0, 0]) / 20_000, torch.tensor(1 / 4), atol=0.02)


def test_random_reals_keep_each_agent_s_own_bounds() -> None:
    inf = float("inf")
    spec = spec_of(Continuous((-1.0, -inf, 2.0), (3.0, inf, inf)), Continuous((0.0,), (0.5,)))
    action = random_actions(spec, 20_000)
    bounded, free, above = action[:, 0].unbind(-1)
    assert bounded.min() >= -1
    assert bounded.max() <= 3
    assert bounded.mean().item() == pytest.approx(1, abs=0.05)
    assert bounded.std().item() == pytest.approx(4 / 12**0.5, abs=0.05)
    assert free.mean().item() == pytest.approx(0, abs=0.05)
    assert free.std().item() == pytest.approx(1, abs=0.05)
    assert above.min() >= 2
    assert action[:, 1, 0].max() <= 0.5
    assert action[:, 1, 0].mean().item() == pytest.approx(0.25, abs=0.01)
    assert (action[:, 1, 1:] == 0).all(), "padding is zero"


def test_a_scripted_actor_follows_its_rule() -> None:
    env = TensorEnv(Identity(4), 8)
    obs = env.reset(0)
    actor = Scripted(lambda obs, streams: obs.agent.argmax(-1, keepdim=True))
    decision, memory = actor.act(obs, actor.initial_memory(8), Streams([0]))
    assert memory is None
    assert (env.step(decision.action).reward == 1).all()


def test_whoever_is_gone_without_a_word_has_terminated() -> None:
    """Otherwise advantages would run on into the next episode."""

    class Vanishing(Walk):
        def transition(self, state: torch.Tensor, action: torch.Tensor, noise: torch.Tensor) -> Transition:
            found = super().transition(state, action, noise)
            return Transition(found.state, found.reward, torch.zeros_like(found.state, dtype=torch.bool))

        def observe(self, state: torch.Tensor) -> Observation:
            return Observation(state.unsqueeze(-1), state, state.abs() <= 2)

    env = TensorEnv(Vanishing(), 8, time_limit=50)
    alive = env.reset(0).alive
    gone = 0
    for _ in range(60):
        step = env.step(torch.ones(8, 2, 2))
        vanished = alive & ~step.ended.unsqueeze(-1) & ~step.obs.alive
        assert bool((step.terminated | step.truncated)[vanished].all())
        assert bool((step.terminated | step.truncated)[step.ended].any(-1).all())
        gone += int(step.terminated.sum())
        alive = step.obs.alive
    assert gone > 8


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("altered", ALTERED)
def test_a_first_step_of_another_form_than_the_spec_is_refused_however_many_rows(altered: str, rows: int) -> None:
    env = TensorEnv(Misformed(altered), rows)
    with pytest.raises(InputError, match=ALTERED[altered][1]):
        env.step(torch.zeros(len(env.reset(0).alive), 2, 1, dtype=torch.int64))


def test_a_step_before_the_first_reset_is_refused() -> None:
    with pytest.raises(InputError, match=r"Call reset\(seed\) before the first step"):
        TensorEnv(climbing(), 2).step(torch.zeros(2, 2, 1, dtype=torch.int64))


def test_trees_go_by_key_keep_none_and_know_torch_s_own_tuples() -> None:
    x, y = torch.tensor([1.0]), torch.tensor([2.0])
    gaps = tree_map(torch.sub, {"a": x, "b": (y, None)}, {"b": (y, None), "a": x})
    assert gaps["a"] == gaps["b"][0] == 0
    assert gaps["b"][1] is None
    assert [float(leaf) for leaf in leaves({"a": (x, None), "b": y})] == [1, 2]
    doubled = tree_map(lambda leaf: 2 * leaf, torch.stack([x, y]).max(0))
    assert type(doubled) is torch.return_types.max
    assert float(doubled.values) == 4


@pytest.mark.parametrize("name", ["agents", "channels"])
def test_names_of_a_specification_tell_agents_and_channels_apart(name: str) -> None:
    given = {"agents": ("a", "b"), "channels": ("r", "s")} | {name: ("same", "same")}
    space = Discrete((2,))
    with pytest.raises(InputError, match=f"{name} with names of their own"):
        EnvSpec(given["agents"], (0, 0), given["channels"], (1, 1), (space, space), 1)
