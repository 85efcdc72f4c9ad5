"""The config of a run that teaches a language model what its planner does better."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from marl.config.schema import Section, TrainConfig
from planners.language.recorded import Budget
from planners.planning import config as planning


class DistillationConfig(Section):
    """Rounds of lessons: whose plans they are, in which situations, and how they are learned."""

    rounds: int = Field(3, ge=1, description="times that the model is taught what a critic of it makes of its plans")
    target: Literal["reweighed", "filtered"] = Field(
        "reweighed",
        description="reweighed: μ exp(A/planner.beta); filtered: μ where A is above planner.threshold, which is what "
        "ReadPlanner comes to",
    )
    num_envs: int = Field(512, ge=1, description="environments in which the improved plans are played")
    steps: int = Field(20, ge=1, description="steps of each; every decision is a lesson")
    from_start: float = Field(
        0.5, ge=0, le=1, description="share of them that begin where play does; the others after random play"
    )
    rows: int = Field(64, ge=1, description="lessons of an update")
    updates: int = Field(1000, ge=1, description="steps of training in a round")
    learning_rate: float = Field(2e-3, gt=0, description="of Adam, at first; it falls to a hundredth in each round")
    max_grad_norm: float = Field(1.0, gt=0, description="largest gradient norm")
    exact: bool = Field(
        False, description="also certain bounds of each model's return alone, by following all that it may do"
    )


class Config(planning.Config):
    """A run that distils a planner into its language model."""

    evaluation: planning.PlayConfig = planning.PlayConfig(beside=())
    distillation: DistillationConfig = DistillationConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _asks_for_scores_of_a_model_that_tells_them(self) -> Config:
        return self  # `_can_be_taught` says more

    @model_validator(mode="after")
    def _can_be_taught(self) -> Config:
        origin = self.model.origin
        if origin not in ("tiny", "local"):
            raise ValueError(
                f"model.{origin} cannot be taught: its parameters are elsewhere. Name a model that runs here, "
                "model.local, or none, for the small one"
            )
        if self.model.cache is not None or self.model.budget != Budget():
            raise ValueError("model.cache and model.budget are for models that stay as they are; leave them out")
        if self.critic.kind == "none":
            raise ValueError("critic.kind=none improves no plan, so there is nothing to teach; take learned")
        if self.planner.probabilities != "constrained":
            raise ValueError(
                f"planner.probabilities={self.planner.probabilities} is not how plans are drawn, which is what is "
                "taught; leave it constrained"
            )
        if self.evaluation.beside:
            raise ValueError("evaluation.beside: the model alone is judged in every round; leave it empty, []")
        return self
