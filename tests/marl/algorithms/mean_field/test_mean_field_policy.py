"""A swarm's policy: one rule for all at every step, and what PPO hears of it."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from small_runs import GRU, assert_close
from small_swarm import SMALL, Drift, SmallSwarm, build
from torch import Tensor

from envs.core import Decision, InputError, Observation, Streams
from envs.world import TensorEnv
from marl.algorithms.mean_field.policy import FollowingAgents, MeanRule, SwarmPolicy, SwarmPolicyConfig
from marl.evaluation.greedy import Greedy
from marl.learning.losses import clipped_surrogate
from marl.models.critics import CriticConfig, build_critic
from marl.training.policy_rows import take_policy

MODES = [{"explore": explore, "sees": sees} for explore in ("rule", "agent") for sees in ("swarm", "time", "nothing")]
KINDS = [{"explore": "rule", "rule": {"kind": kind, "points": 3}} for kind in ("table", "neural")]
SETUPS = {" ".join(map(str, (s.get("explore"), s.get("sees", s.get("rule", {}))))): s for s in (*MODES, *KINDS)}
WORLDS = {"reals": Drift(5), "choices": Drift(5, choices=3)}


def make(world: Drift, rows: int = 6, seeds: tuple[int, ...] = (0,), **policy: Any) -> tuple[SwarmPolicy, Observation]:
    """A policy with weights far from zero, and what it sees in the middle of things."""
    env = TensorEnv(world, rows)
    actor = SwarmPolicy(env.spec, SwarmPolicyConfig.model_validate({**SMALL, **policy}), Streams(seeds))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in actor.parameters():
            p += 0.5 * torch.randn(p.shape, generator=generator)
        obs, streams = env.reset(list(seeds)), Streams(seeds)
        for _ in range(2):
            obs = env.step(actor.act(obs, actor.initial_memory(rows), streams)[0].action).obs
    return actor, obs


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", SETUPS)
def test_what_was_drawn_has_the_log_probability_that_was_stored(name: str, world: str) -> None:
    policy, obs = make(WORLDS[world], **SETUPS[name])
    deciders = 1 if policy.explores_rules else 5
    with torch.no_grad():
        decision = policy.act(obs, None, Streams([3]))[0]
        again = policy(obs, None)[0]
    assert decision.latent.shape == (6, policy.rule.size)
    assert decision.action.shape == (6, 5, 1)
    assert decision.log_prob is not None
    assert decision.log_prob.shape == again.entropy(decision).shape == (6, deciders)
    torch.testing.assert_close(again.log_prob(decision), decision.log_prob, atol=1e-5, rtol=0)
    assert (policy.members is None) == (deciders == 5)
    assert policy.members is None or policy.members.tolist() == [[True] * 5]
    assert again.price(decision) is None


def test_the_probability_of_a_rule_is_that_of_its_numbers_under_a_normal_distribution() -> None:
    policy, obs = make(Drift(5), sees="swarm")
    with torch.no_grad():
        decision = policy.act(obs, None, Streams([3]))[0]
        mean, _ = policy.mean_rule(obs, None)
        std = policy.log_std[0, 0].exp()
        wanted = torch.distributions.Normal(mean, std).log_prob(decision.latent).sum(-1, keepdim=True)
        entropy = torch.distributions.Normal(mean, std).entropy().sum(-1, keepdim=True)
        found = policy(obs, None)[0]
    torch.testing.assert_close(found.log_prob(decision), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.entropy(decision), entropy, atol=1e-4, rtol=0)
    other = Decision(torch.zeros_like(decision.action), decision.latent)
    assert torch.equal(found.log_prob(other), found.log_prob(decision)), "what agents drew does not matter"


def test_all_agents_of_a_swarm_follow_one_rule_and_swarms_follow_different_ones() -> None:
    """With an xi for each agent, those who see the same would act differently, and the swarm's mean hardly at all."""
    agents, rows = 50, 400
    policy, obs = make(Drift(agents), rows, rule_std=0.3, initial_std=1e-4)
    with torch.no_grad():
        # Deviations of actions as good as none, so that what is left is the rule's.
        policy.start.view(-1, 2)[:, 1] = -3.0
        for p in policy.network.parameters():
            p.zero_()
        policy.log_std.fill_(math.log(0.3))
        obs = dataclasses.replace(obs, agent=torch.zeros_like(obs.agent))
        action = policy.act(obs, None, Streams([3]))[0].action.squeeze(-1)
    assert float(action.std(1).max()) < 1e-2
    # The middle one of seven points counts for nearly 4/5 at zero: 5 · .3 · (.79² + 2 · .107²)^.5, less by tanh.
    assert float(action.mean(1).std()) == pytest.approx(1.1, abs=0.15)


