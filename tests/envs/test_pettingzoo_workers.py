"""Environments in processes of their own, and episodes that are played again to resume them."""

import pickle
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from mpe2 import simple_spread_v3
from small_environments import (
    Bidding,
    Broken,
    Clockwork,
    Fickle,
    Reals,
    assert_same,
    play,
    random_actions,
    rollout,
    spread,
)

from envs.core import ConcordError, Discrete, InputError
from envs.pettingzoo import PettingZooEnv, workers


def test_workers_give_the_same_rollout_as_the_list_and_resume_it() -> None:
    local, remote = spread(5, 4), spread(5, 4, workers=2)
    try:
        actions = random_actions(local, 18)
        expected = rollout(local, actions[:10], [3])
        found = rollout(remote, actions[:10], [3])
        assert_same(expected, found)
        assert torch.pdist(found[0].agent.flatten(1)).min() > 1e-3
        saved = pickle.loads(pickle.dumps(remote.state_dict()))
        rest = [remote.step(action) for action in actions[10:]]
        assert_same([remote.load_state_dict(saved)], [found[-1].obs])
        assert_same([remote.step(action) for action in actions[10:]], rest)
        fresh = spread(5, 4)
        fresh.load_state_dict(saved)
        assert_same([fresh.step(action) for action in actions[10:]], rest)
    finally:
        remote.close()
        remote.close()
    with pytest.raises(InputError, match="reset"):
        remote.step(actions[0])


@pytest.mark.parametrize(
    ("fault", "message"),
    [("exits", "exit code 7"), ("raises", "ZeroDivisionError: the clock stands still"), ("hangs", "within 1 s")],
)
def test_a_worker_that_fails_says_so(fault: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = PettingZooEnv(lambda: Broken(fault), 2, workers=1)
    env.reset(0)
    monkeypatch.setattr(workers, "PATIENCE", 1.0)
    with pytest.raises(ConcordError, match=message) as caught:
        play(env)
    assert caught.value.exit_code == 1
    assert "orker 0" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConcordError, match="closed"):
        play(env)


def test_a_step_that_is_interrupted_closes_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the answers that were not awaited would be taken for those to the next step."""
    env = spread(4, workers=2)
    env.reset(0)

    def interrupt(*arguments: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers.Line, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        play(env)
    monkeypatch.undo()
    with pytest.raises(ConcordError, match="closed"):
        play(env)


def test_more_workers_than_cores_agree_too() -> None:
    local, remote = spread(6, 4), spread(6, 4, workers=6)
    actions = random_actions(local, 9)
    try:
        assert_same(rollout(local, actions), rollout(remote, actions))
    finally:
        remote.close()


def test_workers_import_no_torch() -> None:
    code = "import sys, envs.pettingzoo.workers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_worker_reports_bad_environments_as_bad_input() -> None:
    lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be sent"):
        PettingZooEnv(lambda: lock, 1, workers=1)
    with pytest.raises(InputError, match="object"):
        PettingZooEnv(object, 1, workers=1)


@pytest.mark.parametrize(
    "make",
    [simple_spread_v3.parallel_env, Reals, lambda: Bidding(real=True), Clockwork],
    ids=["mpe2", "real", "aec", "deaths"],
)
def test_resuming_mid_episode_continues_exactly(make: Any) -> None:
    env = PettingZooEnv(make, 3)
    generator = torch.Generator().manual_seed(0)

    def act() -> torch.Tensor:
        shape = (3, len(env.spec.agents), env.spec.action.size)
        if isinstance(env.spec.action, Discrete):
            return torch.randint(2, shape, generator=generator)
        return torch.rand(shape, generator=generator)

    env.reset([4, 5, 6])
    for _ in range(8):
        last = env.step(act())
    saved, resume_at = env.state_dict(), generator.get_state()
    rest = [env.step(act()) for _ in range(7)]
    other = PettingZooEnv(make, 3)
    assert_same([other.load_state_dict(saved)], [last.obs])
    again = other.state_dict()
    assert all(torch.equal(again[name], saved[name]) for name in ("episode", "length", "actions"))
    generator.set_state(resume_at)
    assert_same([other.step(act()) for _ in range(7)], rest)


def test_episodes_without_end_can_be_resumed_too() -> None:
    env = PettingZooEnv(Reals, 2)
    env.reset(0)
    for t in range(150):  # longer than the memory of actions is at first
        last = env.step(torch.full((2, 3, 4), t / 150))
    saved = env.state_dict()
    assert saved["actions"].shape == (300, 3, 4)
    assert_same([PettingZooEnv(Reals, 2).load_state_dict(saved)], [last.obs])


def test_irreproducible_environments_are_refused_unless_episodes_may_restart() -> None:
    env = PettingZooEnv(Fickle, 2)
    env.reset(0)
    for action in random_actions(env, 4):
        env.step(action)
    saved = env.state_dict()
    with pytest.raises(ConcordError, match=r"resume\.restart_episodes=true"):
        PettingZooEnv(Fickle, 2).load_state_dict(saved)
    lenient = PettingZooEnv(Fickle, 2, restart_episodes=True)
    obs = lenient.load_state_dict(saved)
    assert obs.agent[:, :, 1].tolist() == [[0, 0, 0]] * 2
    assert lenient.state_dict()["length"].tolist() == [0, 0]
    lenient.step(action)
    assert lenient.state_dict()["episode"].tolist() == [1, 1]
