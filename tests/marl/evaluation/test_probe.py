"""Evaluation while training: what is logged, which policy is kept, and that training never notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import SMALL_CONFIG
from torch import Tensor

from envs.core import InputError, Streams, tree_map
from marl.algorithms.mappo import recipe
from marl.commands.evaluate import evaluate_folder, render_folder
from marl.commands.run import run_training
from marl.commands.sweep import resume_folder
from marl.config.load import resolve
from marl.evaluation.plots import read_curve
from marl.evaluation.policy_report import played
from marl.evaluation.probe import EvaluationProbe, best_policy, rows_where, weighted_returns
from marl.learning.actor_critic import ActorCritic
from marl.models.policies import IndependentPolicy
from marl.training.checkpoints import checkpoints, load_checkpoint
from marl.training.environments import make_env
from marl.training.metrics_log import read_rows
from marl.training.policy_rows import take_policy
from marl.training.run import Run

RAW: dict[str, Any] = {
    **SMALL_CONFIG,
    "learner": {"steps": 8, "learning_rate": 0.05},
    "train": {"env_steps": 320, "save_seconds": 0},
    "evaluation": {"episodes": 16, "film_episodes": 0, "every": 3, "during_episodes": 32},
}


def newest(folder: Path) -> dict[str, Any]:
    return load_checkpoint(checkpoints(folder / "checkpoints" / "train")[-1])


def tensors(tree: Any) -> list[Tensor]:
    leaves: list[Tensor] = []
    tree_map(leaves.append, tree)
    return leaves


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe") / "run"
    run_training(resolve(RAW, {}), folder)
    return folder


def test_evaluations_are_logged_and_the_best_policy_is_kept(trained: Path) -> None:
    rows = [row for row in read_rows(trained / "metrics.csv") if row["evaluation/return_per_agent"]]
    assert sorted({int(row["updates"]) for row in rows}) == [3, 6, 9]
    assert all(row["evaluation/return_per_agent/bet"] for row in rows)
    returns = [float(row["evaluation/return_per_agent"]) for row in rows]
    (probe,) = newest(trained)["probes"]
    assert float(probe["value"]) == pytest.approx(max(returns), abs=1e-6)
    assert len(read_curve(trained, y="evaluation/return_per_agent")[1]) == 3
    # What was kept plays as it did then.
    run = Run.open(trained)
    env = make_env(run.config.env, num_envs=32)
    policy = IndependentPolicy(env.spec, run.config.policy, Streams([0]))
    policy.load_state_dict(best_policy(run))
    again = played(run, env, policy, 32, "evaluation during training").per_agent
    assert again.mean() == pytest.approx(max(returns), abs=1e-6)


def test_training_is_the_same_with_evaluations_and_without(trained: Path, tmp_path: Path) -> None:
    run_training(resolve(RAW, {"evaluation.every": None}), tmp_path / "run")
    one, other = (newest(folder)["learner"] for folder in (trained, tmp_path / "run"))
    assert same(dict(one["policy"]), dict(other["policy"]))


@pytest.mark.parametrize("updates", [4, 6])
def test_a_resumed_run_has_the_same_evaluations_and_the_same_best(
    updates: int, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, count = ActorCritic.update, [0]

    def update(self: ActorCritic, batch: Any) -> Any:
        count[0] += 1
        if count[0] > updates:
            raise KeyboardInterrupt
        return whole(self, batch)

    monkeypatch.setattr(ActorCritic, "update", update)
    with pytest.raises(KeyboardInterrupt):
        run_training(resolve(RAW, {}), tmp_path / "run")
    monkeypatch.undo()
    resume_folder(tmp_path / "run")
    assert same(newest(tmp_path / "run")["probes"][0], newest(trained)["probes"][0])
    tables = [read_curve(folder, y="evaluation/return_per_agent") for folder in (trained, tmp_path / "run")]
    assert tables[0] == tables[1]


def test_the_best_policy_is_judged_played_and_filmed_where_that_is_asked(trained: Path, tmp_path: Path) -> None:
    report = run_training(resolve(RAW, {"evaluation.load": "best"}), tmp_path / "run")
    by_command, _ = evaluate_folder(trained, ["evaluation.load=best"])
    assert by_command.metrics["return_per_agent"] == report.metrics["return_per_agent"]
    last, _ = evaluate_folder(tmp_path / "run", ["evaluation.load=last"])
    again, _ = evaluate_folder(trained, [])
    assert last.metrics["return_per_agent"] == again.metrics["return_per_agent"]
    run = Run.open(tmp_path / "run")
    actor, _ = recipe.load(run, 1)
    assert isinstance(actor, IndependentPolicy)
    assert same(dict(actor.state_dict()), best_policy(run))
    with pytest.raises(InputError, match="no picture"):
        render_folder(tmp_path / "run")


def test_a_best_policy_that_nobody_looked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"evaluation\.load=best needs evaluations while training"):
        resolve(RAW, {"evaluation.every": None, "evaluation.load": "best"})
    with pytest.raises(InputError, match=r"evaluation\.every: 11 updates are more than the 10"):
        run_training(resolve(RAW, {"evaluation.every": 11}), tmp_path / "late")
    assert not (tmp_path / "late").exists()
    config = resolve(RAW, {"evaluation.load": "best"})
    with pytest.raises(InputError, match="has not been evaluated in its training yet"):
        best_policy(Run(tmp_path / "none", config))


def test_each_of_several_policies_has_its_own_returns_and_its_own_best(tmp_path: Path) -> None:
    config = resolve(RAW, {})
    seeds = (4, 5)
    run = Run(tmp_path / "both", config, seeds)
    env = make_env(config.env, num_envs=1)

    def probe_of(run: Run) -> EvaluationProbe:
        policy = recipe.policy(config, env.spec, run.streams("policy"))
        return EvaluationProbe(run, policy, policy)

    def spoil(probe: EvaluationProbe, policy: int) -> None:
        """Make one policy's parameters worse or better than they were."""
        with torch.no_grad():
            for parameter in probe.policy.parameters():
                parameter[policy] += 1.5

    together, alone = probe_of(run), [probe_of(Run(tmp_path / str(seed), config, (seed,))) for seed in seeds]
    for update in (3, 6, 9):
        found = together(update, None)
        singles = [probe(update, None) for probe in alone]
        for name in singles[0]:
            assert found[name].tolist() == pytest.approx([single[name] for single in singles], abs=1e-5)
        spoil(together, update % 2)
        spoil(alone[update % 2], 0)
    state = {"probes": [together.state_dict()], "used": [{"cpu_seconds": 1.0}] * 2}
    for place, single in enumerate(alone):
        part = take_policy(state, place, 2)["probes"][0]
        assert part["value"].tolist() == pytest.approx(single.value.tolist(), abs=1e-5)
        for one, other in zip(tensors(part["best_policy"]), tensors(single.best), strict=True):
            torch.testing.assert_close(one, other)


