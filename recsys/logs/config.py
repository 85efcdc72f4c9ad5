"""Configs of logs: where they are, what their columns mean, how propensities are fitted that nobody kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from marl.config.schema import Section
from recsys.logs.files import MISSING_WORDS
from recsys.logs.formats import KUAIRAND_SIGNALS
from recsys.logs.log import Columns


class LoggedColumnsConfig(Section):
    """The names of columns that any log has or may have; each means what it does in `Columns`."""

    action: str = Field(description="what was shown")
    rewards: tuple[str, ...] = Field(min_length=1, description="the signals, one or several")
    position: str | None = Field(None, description="where it was shown")
    user: str | None = Field(
        None, description="whose rows or sessions belong together, such as in a bootstrap; without it each stands alone"
    )

    def of_log(self, segments: Sequence[str] = (), context: Sequence[str] = ()) -> Columns:
        """The columns of a log with these names."""
        return Columns(**self.model_dump(), segments=tuple(segments), context=tuple(context))


class ColumnsConfig(LoggedColumnsConfig):
    """The names of the columns of a table of single decisions."""

    propensity: str | None = Field(
        description="the probability at which it was shown, in (0, 1]; null where nobody kept it, see behavior"
    )
    episode: str | None = Field(None, description="with step: checked that each step occurs once")
    step: str | None = Field(None, description="the place in the episode: whole numbers that go up by one")
    terminated: str | None = Field(
        None, description="of sessions to learn from: true in the step after which the user left; without it all did"
    )
    multiplicity: str | None = Field(None, description="how many rows a row stands for, where the log was thinned")

    @model_validator(mode="after")
    def _both_or_none(self) -> ColumnsConfig:
        if (self.episode is None) != (self.step is None):
            raise ValueError("episode and step belong together, such as episode: visit, step: n; give both or none")
        if self.terminated is not None and self.episode is None:
            raise ValueError("terminated says which sessions ended, so it needs episode and step")
        return self


class SyntheticConfig(Section):
    """A bandit whose truth is known; docs/ope_learning.md has its equations."""

    rows: int = Field(20_000, ge=1, description="logged rows")
    actions: int = Field(10, ge=2, description="A")
    features: int = Field(5, ge=1, description="numbers that are known of a row, the columns x0 …")
    signals: dict[str, float] = Field(
        {"click": 0.2}, min_length=1, description="names of the rewards, and what a score of 0 earns of each"
    )
    users: int = Field(2_000, ge=1, description="who share the rows, at most one a row")
    rewards: Literal["bernoulli", "gaussian"] = Field(
        "bernoulli", description="0 or 1, or normal with deviation 1 around the expected reward"
    )
    strength: float = Field(1.0, ge=0, description="how much the expected reward depends on features and action")
    beta: float = Field(1.0, description="how much the logging policy prefers what it takes for good; 0 is uniform")
    seed: int = Field(0, ge=0, description="of the problem; a run's own seed draws the rows")

    @model_validator(mode="after")
    def _signals_fit(self) -> SyntheticConfig:
        taken = {"user", "action", "propensity", *(f"x{d}" for d in range(self.features))} & set(self.signals)
        if taken:
            raise ValueError(f"signals: {', '.join(sorted(taken))} is the name of another column of the log")
        wrong = [name for name, rate in self.signals.items() if not 0 < rate < 1 and self.rewards == "bernoulli"]
        if wrong:
            raise ValueError(f"signals: a rate of bernoulli rewards is in (0, 1); {wrong[0]}={self.signals[wrong[0]]}")
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

    format: Literal["open_bandit", "kuairand", "table", "synthetic"] = Field(
        "open_bandit", description="how the log is laid out"
    )
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
    actions: Annotated[int, Field(ge=1)] | tuple[int | str, ...] | None = Field(
        None, description="of table: labels are 0 to actions - 1, or these; null takes what is shown"
    )
    bandwidth: float | None = Field(
        None, gt=0, description="of a table of real actions: half the kernel's width; propensity is then a density"
    )
    logging: str | None = Field(
        None,
        description="the whole policy that chose: uniform, a CSV as policy.table, or module:name; for mips, support",
    )
    categories: str | None = Field(None, description="of mips: a CSV, an action a line, its label and its category")
    loggers: dict[str, float] = Field(
        default_factory=dict,
        description="of balanced_ips: the columns of each logger's propensities: its share of rows",
    )
    missing: tuple[str, ...] = Field(
        MISSING_WORDS, description="words of a CSV that stand for no value; an empty cell always does"
    )
    synthetic: SyntheticConfig = SyntheticConfig()
    segments: tuple[str, ...] = Field((), description="columns for each of whose values results are told too")
    context: tuple[str, ...] = Field((), description="columns that policies of your own read")

    @field_validator("loggers")
    @classmethod
    def _shares(cls, value: dict[str, float]) -> dict[str, float]:
        if value and not (min(value.values()) >= 0 and abs(sum(value.values()) - 1) <= 1e-6):
            raise ValueError(f"expected shares of rows that add up to 1; got {value}")
        return value

    @model_validator(mode="after")
    def _fits_the_format(self) -> DataConfig:
        mine = {
            "open_bandit": {"campaign", "hide_propensity"},
            "kuairand": {"version", "signals"},
            "table": {"columns", "actions", "bandwidth", "random"},
            "synthetic": {"synthetic"},
        }
        for section in mine.keys() - {self.format}:
            for name in mine[section]:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} is for format={section}; this is {self.format}")
        if self.format == "table" and (self.path is None or self.columns is None):
            raise ValueError("format=table needs path and columns.{action,rewards,propensity}")
        if self.bandwidth is not None and self.fitted:
            raise ValueError("bandwidth needs columns.propensity, the density of each real action; nothing fits these")
        if self.format == "kuairand" and self.path is None:
            raise ValueError("format=kuairand needs path, the folder of its CSV files; they do not come along")
        if self.format == "synthetic" and (self.path is not None or self.segments):
            raise ValueError("path and segments say nothing of format=synthetic, which is drawn; leave them out")
        if self.format == "synthetic" and self.missing != MISSING_WORDS:
            raise ValueError("missing says nothing of format=synthetic, where nothing is; leave it out")
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
        """True where propensities have to be fitted."""
        lacking = self.columns is not None and self.columns.propensity is None
        return lacking or self.hide_propensity or self.logged_by == "standard"


class BehaviorConfig(Section):
    """The model of propensities, for a log that has none."""

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
