"""Settings of the small language model, and the world in which it learns to plan."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from marl.config.schema import EnvConfig, LearningConfig, Section, TrainConfig


class TinyConfig(Section):
    """A language model of about 85,000 parameters, which learns from a teacher who makes mistakes."""

    seed: int = Field(0, ge=0, lt=2**31, description="of its mistakes, what it is taught and its first parameters")
    mistakes: float = Field(
        0.08,
        ge=0,
        le=1,
        description="share of the lines of a description that mislead whoever reads them, always alike",
    )
    noise: float = Field(0.35, ge=0, le=1, description="share of the teacher's plans that are any plan")
    lessons: int = Field(40_000, ge=1, description="prompts with an answer that it is taught")
    rows: int = Field(64, ge=1, description="lessons of an update")
    updates: int = Field(2500, ge=1, description="steps of training")
    learning_rate: float = Field(4e-3, gt=0, description="of Adam, at first; it falls to a hundredth")
    max_grad_norm: float = Field(1.0, gt=0, description="largest gradient norm")
    hidden: int = Field(32, ge=4, description="units of a layer")
    layers: int = Field(2, ge=1, description="layers")
    heads: int = Field(2, ge=1, description="heads of attention")
    vocabulary: int = Field(2000, ge=300, description="tokens, at most")

    @model_validator(mode="after")
    def _whole_heads(self) -> TinyConfig:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden must be a multiple of 2 heads; got hidden={self.hidden}, heads={self.heads}")
        return self


class Config(LearningConfig):
    """A run that trains the small language model."""

    env: EnvConfig
    plans: Literal["all", "steps"] = Field("steps", description="what it plans: all plans, or single steps")
    tiny: TinyConfig = TinyConfig()
    train: TrainConfig = TrainConfig()