def test_members_of_a_seed_have_their_own_returns_and_uneven_ones_are_refused(tmp_path: Path) -> None:
    config = resolve(RAW, {})
    run, env = Run(tmp_path, config), make_env(config.env, num_envs=1)

    def found(members: int) -> Any:
        policy = recipe.policy(config, env.spec, run.streams("policy", members))
        return EvaluationProbe(run, policy, policy)(3, None)["evaluation/return_per_agent"]

    assert found(2)[0] == pytest.approx(found(1), abs=1e-5)
    assert found(2)[0] != found(2)[1]
    three = recipe.policy(config, env.spec, run.streams("policy", 3))
    with pytest.raises(InputError, match=r"as many policies of each seed; got P=3 for 2 seeds.*members=M"):
        EvaluationProbe(Run(tmp_path, config, (0, 1)), three, three)


@pytest.mark.parametrize(
    ("advantage", "wanted"), [({}, 7.0), ({"weights": [1, 0.5]}, 5.0), ({"weights_end": [-1, 2]}, 5.0)]
)
def test_the_best_is_by_the_weights_of_channels_at_the_end(advantage: dict[str, Any], wanted: float) -> None:
    config = resolve({**RAW, "advantage": advantage}, {})
    assert weighted_returns(config, np.array([[2.0, 5.0], [4.0, 3.0]])).mean() == wanted


def test_a_policy_s_rows_are_replaced_alone() -> None:
    new, old = {"a": torch.ones(4, 2), "b": torch.tensor(1.0)}, {"a": torch.zeros(4, 2), "b": torch.tensor(0.0)}
    mixed = rows_where(torch.tensor([False, True]), new, old)
    assert mixed["a"][:, 0].tolist() == [0, 0, 1, 1]
    assert mixed["b"] == 1
    assert rows_where(torch.tensor([False, False]), new, old)["b"] == 0


def test_a_resumed_probe_keeps_a_best_that_is_not_reached_again(tmp_path: Path) -> None:
    config = resolve(RAW, {})
    run, env = Run(tmp_path, config), make_env(config.env, num_envs=1)
    policy = recipe.policy(config, env.spec, run.streams("policy"))
    first, resumed = (EvaluationProbe(run, policy, policy) for _ in range(2))
    first(3, None)
    best = tree_map(torch.clone, first.best)
    resumed.load_state_dict({**first.state_dict(), "value": first.value + 100})
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 1
    resumed(6, None)
    assert same(resumed.best, best)
    assert torch.equal(resumed.value, first.value + 100)


def test_what_is_found_of_the_channels_adds_up_to_the_whole(tmp_path: Path) -> None:
    config = resolve(RAW, {})
    run, env = Run(tmp_path, config), make_env(config.env, num_envs=1)
    policy = recipe.policy(config, env.spec, run.streams("policy"))
    found = EvaluationProbe(run, policy, policy)(3, None)
    bet, age = (found[f"evaluation/return_per_agent/{channel}"] for channel in ("bet", "age"))
    assert bet + age == pytest.approx(found["evaluation/return_per_agent"])
    assert age > 1 > bet
