"""A graph's density is held to a plan: the price answers to what exceeds it, and the bonus fades."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import assert_close

from envs.core import InputError, Streams
from envs.games import CopyGame, climbing
from envs.world import TensorEnv, World
from marl.algorithms.bnpg import Config, recipe
from marl.algorithms.bnpg.policy import BayesianPolicy, BayesianPolicyConfig
from marl.algorithms.bnpg.schedule import GraphSchedule, ScheduleConfig
from marl.config.load import resolve
from marl.learning.actor_critic import ActorCritic, LearnerConfig
from marl.learning.batch import Batch
from marl.learning.learner import Progress
from marl.learning.rollout import OnPolicy
from marl.learning.scalarization import Team
from marl.models.critics import CriticConfig, build_critic
from marl.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from marl.training.run import Run
from tests.marl.algorithms.bnpg.test_bnpg_policy import LEARNED

UPDATES = 10
PLAN = {"kind": "anneal", "begin": 0.2, "end": 0.6}


def scheduled(
    graph: dict[str, Any], schedule: dict[str, Any], seeds: tuple[int, ...] = (0,), world: World[Any] | None = None
) -> tuple[GraphSchedule, BayesianPolicy, Batch]:
    """A schedule of ten updates, its policy, and a batch of what that policy does."""
    env = TensorEnv(world or climbing(), 8 * len(seeds))
    config = BayesianPolicyConfig.model_validate({"network": {"hidden": (8,)}, "graph": graph})
    policy = BayesianPolicy(env.spec, config, Streams(seeds))
    batch = next(iter(OnPolicy(env, policy, steps=4, streams=Streams(seeds), seeds=seeds)))
    return GraphSchedule(policy, ScheduleConfig.model_validate(schedule), UPDATES), policy, batch


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_a_random_graph_thins_out_from_its_own_density_to_the_budget(density: float) -> None:
    schedule, policy, batch = scheduled({"kind": "random", "density": density}, {**PLAN, "edges": 0.25})
    found = []
    for _ in range(UPDATES):
        schedule.update(batch)
        found.append(float(policy.density))
    fallen = [0.0, 0.0, 0.25, 0.5, 0.75] + [1.0] * 5
    assert found == pytest.approx([density - (density - 0.25) * share for share in fallen])


def test_the_price_rises_while_there_are_more_edges_than_planned_and_falls_while_there_are_fewer() -> None:
    schedule, policy, batch = scheduled({**LEARNED, "price": 0.1}, {**PLAN, "edges": 0, "rate": 0.5})
    generator = policy.generator
    assert generator is not None
    prices = [float(schedule.update(batch)["graph_price"]) for _ in range(UPDATES)]
    with torch.no_grad():
        density = float(generator(batch.obs).density().mean())
    excess, wanted = 0.0, []
    for update in range(1, UPDATES + 1):
        plan = 1 - min(1.0, max(0.0, (update / UPDATES - 0.2) / 0.4))
        excess = max(0.0, excess + 0.5 * (density - plan))
        wanted.append(0.1 + excess)
    assert prices == pytest.approx(wanted, abs=1e-5)
    assert prices[0] == pytest.approx(0.1)
    assert prices[-1] > prices[-2] > 0.1
    with torch.no_grad():
        generator.offset.fill_(-20.0)  # nobody hears anybody, which is below any plan
    schedule.config = ScheduleConfig.model_validate({**PLAN, "edges": 1})
    assert float(schedule.update(batch)["graph_price"]) < prices[-1]


def test_the_bonus_fades_in_its_share_of_training() -> None:
    schedule, policy, batch = scheduled({**LEARNED, "bonus": 0.4, "bonus_until": 0.5}, {"kind": "free"})
    assert policy.generator is not None
    found = []
    for _ in range(UPDATES):
        schedule.update(batch)
        found.append(float(policy.generator.bonus))
    assert found == pytest.approx([0.32, 0.24, 0.16, 0.08, 0, 0, 0, 0, 0, 0], abs=1e-6)


def test_a_plan_goes_on_where_it_was() -> None:
    first, policy, batch = scheduled(LEARNED, {**PLAN, "edges": 0})
    again, other, _ = scheduled(LEARNED, {**PLAN, "edges": 0})
    for _ in range(6):
        first.update(batch)
    again.load_state_dict(first.state_dict())
    other.load_state_dict(policy.state_dict())
    assert torch.equal(again.update(batch)["graph_price"], first.update(batch)["graph_price"])


def test_policies_that_train_together_have_numbers_of_their_own() -> None:
    schedule, _, batch = scheduled({"kind": "random", "density": 0.5}, {"kind": "free"}, seeds=(0, 1))
    edges = batch.decision.latent.edges.clone()
    edges[: len(edges) // 2] = False
    drawn = dataclasses.replace(batch.decision, latent=batch.decision.latent._replace(edges=edges))
    logged = schedule.update(dataclasses.replace(batch, decision=drawn))
    for name in ("graph_edges", "graph_density", "graph_depth"):
        assert logged[name].shape == (2,)
        assert logged[name][0] == 0 < logged[name][1]


def test_a_learned_graph_reaches_its_budget() -> None:
    """Nothing is earned by a message here, so the price alone decides: no edge is left at the end."""
    updates, streams = 60, Streams([0])
    env = TensorEnv(CopyGame(), 32)
    graph = {**LEARNED, "context": "public", "public": (0,), "bonus": 0.0, "density": 0.9}
    config = BayesianPolicyConfig.model_validate({"network": {"hidden": (8,)}, "graph": graph})
    policy = BayesianPolicy(env.spec, config, streams)
    critic = build_critic(env.spec, CriticConfig.model_validate({"network": {"hidden": (8,)}}), streams)
    settings = LearnerConfig(steps=8, minibatches=1, learning_rate=0.02, entropy=0.0)
    learner = ActorCritic(policy, critic, settings, Team(env.spec.channels), streams, Progress(updates))
    schedule = GraphSchedule(
        policy, ScheduleConfig.model_validate({"kind": "anneal", "begin": 0, "end": 0.3, "rate": 1.0}), updates
    )
    for _, batch in zip(range(updates), OnPolicy(env, policy, steps=8, streams=Streams([1]), seeds=[2])):
        batch = dataclasses.replace(batch, reward=torch.zeros_like(batch.reward))
        learner.update(batch)
        density = float(schedule.update(batch)["graph_density"])
    assert density < 0.05


def test_what_follows_the_steps_of_training_cannot_be_ended_by_the_clock() -> None:
    raw = {"recipe": "marl.algorithms.bnpg", "env": {"world": "envs.games:climbing"}, "train": {"cpu_seconds": 5}}
    for key in ("learner.entropy_end", "learner.learning_rate_end"):
        with pytest.raises(InputError, match=rf"{key}.* follows the steps.*use train\.env_steps alone"):
            resolve(raw, {key: 0.001})
    with pytest.raises(InputError, match=r"anneal follows the steps.*use train\.env_steps alone"):
        resolve(raw, {"schedule.kind": "anneal", "policy.graph.kind": "learned"})
    assert isinstance(resolve(raw, {}), Config)


def test_a_run_of_an_earlier_version_goes_on_and_is_found(tmp_path: Path) -> None:
    """Its checkpoint had the actor-critic's parts beside a list of what followed it, and nothing of a scalarization."""
    raw = {"recipe": "marl.algorithms.bnpg", "env": {"world": "small_runs:Mortals", "num_envs": 4, "time_limit": 5}}
    small = {"learner.steps": 8, "policy.network.hidden": [8], "device": "cpu", "policy.graph.kind": "learned"}
    config = resolve(raw, {**small, "train.env_steps": 64})
    run = Run(tmp_path / "run", config)
    recipe.train(config, run)
    (path,) = checkpoints(run.folder / "checkpoints" / "train")
    state = load_checkpoint(path)
    parts = state["learner"]
    old = {name: part for name, part in parts["actor_critic"].items() if name != "scalarization"}
    shutil.rmtree(path)
    save_checkpoint(path, {**state, "learner": {**old, "following": [parts["schedule"]]}})
    assert_close(run.load("train", "policy"), parts["actor_critic"]["policy"])
    longer = resolve(raw, {**small, "train.env_steps": 96})
    recipe.train(longer, Run(run.folder, longer))
    again = Run(run.folder, longer).load("train")
    assert again["actor_critic"]["done"] == again["schedule"]["done"] == 3
