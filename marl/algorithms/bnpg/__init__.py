"""BNPG: agents that condition on one another's sampled actions along a directed acyclic graph.

Source: Chen and Zhang, "Context-Aware Bayesian Network Actor-Critic Methods for Cooperative Multi-Agent Reinforcement
Learning", ICML 2023 (arXiv 2306.01920). Where we depart: graphs and parents' actions are stored and never drawn again
at the update, so that PPO's ratio is 1 before the first step; order and edges have a closed-form probability and are
one more decider; the generator never mixes rows. `docs/bnpg.md` has the equations.

A graph that depends on context is executed with communication until it is empty: one sampler sees the context, and
messages travel along the edges. `empty/return_per_agent` in the report is the same team without any message.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from envs.core import Actor, EnvSpec, Streams, VectorEnv
from marl.algorithms.bnpg.drawing import graph_film, heat_map
from marl.algorithms.bnpg.looking import GraphEvaluationConfig, edge_shares, edge_table, findings, sampled_edges
from marl.algorithms.bnpg.policy import BayesianPolicy, BayesianPolicyConfig
from marl.algorithms.bnpg.schedule import GraphSchedule, ScheduleConfig
from marl.environments import make_env
from marl.judging import check_twin, judge, optional, picture
from marl.learners import Learner
from marl.report import Report
from marl.run import Run
from marl.training import ActorCriticConfig
from marl.training import train as train_policy

__all__ = ["BayesianPolicy", "Config", "findings", "load", "pictures", "recipe", "stackable", "train"]


class Config(ActorCriticConfig):
    """BNPG."""

    policy: BayesianPolicyConfig = BayesianPolicyConfig()
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="how dense the graph may be over training")
    evaluation: GraphEvaluationConfig = GraphEvaluationConfig()
    weighing: Literal["own", "team"] = Field(
        "team", description="the living team's mean advantage, or each agent's own"
    )

    @model_validator(mode="after")
    def _something_to_plan(self) -> Config:
        kind = self.policy.graph.kind
        if self.schedule.kind != "free" and kind not in ("learned", "random"):
            raise ValueError(
                f"schedule.kind: {self.schedule.kind} needs a graph whose density can change, policy.graph.kind: "
                f"learned or random; it is {kind}"
            )
        if self.schedule.end < self.schedule.begin:
            raise ValueError("schedule.end must not lie before schedule.begin")
        return self


def recipe(config: Config, run: Run) -> Report:
    """Train, judge with the graph and without any edge, and say what the graphs look like."""
    with closing(make_env(config.env, num_envs=1)) as env:
        check_twin(run, env.spec)
    policy = train(config, run)
    report = judge(run, policy)
    with closing(make_env(config.env, num_envs=config.evaluation_envs, device=run.device)) as env:
        metrics, tables = findings(run, policy, env)
        report.metrics.update(metrics)
        report.tables.update(tables)
        report.save(run.folder / "report.json")
        with optional("graph"):
            heat_map(env.spec.agents, tables["edges"], run.folder / "graph.png")
    return report


def train(config: Config, run: Run) -> BayesianPolicy:
    """The trained policy."""

    def build(spec: EnvSpec, streams: Streams) -> BayesianPolicy:
        return BayesianPolicy(spec, config.policy, streams)

    def schedule(policy: BayesianPolicy, updates: int) -> list[Learner]:
        return [GraphSchedule(policy, config.schedule, updates)]

    policy: BayesianPolicy = train_policy(config, run, build, schedule)
    return policy


def stackable(config: Config) -> bool:
    """A learned graph trains one policy at a time."""
    return config.policy.graph.kind != "learned"


def load(run: Run, num_envs: int) -> tuple[Actor, VectorEnv]:
    """The trained policy and environments to play it in."""
    config = run.config
    assert isinstance(config, Config)
    env = make_env(config.env, num_envs=num_envs, device=run.device)
    policy = BayesianPolicy(env.spec, config.policy, run.streams("policy"))
    policy.load_state_dict(run.load("train", "policy"))
    return policy, env


def pictures(run: Run) -> list[Path]:
    """graph.png: how often each edge is there. graph.gif: the graph step by step. film.gif where the world has one."""
    policy, env = load(run, run.config.evaluation_envs)
    assert isinstance(policy, BayesianPolicy)
    with closing(env):
        table = edge_table(env.spec.agents, edge_shares(sampled_edges(run, policy, env)))
    drawn = [heat_map(env.spec.agents, table, run.folder / "graph.png"), graph_film(run, policy)]
    with optional("film"):
        drawn.append(picture(run, policy))
    return drawn
