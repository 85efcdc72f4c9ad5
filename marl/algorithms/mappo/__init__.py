"""MAPPO and IPPO: independent agents with a central critic (`critic.sees: state`) or one each (`critic.sees: agent`).

Source: Yu et al., "The Surprising Effectiveness of PPO in Cooperative Multi-Agent Games", NeurIPS 2022 (arXiv
2103.01955); de Witt et al., 2020 (arXiv 2011.09533) for IPPO. Where we depart: all agents' values come from one pass of
the critic, and advantages are normalized over the whole batch.
"""

from __future__ import annotations

from contextlib import closing

from envs.core import EnvSpec, Streams
from marl.evaluation.policy_report import check_evaluation, judge, load_independent
from marl.models.policies import IndependentPolicy
from marl.output.report import Report
from marl.training.environments import make_env
from marl.training.on_policy import ActorCriticConfig
from marl.training.on_policy import train as train_policy
from marl.training.run import Run


class Config(ActorCriticConfig):
    """MAPPO."""


def recipe(config: Config, run: Run) -> Report:
    """Train, then judge."""
    with closing(make_env(config.env, num_envs=1)) as env:
        check_evaluation(run, env.spec)
    return judge(run, train(config, run))


def train(config: Config, run: Run) -> IndependentPolicy:
    """The trained policy; P of them for a run with P seeds."""

    def build(spec: EnvSpec, streams: Streams) -> IndependentPolicy:
        return IndependentPolicy(spec, config.policy, streams)

    policy: IndependentPolicy = train_policy(config, run, build)
    return policy


load = load_independent
