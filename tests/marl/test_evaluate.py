"""Playing whole episodes, without favor to the short ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_runs import Mortals
from torch import Tensor
from worlds import Walk

from envs.core import Discrete, EnvSpec, InputError, Observation, Streams
from envs.games import Constant
from envs.world import RandomActor, Scripted, TensorEnv, Transition, World
from marl.evaluation.episodes import CHUNK, play
from marl.models.distributions import ActionUnits, IndependentGaussian


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
        shape = (500, 2, 2)
        policy = IndependentGaussian(torch.zeros(shape), torch.zeros(shape), ActionUnits.of(env.spec.actions))
        drawn["action"].append(policy.sample(streams).action)
        return drawn["action"][-1]

    class Watched(Walk):
        def noise(self, num: int, generator: torch.Generator) -> Tensor:
            drawn["noise"].append(super().noise(num, generator))
            return drawn["noise"][-1]

    env.world = Watched()
    play(env, Scripted(act), 500, 0)
    pairs = torch.stack([torch.stack(drawn[name]).flatten() for name in ("action", "noise")])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.05
