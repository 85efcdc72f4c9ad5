"""The config of a run that plans."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from marl.config.schema import EnvConfig, LearningConfig, Section
from marl.learning.regression import RegressionConfig
from marl.models.layers import NetworkConfig
from planners.language.config import ModelConfig
from planners.read.planner import PlannerConfig
from planners.read.reweigh import ReweighConfig


class MethodConfig(PlannerConfig, ReweighConfig):
    """The planner: what it asks, and how a plan is chosen."""

    kind: Literal["read", "reweigh"] = Field(
        "read", description="read: plans are proposed, and sent back; reweigh: all plans are scored at once, and drawn"
    )


class LogConfig(Section):
    """Play that the critic learns from: as the model plays alone, after random starts."""

    play: Literal["model", "random"] = Field(
        "model", description="whose: the model's, asked once in each situation; random costs no query"
    )
    explore: float = Field(
        0.0, ge=0, le=1, description="share of plans that are any plan; a model that is nearly sure needs some"
    )
    num_envs: int = Field(1024, ge=1, description="environments stepped together")
    steps: int = Field(200, ge=1, description="steps of each of them")
    time_limit: int = Field(30, ge=1, description="steps of an episode, at most")
    starts: int = Field(2048, ge=1, description="states in which episodes begin")
    start_steps: int = Field(30, ge=0, description="steps of random play that lead to these, at most")


class CriticSection(Section):
    """The critic of plans."""

    kind: Literal["learned", "counted", "exact", "none"] = Field(
        "learned",
        description="learned: by regression; counted: from how often what followed what; exact: the truth, where all "
        "states can be listed; none: whatever is legal is accepted",
    )
    weights: tuple[float, ...] | None = Field(None, description="worth of each reward channel; null: 1 of the first")
    log: LogConfig = LogConfig()
    network: NetworkConfig = NetworkConfig(hidden=(128, 128), activation="relu")
    learner: RegressionConfig = RegressionConfig(
        rows=512, steps=16, averaging=0.03, learning_rate=2e-3, learning_rate_end=1e-4
    )
    updates: int = Field(4000, ge=1, description="gradient steps")
    members: int = Field(1, ge=1, le=32, description="critics that learn side by side, an ensemble")
    pessimism: float = Field(0.0, ge=0, description="deviations of the ensemble that are subtracted from its mean")


class PlayConfig(Section):
    """Episodes by which planners are judged."""

    episodes: int = Field(200, ge=2, description="episodes, at least")
    num_envs: int = Field(50, ge=1, description="planned in together; a budget that ends keeps whole rounds of these")
    patience: int = Field(100_000, ge=1, description="steps without any episode's end after which it gives up")
    goal: float | None = Field(
        None, description="return of the first channel, an agent, that makes an episode a success; null: none is told"
    )
    beside: tuple[Literal["alone", "uniform"], ...] = Field(
        ("alone", "uniform"),
        description="planners that are judged too: the model alone, and the same planner and critic with a model to "
        "which all plans are alike, which shows what the language model adds",
    )


class Config(LearningConfig):
    """A run that plans: a world, a language model, a planner and a critic."""

    env: EnvConfig
    model: ModelConfig = ModelConfig()
    planner: MethodConfig = MethodConfig(plans="steps")
    critic: CriticSection = CriticSection()
    evaluation: PlayConfig = PlayConfig()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.env.world is None:
            raise ValueError("env.world is needed: planning is in native worlds that describe themselves in words")
        if self.critic.log.steps < self.critic.learner.steps:
            raise ValueError(
                f"critic.log.steps={self.critic.log.steps} leave no segment of critic.learner.steps="
                f"{self.critic.learner.steps}; log more steps, or learn from shorter segments"
            )
        return self
