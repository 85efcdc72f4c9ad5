"""Arguments of the world that differ in evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from meetings import Meeting
from small_runs import SMALL_CONFIG

from envs.core import InputError
from envs.world import TensorEnv
from marl.commands.evaluate import evaluate_folder
from marl.commands.run import run_training
from marl.config.load import resolve
from marl.evaluation.environments import make_evaluation_env
from marl.evaluation.load import load_actor
from marl.training.run import Run

CONFIG: dict[str, Any] = {
    **SMALL_CONFIG,
    "env": {"world": "meetings:Meeting", "num_envs": 4, "args": {"varied": False}},
    "evaluation": {"episodes": 16, "film_episodes": 0, "args": {"varied": True}},
}


def is_varied(env: Any) -> bool:
    assert isinstance(env, TensorEnv)
    assert isinstance(env.world, Meeting)
    return env.world.varied


def test_a_team_is_judged_and_played_where_evaluations_differ(tmp_path: Path) -> None:
    report = run_training(resolve(CONFIG, {}), tmp_path / "run")
    # Prizes of 1 and 2 make returns of three steps spread; those of training would be 3 at most, and .5 a step.
    again, _ = evaluate_folder(tmp_path / "run", ["evaluation.args.varied=false"])
    assert report.metrics["return_per_agent/meet"].value > 1.2 * again.metrics["return_per_agent/meet"].value
    _, env = load_actor(Run.open(tmp_path / "run"), 2)
    assert is_varied(env)
    with pytest.raises(InputError, match=r"env.args.varied changes nothing here.*evaluation.args.varied=True"):
        evaluate_folder(tmp_path / "run", ["env.args.varied=false"])


def test_evaluations_have_a_time_limit_of_their_own(tmp_path: Path) -> None:
    settings = {"env.args.horizon": None, "env.time_limit": 2, "evaluation.time_limit": 5}
    report = run_training(resolve(CONFIG, settings), tmp_path / "run")
    assert report.metrics["episode_length"].value == 5
    again, _ = evaluate_folder(tmp_path / "run", ["evaluation.time_limit=4"])
    assert again.metrics["episode_length"].value == 4
    with pytest.raises(InputError, match=r"set evaluation.time_limit"):
        evaluate_folder(tmp_path / "run", ["env.time_limit=4"])
    foreign = {"env": {"pettingzoo": "mpe2.simple_spread_v3:parallel_env"}, "evaluation": {"time_limit": 4}}
    with pytest.raises(InputError, match=r"evaluation.time_limit is for native worlds"):
        run_training(resolve({"recipe": "marl.algorithms.mappo", **foreign}, {}), tmp_path / "other")


def test_without_such_arguments_evaluations_are_in_the_world_of_training() -> None:
    config = resolve(CONFIG, {"evaluation.args": {}})
    assert not is_varied(make_evaluation_env(config))
    assert make_evaluation_env(config).num_envs == 16


@pytest.mark.parametrize(
    ("args", "reason"),
    [({"agents": 3}, "make another task"), ({"horizon": 4}, "make another task"), ({"variedd": 1}, "variedd")],
)
def test_another_task_is_refused_before_training(args: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        run_training(resolve(CONFIG, {"evaluation.args": args}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
