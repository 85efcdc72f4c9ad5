"""An algorithm of a user's own, outside the repository: three rewards, a critic for each, a scalarization with a state.

It runs, resumes and stacks as if it belonged to Concord.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import assert_close

from marl.config.load import dump, load_recipe, resolve
from marl.training.checkpoints import checkpoints, load_checkpoint
from marl.training.policy_rows import take_policy
from marl.training.run import Run

ROOT = Path(__file__).parents[3]
MODULE = '''"""PPO with three critics, whose advantages count by a running deviation of their own."""

import dataclasses

import torch

from envs.particles import SimpleSpread
from marl.evaluation.recipe import OnPolicyRecipe
from marl.learning.scalarization import AdvantageConfig, Scalarization
from marl.output.report import Metric
from marl.training.on_policy import ActorCriticConfig


class ThreeRewards(SimpleSpread):
    """simple_spread, with a price of moving, and of moving upward."""

    def __init__(self, agents: int = 3):
        super().__init__(agents)
        self.spec = dataclasses.replace(self.spec, channels=("spread", "effort", "up"))

    def transition(self, state, action, noise):
        step = super().transition(state, action, noise)
        effort, up = -(action != 0).float(), -(action == 4).float()
        return step._replace(reward=torch.cat([step.reward, effort, up], -1))


class Balanced(Scalarization):
    """Σ_k w_k A_k / d_k, with d_k a running root mean square of A_k, by policy."""

    def __init__(self, channels, config, **rest):
        super().__init__(channels, config, **rest)
        self.square = torch.ones(self.policies, len(channels), device=self.device)

    def __call__(self, advantage, batch):
        rows = advantage.unflatten(0, (self.policies, -1))
        self.square = self.square.lerp(rows.square().mean((1, 2)), self.config.args["rate"])
        return self.weighed((rows / self.square.sqrt()[:, None, None]).flatten(0, 1))

    def state_dict(self):
        return {"square": self.square}

    def load_state_dict(self, state):
        self.square = state["square"]


class Config(ActorCriticConfig):
    advantage: AdvantageConfig = AdvantageConfig(
        kind="balanced:Balanced", weights=(1, 0.5, 0.5), weights_end=(1, 0, 0), args={"rate": 0.2}
    )


class BalancedPPO(OnPolicyRecipe):
    config = Config

    def findings(self, run, actor, env):
        deviations = run.load("train", "scalarization")["square"].sqrt()[0]
        return {f"deviation/{name}": Metric.exact(float(d)) for name, d in zip(env.spec.channels, deviations)}, {}


recipe = BalancedPPO()
'''
CONFIG = """
recipe: balanced
env: {world: "balanced:ThreeRewards", time_limit: 25, num_envs: 4}
learner: {discount: [0.95, 0.9, 0.0], steps: 25, epochs: 2, normalize_advantages: false}
evaluation: {episodes: 8, num_envs: 4, film_episodes: 0}
train: {env_steps: 600, save_seconds: 0}
policy: {network: {hidden: [16]}}
critic: {network: {hidden: [16]}}
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "balanced.py").write_text(MODULE)
    (tmp_path / "balanced.yaml").write_text(CONFIG)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("balanced", None)


def test_it_is_short() -> None:
    assert len([line for line in MODULE.splitlines() if line.strip()]) <= 60


def test_it_runs_and_is_evaluated_from_the_command_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in (["run", "balanced.yaml", "--out", "out"], ["evaluate", "out", "evaluation.episodes=4"]):
        command = [sys.executable, "-m", "marl", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    assert '"deviation/effort"' in (tmp_path / "out" / "report.json").read_text()


def config(**changes: Any) -> Any:
    import yaml

    return resolve(yaml.safe_load(CONFIG), {"device": "cpu", **changes})


def learned(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = load_checkpoint(checkpoints(folder / "checkpoints" / "train")[-1])["learner"]
    return state


def test_it_is_resumed_exactly_with_the_scalarization_s_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe: Any = load_recipe("balanced")
    recipe.train(config(), Run(tmp_path / "whole", config()))
    weigh, calls = sys.modules["balanced"].Balanced.__call__, []

    def dies(*given: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("killed")
        return weigh(*given)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["balanced"].Balanced, "__call__", dies)
        with pytest.raises(RuntimeError, match="killed"):
            recipe.train(config(), Run(tmp_path / "cut", config()))
    (tmp_path / "cut" / "config.yaml").write_text(dump(config()))
    saved = learned(tmp_path / "cut")
    assert saved["done"] == 3
    run = Run.open(tmp_path / "cut")
    recipe.train(run.config, run)
    whole, cut = learned(tmp_path / "whole"), learned(tmp_path / "cut")
    assert not torch.equal(saved["scalarization"]["square"], cut["scalarization"]["square"])
    for part in ("policy", "critic", "scalarization", "optimizer"):
        assert_close(cut[part], whole[part])


def test_seeds_trained_as_one_are_each_as_alone(tmp_path: Path) -> None:
    recipe: Any = load_recipe("balanced")
    short = config(**{"train.env_steps": 200})
    recipe.train(short, Run(tmp_path / "together", short, (0, 1, 2)))
    state = load_checkpoint(checkpoints(tmp_path / "together" / "checkpoints" / "train")[-1])
    for place in range(3):
        recipe.train(short, Run(tmp_path / f"{place}", short, (place,)))
        mine = take_policy(state["learner"], place, 3)
        alone = learned(tmp_path / f"{place}")
        for part in ("policy", "critic", "scalarization"):
            assert_close(mine[part], alone[part], 1e-4)
