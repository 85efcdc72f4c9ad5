"""Configs of sessions: the log, its columns, the estimators and their intervals."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from marl.config.schema import RunConfig, Section
from recsys.config import COLUMN, KNOWN, TargetConfig
from recsys.logs.config import LoggedColumnsConfig
from recsys.logs.files import MISSING_WORDS
from recsys.sequential.estimators import PLAIN, WITH_STATES


class SessionColumnsConfig(LoggedColumnsConfig):
    """The names of the columns of a table of steps; one row is one step of one session."""

    episode: str = Field(description="which session")
    step: str = Field(description="the place in the session: whole numbers that go up by one")
    propensity: str = Field(description="the probability at which it was shown, in (0, 1]")
    state: str | None = Field(
        None, description="a discrete column that tells what matters of a step, for fqe, seq_dr, wdr, magic"
    )


class SessionDataConfig(Section):
    """The log."""

    format: Literal["oracle", "table"] = Field("oracle", description="drawn from an exact problem, or files")
    path: str | None = Field(
        None, description="of table: file, folder or pattern; of oracle: a problem's JSON, null is the one shipped"
    )
    columns: SessionColumnsConfig | None = Field(None, description="of table: which column is what")
    actions: Annotated[int, Field(ge=1)] | tuple[int | str, ...] | None = Field(
        None, description="of table: labels are 0 to actions - 1, or these; null takes what is shown"
    )
    missing: tuple[str, ...] = Field(
        MISSING_WORDS, description="of table: words of a CSV that stand for no value; an empty cell always does"
    )
    context: tuple[str, ...] = Field((), description="columns that policies of your own read; the state always is one")
    sessions: int = Field(2000, ge=2, description="of oracle: how many are drawn, by the run's seed")

    @model_validator(mode="after")
    def _fits_the_format(self) -> SessionDataConfig:
        if self.format == "table" and (self.path is None or self.columns is None):
            raise ValueError("format=table needs path and columns.{episode,step,action,rewards,propensity}")
        if self.format == "oracle" and (self.columns is not None or self.actions is not None):
            raise ValueError("columns and actions are for format=table; this is oracle")
        if self.format == "oracle" and self.missing != MISSING_WORDS:
            raise ValueError("missing is for format=table; this is oracle")
        if self.format == "table" and self.sessions != type(self).model_fields["sessions"].default:
            raise ValueError("sessions is for format=oracle; this is table")
        return self

    @property
    def state(self) -> str | None:
        """The column of states."""
        return "state" if self.columns is None else self.columns.state


class SessionEstimatorsConfig(Section):
    """The estimators, and their settings."""

    names: tuple[str, ...] = Field((), description="those to compute; empty is all that the log's columns allow")
    cap: float = Field(10.0, gt=0, description="largest weight of a step in ncis")


class SessionIntervalsConfig(Section):
    """Intervals of the estimates: by users where the log has them, else by sessions."""

    method: Literal["studentized", "bootstrap", "bca", "t", "empirical_likelihood"] = Field(
        "studentized",
        description="a bootstrap of t, of percentiles or of corrected ones; Student's; or empirical likelihood",
    )
    level: float = Field(0.95, gt=0, lt=1, description="the probability with which an interval should hold the truth")
    replications: int = Field(1000, ge=100, description="of bootstraps, drawn from the run's seed")


class Config(RunConfig):
    """A log of sessions, policies and estimators."""

    data: SessionDataConfig = SessionDataConfig()
    policy: TargetConfig
    discount: float | tuple[float, ...] = Field(1.0, description="γ in [0, 1], or one for each signal")
    estimators: SessionEstimatorsConfig = SessionEstimatorsConfig()
    intervals: SessionIntervalsConfig = SessionIntervalsConfig()

    @model_validator(mode="after")
    def _known(self) -> Config:
        signals = 1 if self.data.columns is None else len(self.data.columns.rewards)
        gammas = (self.discount,) * signals if isinstance(self.discount, float) else self.discount
        if not all(0 <= gamma <= 1 for gamma in gammas) or len(gammas) != signals:
            raise ValueError(f"discount: expected one number in [0, 1], or one for each of {signals} signals")
        for name in self.policy.target:
            if name in (*KNOWN, "bts") or name.startswith(COLUMN):
                raise ValueError(f"policy.target: {name} is not known of sessions")
        for name in self.estimators.names:
            if name not in (*PLAIN, *WITH_STATES):
                raise ValueError(f"estimators.names: expected {', '.join((*PLAIN, *WITH_STATES))}; got {name!r}")
            if name in WITH_STATES and self.data.state is None:
                raise ValueError(f"estimators.names: {name} needs data.columns.state")
        return self

    @property
    def gamma(self) -> float | np.ndarray:
        """The discount as estimators take it."""
        return self.discount if isinstance(self.discount, float) else np.array(self.discount)
