"""Policies as rows of saved states: taken, joined, and gone on with, for every learner there is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from small_runs import ATTENTION, GRU, LOCAL, Mortals, assert_close, build
from torch import Tensor

from envs.core import InputError, Streams
from envs.games import climbing
from envs.world import TensorEnv
from marl.algorithms.bnpg.distillation import Distillation, DistillationActor
from marl.algorithms.bnpg.policy import BayesianPolicy, BayesianPolicyConfig
from marl.algorithms.bnpg.schedule import GraphSchedule, ScheduleConfig
from marl.algorithms.mean_field.pathwise import Differentiable, Pathwise
from marl.algorithms.mean_field.policy import SwarmPolicy, SwarmPolicyConfig
from marl.learning.actor_critic import ActorCritic, LearnerConfig
from marl.learning.learner import Chain, Learner, Progress
from marl.learning.offline_batch import Logged
from marl.learning.rollout import OnPolicy
from marl.learning.scalarization import Team
from marl.models.critics import CriticConfig, build_critic
from marl.models.policies import IndependentPolicy
from marl.training.policy_rows import join_policies, take_from_checkpoint, take_policy
from marl.training.stage import Source
from tests.marl.algorithms.mean_field.test_mean_field_pathwise import Drift
from tests.marl.learning.test_offline_actor_critic import network_learner, network_log

NETWORK = {"network": {"hidden": (8,)}}
SMALL = LearnerConfig(steps=4, epochs=2, minibatches=2)


class Trained(NamedTuple):
    """A learner and its source."""

    learner: Learner
    source: Source

    def train(self, updates: int) -> dict[str, Tensor]:
        """The last update's terms."""
        terms = {}
        for _, batch in zip(range(updates), self.source):
            terms = self.learner.update(batch)
        return terms

    def state(self) -> dict[str, Any]:
        return copy.deepcopy({"learner": self.learner.state_dict(), "source": self.source.state_dict()})

    def load(self, state: dict[str, Any]) -> Trained:
        self.learner.load_state_dict(copy.deepcopy(state["learner"]))
        self.source.load_state_dict(copy.deepcopy(state["source"]))
        return self


def streams(seeds: Sequence[int], purpose: int) -> Streams:
    return Streams([100 * seed + purpose for seed in seeds])


def actor_critic(**settings: Any) -> Callable[[Sequence[int]], Trained]:
    def made(seeds: Sequence[int]) -> Trained:
        small = build(Mortals(), 4, seeds=seeds, scale_values=True, **settings)
        return Trained(small.learner, small.source)

    return made


def bayesian(seeds: Sequence[int], rows: int = 8) -> tuple[TensorEnv, BayesianPolicy]:
    env = TensorEnv(climbing(), rows * len(seeds))
    config = BayesianPolicyConfig.model_validate({**NETWORK, "graph": {"kind": "random", "density": 0.5}})
    return env, BayesianPolicy(env.spec, config, streams(seeds, 1))


def chain(seeds: Sequence[int]) -> Trained:
    env, policy = bayesian(seeds)
    critic = build_critic(env.spec, CriticConfig.model_validate(NETWORK), streams(seeds, 2))
    plan = ScheduleConfig(kind="anneal", begin=0.0, end=0.5)
    first = ActorCritic(policy, critic, SMALL, Team(env.spec.channels), streams(seeds, 3), Progress(10))
    source = OnPolicy(env, policy, steps=SMALL.steps, streams=streams(seeds, 4), seeds=[5 + s for s in seeds])
    return Trained(Chain({"actor_critic": first, "schedule": GraphSchedule(policy, plan, 10)}), source)


def distillation(seeds: Sequence[int]) -> Trained:
    env, teacher = bayesian(seeds)
    student = IndependentPolicy(env.spec, BayesianPolicyConfig.model_validate(NETWORK), streams(seeds, 2))
    room = DistillationActor(teacher, student, "student")
    source = OnPolicy(env, room, steps=SMALL.steps, streams=streams(seeds, 4), seeds=[5 + s for s in seeds])
    return Trained(Distillation(teacher, student, SMALL, streams(seeds, 3), 7), source)


def pathwise(seeds: Sequence[int]) -> Trained:
    env = TensorEnv(Drift(4, horizon=5), 3 * len(seeds))
    config = SwarmPolicyConfig.model_validate({**NETWORK, "rule": {"kind": "neural"}})
    policy = SwarmPolicy(env.spec, config, streams(seeds, 1))
    source = Differentiable(env, policy, steps=4, streams=streams(seeds, 4), seeds=[5 + s for s in seeds])
    return Trained(Pathwise(policy, SMALL, 1, len(seeds), 10), source)


