"""Dec-POMFPPO: one decision rule for a whole swarm, chosen by PPO from the swarm's distribution.

Source: Cui, Hauck, Fabian and Koeppl, "Learning Decentralized Partially Observable Mean Field Control for Artificial
Collective Behavior", ICLR 2024 (arXiv 2307.06175). `docs/mean_field.md` has the equations and says what is ours.

With `gradient: pathwise` the same rules are learned by exact gradients through the world's physics.

The report has the swarm as it is executed, with the mean rule (`return_per_agent`), as it was trained, with rules drawn
(`sampled_rule/return_per_agent`), the mean rule in the exact limit of a finite swarm (`limit/…`), and how steep it can
be at most (`rule/lipschitz`).
"""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from typing import Literal

import torch
from pydantic import Field, model_validator

from envs.core import Actor, EnvSpec, InputError, Streams, VectorEnv
from envs.world import TensorEnv
from marl.algorithms.mean_field.limit import limit_metrics
from marl.algorithms.mean_field.pathwise import WHAT_CAN, Differentiable, Pathwise, require_differentiable
from marl.algorithms.mean_field.policy import MeanRule, SwarmPolicy, SwarmPolicyConfig
from marl.evaluation.environments import make_evaluation_env, rows_at_once
from marl.evaluation.episodes import watch
from marl.evaluation.policy_report import played
from marl.evaluation.recipe import OnPolicyRecipe
from marl.learning.actor_critic import LearnerConfig
from marl.learning.learner import Learner
from marl.learning.rollout import OnPolicy
from marl.learning.scalarization import TeamAdvantageConfig
from marl.models.critics import CriticConfig
from marl.models.policies import JointPolicy
from marl.output.report import Metric, Tables
from marl.training.environments import make_env
from marl.training.on_policy import ActorCriticConfig
from marl.training.run import Run

__all__ = ["Config", "MeanField", "MeanRule", "SwarmPolicy", "recipe"]

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
    advantage: TeamAdvantageConfig = TeamAdvantageConfig()
    gradient: Literal["score", "pathwise"] = Field(
        "score",
        description="score: PPO; pathwise: back through the physics, where these are differentiable. It reads of "
        "learner only steps (whole episodes), learning_rate(_end), discount and max_grad_norm, and has no critic",
    )

    @model_validator(mode="after")
    def _has_a_path(self) -> Config:
        if self.gradient == "score":
            return self
        if self.policy.rule.kind == "table":
            raise ValueError(
                "gradient=pathwise cannot see the jumps of policy.rule.kind=table; use kernel or neural, or "
                "gradient=score"
            )
        unused = {
            "learner.entropy": self.learner.entropy or self.learner.entropy_end,
            "learner.scale_values": self.learner.scale_values,
            f"advantage={self.advantage.kind}": self.advantage.kind != "team",
            "advantage.weights": self.advantage.weights or self.advantage.weights_end,
        }
        for name in (name for name, used in unused.items() if used):
            raise ValueError(f"gradient=pathwise has no use for {name}: it follows the return alone, without a critic")
        return self


class MeanField(OnPolicyRecipe):
    """One rule for a swarm, by PPO or by gradients through the world's physics; the mean rule is executed."""

    config = Config

    def policy(self, config: Config, spec: EnvSpec, streams: Streams) -> SwarmPolicy:
        """A distribution over rules that has learned nothing."""
        return SwarmPolicy(spec, config.policy, streams)

    def learner(self, config: Config, run: Run, spec: EnvSpec, policy: JointPolicy, updates: int) -> Learner:
        """PPO, or what follows the gradient through the physics."""
        if config.gradient == "score":
            return super().learner(config, run, spec, policy, updates)
        return Pathwise(policy, config.learner, len(spec.channels), run.policies, updates)

    def executed(self, policy: SwarmPolicy) -> MeanRule:
        """The mean rule."""
        return MeanRule(policy)

    def train(self, config: Config, run: Run) -> SwarmPolicy:
        """The trained policy; P of them for a run with P seeds."""
        if config.gradient == "pathwise":
            self._require_path(config, run)
        policy: SwarmPolicy = super().train(config, run)
        return policy

    def source(self, config: Config) -> type[OnPolicy]:
        """Batches whose rewards carry their gradient, where that is followed."""
        return OnPolicy if config.gradient == "score" else Differentiable

    def _require_path(self, config: Config, run: Run) -> None:
        """Raise InputError where no gradient can pass through the world."""
        with closing(make_env(config.env, num_envs=1, device=run.device)) as env:
            if not isinstance(env, TensorEnv):
                raise InputError(f"gradient=pathwise needs a native world (env.world). {WHAT_CAN}")
            policy = self.policy(config, env.spec, Streams([0], run.device))
            require_differentiable(env, policy, config.learner.steps)

    def limit(self, actor: Actor, env: VectorEnv) -> dict[str, Metric]:
        """The exact return of infinitely many agents, `limit/…`, in worlds where it can be found."""
        assert isinstance(actor, MeanRule)
        return limit_metrics(actor, env)

    def findings(self, run: Run, actor: Actor, env: VectorEnv) -> tuple[dict[str, Metric], Tables]:
        """Cross-play, returns with rules drawn and in the limit, the steepest of the rules that the swarm follows."""
        assert isinstance(actor, MeanRule)
        beside, tables = super().findings(run, actor, env)
        found = {**beside, **self.limit(actor, env), "rule/lipschitz": Metric.exact(steepest(run, actor))}
        if actor.policy.explores_rules:
            sampled = played(run, env, actor.policy, run.config.evaluation.episodes, "evaluation")
            found |= sampled.metrics(env.spec.channels, "sampled_rule/")
        return found, tables


def steepest(run: Run, swarm: MeanRule) -> float:
    """The largest bound `Rule.lipschitz` of the mean rules in an episode of some swarms: action units per observed."""
    rows = rows_at_once(ROWS, swarm.policy.agents, ROWS)
    with closing(make_evaluation_env(run.config, rows, run.device)) as env:
        moments = watch(env, swarm, run.stage_seeds("rules")[0], lambda: None)
        steps = islice(moments, env.spec.horizon or LOOK)
        bounds = [swarm.policy.rule.lipschitz(moment.decision.latent).max() for moment in steps]
    return float(torch.stack(bounds).max())


recipe = MeanField()
