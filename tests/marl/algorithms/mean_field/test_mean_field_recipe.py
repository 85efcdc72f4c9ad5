"""Dec-POMFPPO from config to report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_swarm import Drift, build

from envs.core import InputError
from envs.world import TensorEnv
from marl.algorithms.mean_field import recipe, steepest
from marl.algorithms.mean_field.policy import MeanRule
from marl.commands.evaluate import evaluate_folder
from marl.commands.run import run_training
from marl.config.load import resolve
from marl.evaluation.episodes import play_policies
from marl.training.run import Run

RAW: dict[str, Any] = {
    "recipe": "marl.algorithms.mean_field",
    "env": {"world": "small_swarm:Drift", "args": {"agents": 5}, "num_envs": 8},
    "policy": {"network": {"hidden": [8]}, "rule": {"low": -2.0, "high": 2.0}},
    "learner": {"steps": 10},
    "train": {"env_steps": 160},
    "evaluation": {"episodes": 32, "num_envs": 16, "film_episodes": 0},
}


def config(**changes: Any) -> Any:
    return resolve(RAW, {"device": "cpu", **changes})


def test_the_report_has_the_swarm_as_it_is_executed_and_how_steep_its_rule_is(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config())
    report = recipe.run(run.config, run)
    metrics = report.metrics
    for name in ("return_per_agent", "mode/return_per_agent", "sampled_rule/return_per_agent"):
        assert metrics[name].value < 0
    swarm, _ = recipe.load(run, 4)
    assert isinstance(swarm, MeanRule)
    assert metrics["rule/lipschitz"].value == pytest.approx(steepest(run, swarm), rel=1e-5)
    assert metrics["rule/lipschitz"].value > 0
    again, _ = evaluate_folder(run.folder, ["env.args.agents=11", "evaluation.episodes=32"])
    assert again.metrics["return_per_agent"].value != metrics["return_per_agent"].value


def test_a_team_s_critic_and_no_entropy_bonus_are_the_defaults_also_where_sections_are_given() -> None:
    found = config(**{"critic.network.hidden": [8], "learner.epochs": 3})
    assert (found.critic.output, found.learner.entropy, found.advantage.kind) == ("team", 0.0, "team")
    assert resolve(found.model_dump(mode="json"), {}) == found


def test_two_seeds_trained_as_one_are_two_runs(tmp_path: Path) -> None:
    settings = config()
    together = recipe.train(settings, Run(tmp_path / "both", settings, [0, 1]))
    for seed in (0, 1):
        single = config(seed=seed)
        alone = recipe.train(single, Run(tmp_path / str(seed), single))
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(together.state_dict()[name][seed], value[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy.rule.bandwidth": 0}, "bandwidth must be positive"),
        ({"policy.rule.points": 0}, r"policy\.rule\.points"),
        ({"policy.rule.kind": "spline"}, r"policy\.rule\.kind"),
        ({"policy.rule.low": [0, 0, 0]}, "for each of the 1 features"),
        ({"policy.rule.low": 3}, "must be below"),
        ({"policy.rule_std": 0}, r"policy\.rule_std"),
        ({"policy.sees": "time", "env.args.horizon": None, "env.time_limit": 5}, "needs a clock"),
        ({"policy.agent_id": True}, "follow one rule"),
        ({"critic.sees": "agent"}, "sees: state"),
        ({"env.world": "worlds:Walk", "env.args": {}, "env.time_limit": 5}, "different kinds"),
    ],
)
def test_bad_configs_are_told_and_take_no_folder(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run_training(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


LEARNS = {
    "rules drawn": {},
    "agents explore": {"explore": "agent"},
    "rules drawn, by the clock": {"sees": "time"},
    "rules drawn, at all times the same": {"sees": "nothing"},
    "rules drawn, neural": {"rule": {"kind": "neural", "low": -2.0, "high": 2.0}},
    "agents explore, neural": {"explore": "agent", "rule": {"kind": "neural", "low": -2.0, "high": 2.0}},
}
QUICK = list(LEARNS)[:2]


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in list(LEARNS)[2:])])
def test_a_swarm_learns_to_stay_near_the_origin(name: str) -> None:
    """Within 15 % of the Riccati optimum, -2.44; what training begins with earns worse than -50.

    Neural rules of agents who explore come within 8 to 20 %, by seed.
    """
    seeds, share = (range(9), 1.2) if name == "agents explore, neural" else (range(3), 1.15)
    assert Drift().best() * share < learned(LEARNS[name], seeds) < Drift().best() * 0.97


def learned(policy: dict[str, Any], seeds: Sequence[int]) -> float:
    """What a swarm of 20 earns with the mean rule after 36,000 steps: the median of these seeds, trained as one."""
    world, network = Drift(), {"network": {"hidden": (32,)}}
    policy = {**network, "rule": {"low": -2.0, "high": 2.0}, **policy}
    settings = {"epochs": 2, "minibatches": 4, "learning_rate": 5e-3, "learning_rate_end": 3e-4}
    small = build(world, 60, seeds=seeds, policy=policy, critic=network, updates=60, **settings)
    small.train(60)
    env = TensorEnv(world, 100 * len(seeds))
    return float(
        np.median([p.per_agent.mean() for p in play_policies(env, MeanRule(small.policy), 400, [7] * len(seeds))])
    )
