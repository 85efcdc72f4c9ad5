"""The task of one's own that docs/planning.md shows, planned in with a critic learned from random play."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from envs.core import Decision, Streams
from envs.testing import check_env
from envs.world import RandomActor, TensorEnv
from marl.evaluation.episodes import play
from marl.learning.regression import Regression, RegressionConfig, source
from marl.learning.state_log import record
from marl.models.critics import CriticConfig
from marl.models.prefix_critic import PrefixCritic
from planners.baselines import uniform_prior
from planners.read.critics import LearnedCritic
from planners.read.planner import PlannerConfig, ReadPlanner
from planners.read.reweigh import ReweighConfig, ReweighingPlanner

PAGE = (Path(__file__).parents[2] / "docs" / "planning.md").read_text()


@pytest.fixture(scope="module")
def meeting() -> Any:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Meeting" in block)
    assert len([line for line in code.splitlines() if line.strip()]) <= 40
    names: dict[str, Any] = {}
    exec(code, names)
    return names["Meeting"]()


def earned(meeting: Any, actor: Any) -> float:
    return float(play(TensorEnv(meeting, 64), actor, 64, seed=1).per_agent.mean())


def test_it_keeps_the_contract_and_reads_its_own_plans(meeting: Any) -> None:
    check_env(lambda: TensorEnv(meeting, 3))
    obs = TensorEnv(meeting, 2).reset(0)
    assert isinstance(meeting.parse("ann: left\nbob: stay", obs, 0), Decision)
    assert isinstance(meeting.parse("ann: up", obs, 0), str)
    assert re.fullmatch(r"Five cells .* Ann is at [0-4], Bob at [0-4]\.", meeting.words(obs, 1))


@pytest.mark.parametrize("plans", ["all", "steps"])
def test_a_critic_learned_from_random_play_makes_walkers_meet_without_any_language_model(
    meeting: Any, plans: Any
) -> None:
    env, config = TensorEnv(meeting, 64), RegressionConfig(rows=512, steps=8, discount=0.95)
    log = record(env, RandomActor(env.spec), 64, seed=0)
    critic = PrefixCritic(env.spec, CriticConfig(output="team"), Streams([1]))
    learner = Regression(critic, config, Streams([2]), 200)
    for _, batch in zip(range(200), source(log, config, Streams([3]))):
        learner.update(batch)
    judge = LearnedCritic(learner, batch)
    assert earned(meeting, RandomActor(env.spec)) < 2
    assert earned(meeting, ReadPlanner(meeting, uniform_prior(), judge, PlannerConfig(plans=plans))) > 4
    assert earned(meeting, ReweighingPlanner(meeting, uniform_prior(), judge, ReweighConfig(plans=plans))) > 6.5
    joint = ReweighConfig(plans=plans, mode="joint")
    assert earned(meeting, ReweighingPlanner(meeting, uniform_prior(), judge, joint)) > 6.5


def test_what_happened_is_told_as_shown(
    meeting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "write_page" in block)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"Meeting": type(meeting)}
    exec(code, names)
    steps = names["env"].steps
    assert len(capsys.readouterr().out.splitlines()) == len(steps) == names["episodes"].lengths[0] == 8
    assert sum(step.reward["meeting"] for step in steps) == names["episodes"].returns[0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["meeting.html"]
    assert (tmp_path / "meeting.html").read_text().count("<article ") == 8
