"""MAPPO and IPPO: independent agents with a central critic (`critic.sees: state`) or one each (`critic.sees: agent`).

Source: Yu et al., "The Surprising Effectiveness of PPO in Cooperative Multi-Agent Games", NeurIPS 2022 (arXiv
2103.01955); de Witt et al., 2020 (arXiv 2011.09533) for IPPO. Where we depart: all agents' values come from one pass of
the critic, and advantages are normalized over the whole batch.
"""

from __future__ import annotations

from contextlib import closing
from typing import Literal

from pydantic import Field

from envs.world import TensorEnv
from marl import weighing
from marl.config import RunConfig
from marl.critics import CriticConfig, build_critic
from marl.environments import make_env
from marl.judging import check_twin, judge, load_independent
from marl.learners import ActorCritic, LearnerConfig, per_channel
from marl.policies import IndependentPolicy, PolicyConfig
from marl.report import Report
from marl.run import Run, env_steps_to_updates
from marl.sources import OnPolicy


class Config(RunConfig):
    """MAPPO."""

    policy: PolicyConfig = PolicyConfig()
    critic: CriticConfig = CriticConfig()
    learner: LearnerConfig = LearnerConfig()
    weighing: Literal["own", "team"] = Field("own", description="each agent's own advantage, or the living team's mean")


def recipe(config: Config, run: Run) -> Report:
    """Train, then judge."""
    with closing(make_env(config.env, num_envs=1)) as env:
        check_twin(run, env.spec)
    return judge(run, train(config, run))


def train(config: Config, run: Run) -> IndependentPolicy:
    """The trained policy; P of them for a run with P seeds."""
    env = make_env(
        config.env,
        num_envs=run.policies * config.env.num_envs,
        device=run.device,
        restart_episodes=config.resume.restart_episodes,
    )
    policy = IndependentPolicy(env.spec, config.policy, run.streams("policy"))
    critic = build_critic(env.spec, config.critic, run.streams("critic"))
    weigh = {"own": weighing.own, "team": weighing.team}[config.weighing]
    learner = ActorCritic(policy, critic, config.learner, weigh, run.streams("minibatches"))
    source = OnPolicy(
        env,
        policy,
        steps=config.learner.steps,
        segment=config.learner.segment,
        discount=per_channel(config.learner.discount, len(env.spec.channels)).to(run.device),
        streams=run.streams("actions"),
        seeds=run.stage_seeds("train"),
    )
    updates = env_steps_to_updates(config.train.env_steps, config.learner.steps * config.env.num_envs)
    physics = [(env, "advance")] if isinstance(env, TensorEnv) else []
    with closing(env), run.compiled((policy, "decide"), (learner, "loss"), *physics):
        run.fit("train", learner, source, updates, cpu_seconds=config.train.cpu_seconds)
    return policy


load = load_independent