@pytest.mark.parametrize("explore", ["rule", "agent"])
def test_renaming_agents_renames_actions_and_leaves_the_rule_s_probability(explore: str) -> None:
    policy, obs = make(Drift(5), explore=explore)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = dataclasses.replace(obs, agent=obs.agent[:, order])
    with torch.no_grad():
        decision = policy.act(obs, None, Streams([3]))[0]
        there = Decision(decision.action[:, order], decision.latent)
        before, after = policy(obs, None)[0].log_prob(decision), policy(moved, None)[0].log_prob(there)
        modes = [MeanRule(policy)(seen, None)[0].mode().action for seen in (obs, moved)]
    torch.testing.assert_close(after, before if explore == "rule" else before[:, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(modes[1], modes[0][:, order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sees", ["swarm", "time", "nothing"])
def test_the_rule_depends_on_what_its_choice_may_see(sees: str) -> None:
    policy, obs = make(Drift(5), sees=sees)
    x = obs.state.clone().requires_grad_()
    xi, _ = policy.mean_rule(dataclasses.replace(obs, state=x), None)
    (slope,) = torch.autograd.grad(xi.square().sum() + 0 * x.sum(), x)
    assert (slope != 0).any(0).tolist() == [sees != "nothing", sees == "swarm", sees == "swarm"]
    torch.testing.assert_close(obs.state[:, 0], torch.full((6,), 0.2), msg="TensorEnv puts the clock first")


def test_the_most_probable_decision_and_the_mean_rule_use_the_mean_of_xi() -> None:
    policy, obs = make(Drift(5))
    with torch.no_grad():
        mean, _ = policy.mean_rule(obs, None)
        mode = [Greedy(policy).act(obs, None, Streams([seed]))[0] for seed in (0, 1)]
        executed = [MeanRule(policy).act(obs, None, Streams([seed]))[0] for seed in (0, 1)]
    for decision in (*mode, *executed):
        assert torch.equal(decision.latent, mean)
    assert torch.equal(mode[0].action, mode[1].action)
    assert not torch.equal(executed[0].action, executed[1].action), "agents draw"


def test_agents_who_follow_a_given_rule_are_independent_and_others_are_not() -> None:
    policy, obs = make(Drift(5, choices=3))
    with torch.no_grad():
        following, _ = MeanRule(policy)(obs, None)
        assert isinstance(following, FollowingAgents)
        torch.testing.assert_close(following.log_probs().exp().sum(-1), torch.ones(6, 5))
        with pytest.raises(TypeError, match="MeanRule"):
            policy(obs, None)[0].log_probs()


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", SETUPS)
def test_the_first_minibatch_has_ratio_1(name: str, world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = []

    def spied(log_prob: Tensor, old: Tensor, *rest: Any) -> Tensor:
        # In last digits of the largest log-probability, which is how far two orders of one sum may lie apart.
        digit = torch.finfo(old.dtype).eps * old.abs().max()
        changes.append((log_prob - old).detach().abs() / digit)
        return clipped_surrogate(log_prob, old, *rest)

    monkeypatch.setattr("marl.learning.actor_critic.clipped_surrogate", spied)
    small = build(WORLDS[world], policy=SETUPS[name], epochs=1)
    for _, batch in zip(range(2), small.source):
        changes.clear()
        small.learner.update(batch)
        assert float(changes[0].max()) <= 4
        assert float(changes[1].max()) > 100, "the policy has moved"


def test_an_upper_level_that_remembers_is_replayed_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    small = build(Drift(5, horizon=7), policy=GRU, sequence_length=5, epochs=1, minibatches=1, learning_rate=1e-3)
    for _, batch in zip(range(2), small.source):
        assert batch.memory is not None
        assert float(small.learner.update(batch)["kl"].abs()) < 1e-9


@pytest.mark.parametrize("name", SETUPS)
def test_each_of_two_policies_acts_learns_and_saves_as_it_would_alone(name: str) -> None:
    together = build(Drift(5), seeds=(3, 1), policy=SETUPS[name])
    alone = [build(Drift(5), seeds=(seed,), policy=SETUPS[name]) for seed in (3, 1)]
    together.train(2)
    for p, single in enumerate(alone):
        single.train(2)
        part = take_policy(_saved(together), p, 2)
        wanted = take_policy(_saved(single), 0, 1)
        assert_close(part["learner"]["policy"], wanted["learner"]["policy"], 1e-5)
        assert_close(part["learner"]["critic"], wanted["learner"]["critic"], 1e-5)
        assert_close(part["source"]["env"], wanted["source"]["env"], 1e-4)
    assert not torch.equal(*together.learner.state_dict()["policy"]["start"]) or "neural" not in name


def _saved(run: SmallSwarm) -> dict[str, Any]:
    used = [{"cpu_seconds": 1.0}] * len(run.learner.streams)
    return copy.deepcopy({"learner": run.learner.state_dict(), "source": run.source.state_dict(), "used": used})


def test_a_policy_plays_in_swarms_of_any_size() -> None:
    policy, _ = make(Drift(5))
    env = TensorEnv(Drift(300), 2)
    other = SwarmPolicy(env.spec, SwarmPolicyConfig.model_validate(SMALL), Streams([7]))
    other.load_state_dict(policy.state_dict())
    obs = env.reset(0)
    with torch.no_grad():
        here, _ = policy.mean_rule(obs, None)
        there, _ = other.mean_rule(obs, None)
        assert torch.equal(here, there)
        assert other.act(obs, None, Streams([0]))[0].action.shape == (2, 300, 1)


def test_what_cannot_be_chosen_from_is_refused() -> None:
    endless = Drift(5, horizon=None).spec
    with pytest.raises(InputError, match="needs a clock"):
        SwarmPolicy(endless, SwarmPolicyConfig(sees="time"), Streams([0]))
    stateless = dataclasses.replace(endless, state_size=0)
    with pytest.raises(InputError, match="needs a state"):
        SwarmPolicy(stateless, SwarmPolicyConfig(), Streams([0]))
    SwarmPolicy(stateless, SwarmPolicyConfig(sees="nothing"), Streams([0]))
    for wrong in ({"agent_id": True}, {"share": "none"}):
        with pytest.raises(ValueError, match="follow one rule"):
            SwarmPolicyConfig.model_validate(wrong)


# The critic


@pytest.mark.parametrize("share_trunk", [False, True])
def test_a_critic_of_the_team_gives_all_agents_one_value_and_does_not_grow_with_them(share_trunk: bool) -> None:
    sizes = set()
    config = CriticConfig.model_validate({**SMALL, "output": "team", "share_trunk": share_trunk})
    for agents in (3, 300):
        env = TensorEnv(Drift(agents), 4)
        spec = dataclasses.replace(env.spec, channels=("one", "two"))
        critic = build_critic(spec, config, Streams([0, 1]))
        value, _ = critic(env.reset([0, 1]), None)
        assert value.shape == (4, agents, 2)
        assert bool((value == value[:, :1]).all())
        assert len(value[:, 0].unique()) == 8
        sizes.add(sum(p.numel() for p in critic.parameters()))
    assert len(sizes) == 1
    with pytest.raises(ValueError, match="sees: state"):
        CriticConfig(sees="agent", output="team")


@pytest.mark.parametrize("explore", ["rule", "agent"])
def test_the_divergence_is_that_of_each_decider(explore: str) -> None:
    policy, obs = make(Drift(5), explore=explore)
    with torch.no_grad():
        here, again = (policy(obs, None)[0] for _ in range(2))
        for p in policy.parameters():
            p += 0.1
        moved = policy(obs, None)[0]
    assert here.kl(again).shape == (6, 1 if explore == "rule" else 5)
    assert not here.kl(again).any()
    assert bool((here.kl(moved) > 0).all())
