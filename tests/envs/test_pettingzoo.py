"""PettingZoo environments as a `VectorEnv`."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from mpe2 import simple_speaker_listener_v4, simple_spread_v3
from pettingzoo import ParallelEnv
from small_environments import (
    Bidding,
    Broken,
    Bursts,
    Clockwork,
    Reals,
    Zoo,
    assert_same,
    leaves,
    play,
    random_actions,
    rollout,
    spread,
)

from envs.core import ConcordError, Discrete, InputError, Observation, tree_map
from envs.particles import SimpleSpread
from envs.pettingzoo import PettingZooEnv, parallel_env
from envs.testing import check_env


@pytest.mark.parametrize("module", [simple_spread_v3, simple_speaker_listener_v4])
def test_rows_show_exactly_what_the_environment_does(module: Any) -> None:
    env = PettingZooEnv(module.parallel_env, 2, options={"max_cycles": 4})
    actions = random_actions(env, 10)
    obs = env.reset(3)
    seeds = [int(np.random.SeedSequence(3, spawn_key=(1, k)).generate_state(1)[0]) >> 1 for k in range(4)]
    raw, episode = module.parallel_env(max_cycles=4), 0
    seen, _ = raw.reset(seed=seeds[0])
    for action in actions % torch.tensor([[space.choices[0]] for space in env.spec.actions]):
        for slot, name in enumerate(env.spec.agents):
            size = env.spec.observation_sizes[slot]
            np.testing.assert_array_equal(obs.agent[1, slot, :size].numpy(), seen[name])
            assert not obs.agent[1, slot, size:].any()
        np.testing.assert_array_equal(obs.state[1].numpy(), raw.state())
        seen, rewards, _, truncated, _ = raw.step({n: int(a) for n, a in zip(env.spec.agents, action[1, :, 0])})
        step = env.step(action)
        np.testing.assert_array_equal(step.reward[1, :, 0].numpy(), np.float32([*rewards.values()]))
        assert step.truncated[1].tolist() == list(truncated.values())
        assert not step.terminated.any()
        assert step.ended[1] == (not raw.agents)
        for slot, name in enumerate(env.spec.agents):
            np.testing.assert_array_equal(step.final_obs.agent[1, slot, : seen[name].size].numpy(), seen[name])
        np.testing.assert_array_equal(step.final_obs.state[1].numpy(), raw.state())
        obs = step.obs
        if not raw.agents:
            episode += 1
            seen, _ = raw.reset(seed=seeds[episode])
    assert episode == 2


def test_spec_tells_padding_kinds_and_choices() -> None:
    env = PettingZooEnv(simple_speaker_listener_v4.parallel_env, 1)
    assert env.spec.observation_sizes == (3, 11)
    assert env.spec.kind == (0, 1)
    assert env.spec.channels == ("reward",)
    obs = env.reset(0)
    assert obs.legal is not None
    assert env.spec.legal is not None
    assert torch.equal(obs.legal[0], env.spec.legal)
    assert spread(1).spec.kind == (0, 0, 0)
    assert PettingZooEnv(Clockwork, 1).spec.kind == (0, 0, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: spread(rows, cycles=7),
        lambda rows: PettingZooEnv("pettingzoo.classic.tictactoe.tictactoe:raw_env", rows),
        lambda rows: PettingZooEnv("pettingzoo.classic.rps.rps:raw_env", rows, options={"max_cycles": 3}),
        lambda rows: PettingZooEnv(Zoo, rows),
        lambda rows: PettingZooEnv(Reals, rows),
        lambda rows: PettingZooEnv(Clockwork, rows),
        lambda rows: PettingZooEnv(Bidding, rows),
        lambda rows: PettingZooEnv(lambda: Bidding(real=True), rows),
        lambda rows: PettingZooEnv(lambda: parallel_env(Bursts()), rows),
    ],
)
def test_the_contract_of_vector_environments_holds(make: Any) -> None:
    check_env(make, steps=20)


def test_the_cycled_shortcut_agrees_with_pettingzoos_own_wrapper() -> None:
    class Plain(ParallelEnv):
        def __init__(self) -> None:
            self.inner = simple_spread_v3.parallel_env(max_cycles=6)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        observation_space = property(lambda self: self.inner.observation_space)
        action_space = property(lambda self: self.inner.action_space)
        reset = property(lambda self: self.inner.reset)
        step = property(lambda self: self.inner.step)
        state = property(lambda self: self.inner.state)

    fast, plain = spread(2, 6), PettingZooEnv(Plain, 2)
    actions = random_actions(fast, 20)
    assert_same(rollout(fast, actions), rollout(plain, actions))


@pytest.mark.parametrize("state", ["env", "observations"])
def test_every_state_source_gives_the_same_where_state_is_the_observations(state: Any) -> None:
    env = spread(2, 4, state=state)
    actions = random_actions(env, 9)
    assert_same(rollout(env, actions), rollout(spread(2, 4), actions))


def test_agents_die_vanish_and_come_back() -> None:
    env = PettingZooEnv(Clockwork, 1)
    obs = env.reset(0)
    constant = float(obs.agent[0, 0, 2])
    alive = [obs.alive[0].tolist()]
    flags, finals, rewards = [], [], []
    for _ in range(6):
        step = env.step(torch.zeros(1, 3, 1, dtype=torch.int64))
        assert step.final_obs.alive[0].tolist() == alive[-1]
        assert not step.obs.agent[~step.obs.alive].any()
        assert not step.reward[~step.final_obs.alive].any()
        assert torch.equal(step.obs.state, step.obs.agent.flatten(1))
        assert torch.equal(step.final_obs.state, step.final_obs.agent.flatten(1))
        alive.append(step.obs.alive[0].tolist())
        flags.append((step.terminated[0].nonzero().flatten().tolist(), step.truncated[0].nonzero().flatten().tolist()))
        finals.append(step.final_obs.agent[0].tolist())
        rewards.append(step.reward[0, :, 0].tolist())
    yes, no = True, False
    assert alive[:6] == [[yes] * 3, [yes] * 3, [no, yes, yes], [no, no, yes], [yes, no, yes], [yes, no, no]]
    assert flags == [([], []), ([0], []), ([], [1]), ([], []), ([2], []), ([], [0])]
    assert rewards == [[1, 1, 1], [2, 2, 2], [0, 3, 3], [0, 0, 4], [5, 0, 0], [6, 0, 0]]
    assert finals[1][0] == [1, 2, constant]  # who leaves still sees where it led
    assert finals[2] == [[0, 0, 0], [2, 3, constant], [3, 3, constant]]
    assert finals[4][2] == [3, 4, constant]  # who vanishes is left with what it saw last
    assert finals[5] == [[1, 6, constant], [0, 0, 0], [0, 0, 0]]
    assert step.ended.tolist() == [True]
    assert step.obs.alive.all()
    assert step.obs.agent[0, :, 1].tolist() == [0, 0, 0]
    assert float(step.obs.agent[0, 0, 2]) != constant


def test_every_space_is_encoded_and_decoded() -> None:
    env = PettingZooEnv(Zoo, 1)
    assert env.spec.observation_sizes == (12, 4, 4)
    assert env.spec.channels == ("reward_0", "reward_1")
    assert env.spec.actions == (Discrete((3,)), Discrete((2, 4)), Discrete((2, 2)))
    assert env.spec.state_size == 2
    obs = env.reset(0)
    assert obs.agent[0, 0].tolist() == [7] * 12
    assert obs.agent[0, 1, :4].tolist() == [1, 0, 0, 0]
    assert obs.agent[0, 2, :4].tolist() == [1, 0, 0.5, -0.5]
    assert obs.legal is not None
    assert obs.legal[0].int().tolist() == [[0, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 1, 1, 0], [1, 1, 0, 1, 1, 0, 0]]
    step = env.step(torch.tensor([[[2, 0], [0, 1], [1, 0]]]))
    taken = env._rows._rows[0].play.env.taken
    assert taken["ant_0"] == 2
    assert taken["ant_1"].tolist() == [1, 1]
    assert taken["bee_0"].tolist() == [1, 0]
    assert step.reward[0].tolist() == [[1, -2]] * 3
    assert step.obs.state[0, 0] == 1
    assert all(leaf.dtype in (torch.float32, torch.bool) for leaf in leaves(step))
    assert PettingZooEnv(Zoo, 1, channels=["gain", "cost"]).spec.channels == ("gain", "cost")


def test_real_actions_are_clipped_and_come_without_padding() -> None:
    env = PettingZooEnv(Reals, 1)
    assert env.reset(0).legal is None
    step = env.step(torch.tensor([[[9.0, -9, 0.25, 0.1], [-3, 7, 7, 7], [-5, 1, 5, 7]]], dtype=torch.float64))
    torch.testing.assert_close(
        step.obs.agent[0], torch.tensor([[1, -1, 0.25, 0.1], [0, 0, 0, 0], [-2, 1, 2, 0]]), rtol=0, atol=0
    )
    with pytest.raises(InputError, match="not a finite number"):
        env.step(torch.full((1, 3, 4), torch.nan))


def test_in_turns_only_one_agent_has_a_choice() -> None:
    env = PettingZooEnv(Bidding, 1)
    obs = env.reset(0)
    assert obs.alive.all()
    assert obs.legal is not None
    assert obs.legal[0].int().tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 0]]
    step = env.step(torch.tensor([[[1], [0], [0]]]))  # p_0 bids
    assert step.reward[0, :, 0].tolist() == [1, -0.5, -0.5]
    assert step.obs.legal is not None
    assert step.obs.legal[0].int().tolist() == [[1, 0, 0], [1, 1, 1], [1, 0, 0]]
    step = env.step(torch.tensor([[[0], [0], [0]]]))  # p_1 passes, and is out
    assert step.terminated[0].tolist() == [False, True, False]
    assert step.final_obs.agent[0, 1].tolist() == [2, 1]
    assert step.obs.alive[0].tolist() == [True, False, True]
    step = env.step(torch.tensor([[[0], [0], [1]]]))  # p_2 bids
    assert step.reward[0, :, 0].tolist() == [-0.5, 0, 1]
    step = env.step(torch.tensor([[[0], [0], [1]]]))  # p_0 passes, p_2 wins
    assert step.reward[0, :, 0].tolist() == [0, 0, 10]
    assert step.terminated[0].tolist() == [True, False, True]
    assert step.final_obs.agent[0].tolist() == [[4, 0], [0, 0], [4, 2]]
    assert step.ended.all()
    assert step.obs.alive.all()


def test_in_turns_only_the_components_of_the_agent_in_turn_count() -> None:
    class Unequal(Bidding):
        """p_0 acts in one component, p_1 in two, p_2 in three."""

        def __init__(self) -> None:
            super().__init__(real=True)
            self._done = {name: spaces.Box(-1, 1, (size,)) for size, name in enumerate(self.possible_agents, 1)}

    def counts(obs: Observation) -> list[list[int]]:
        assert obs.legal is not None
        return obs.legal[0].int().tolist()

    env, nobody = PettingZooEnv(Unequal, 1), [[0, 0, 0]] * 3
    assert counts(env.reset(0)) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    bid, leave = torch.full((1, 3, 3), 0.5), torch.full((1, 3, 3), -0.5)
    assert counts(env.step(bid).obs) == [[0, 0, 0], [1, 1, 0], [0, 0, 0]]
    step = env.step(leave)  # p_1 is out
    assert counts(step.obs) == counts(step.final_obs) == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert counts(env.step(bid).obs) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    step = env.step(leave)  # p_0 is out, p_2 wins, and the next episode starts
    assert counts(step.final_obs) == nobody
    assert counts(step.obs) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_in_turns_no_reward_is_lost_or_counted_twice() -> None:
    """Summed between two turns, rewards are what `last()` accumulates, on tic-tac-toe and on mpe2 in turns."""
    for make in (Bidding, lambda: simple_spread_v3.env(max_cycles=4)):
        env, raw = PettingZooEnv(make, 1), make()
        obs = env.reset(5)
        seed = int(np.random.SeedSequence(5, spawn_key=(0, 0)).generate_state(1)[0]) >> 1
        raw.reset(seed=seed)
        generator = np.random.default_rng(0)
        earned, expected = torch.zeros(len(env.spec.agents)), dict.fromkeys(env.spec.agents, 0.0)
        while raw.agents:
            name = raw.agent_selection
            _, reward, terminated, truncated, _ = raw.last()
            expected[name] += float(reward)
            if terminated or truncated:
                raw.step(None)
                continue
            slot = env.spec.agents.index(name)
            assert obs.legal is not None
            action = torch.zeros(1, len(env.spec.agents), 1, dtype=torch.int64)
            action[0, slot] = int(generator.choice(obs.legal[0, slot].nonzero().flatten().numpy()))
            raw.step(int(action[0, slot]))
            step = env.step(action)
            earned, obs = earned + step.reward[0, :, 0], step.obs
        assert step.ended.all()
        torch.testing.assert_close(earned, torch.tensor([*expected.values()]), rtol=0, atol=1e-5)


def test_tensors_that_were_handed_out_are_never_written_again() -> None:
    env = spread(2, 3)
    steps = rollout(env, random_actions(env, 4))
    copies = [leaf.clone() for leaf in leaves(tuple(steps))]
    rollout(env, random_actions(env, 4, seed=1), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(leaves(tuple(steps)), copies))


def test_steps_that_autograd_keeps_are_left_alone_by_later_ones() -> None:
    env = spread(2, 3)
    with torch.inference_mode():
        rollout(env, random_actions(env, 1))  # lays out what later steps hand out
    weight = torch.ones(18, requires_grad=True)
    steps = rollout(env, random_actions(env, 4))
    loss = sum((step.obs.agent @ weight).square().sum() for step in steps[1:])
    env.step(random_actions(env, 1)[0])
    loss.backward()
    assert weight.grad is not None


def test_a_seed_fixes_whole_episodes_and_all_rows_differ() -> None:
    env = spread(8, 3)
    actions = random_actions(env, 8)
    first, second = rollout(env, actions), rollout(spread(8, 3), actions)
    assert_same(first, second)
    starts = torch.cat([first[0].agent, *(step.obs.agent for step in first[1:] if step.ended.any())]).flatten(1)
    assert len(starts) == 24
    assert torch.pdist(starts).min() > 1e-3
    assert not torch.equal(env.reset(1).agent, first[0].agent)


def test_blocks_of_seeds_are_as_environments_of_their_own() -> None:
    env = spread(4, 3)
    actions = random_actions(env, 8)
    together = rollout(env, actions, [7, 8])
    for block, seed in enumerate((7, 8)):
        rows = slice(2 * block, 2 * block + 2)
        alone = rollout(spread(2, 3), actions[:, rows], seed)
        assert_same(tree_map(lambda leaf, rows=rows: leaf[rows], tuple(together)), alone)


def test_a_native_world_started_from_mpe2s_state_agrees() -> None:
    env = spread(3, 30)
    env.reset(0)

    def body(row: Any) -> torch.Tensor:
        world = row.play.env.unwrapped.world
        parts = [[a.state.p_vel for a in world.agents], [e.state.p_pos for e in world.entities]]
        return torch.tensor(np.concatenate(parts)).T

    native = SimpleSpread(dtype=torch.float64)
    state = native.at(torch.stack([body(row) for row in env._rows._rows]))
    for action in random_actions(env, 25):
        step, transition = env.step(action), native.transition(state, action, None)
        state = transition.state
        torch.testing.assert_close(step.reward.double(), transition.reward, rtol=0, atol=1e-5)
        torch.testing.assert_close(step.obs.agent.double(), native.observe(state).agent, rtol=0, atol=1e-6)


def test_a_row_restarts_although_the_environment_still_lists_who_has_left() -> None:
    class Careless(Clockwork):
        def step(self, actions: dict[str, int]) -> Any:
            listed = list(self.agents)
            observations, rewards, _, _, infos = super().step(actions)
            self.agents = listed
            over = dict.fromkeys(listed, self.time == 2)
            return observations, rewards, dict.fromkeys(listed, False), over, infos

    env = PettingZooEnv(Careless, 1)
    env.reset(0)
    ends = [env.step(action) for action in random_actions(env, 4)]
    assert [bool(step.ended) for step in ends] == [False, True, False, True]
    assert ends[1].truncated.all()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shape", r"Environment 0: 'ant_1' observes an array of shape \(4,\); its observation space says \(3,\)"),
        ("nan observation", r"Environment 0 gave 'ant_1' the observation nan \(index 1\)"),
        ("nan reward", "Environment 0 gave 'bee_0' the reward nan"),
        ("no reward", "Environment 0: 'bee_0' earned the reward None; expected a number"),
        ("reward in words", "Environment 0: 'bee_0' earned the reward 'hi'; expected a number"),
        ("stranger", "an agent 'cat_0'"),
        ("missing", "'bee_0' is alive, but got no observation"),
        ("unpaid", r"Environment 0: 'ant_1' acted, but has no reward; rewards are for \['ant_0', 'bee_0'\]"),
        ("unpaid at the end", "'ant_1' acted, but has no reward"),
    ],
)
def test_bad_environments_are_told_what_is_wrong(fault: str, message: str) -> None:
    env = PettingZooEnv(lambda: Broken(fault), 2)
    env.reset(0)
    with pytest.raises(InputError, match=message):
        play(env)


def test_in_turns_only_who_acts_must_be_paid() -> None:
    class Stingy(Bidding):
        def step(self, action: Any) -> None:
            me = self.agent_selection
            super().step(action)
            self.rewards = {name: reward for name, reward in self.rewards.items() if name == me}

    class Miserly(Bidding):
        def step(self, action: Any) -> None:
            me = self.agent_selection
            super().step(action)
            if self.time == 6:
                del self.rewards[me]

    bid = torch.ones(1, 3, 1, dtype=torch.int64)
    env = PettingZooEnv(Stingy, 1)
    env.reset(0)
    assert env.step(bid * torch.tensor([[[1], [0], [0]]])).reward[0, :, 0].tolist() == [1, 0, 0]
    env = PettingZooEnv(Miserly, 1)
    env.reset(0)
    for _ in range(5):
        env.step(bid)
    with pytest.raises(InputError, match="'p_2' acted, but has no reward"):
        env.step(bid)


def test_an_environment_that_raises_is_named_with_the_line() -> None:
    env = PettingZooEnv(lambda: Broken("raises"), 2)
    env.reset(0)
    with pytest.raises(
        ConcordError, match=r"Environment 0 raised ZeroDivisionError: .*small_environments\.py, line"
    ) as caught:
        play(env)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_cannot_be_an_environment_is_refused() -> None:
    class Forbidding(Zoo):
        def infos(self) -> dict[str, Any]:
            return {"ant_1": {"action_mask": np.zeros(6, np.int8)}, "ant_0": {}, "bee_0": {}}

    env = PettingZooEnv(lambda: Broken("none"), 1)
    env.reset(0)
    same = Clockwork()
    cases = [
        (lambda: PettingZooEnv(dict, 1), "it made a builtins.dict"),
        (lambda: PettingZooEnv("mpe2.simple_spread_v3:parallel_em", 1), "parallel_env"),
        (lambda: PettingZooEnv("mpe2.simple_spread_v3", 1), "must be a function"),
        (lambda: PettingZooEnv(lambda: Broken("spaces"), 2), "copies differ in observation_spaces"),
        (lambda: PettingZooEnv(lambda: same, 2), "same object twice"),
        (lambda: PettingZooEnv(lambda: Broken("nested actions"), 1), "actions of 'ant_0' are a Tuple"),
        (lambda: PettingZooEnv(lambda: Broken("mixed actions"), 1), "all discrete or all continuous"),
        (lambda: PettingZooEnv(Forbidding, 1).reset(0), "forbids every choice"),
        (lambda: PettingZooEnv(Clockwork, 1, state="env"), "needs an environment whose state"),
        (lambda: PettingZooEnv(Clockwork, 0), "at least 1"),
        (lambda: PettingZooEnv(Clockwork, 2, workers=3), "workers is from 0"),
        (lambda: PettingZooEnv(Clockwork, 3).reset([1, 2]), "shared equally"),
        (lambda: PettingZooEnv(Clockwork, 3).reset(-1), "not negative"),
        (lambda: env.step(torch.full((1, 3, 1), 2)), "ant_0 has choices 0 to 1; got 2"),
        (lambda: env.step(torch.zeros(1, 3, 2, dtype=torch.int64)), r"shape \[1, 3, 1\]"),
        (lambda: env.step(torch.zeros(1, 3, 1)), "whole numbers"),
        (env.frame, "render"),
    ]
    for attempt, message in cases:
        with pytest.raises(InputError, match=message):
            attempt()


def test_a_row_can_be_drawn() -> None:
    env = PettingZooEnv(lambda: parallel_env(Bursts(), render_mode="rgb_array"), 2)
    env.reset(0)
    env.step(torch.zeros(2, 2, 2, dtype=torch.int64))
    assert env.frame().tolist() == np.full((4, 4, 3), 1).tolist()
