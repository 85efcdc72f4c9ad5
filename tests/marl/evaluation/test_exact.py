"""Exact returns of trained agents, beside a game solved by hand and beside what is sampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from meetings import Constant, Meeting, Often, Recalls, Remembers

from envs.kitchen import Kitchen
from envs.kitchen.partners import ScriptedCook
from envs.world import TensorEnv
from marl.evaluation.episodes import play
from marl.evaluation.exact import exact_returns
from marl.models.distributions import IndependentCategorical
from marl.output.report import Metric


def test_returns_and_shares_are_those_by_hand() -> None:
    env = TensorEnv(Meeting(varied=False, horizon=None), 1, time_limit=4)
    found = {name.removeprefix("exact/"): metric.value for name, metric in exact_returns(Often(0.8), env, {}).items()}
    # A step: .64 + .04 to meet, and .5 · .8. Beside ones: .8 to meet, and .5 if ones are on the left, else .5 · .8.
    assert found == pytest.approx(
        {
            "return": 4 * (0.68 + 0.4),
            "most": 4 * 1.5,
            "share": 1.08 / 1.5,
            "beside_ones": 4 * (0.8 + 0.45),
            "best_beside_ones": 4 * 1.5,
            "share_beside_ones": 1.25 / 1.5,
            "beside_zeros": 4 * (0.2 + 0.2),
            "best_beside_zeros": 4 * 1.0,
            "share_beside_zeros": 0.4,
            "share_beside": (1.25 / 1.5 + 0.4) / 2,
        },
        rel=1e-6,
    )


def test_states_are_decided_for_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    kitchen = Kitchen("cramped_room_small", horizon=None, counter_items=0, soups=1, recipe={"orders": ["onion"]})
    greedy, env = Scripted(kitchen, "greedy"), TensorEnv(kitchen, 1, time_limit=20)
    whole = exact_returns(greedy, env, {})
    monkeypatch.setattr("marl.evaluation.exact.CHUNK", 1000)
    assert exact_returns(greedy, env, {}) == whole
    assert whole["exact/return"].value > 0


def test_beside_two_others_one_plays_in_each_slot() -> None:
    env = TensorEnv(Meeting(varied=False, horizon=None, agents=3), 1, time_limit=2)
    found = exact_returns(Often(0.8), env, {})
    # A step beside two ones: .8 to meet; .5 where ones are on the left, in two slots of three, else .5 · .8.
    assert found["exact/beside_ones"].value == pytest.approx(2 * (0.8 + (0.5 + 0.5 + 0.4) / 3), rel=1e-6)


def test_a_share_of_nothing_is_left_out() -> None:
    env = TensorEnv(Meeting(varied=False, horizon=None, pays=False), 1, time_limit=2)
    assert not [name for name in exact_returns(Often(0.8), env, {}) if "share" in name]


@pytest.mark.parametrize("actor", [Remembers(), Constant(0), Recalls(0.5)])  # who give no distribution, or remember
def test_what_others_earn_is_sampled_and_the_best_is_exact(actor: Any) -> None:
    env = TensorEnv(Meeting(varied=False, horizon=None), 1, time_limit=4)
    sampled = {"": np.array([3.0, 6.0]), "ones": np.array([6.0, 0.0]), "zeros": np.array([2.0, 2.0])}
    found = exact_returns(actor, env, sampled)
    assert not {"exact/return", "exact/beside_ones"} & found.keys()
    assert found["exact/best_beside_zeros"] == Metric.exact(4.0)
    assert found["exact/share"] == Metric.mean([0.5, 1.0])
    assert found["exact/share_beside_ones"] == Metric.mean([1.0, 0.0])
    assert found["exact/share_beside"] == Metric.mean([0.75, 0.25])


def test_without_samples_there_are_the_best_returns_alone() -> None:
    found = exact_returns(Remembers(), TensorEnv(Meeting(varied=False, horizon=None), 1, time_limit=4), {})
    assert set(found) == {"exact/most", "exact/best_beside_ones", "exact/best_beside_zeros"}


def test_a_world_that_ends_by_a_horizon_is_no_table_of_states() -> None:
    assert exact_returns(Often(0.5), TensorEnv(Meeting(horizon=3), 1, time_limit=3), {}) == {}


def test_a_table_that_is_too_large_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("marl.evaluation.exact.LARGEST", 8)  # of four joint choices
    assert exact_returns(Often(0.5), TensorEnv(Meeting(horizon=None), 1, time_limit=3), {}) == {}
    assert "no exact returns: More than 2 states" in capsys.readouterr().out


class Scripted:
    """A script as an actor that gives its distribution."""

    def __init__(self, kitchen: Kitchen, script: str):
        self.kitchen, self.cook = kitchen, ScriptedCook(kitchen, script)

    def initial_memory(self, num_envs: int) -> None:
        return None

    def __call__(self, obs: Any, memory: Any) -> tuple[IndependentCategorical, Any]:
        odds = self.cook.probabilities(self.kitchen.state_of(obs.state))
        return IndependentCategorical(odds.log(), (6,), None), None

    def act(self, obs: Any, memory: Any, streams: Any) -> Any:
        return self(obs, memory)[0].sample(streams), None


@pytest.mark.slow
def test_in_the_small_kitchen_exact_returns_are_those_that_are_sampled() -> None:
    kitchen = Kitchen("cramped_room_small", horizon=None, counter_items=0)
    greedy, env = Scripted(kitchen, "greedy"), TensorEnv(kitchen, 512, time_limit=100)
    found = {name.removeprefix("exact/"): metric.value for name, metric in exact_returns(greedy, env, {}).items()}
    sampled = play(env, greedy, 512, seed=0).metrics(env.spec.channels)["return_per_agent/soup"]
    assert sampled.low <= found["return"] <= sampled.high
    assert found["beside_greedy"] == pytest.approx(found["return"], rel=1e-6)
    assert found["most"] == 160.0
    shares = torch.tensor([value for name, value in found.items() if name.startswith("share")])
    assert ((shares >= 0) & (shares <= 1 + 1e-9)).all()
