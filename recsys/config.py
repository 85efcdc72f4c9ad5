"""Sections that configs of offline evaluation share: policies and estimates; `recsys.logs.config` is of logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from envs.core import InputError
from marl.config.schema import Section

S = TypeVar("S", bound=Section)

NAMED = ("random", "uniform", "popularity", "bts", "table", "softmax", "epsilon_greedy", "logging", "best")
KNOWN = ("logging", "best")  # to a synthetic log
TRAINED = "run:"  # what a target begins with that is a trained policy, followed by the folder of its run
COLUMN = "column:"  # of real actions: before the column of what a policy would have set
SCORED = ("softmax", "epsilon_greedy")


class TargetConfig(Section):
    """The policies to evaluate."""

    target: tuple[str, ...] = Field(
        min_length=1,
        description=f"one or a list: {', '.join(NAMED)}, a function of your own, module:name, or the policy that a run "
        "has trained, run:DIR",
    )
    table: str | None = Field(None, description="of table: a CSV, an action a line, a probability for each position")
    scores: str | None = Field(
        None, description="of softmax, epsilon_greedy: columns <scores>0 … <scores>A-1 of the log"
    )
    temperature: float = Field(1.0, gt=0, description="of softmax")
    epsilon: float = Field(0.1, ge=0, le=1, description="of epsilon_greedy: the share of uniform choices")
    observation: tuple[str, ...] = Field(
        (), description="of run:DIR: columns that the policy sees, in its order; empty are those it was learned from"
    )

    @field_validator("target", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _complete(self) -> TargetConfig:
        for name in self.target:
            if name not in NAMED and ":" not in name:
                raise ValueError(f"target: expected {', '.join(NAMED)}, module:name or run:DIR; got {name!r}")
        if len(set(self.target)) < len(self.target):
            raise ValueError("target names each policy once")
        if (self.table is not None) != ("table" in self.target):
            raise ValueError("target=table needs policy.table, the CSV of its probabilities, and nothing else does")
        if (self.scores is not None) != any(name in SCORED for name in self.target):
            raise ValueError(
                "target=softmax and epsilon_greedy need policy.scores, such as scores=score for the columns score0, "
                "score1, …; nothing else does"
            )
        if self.observation and not any(name.startswith(TRAINED) for name in self.target):
            raise ValueError("observation is for target=run:DIR")
        return self


class EstimatorsConfig(Section):
    """The estimators, and their settings."""

    names: tuple[str, ...] = Field(
        (), description="those to compute; empty is all that need no more than a row's own columns"
    )
    cap: float = Field(10.0, gt=0, description="largest weight of capped_ips, ncis, capped_dr")
    threshold: float = Field(10.0, ge=0, description="switch_dr trusts the model where the weight is larger")
    shrinkage: float = Field(10.0, gt=0, description="λ of dros; ∞ would be dr")
    subgaussian: float = Field(0.1, ge=0, le=1, description="λ of subgaussian_ips and subgaussian_dr; 0 is ips and dr")


class RewardModelConfig(Section):
    """The model that dm, dr and their kin use: a smoothed mean for each action and position, or one with context."""

    kind: Literal["mean", "linear"] = Field(
        "mean", description="of each action and position; linear adds slopes of columns, fitted without the row's user"
    )
    prior_rows: float = Field(50.0, gt=0, description="as if so many rows of the log's mean had been seen in each cell")
    columns: tuple[str, ...] = Field(
        (), description="of linear: numbers, booleans or text of few values, known before the action was chosen"
    )
    l2: float = Field(
        10.0, ge=1e-6, description="of linear: penalty on how far an action's slopes are from those of all actions"
    )
    folds: int = Field(5, ge=2, le=100, description="of linear: of users; each is predicted by a model of the others")

    @model_validator(mode="after")
    def _fits_the_kind(self) -> RewardModelConfig:
        if self.kind == "mean":
            for name in ("columns", "l2", "folds"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} is for kind=linear; kind=mean does not use it")
        elif not self.columns:
            raise ValueError("kind=linear needs columns; without any it would be kind=mean")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("columns names each once")
        return self


class BoundsConfig(Section):
    """Bounds that no row and no user exceeds, known before the log was seen."""

    reward: tuple[float, float] = Field(
        (0.0, 1.0), description="the least and the most that a row can earn, such as [0, 1]"
    )
    weight: float = Field(gt=0, description="the most that a weight can be: the target's over the logger's probability")
    rows: int = Field(1, ge=1, description="the most rows of one user")

    @field_validator("reward")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError(f"expected the least and then the most; got {list(value)}")
        return value


class IntervalsConfig(Section):
    """Intervals of the estimates: by users where the log has them."""

    method: Literal["studentized", "bootstrap", "bca", "t", "hoeffding", "bernstein", "empirical_likelihood"] = Field(
        "studentized",
        description="a bootstrap of t, of percentiles or of corrected ones; Student's; or bounds that hold for any "
        "number of users",
    )
    level: float = Field(0.95, gt=0, lt=1, description="the probability with which an interval should hold the truth")
    replications: int = Field(1000, ge=100, description="of bootstraps, drawn from the run's seed")
    bounds: BoundsConfig | None = Field(None, description="of hoeffding and bernstein: what nothing exceeds")
    multiplicity: Literal["holm", "bh"] = Field(
        "holm", description="how p-values of segments are adjusted: no false alarm at all, or a share of them"
    )

    @model_validator(mode="after")
    def _bounded(self) -> IntervalsConfig:
        if (self.method in ("hoeffding", "bernstein")) != (self.bounds is not None):
            raise ValueError(
                "method=hoeffding and bernstein need bounds that are known beforehand, such as "
                "bounds: {reward: [0, 1], weight: 20, rows: 1}; no other method does"
            )
        return self


class SelectionConfig(Section):
    """The choice of the estimator to read."""

    method: Literal["fixed", "slope", "pas_if"] = Field(
        "fixed",
        description="sndr, dr, snips or ips, the first of the best verdict; the narrowest interval that agrees with "
        "wider ones; or the least error on splits of the log",
    )
    biased: bool = Field(
        False, description="whether capped, shrunken or modeled estimates may be read, whose intervals miss their bias"
    )
    splits: int = Field(10, ge=1, le=1000, description="of pas_if")
    share: float = Field(0.2, gt=0, lt=1, description="of pas_if: of rows, that the pseudo target policy gets")
    rows: int = Field(20_000, ge=100, description="of pas_if: at most so many, evenly from the log")


class EvaluationSettings(Section):
    """Settings of the evaluation of single decisions: what a recipe's config or a caller's keywords say."""

    estimators: EstimatorsConfig = EstimatorsConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    intervals: IntervalsConfig = IntervalsConfig()
    selection: SelectionConfig = SelectionConfig()
    seed: int = Field(0, ge=0, description="of bootstraps")
    workers: int = Field(2, ge=1, description="threads that scan the log")


def section_of(kind: type[S], given: S | Mapping[str, Any] | None) -> S:
    """The section that a caller gave, as it is or as plain settings. Raises InputError for what is out of range."""
    return given if isinstance(given, kind) else checked(kind, **dict(given or {}))


def checked(section: type[S], **settings: Any) -> S:
    """The section with these settings. Raises InputError for what is out of range."""
    try:
        return section(**settings)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())
        raise InputError(f"These settings cannot be: {told}.") from None
