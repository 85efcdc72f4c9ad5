"""What configs of offline evaluation share, and what they say of the log and of the policies."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from marl.config import EnvConfig, EvaluationConfig, RunConfig, Section, TrainConfig
from recsys.formats import KUAIRAND_SIGNALS

NAMED = ("random", "uniform", "popularity", "bts", "table", "softmax", "epsilon_greedy")
SCORED = ("softmax", "epsilon_greedy")
NOWHERE = EnvConfig.model_construct()  # the environment of what plays in none


class OfflineConfig(RunConfig):
    """A recipe that plays in no world and trains nothing."""

    env: EnvConfig = Field(NOWHERE, exclude=True, description="not used: everything comes from data.path")

    @model_validator(mode="after")
    def _nothing_idle(self) -> OfflineConfig:
        idle = {
            "compile": self.compile,
            "env": self.env != NOWHERE,
            "train": self.train != TrainConfig(),
            "evaluation": self.evaluation != EvaluationConfig(),
        }
        for section, changed in idle.items():
            if changed:
                raise ValueError(f"{section} says nothing here: nothing is played, trained or compiled. Leave it out")
        return self


class ColumnsConfig(Section):
    """What a table calls its columns."""

    action: str = Field(description="what was shown")
    rewards: tuple[str, ...] = Field(min_length=1, description="the signals, one or several")
    propensity: str | None = Field(
        description="the probability at which it was shown, in (0, 1]; null where nobody kept it, see behavior"
    )
    position: str | None = Field(None, description="where it was shown")
    user: str | None = Field(None, description="whose rows a bootstrap draws together; without it rows stand alone")
    episode: str | None = Field(None, description="with step: checked that each step occurs once")
    step: str | None = Field(None, description="the place in the episode")
    multiplicity: str | None = Field(None, description="how many rows a row stands for, where the log was thinned")

    @model_validator(mode="after")
    def _both_or_none(self) -> ColumnsConfig:
        if (self.episode is None) != (self.step is None):
            raise ValueError("episode and step belong together; give both or none")
        return self


class RandomSliceConfig(Section):
    """Rows whose action was drawn uniformly, to compare with."""

    path: str | None = Field(None, description="a log of its own with the same columns")
    column: str | None = Field(None, description="or the column of the log that is true, or 1, for these rows")

    @model_validator(mode="after")
    def _one(self) -> RandomSliceConfig:
        if (self.path is None) == (self.column is None):
            raise ValueError("random needs either path or column")
        return self


class DataConfig(Section):
    """The log."""

    format: Literal["open_bandit", "kuairand", "table"] = Field("open_bandit", description="how the log is laid out")
    path: str | None = Field(None, description="its folder, file or pattern; null is the sample of open_bandit")
    campaign: Literal["all", "men", "women"] = Field("all", description="of open_bandit")
    logged_by: Literal["random", "bts", "standard"] = Field(
        "random", description="who chose: bts of open_bandit, standard (without propensities) of kuairand"
    )
    hide_propensity: bool = Field(
        False, description="of open_bandit: fit the propensities all the same, and compare with the true ones"
    )
    random_slice: bool = Field(
        False,
        description="of fitted propensities: compare with the rows that were shown at random, as published beside",
    )
    random: RandomSliceConfig | None = Field(
        None, description="of table without propensities: rows shown at random, to compare with"
    )
    version: Literal["pure", "1k", "27k"] = Field("pure", description="of kuairand")
    signals: tuple[str, ...] = Field(KUAIRAND_SIGNALS, min_length=1, description="rewards of kuairand")
    columns: ColumnsConfig | None = Field(None, description="of table: which column is what")
    actions: int | None = Field(
        None, ge=1, description="of table: labels are 0 to actions - 1; null takes what is shown"
    )
    segments: tuple[str, ...] = Field((), description="columns for each of whose values results are told too")
    context: tuple[str, ...] = Field((), description="columns that policies of your own read")

    @model_validator(mode="after")
    def _fits_the_format(self) -> DataConfig:
        mine = {
            "open_bandit": {"campaign", "hide_propensity"},
            "kuairand": {"version", "signals"},
            "table": {"columns", "actions", "random"},
        }
        for section in mine.keys() - {self.format}:
            for name in mine[section]:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} is for format={section}; this is {self.format}")
        if self.format == "table" and (self.path is None or self.columns is None):
            raise ValueError("format=table needs path and columns.{action,rewards,propensity}")
        if self.format == "kuairand" and self.path is None:
            raise ValueError("format=kuairand needs path, the folder of its CSV files; they do not come along")
        at_home = {"random": self.format, "bts": "open_bandit", "standard": "kuairand"}[self.logged_by]
        if self.format != at_home:
            raise ValueError(f"logged_by={self.logged_by} is for format={at_home}; this is {self.format}")
        if self.random_slice and self.format == "table":
            raise ValueError("random_slice is for published logs; of a table, data.random says which rows are random")
        if (self.random_slice or self.random is not None) and not self.fitted:
            raise ValueError(
                "a random slice is compared with propensities that are fitted; those of this log are known"
            )
        return self

    @property
    def fitted(self) -> bool:
        """Whether propensities have to be fitted."""
        lacking = self.columns is not None and self.columns.propensity is None
        return lacking or self.hide_propensity or self.logged_by == "standard"


class BehaviorConfig(Section):
    """How to fit propensities to a log that has none."""

    model: Literal["frequency", "logistic"] = Field(
        "frequency", description="how often each action was shown in each context; or a multinomial regression"
    )
    columns: tuple[str, ...] = Field(description="all that moved the logger's choice: the context; may be empty")
    folds: int = Field(5, ge=3, le=100, description="of users; each is predicted by a model of the others")
    strength: float | None = Field(
        None, gt=0, description="of frequency: as if so many rows of the whole log were in each context; null fits it"
    )
    l2: float = Field(1.0, gt=0, description="of logistic: penalty on coefficients of standardized columns")
    max_rows: int = Field(50_000, ge=100, description="of logistic: rows to fit on, drawn by a hash of their numbers")
    odds: tuple[float, ...] = Field(
        (1.5, 2.0, 3.0), min_length=1, description="factors by which the odds of propensities may be wrong"
    )

    @model_validator(mode="after")
    def _fits_the_model(self) -> BehaviorConfig:
        mine = {"frequency": {"strength"}, "logistic": {"l2", "max_rows"}}
        for name in mine[{"frequency": "logistic", "logistic": "frequency"}[self.model]]:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is not for model={self.model}")
        if min(self.odds) < 1:
            raise ValueError(f"odds are factors of at least 1; got {min(self.odds)}")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("columns names each once")
        return self


class TargetConfig(Section):
    """The policies to evaluate."""

    target: tuple[str, ...] = Field(
        min_length=1,
        description=f"one or a list: {', '.join(NAMED)}, or a function of your own, module:name",
    )
    table: str | None = Field(None, description="of table: a CSV, an action a line, a probability for each position")
    scores: str | None = Field(
        None, description="of softmax, epsilon_greedy: columns <scores>0 … <scores>A-1 of the log"
    )
    temperature: float = Field(1.0, gt=0, description="of softmax")
    epsilon: float = Field(0.1, ge=0, le=1, description="of epsilon_greedy: the share of uniform choices")

    @field_validator("target", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _complete(self) -> TargetConfig:
        for name in self.target:
            if name not in NAMED and ":" not in name:
                raise ValueError(f"target: expected {', '.join(NAMED)} or module:name; got {name!r}")
        if len(set(self.target)) < len(self.target):
            raise ValueError("target names each policy once")
        if (self.table is not None) != ("table" in self.target):
            raise ValueError("table and target=table belong together")
        if (self.scores is not None) != any(name in SCORED for name in self.target):
            raise ValueError("scores and target=softmax or epsilon_greedy belong together")
        return self


class EstimatorsConfig(Section):
    """Which estimators, and their settings."""

    names: tuple[str, ...] = Field((), description="those to compute; empty is all")
    cap: float = Field(10.0, gt=0, description="largest weight of capped_ips, ncis, capped_dr")
    threshold: float = Field(10.0, ge=0, description="switch_dr trusts the model where the weight is larger")
    shrinkage: float = Field(10.0, gt=0, description="λ of dros; ∞ would be dr")
    subgaussian: float = Field(0.1, ge=0, le=1, description="λ of subgaussian_ips and subgaussian_dr; 0 is ips and dr")


class RewardModelConfig(Section):
    """The model that dm, dr and their kin use: a smoothed mean for each action and position."""

    prior_rows: float = Field(50.0, gt=0, description="as if so many rows of the log's mean had been seen in each cell")


class IntervalsConfig(Section):
    """How sure the estimates are: by users where the log has them."""

    method: Literal["bootstrap", "bca", "t"] = Field(
        "bootstrap", description="percentiles, corrected ones, or Student's"
    )
    level: float = Field(0.95, gt=0, lt=1, description="the probability with which an interval should hold the truth")
    replications: int = Field(1000, ge=1, description="of bootstrap and bca, drawn from the run's seed")
