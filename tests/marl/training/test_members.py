"""Several policies of one seed: their random numbers, their rows in the log, their steps, and what a probe finds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Mortals
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from envs.core import InputError
from envs.world import TensorEnv
from marl.commands.stacking import _write_metrics
from marl.config.load import resolve
from marl.evaluation.plots import read_curve
from marl.learning.actor_critic import ActorCritic, LearnerConfig
from marl.learning.learner import Progress
from marl.learning.rollout import OnPolicy
from marl.learning.scalarization import Own
from marl.models.critics import CriticConfig, build_critic
from marl.models.policies import IndependentPolicy, PolicyConfig
from marl.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from marl.training.metrics_log import read_rows
from marl.training.policy_rows import take_policy
from marl.training.run import Run, stage_seed

NETWORK = {"network": {"hidden": (8,)}}
SMALL = LearnerConfig(steps=8, epochs=1, minibatches=2)
ROWS = 4


def new_run(folder: Path, seeds: tuple[int, ...] = (0,), members: int = 1) -> Run:
    raw = {"recipe": "marl.algorithms.mappo", "env": {"world": "small_runs:Mortals", "num_envs": ROWS}}
    return Run(folder, resolve(raw, {"device": "cpu"}), seeds, members)


class Finds:
    """A probe that finds the same every second update."""

    every = 2

    def __init__(self, **findings: float | Tensor):
        self.findings, self.called = findings, 0

    def __call__(self, update: int, learner: Any) -> dict[str, float | Tensor]:
        self.called += 1
        return self.findings

    def state_dict(self) -> dict[str, Any]:
        return {"called": self.called}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.called = state["called"]


def train(run: Run, updates: int, members: int | None = None, told: bool = True, **options: Any) -> IndependentPolicy:
    """A stage as a recipe would write it, with members where given."""
    policies = len(run.stage_seeds("policy", members))
    env = TensorEnv(Mortals(), policies * ROWS)
    policy = IndependentPolicy(env.spec, PolicyConfig.model_validate(NETWORK), run.streams("policy", members))
    critic = build_critic(env.spec, CriticConfig.model_validate(NETWORK), run.streams("critic", members))
    weigh, progress = Own(env.spec.channels), Progress(updates)
    learner = ActorCritic(policy, critic, SMALL, weigh, run.streams("minibatches", members), progress)
    source = OnPolicy(
        env,
        policy,
        steps=SMALL.steps,
        streams=run.streams("actions", members),
        seeds=run.stage_seeds("train", members),
    )
    run.fit("front", learner, source, updates, members=members if told else None, **options)
    return policy


def rows_of(run: Run) -> list[dict[str, str]]:
    return read_rows(run.folder / "metrics.csv")


def test_a_member_s_seed_depends_on_seed_name_and_number_only() -> None:
    assert stage_seed(3, "policy") == stage_seed(3, "policy", 0)
    six, twelve = (new_run(Path("unused"), (3, 1), members) for members in (6, 12))
    seeds = twelve.stage_seeds("policy")
    assert [seeds[m] for m in range(6)] + [seeds[12 + m] for m in range(6)] == six.stage_seeds("policy")
    assert seeds[0] == stage_seed(3, "policy")
    assert seeds[12] == stage_seed(1, "policy")
    assert new_run(Path("unused"), (3, 1)).stage_seeds("policy", 12) == seeds
    everything = [stage_seed(seed, name, m) for seed in range(5) for name in ("policy", "critic") for m in range(20)]
    assert len(set(everything)) == len(everything)
    assert (six.policies, twelve.policies, len(six.streams("policy", 2))) == (12, 24, 4)


def test_the_seeds_of_runs_of_one_policy_are_those_they_have_always_been() -> None:
    assert [stage_seed(0, "policy"), stage_seed(7, "minibatches")] == [8081908480458583148, 6484128452605162071]


def test_a_run_has_a_member_at_least() -> None:
    with pytest.raises(InputError, match="at least one member; got members=0"):
        new_run(Path("unused"), members=0)


def test_a_member_trains_as_it_does_in_a_smaller_population(tmp_path: Path) -> None:
    two, three = (train(new_run(tmp_path / str(m)), 3, members=m).state_dict() for m in (2, 3))
    alone = train(new_run(tmp_path / "alone"), 3).state_dict()
    for name in two:
        torch.testing.assert_close(take_policy(three, 0, 3)[name], alone[name], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(take_policy(three, 1, 3)[name], take_policy(two, 1, 2)[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("by_run", [True, False])
def test_each_member_has_its_rows_and_steps_are_told_of_one_and_of_all(tmp_path: Path, by_run: bool) -> None:
    run = new_run(tmp_path, (5,), members=3 if by_run else 1)
    train(run, 4, None if by_run else 3)
    rows = rows_of(run)
    assert list(rows[0])[:3] == ["stage", "seed", "policy"]
    assert [(row["seed"], row["policy"]) for row in rows] == [("5", str(m)) for _ in range(4) for m in range(3)]
    steps = 4 * SMALL.steps * ROWS
    assert {(row["env_steps"], row["total_env_steps"]) for row in rows[-3:]} == {(str(steps), str(3 * steps))}
    assert len({row["return_per_agent"] for row in rows[-3:]}) == 3
    used = run.used("front")
    assert (used["env_steps"], used["total_env_steps"]) == (steps, 3 * steps)
    xs, ys = read_curve(tmp_path)
    assert len(xs) == 4
    last = [float(row["return_per_agent"]) for row in rows[-3:]]
    assert ys[-1] == pytest.approx(sum(last) / 3)
    reader = EventAccumulator(str(tmp_path / "events" / "front"))
    reader.Reload()
    assert {"policy=0/kl", "policy=2/return_team"} <= set(reader.Tags()["scalars"])


def test_stages_of_one_run_may_have_different_numbers_of_members(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    train(run, 2, members=2)
    train(run, 2, members=2)  # finished: returns at once
    with pytest.raises(InputError, match=r"Stage front trains P=3 policies, 1 seed with 3 members each, .* P=2"):
        train(run, 4, members=3)


def test_batches_of_another_number_of_policies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trains P=1 policies, 1 seed with 1 member each, .* P=2.*members=M"):
        train(new_run(tmp_path), 2, members=2, told=False)


def test_terms_of_another_number_of_policies_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = ActorCritic.update

    def wrong(self: ActorCritic, batch: Any) -> dict[str, Tensor]:
        return {**update(self, batch), "extra": torch.ones(3)}

    monkeypatch.setattr(ActorCritic, "update", wrong)
    with pytest.raises(InputError, match="logs extra with 3 values, and 2 policies"):
        train(new_run(tmp_path), 2, members=2)


def test_what_a_probe_finds_is_logged_once_or_once_a_policy(tmp_path: Path) -> None:
    run = new_run(tmp_path, (5,))
    probe = Finds(hypervolume=2.5, best=torch.tensor([1.0, 4.0]))
    train(run, 4, members=2, probes=[probe])
    assert probe.called == 2
    rows = rows_of(run)
    about_all = [row for row in rows if row["hypervolume"]]
    assert [(row["seed"], row["policy"], row["updates"]) for row in about_all] == [("5", "", "2"), ("5", "", "4")]
    assert {row["agent_steps"] for row in about_all} == {""}, "which is a policy's own"
    assert {row["total_env_steps"] for row in about_all} == {str(2 * n * SMALL.steps * ROWS) for n in (2, 4)}
    by_policy = [(row["policy"], row["best"]) for row in rows if row["best"]]
    assert by_policy == [("0", "1"), ("1", "4")] * 2
    reader = EventAccumulator(str(tmp_path / "events" / "front"))
    reader.Reload()
    assert {"hypervolume", "policy=1/best"} <= set(reader.Tags()["scalars"])
    with pytest.raises(InputError, match=r"found best of shape \[3\], and 2 policies"):
        train(new_run(tmp_path / "wrong"), 2, members=2, probes=[Finds(best=torch.zeros(3))])


def test_what_a_probe_finds_about_the_only_policy_is_in_its_own_row(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    train(run, 2, probes=[Finds(hypervolume=2.5)])
    (row,) = [row for row in rows_of(run) if row["hypervolume"]]
    assert (row["seed"], row["policy"]) == ("0", "0")
    assert row["agent_steps"]


def test_seeds_trained_as_one_part_with_their_members_and_with_what_was_found_about_all(tmp_path: Path) -> None:
    stack = new_run(tmp_path / "stack", (5, 6))
    train(stack, 2, members=2, probes=[Finds(hypervolume=2.5)])
    (common,) = [row for row in rows_of(stack) if row["hypervolume"]]
    assert (common["seed"], common["policy"]) == ("", "")
    for seed in (5, 6):
        _write_metrics(stack.folder, tmp_path / str(seed), seed)
        rows = read_rows(tmp_path / str(seed) / "metrics.csv")
        assert {row["seed"] for row in rows} == {str(seed)}
        assert [row["policy"] for row in rows] == ["0", "1", "", "0", "1"]
        reader = EventAccumulator(str(tmp_path / str(seed) / "events" / "front"))
        reader.Reload()
        assert {"hypervolume", "policy=1/kl"} <= set(reader.Tags()["scalars"])
    assert read_rows(stack.folder / "metrics.csv")[0]["total_env_steps"] == str(2 * SMALL.steps * ROWS)


def test_a_run_begun_before_there_were_members_goes_on(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    train(run, 2)
    path = tmp_path / "metrics.csv"
    rows = [{k: v for k, v in row.items() if k not in ("policy", "total_env_steps")} for row in rows_of(run)]
    path.write_text("\n".join(",".join(line) for line in (rows[0].keys(), *(row.values() for row in rows))) + "\n")
    assert len(read_curve(tmp_path)[0]) == 2
    train(run, 4)
    after = rows_of(run)
    assert [row["policy"] for row in after] == ["0"] * 4
    assert [bool(row["total_env_steps"]) for row in after] == [False, False, True, True]
    state = load_checkpoint(checkpoints(tmp_path / "checkpoints" / "front")[-1])
    assert state["used"][0]["updates"] == 4


def test_a_stage_that_goes_on_keeps_all_that_tensorboard_has_shown(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    train(run, 2)
    train(run, 4)
    reader = EventAccumulator(str(tmp_path / "events" / "front"))
    reader.Reload()
    assert [event.step for event in reader.Scalars("kl")] == [n * SMALL.steps * ROWS for n in (1, 2, 3, 4)]


def test_clocks_and_each_policy_s_steps_go_on_from_where_they_stood(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    train(run, 2, members=2)
    newest = checkpoints(tmp_path / "checkpoints" / "front")[-1]
    state = load_checkpoint(newest)
    state["used"] = [
        {**counts, "wall_seconds": 1000.0, "cpu_seconds": 2000.0, "agent_steps": 1e6 * (member + 1)}
        for member, counts in enumerate(state["used"])
    ]
    shutil.rmtree(newest)
    save_checkpoint(newest, state)
    train(run, 4, members=2)
    used = load_checkpoint(checkpoints(newest.parent)[-1])["used"]
    for member, counts in enumerate(used):
        assert 1000 < counts["wall_seconds"] < 1500
        assert 2000 < counts["cpu_seconds"] < 2500
        assert 1e6 * (member + 1) < counts["agent_steps"] < 1e6 * (member + 1) + 1000
