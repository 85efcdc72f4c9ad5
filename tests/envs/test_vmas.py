"""VMAS as a VectorEnv: on a small package like it, and on itself where it is installed."""

from __future__ import annotations

import copy
import sys
from typing import Any

import fake_vmas
import pytest
import torch

from envs.core import ConcordError, Continuous, InputError, Streams
from envs.testing import check_env
from envs.vmas import VmasEnv
from envs.world import RandomActor

REAL = ["balance", "simple_push", "simple_reference", "asym_joint", "discovery"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vmas.install(monkeypatch)


def played(env: VmasEnv, steps: int, seed: int = 0) -> list[Any]:
    """Steps of random play."""
    obs, actor, streams = env.reset(seed), RandomActor(env.spec), Streams([seed])
    found = []
    for _ in range(steps):
        found.append(env.step(actor.act(obs, None, streams)[0].action))
        obs = found[-1].obs
    return found


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.usefixtures("fake")
def test_the_contract_holds(continuous: bool) -> None:
    check_env(lambda n=6: VmasEnv("meeting", n, time_limit=7, options={"continuous_actions": continuous}), steps=24)


@pytest.mark.parametrize("scenario", REAL)
@pytest.mark.parametrize("continuous", [False, True])
def test_the_contract_holds_for_vmas_itself(scenario: str, continuous: bool) -> None:
    pytest.importorskip("vmas")
    options = {"continuous_actions": continuous}
    check_env(lambda n=6: VmasEnv(scenario, n, time_limit=7, options=options), steps=20)


def test_scenarios_that_deal_parts_anew_continue_where_they_were_saved() -> None:
    pytest.importorskip("vmas")
    env, other = (VmasEnv("ball_passage", 3, time_limit=4) for _ in range(2))
    obs = played(env, 6)[-1].obs
    assert torch.equal(other.load_state_dict(copy.deepcopy(env.state_dict())).agent, obs.agent)
    nothing = torch.zeros(3, 2, 1, dtype=torch.int64)
    for _ in range(6):
        assert torch.equal(env.step(nothing).obs.agent, other.step(nothing).obs.agent)


@pytest.mark.usefixtures("fake")
def test_the_spec_tells_agents_apart_and_pads_them() -> None:
    env = VmasEnv("meeting", 2)
    assert env.spec.kind == (0, 0, 1)
    assert env.spec.observation_sizes == (4, 4, 5)
    obs = env.reset(0)
    assert obs.legal is not None
    assert obs.legal[0].sum(-1).tolist() == [6, 6, 6]  # 5 and an absent component's only one, or 3 and 3
    assert torch.equal(obs.state, torch.cat([obs.agent[:, 0, :4], obs.agent[:, 1, :4], obs.agent[:, 2]], 1))
    real = VmasEnv("meeting", 2, options={"continuous_actions": True})
    assert real.spec.actions[0] == Continuous((-1.0, -1.0), (1.0, 1.0))


@pytest.mark.usefixtures("fake")
def test_the_end_of_time_truncates_and_done_terminates() -> None:
    steps = played(VmasEnv("meeting", 64, time_limit=9), 40)
    ended = torch.stack([step.ended for step in steps])
    terminated = torch.stack([step.terminated for step in steps])
    truncated = torch.stack([step.truncated for step in steps])
    assert bool(terminated.any())
    assert bool(truncated.any())
    assert not bool((terminated & truncated).any())
    assert torch.equal(ended, (terminated | truncated).all(-1))
    far = torch.stack([step.final_obs.agent[:, 0, :2].norm(dim=-1) > 0.9 for step in steps])
    assert torch.equal(far, terminated[..., 0])
    near = torch.stack([step.obs.agent[:, 0, :2].norm(dim=-1) < 0.9 for step in steps])
    assert bool(near.all())  # every row that ended is seen at its new start


@pytest.mark.usefixtures("fake")
def test_who_is_done_when_time_is_up_has_terminated_only() -> None:
    env = VmasEnv("meeting", 2, time_limit=1)
    env.reset(0)
    env._blocks[0].simulator.scenario.walkers[0].place[0] = 2.0
    step = env.step(torch.ones(2, 3, 2, dtype=torch.int64))
    assert step.terminated.all(-1).tolist() == [True, False]
    assert step.truncated.all(-1).tolist() == [False, True]


@pytest.mark.usefixtures("fake")
def test_rows_are_reset_one_by_one_unless_all_have_ended() -> None:
    env = VmasEnv("meeting", 4, time_limit=5)
    env.reset(0)
    (simulator,) = [block.simulator for block in env._blocks]
    still = torch.zeros(4, 3, 2, dtype=torch.int64)
    still[:, 2] = 1
    for _ in range(5):
        env.step(still)
    assert simulator.calls == {"reset": 2, "reset_at": 0}
    env._clock = torch.tensor([4, 0, 4, 0])
    assert env.step(still).ended.tolist() == [True, False, True, False]
    assert simulator.calls == {"reset": 2, "reset_at": 2}


@pytest.mark.usefixtures("fake")
def test_global_random_numbers_and_other_environments_are_left_alone() -> None:
    before = torch.random.get_rng_state()
    alone = played(VmasEnv("meeting", 4, time_limit=5), 12)
    assert torch.equal(before, torch.random.get_rng_state())
    env, other = VmasEnv("meeting", 4, time_limit=5), VmasEnv("meeting", 2)
    obs, actor, streams = env.reset(0), RandomActor(env.spec), Streams([0])
    for step in alone:
        other.reset(1)
        step_again = env.step(actor.act(obs, None, streams)[0].action)
        obs = step_again.obs
        assert torch.equal(step_again.reward, step.reward)


@pytest.mark.usefixtures("fake")
def test_what_was_played_in_inference_mode_can_be_started_anew_outside() -> None:
    env = VmasEnv("meeting", 4, time_limit=5)
    with torch.inference_mode():
        last = played(env, 7)[-1]
    assert not last.obs.agent.is_inference()
    env.load_state_dict(env.state_dict())
    env.reset(1)


@pytest.mark.usefixtures("fake")
def test_a_scenario_that_cannot_be_saved_says_so_or_starts_new_episodes() -> None:
    options = {"hidden": True}
    env = VmasEnv("meeting", 4, options=options)
    played(env, 3)
    saved = env.state_dict()
    with pytest.raises(ConcordError, match=r"Scenario\.far is neither a tensor nor a number.*restart_episodes=true"):
        VmasEnv("meeting", 4, options=options).load_state_dict(saved)
    other = VmasEnv("meeting", 4, time_limit=2, options=options, restart_episodes=True)
    obs = other.load_state_dict(saved)
    assert other.restarted == [0, 1, 2, 3]
    assert not torch.equal(obs.agent, saved["seen"]["agent"])
    with pytest.raises(InputError, match="4 rows"):
        VmasEnv("meeting", 3, options=options).load_state_dict(saved)


def test_without_the_package_the_way_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vmas", None)
    with pytest.raises(InputError, match=r'GPL: pip install "concord-rl\[vmas\]"'):
        VmasEnv("balance", 2)


@pytest.mark.parametrize(
    ("scenario", "settings", "message"),
    [
        ("meting", {}, "Did you mean meeting?"),
        ("nowhere", {}, "It has meeting, simple, goal"),
        ("fake_vmas:Sceario", {}, "Did you mean Scenario?"),
        ("meeting", {"options": {"max_steps": 3}}, "sets max_steps .* env.time_limit"),
        ("meeting", {"options": {"nonsense": 3}}, "cannot make meeting with .*'nonsense': 3.* not used"),
        ("meeting", {"time_limit": 0}, "time_limit must be at least 1"),
    ],
)
@pytest.mark.usefixtures("fake")
def test_what_cannot_be_made_is_told(scenario: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VmasEnv(scenario, 2, **settings)


@pytest.mark.usefixtures("fake")
def test_wrong_use_is_told() -> None:
    env = VmasEnv("fake_vmas:Scenario", 2)
    with pytest.raises(InputError, match="reset"):
        env.step(torch.zeros(2, 3, 2, dtype=torch.int64))
    env.reset(0)
    with pytest.raises(InputError, match=r"shape \[2, 3, 2\].*got \[2, 3, 1\]"):
        env.step(torch.zeros(2, 3, 1, dtype=torch.int64))
    with pytest.raises(InputError, match="whole numbers"):
        env.step(torch.zeros(2, 3, 2))
    with pytest.raises(InputError, match=r"no display.*film_episodes=0"):
        env.frame()
    with pytest.raises(InputError, match="shared equally"):
        env.reset([0, 1, 2])