def logged(seeds: Sequence[int]) -> Trained:
    learner = network_learner(seeds, discount=0.9)
    return Trained(learner, Logged(network_log(), rows=16, streams=streams(seeds, 4)))


LEARNERS: dict[str, Callable[[Sequence[int]], Trained]] = {
    "mlp": actor_critic(),
    "gru": actor_critic(policy=GRU, critic=GRU, sequence_length=4),
    "attention": actor_critic(policy=ATTENTION, critic={**ATTENTION, **LOCAL}),
    "chain with a schedule": chain,
    "distillation": distillation,
    "pathwise": pathwise,
    "logged": logged,
}


def assert_same(one: Any, other: Any, path: str = "state") -> None:
    """The same states, bit for bit."""
    assert isinstance(one, dict) == isinstance(other, dict), path
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, values in enumerate(zip(one, other)):
            assert_same(*values, f"{path}/{i}")
    else:
        assert one == other, path


@pytest.mark.parametrize("name", LEARNERS)
def test_policies_joined_and_taken_apart_are_as_they_were(name: str) -> None:
    make = LEARNERS[name]
    alone = [make((seed,)) for seed in (3, 1)]
    for single in alone:
        single.train(2)
    states = [single.state() for single in alone]
    joined = join_policies(states)
    for place, state in enumerate(states):
        assert_same(take_policy(joined, place, 2), state)
        continued = make((place + 7,))
        assert_same(continued.load(take_policy(joined, place, 2)).state(), state)
    other = 3 if name == "distillation" else 8  # its teacher is no part of its state
    again = make((other,)).load(take_policy(joined, 0, 2))
    assert_same(again.train(1), alone[0].train(1))
    assert_same(again.state(), alone[0].state())


def tensors_of(state: dict[str, Any]) -> dict[str, Any]:
    """What policies have of their own; counts, such as the updates done, they share."""
    inner = {key: tensors_of(part) for key, part in state.items() if isinstance(part, dict)}
    return inner | {key: part for key, part in state.items() if isinstance(part, Tensor)}


@pytest.mark.parametrize("name", LEARNERS)
def test_policies_joined_go_on_side_by_side_as_they_would_alone(name: str) -> None:
    make, seeds = LEARNERS[name], (3, 1)
    alone = [make((seed,)) for seed in seeds]
    for single in alone:
        single.train(2)
    together = make(seeds).load(join_policies([single.state() for single in alone]))
    terms = together.train(1)
    for place, single in enumerate(alone):
        own = single.train(1)
        numbers = {key: value for key, value in terms.items() if value.dim() == 1}
        assert_close(
            {key: value[place : place + 1] for key, value in numbers.items()}, {k: own[k] for k in numbers}, 1e-3
        )
        part = take_policy(together.state(), place, 2)
        assert_close(tensors_of(part["learner"]), tensors_of(single.state()["learner"]), 1e-3)
        single.load(take_policy(together.state(), place, 2)).train(1)


def test_what_breaks_the_rule_is_named() -> None:
    state = {"network": {"weight": torch.zeros(3, 2)}, "done": 4}
    with pytest.raises(InputError, match="state/network/weight has 3 rows, no whole number for each of 2"):
        take_policy(state, 0, 2)
    with pytest.raises(InputError, match="from 0 to 2; got 3"):
        take_policy(state, 3, 3)
    with pytest.raises(InputError, match="share state/done; it differs: 4, 5"):
        join_policies([state, {**state, "done": 5}])
    with pytest.raises(InputError, match="one form; state/network/weight is"):
        join_policies([state, {**state, "network": {"weight": torch.zeros(2, 2)}}])
    with pytest.raises(InputError, match="one form; state/done is int, NoneType"):
        join_policies([state, {**state, "done": None}])
    with pytest.raises(InputError, match="the keys of state"):
        join_policies([state, {**state, "more": 1}])
    with pytest.raises(InputError, match="got none"):
        join_policies([])


def test_a_part_of_a_checkpoint_has_all_members_of_its_seed() -> None:
    weights = torch.arange(6.0).view(6, 1)
    used = [{"env_steps": 8, "agent_steps": float(p), "cpu_seconds": 6.0} for p in range(6)]
    part = take_from_checkpoint({"learner": {"weight": weights}, "used": used, "finished": True}, 1, 2)
    assert part["learner"]["weight"].flatten().tolist() == [3, 4, 5]
    assert [counts["agent_steps"] for counts in part["used"]] == [3, 4, 5]
    assert {counts["cpu_seconds"] for counts in part["used"]} == {3.0}
    assert part["finished"] is True
    unread = {"terms": {"kl": torch.zeros(2, 6)}, "outcomes": {}}
    with pytest.raises(InputError, match="something left to log"):
        take_from_checkpoint({"learner": {}, "used": used, "tally": unread}, 1, 2)
