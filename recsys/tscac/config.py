"""The config of learning with thresholds from a log: parts, responses to hold, stages, and how all is judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, model_validator

from marl.config.schema import LearningConfig, Section, TrainConfig
from recsys import ope
from recsys.config import TRAINED, EstimatorsConfig, IntervalsConfig, RewardModelConfig, TargetConfig
from recsys.logs.config import DataConfig
from recsys.tscac.constraints import ThresholdConfig
from recsys.tscac.stages import StageConfig


class PartsConfig(Section):
    """Shares of the users (or else of the sessions, or else of the rows) that are not learned from."""

    validate_by: float = Field(0.25, gt=0, lt=1, description="those that thresholds are held on while learning")
    certify_by: float = Field(0.25, gt=0, lt=1, description="those that are looked at once, at the end")

    @model_validator(mode="after")
    def _some_left(self) -> PartsConfig:
        if self.validate_by + self.certify_by > 0.9:
            raise ValueError("at least a tenth is left to learn from")
        return self


class Config(LearningConfig):
    """A log of single decisions, what to raise, and what to hold."""

    data: DataConfig = DataConfig()
    main: str = Field(description="the response to raise")
    thresholds: dict[str, ThresholdConfig] = Field(min_length=1, description="the responses to hold")
    observation: tuple[str, ...] = Field(
        (), description="columns that the policy sees besides the position; empty are all of data.context"
    )
    parts: PartsConfig = PartsConfig()
    anchor: Literal["auxiliary", "logging", "uniform"] = Field(
        "auxiliary", description="what to stay close to: the best of each other response, what was logged, or nothing"
    )
    stage_one_temperature: PositiveFloat = Field(0.3, description="τ of the auxiliaries, in deviations of a response")
    temperature: tuple[PositiveFloat, ...] = Field(
        (1.0, 0.3, 0.1, 0.03), min_length=1, description="Λ, in deviations of the main response: a policy for each"
    )
    stage_one: StageConfig = StageConfig()
    stage_two: StageConfig = StageConfig()
    rounds: int = Field(40, ge=2, description="looks at the validating users, after each of which multipliers move")
    slack: float = Field(1.0, ge=0, description="standard errors by which thresholds are held while learning, and more")
    level: float = Field(0.95, gt=0.5, lt=1, description="of all thresholds at once")
    train: TrainConfig = Field(TrainConfig(env_steps=1_000_000), description="env_steps: rows drawn for each policy")
    against: TargetConfig = Field(TargetConfig(target=("uniform",)), description="policies evaluated beside it")
    estimators: EstimatorsConfig = EstimatorsConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    intervals: IntervalsConfig = IntervalsConfig()
    workers: int = Field(2, ge=1, le=256, description="threads that scan the log")

    @model_validator(mode="after")
    def _known(self) -> Config:
        ope.require_known(self.data, self.against, self.estimators, "against")
        if self.data.fitted or self.data.bandwidth is not None:
            raise ValueError("recipe recsys.tscac.recommend needs a log of choices from a catalog, with propensities")
        if any(name.startswith(TRAINED) for name in self.against.target):
            raise ValueError("against.target: what other runs have learned is compared by recipe recsys.ope")
        return self

    def evaluation_config(self) -> ope.Config:
        """The part that says how to evaluate."""
        named = ("seed", "data", "estimators", "reward_model", "intervals", "workers")
        return ope.Config(recipe="recsys.ope", policy=self.against, **{name: getattr(self, name) for name in named})
