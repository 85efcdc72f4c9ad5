"""Dec-POMFPPO: one decision rule for a whole swarm, chosen by PPO from the swarm's distribution.

Source: Cui, Hauck, Fabian and Koeppl, "Learning Decentralized Partially Observable Mean Field Control for Artificial
Collective Behavior", ICLR 2024 (arXiv 2307.06175). `docs/mean_field.md` has the equations and says what is ours.

The report has the swarm as it is trained, with rules drawn (`return_per_agent`), as it is executed, with the mean rule
(`mean_rule/return_per_agent`), how that compares with what is known exactly of the world (`known/…`, `regret/…`,
`limit/…`), and how steep that rule can be at most (`rule/lipschitz`).
"""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from typing import Any, Literal

import torch
from pydantic import Field

from envs.core import Actor, EnvSpec, Streams, VectorEnv
from marl.algorithms.mean_field.limit import known_metrics, limit_metrics
from marl.algorithms.mean_field.policy import MeanRule, SwarmPolicy, SwarmPolicyConfig
from marl.critics import CriticConfig
from marl.environments import evaluation_rows, make_env, rows_at_once
from marl.evaluate import watch
from marl.judging import check_twin, judge, played
from marl.learners import LearnerConfig
from marl.report import Metric, Report
from marl.run import Run
from marl.training import ActorCriticConfig
from marl.training import train as train_policy

__all__ = ["Config", "MeanRule", "SwarmPolicy", "findings", "load", "recipe", "train"]

HEADLINE = "mean_rule/return_per_agent"  # of what `findings` finds: the swarm as it is executed
LOOK = 100  # steps over which the report looks at the rules where a world has no horizon
ROWS = 16  # swarms in which it looks


class SwarmCriticConfig(CriticConfig):
    """A critic that sees the swarm's features, whatever the policy sees."""

    output: Literal["agent", "team"] = Field(
        "team", description="team: one value for the swarm; agent: a value for each, whose network grows with N"
    )


class SwarmLearnerConfig(LearnerConfig):
    """PPO without an entropy bonus: that of R numbers would push the rule around."""

    entropy: float = Field(0.0, ge=0, description="weight of the entropy bonus, at first")


class Config(ActorCriticConfig):
    """Dec-POMFPPO."""

    policy: SwarmPolicyConfig = SwarmPolicyConfig()
    critic: SwarmCriticConfig = SwarmCriticConfig()
    learner: SwarmLearnerConfig = SwarmLearnerConfig()
    weighing: Literal["own", "team"] = Field(
        "team", description="the living swarm's mean advantage, or each agent's own"
    )


def recipe(config: Config, run: Run) -> Report:
    """Train, judge with rules drawn and with the mean rule, and say how steep that is."""
    with closing(make_env(config.env, num_envs=1)) as env:
        check_twin(run, env.spec)
    policy = train(config, run)
    report = judge(run, policy)
    with closing(make_env(config.env, num_envs=evaluation_rows(config), device=run.device)) as env:
        report.metrics.update(findings(run, policy, env)[0])
    report.save(run.folder / "report.json")
    return report


def train(config: Config, run: Run) -> SwarmPolicy:
    """The trained policy; P of them for a run with P seeds."""

    def build(spec: EnvSpec, streams: Streams) -> SwarmPolicy:
        return SwarmPolicy(spec, config.policy, streams)

    policy: SwarmPolicy = train_policy(config, run, build)
    return policy


def load(run: Run, num_envs: int) -> tuple[Actor, VectorEnv]:
    """The policy as it was last saved, and environments to play it in, of as many agents as the config says now."""
    config = run.config
    assert isinstance(config, Config)
    env = make_env(config.env, num_envs=num_envs, device=run.device)
    policy = SwarmPolicy(env.spec, config.policy, run.streams("policy"))
    policy.load_state_dict(run.load("train", "policy"))
    return policy, env


def findings(run: Run, policy: Actor, env: VectorEnv) -> tuple[dict[str, Metric], dict[str, list[dict[str, Any]]]]:
    """What the swarm earns with the mean rule, how that compares with what is known, and how steep its rules are."""
    assert isinstance(policy, SwarmPolicy)
    episodes = played(run, env, MeanRule(policy), run.config.evaluation.episodes, "evaluation")
    found = episodes.metrics(env.spec.channels, "mean_rule/")
    found |= known_metrics(env, found["mean_rule/return_per_agent"]) | limit_metrics(policy, env)
    return {**found, "rule/lipschitz": Metric.exact(steepest(run, policy))}, {}


def steepest(run: Run, policy: SwarmPolicy) -> float:
    """The largest bound `Rule.lipschitz` of the mean rules in an episode of some swarms: action units per observed."""
    rows = rows_at_once(ROWS, policy.agents, ROWS)
    with closing(make_env(run.config.env, num_envs=rows, device=run.device)) as env:
        moments = watch(env, MeanRule(policy), run.stage_seeds("rules")[0], lambda: None)
        steps = islice(moments, env.spec.horizon or LOOK)
        bounds = [policy.rule.lipschitz(moment.decision.latent).max() for moment in steps]
    return float(torch.stack(bounds).max())
