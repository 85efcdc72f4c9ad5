"""BNPG: agents that condition on one another's sampled actions along a directed acyclic graph.

Source: Chen and Zhang, "Context-Aware Bayesian Network Actor-Critic Methods for Cooperative Multi-Agent Reinforcement
Learning", ICML 2023 (arXiv 2306.01920). Where we depart: graphs and parents' actions are stored and never drawn again
at the update, so that PPO's ratio is 1 before the first step; order and edges have a closed-form probability and are
one more decider; the generator never mixes rows. `docs/bnpg.md` has the equations.

A graph that depends on context is executed with communication until it is empty: one sampler sees the context, and
messages travel along the edges. `empty/return_per_agent` in the report is the same team without any message,
`distilled/return_per_agent` independent agents that have learned from it (`distill.env_steps`).
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import MappingProxyType

from pydantic import Field, model_validator
from rich.console import Console

from envs.core import Actor, EnvSpec, Streams, VectorEnv
from marl.algorithms.bnpg.distillation import STAGE, DistillConfig, distill
from marl.algorithms.bnpg.graph_plots import graph_film, heat_map
from marl.algorithms.bnpg.graph_report import GraphEvaluationConfig, edge_shares, edge_table, findings, sampled_edges
from marl.algorithms.bnpg.policy import BayesianPolicy, BayesianPolicyConfig, WithoutEdges
from marl.algorithms.bnpg.schedule import GraphSchedule, ScheduleConfig
from marl.evaluation.agent_sweep import in_other_numbers
from marl.evaluation.environments import evaluation_rows, make_evaluation_env
from marl.evaluation.policy_report import judge, optional, picture, played
from marl.evaluation.recipe import OnPolicyRecipe
from marl.learning.learner import Chain, Learner
from marl.learning.scalarization import TeamAdvantageConfig
from marl.models.policies import IndependentPolicy, JointActor
from marl.output.report import Metric, Report, Tables
from marl.output.tables import print_table
from marl.training.on_policy import ActorCriticConfig, actor_critic
from marl.training.run import Run

__all__ = ["BNPG", "BayesianPolicy", "Config", "recipe"]


class Config(ActorCriticConfig):
    """BNPG."""

    policy: BayesianPolicyConfig = BayesianPolicyConfig()
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="how dense the graph may be over training")
    evaluation: GraphEvaluationConfig = GraphEvaluationConfig()
    advantage: TeamAdvantageConfig = TeamAdvantageConfig()
    distill: DistillConfig = Field(DistillConfig(), description="independent agents that learn from the network")

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
        if self.evaluation.team == "distilled" and not self.distill.env_steps:
            raise ValueError(
                "evaluation.team: distilled needs a team that was distilled in its training, with distill.env_steps"
            )
        if self.schedule.kind != "free" and self.train.cpu_seconds is not None:
            raise ValueError(
                "schedule.kind: anneal follows the steps of training, and train.cpu_seconds may end it before the plan "
                "does; use train.env_steps alone"
            )
        return self


class BNPG(OnPolicyRecipe):
    """A Bayesian network of agents, its graph fixed, drawn or learned, and what may be distilled from it."""

    config = Config
    files = MappingProxyType({"edges": "graph.png", "graphs": "graph.gif"})

    def policy(self, config: Config, spec: EnvSpec, streams: Streams) -> BayesianPolicy:
        """A network that has learned nothing."""
        return BayesianPolicy(spec, config.policy, streams)

    def learner(self, config: Config, run: Run, spec: EnvSpec, policy: BayesianPolicy, updates: int) -> Learner:
        """PPO, then the graph's schedule."""
        schedule = GraphSchedule(policy, config.schedule, updates)
        return Chain({"actor_critic": actor_critic(config, run, spec, policy, updates), "schedule": schedule})

    def train(self, config: Config, run: Run) -> tuple[BayesianPolicy, IndependentPolicy | None]:
        """The trained policy, and what was distilled from it, if anything."""
        policy: BayesianPolicy = super().train(config, run)
        return policy, distill(policy, config, config.distill, run) if config.distill.env_steps else None

    def run(self, config: Config, run: Run) -> Report:
        """Train, judge with the graph, without any edge and distilled, and say what the graphs look like."""
        self.check(config, run)
        policy, student = self.train(config, run)
        teams: dict[str, JointActor] = {"network": policy}
        if student is not None:
            teams["distilled"] = student
        asked = config.evaluation.team
        report = judge(run, WithoutEdges(policy) if asked == "empty" else teams.pop(asked), super().findings)
        if student is not None:
            report.metrics.update({f"{STAGE}/{name}": Metric.exact(value) for name, value in run.used(STAGE).items()})
        with closing(make_evaluation_env(config, device=run.device)) as env:
            for name, team in teams.items():
                episodes = played(run, env, team, config.evaluation.episodes, "evaluation")
                report.metrics.update(episodes.metrics(env.spec.channels, f"{name}/"))
            metrics, tables = findings(run, policy, env)
            with optional("graph"):
                heat_map(env.spec.agents, tables["edges"], run.folder / "graph.png")
        report.metrics.update(metrics)
        report.tables.update(tables)
        return in_other_numbers(run, report)

    def can_stack(self, config: Config) -> bool:
        """A learned graph trains one policy at a time."""
        return config.policy.graph.kind != "learned"

    def played_stage(self, config: Config) -> str | None:
        """The stage that trained the team which `evaluation.team` names."""
        return STAGE if config.evaluation.team == "distilled" else super().played_stage(config)

    def load(self, run: Run, num_envs: int) -> tuple[Actor, VectorEnv]:
        """The team that `evaluation.team` names and environments to play it in."""
        config = run.config
        assert isinstance(config, Config)
        if config.evaluation.team == "distilled":
            env = make_evaluation_env(config, num_envs, run.device)
            student = IndependentPolicy(env.spec, config.policy, run.streams("student"))
            student.load_state_dict(run.load(STAGE, "policy"))
            return student, env
        policy, env = super().load(run, num_envs)
        assert isinstance(policy, BayesianPolicy)
        return WithoutEdges(policy) if config.evaluation.team == "empty" else policy, env

    def findings(self, run: Run, actor: Actor, env: VectorEnv) -> tuple[dict[str, Metric], Tables]:
        """Cross-play, the graphs that the actor draws, and what each edge is worth."""
        beside, pairs = super().findings(run, actor, env)
        metrics, tables = findings(run, actor, env)
        return {**beside, **metrics}, {**pairs, **tables}

    def pictures(self, run: Run) -> list[Path]:
        """Draw graph.png: how often each edge is there; graph.gif: the graph step by step; film.gif of the world."""
        policy, env = self.load(run, evaluation_rows(run.config))
        drawn = []
        with closing(env):
            network = policy.policy if isinstance(policy, WithoutEdges) else policy
            if isinstance(network, BayesianPolicy):
                table = edge_table(env.spec.agents, edge_shares(sampled_edges(run, network, env)))
                drawn += [heat_map(env.spec.agents, table, run.folder / "graph.png"), graph_film(run, network)]
        with optional("film"):
            drawn.append(picture(run, policy))
        return drawn

    def show(self, tables: Tables, console: Console) -> None:
        """Print the edges where it was measured what each is worth."""
        edges = tables.get("edges", [])
        if any("worth" in row for row in edges):
            print_table("edges", edges, console)


recipe = BNPG()
