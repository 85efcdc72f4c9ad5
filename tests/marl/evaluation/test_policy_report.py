"""What a trained team is compared with."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import fake_vmas
import pytest

from envs.core import Actor, ConcordError, InputError, VectorEnv
from envs.swarm import LinearQuadratic
from envs.swarm.riccati import LinearRule
from envs.world import RandomActor
from marl.__main__ import main
from marl.commands.evaluate import evaluate_folder
from marl.commands.run import run_training
from marl.config.load import resolve
from marl.config.recipe import Recipe
from marl.config.schema import TrainingConfig
from marl.evaluation.policy_report import judge
from marl.output.report import Report
from marl.training.environments import make_env
from marl.training.run import Run

SMALL = ["learner.steps=16", "policy.network.hidden=[8]", "critic.network.hidden=[8]"]


def metrics_of(words: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    monkeypatch.setattr(sys, "argv", ["concord", "run", *words, *SMALL, "--out", str(out)])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    found: dict[str, dict[str, float]] = json.loads((out / "report.json").read_text())["metrics"]
    return found


def test_random_play_is_reported_beside_with_the_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["cooperative/climbing", "train.env_steps=4096", "evaluation.random=true", "evaluation.episodes=1024"]
    metrics = metrics_of(words, tmp_path / "out", monkeypatch)
    here, there, gap = (metrics[name] for name in ("return_per_agent", "random/return_per_agent", "above_random"))
    assert there["value"] == pytest.approx(-31 / 9, abs=2)  # the mean of nine payoffs between -30 and 11
    assert gap["value"] == pytest.approx(here["value"] - there["value"])
    half = gap["value"] - gap["low"]
    assert half < math.hypot(here["value"] - here["low"], there["value"] - there["low"]), "random numbers are common"
    assert metrics["above_random_in_intervals"]["value"] == pytest.approx(gap["value"] / half)


def test_a_swarm_without_control_is_reported_beside(tmp_path: Path) -> None:
    env = {"world": "envs.swarm:LinearQuadratic", "args": {"agents": 20, "horizon": 5}, "num_envs": 8}
    raw = {"recipe": "marl.algorithms.mappo", "env": env, "learner": {"steps": 5}, "train": {"env_steps": 80}}
    settings = {"evaluation.zero_action": True, "evaluation.episodes": 512, "evaluation.film_episodes": 0}
    metrics = run_training(resolve(raw, settings), tmp_path / "run").metrics
    cost = LinearQuadratic(20, 5).problem.cost(LinearRule([0.0] * 5, [0.0] * 5), 20)
    assert metrics["zero_action/return_per_agent"].low < -cost < metrics["zero_action/return_per_agent"].high
    here, there, gap = (
        metrics[name] for name in ("return_per_agent", "zero_action/return_per_agent", "above_zero_action")
    )
    assert gap.value == pytest.approx(here.value - there.value)
    assert gap.high - gap.low < 0.9 * math.hypot(here.high - here.low, there.high - there.low), "starts are common"
    with pytest.raises(InputError, match=r"evaluation\.zero_action plays the action 0"):
        run_training(resolve({**raw, "env": {"world": "envs.swarm:SIS"}}, settings), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("continuous", ["false", "true"])
def test_a_vmas_task_is_trained_and_judged_from_its_config(
    continuous: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_vmas.install(monkeypatch)
    env = "env={vmas: meeting, args: {agents: 2, continuous_actions: " + continuous + "}, time_limit: 8, num_envs: 8}"
    words = ["cooperative/vmas_balance", "recipe=marl.algorithms.bnpg", "policy.graph.kind=complete", env]
    metrics = metrics_of([*words, "train.env_steps=512", "evaluation.episodes=64"], tmp_path / "out", monkeypatch)
    assert metrics["env_steps"]["value"] == 512
    assert 1 < metrics["episode_length"]["value"] <= 8
    assert metrics["return_per_agent"]["n"] == 64
    assert {"above_random", "empty/return_per_agent"} <= set(metrics)


def test_returns_that_are_no_numbers_are_no_result(tmp_path: Path) -> None:
    """Noise beyond what a number can hold ends training, and evaluation of what was trained without it."""
    raw = {
        "recipe": "marl.algorithms.mean_field",
        "env": {"world": "small_swarm:Drift", "args": {"agents": 3}, "num_envs": 8},
        "policy": {"network": {"hidden": [8]}},
        "learner": {"steps": 10},
        "train": {"env_steps": 160},
        "evaluation": {"episodes": 8, "num_envs": 8, "film_episodes": 0},
    }
    run_training(resolve(raw, {"device": "cpu"}), tmp_path / "run")
    with pytest.raises(ConcordError, match="Returns of the reward team are NaN or infinite"):
        evaluate_folder(tmp_path / "run", ["env.args.noise=1e38"])
    assert not list((tmp_path / "run").glob("evaluations/*"))
    with pytest.raises(ConcordError, match=r"Training stopped at update 1: .* became NaN or infinite"):
        run_training(resolve(raw, {"device": "cpu", "env.args.noise": 1e38}), tmp_path / "broken")


class RandomTeam(Recipe):
    """A recipe that trains nobody: `load` gives a plain Actor, which has no distribution and cannot be called."""

    config = TrainingConfig

    def run(self, config: Any, run: Run) -> Report:
        run.begin()
        actor, env = self.load(run, 1)
        env.close()
        return judge(run, actor)

    def load(self, run: Run, num_envs: int) -> tuple[Actor, VectorEnv]:
        env = make_env(run.config.env, num_envs=num_envs, device=run.device)
        return RandomActor(env.spec), env


recipe = RandomTeam()


def test_a_plain_actor_is_judged_and_played_without_a_mode(tmp_path: Path) -> None:
    raw = {
        "recipe": "tests.marl.evaluation.test_policy_report",
        "env": {"world": "envs.games:climbing"},
        "evaluation": {"episodes": 64, "film_episodes": 0, "random": True},
    }
    metrics = run_training(resolve(raw, {"device": "cpu"}), tmp_path / "run").metrics
    assert (metrics["above_random"].value, metrics["above_random"].high) == (0, 0)
    assert not any(name.startswith(("mode/", "discounted")) for name in metrics)
    report, _ = evaluate_folder(tmp_path / "run", ["evaluation.episodes=32"])
    assert report.metrics["return_per_agent"].n == 32
    assert not any(name.startswith("mode/") for name in report.metrics)


def test_returns_are_reported_with_the_learner_s_discount_of_each_channel(tmp_path: Path) -> None:
    raw = {
        "recipe": "marl.algorithms.mappo",
        "env": {"world": "small_runs:Mortals", "num_envs": 4},
        "policy": {"network": {"hidden": [8]}},
        "critic": {"network": {"hidden": [8]}},
        "learner": {"steps": 8, "discount": [1.0, 0.0]},
        "train": {"env_steps": 32},
        "evaluation": {"episodes": 16, "film_episodes": 0},
    }
    metrics = run_training(resolve(raw, {"device": "cpu"}), tmp_path / "run").metrics
    assert metrics["discounted_return_per_agent/bet"] == metrics["return_per_agent/bet"]
    assert metrics["discounted_return_per_agent/age"].value == 1
    whole = metrics["return_per_agent/bet"].value + 1
    assert metrics["discounted_return_per_agent"].value == pytest.approx(whole)
    assert "mode/discounted_return_per_agent" in metrics
