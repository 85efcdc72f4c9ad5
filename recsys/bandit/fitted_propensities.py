"""Logs without propensities: fit them, say how well, and what estimates from them are worth.

What follows rests on no unmeasured confounding: given the columns of the model, nothing else moved both what was shown
and the reward. docs/ope_propensities.md has the equations and the sources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from envs.core import InputError
from marl.output.report import Metric
from recsys.bandit.sensitivity import Groups, scanned
from recsys.evaluation import Evaluation
from recsys.logs.config import BehaviorConfig
from recsys.logs.log import Chunk, Log
from recsys.models.cross_fitting import Quality
from recsys.models.propensity_frequency import FrequencyModel
from recsys.models.propensity_logistic import LogisticModel
from recsys.policies.base import Policy
from recsys.statistics.methods import LOGGED

Table = list[dict[str, Any]]
CLEAR_Z = 4.0  # a calibration beyond it is no accident


@runtime_checkable
class Behavior(Protocol):
    """A model of the logger: who would have been shown what, fitted without the row's user."""

    quality: Quality
    temperatures: list[float]

    def propensity(self, rows: Chunk) -> Float[np.ndarray, " n"]:
        """The probability of the logged actions."""


@dataclass(frozen=True)
class Fitted:
    """A log whose chunks come with fitted propensities, none below `floor`, one showing in the whole log."""

    log: Log
    behavior: Behavior
    settings: BehaviorConfig
    floor: float


def fit(log: Log, settings: BehaviorConfig) -> Fitted:
    """Fit the model of `settings` to a log without propensities, in one scan.

    Raises InputError where its columns are not in the log, leak the action or a reward, or have missing values; where
    users are fewer than folds; or where the model would not fit into memory.
    """
    columns = log.columns
    for name in settings.columns:
        if name in (columns.action, *columns.rewards):
            raise InputError(f"behavior.columns are what was known before an action was chosen; {name!r} came after.")
    log = log.with_context((*settings.columns, *([] if columns.user is None else [columns.user])))
    behavior: Behavior
    if settings.model == "frequency":
        behavior = FrequencyModel(log, settings.columns, settings.folds, settings.strength)
    else:
        behavior = LogisticModel(log, settings.columns, settings.folds, settings.l2, settings.max_rows)
    floor = 1 / behavior.quality.rows

    def with_propensities(rows: Chunk) -> Chunk:
        return replace(rows, propensity=np.clip(behavior.propensity(rows), floor, 1.0))

    quality = behavior.quality
    off = quality.error if quality.worst > CLEAR_Z else 0.0
    facts = {"fitted": True, "calibration_error": off, "calibration_z": quality.worst}
    return Fitted(log.with_change(with_propensities, facts), behavior, settings, floor)


def findings(
    fitted: Fitted, targets: Sequence[Policy], evaluation: Evaluation, known: str | None = None, workers: int = 1
) -> Evaluation:
    """The evaluation with the tables `calibration`, `sensitivity`, `breaking_odds`, notes, and metrics `behavior/…`.

    known: the column of the true propensities, where they were only hidden, to be compared with.
    """
    quality = fitted.behavior.quality
    groups = scanned(fitted.log, targets, workers)
    floored, ratios = _compared(fitted, known)
    numbers = {
        "log_loss": quality.log_loss,
        "log_loss_marginal": quality.marginal,
        "calibration_error": quality.error,
        "calibration_z": quality.worst,
        "temperature": float(np.mean(fitted.behavior.temperatures)),
        "unseen_contexts": quality.unseen,
        "floored": floored,
        **ratios,
    }
    broken = breaking(groups, evaluation.metrics)
    for row in broken:
        if math.isfinite(row["odds"]):
            numbers[f"{row['signal']}/{row['policy']}/breaking_odds"] = row["odds"]
    tables = {
        "calibration": [
            {"pairs": r.pairs, "predicted": r.predicted, "shown": r.shown, "standard_error": r.standard_error}
            for r in quality.calibration
        ],
        "sensitivity": sensitivity(groups, fitted.settings.odds),
        "breaking_odds": broken,
    }
    metrics = {f"behavior/{name}": Metric.exact(value) for name, value in numbers.items()}
    return evaluation.with_more(metrics, tables, notes(fitted, floored))


def sensitivity(groups: Mapping[tuple[str, str], Groups], odds: Sequence[float]) -> Table:
    """The least and the largest SNIPS estimate at each factor on the odds."""
    rows = []
    for (policy, signal), by_reward in groups.items():
        for factor in odds:
            low, high = by_reward.bounds(factor)
            rows.append({"policy": policy, "signal": signal, "odds": factor, "low": low, "high": high})
    return rows


def breaking(groups: Mapping[tuple[str, str], Groups], metrics: Mapping[str, Metric]) -> Table:
    """The factor on the odds at which the bounds of SNIPS reach what the log itself earned."""
    rows = []
    for (policy, signal), by_reward in groups.items():
        logged = metrics[f"{signal}/{LOGGED}"].value
        row = {"policy": policy, "signal": signal, "snips": by_reward.bounds(1)[0], "logged": logged}
        rows.append({**row, "odds": by_reward.breaking_odds(logged)})
    return rows


def notes(fitted: Fitted, floored: int) -> list[str]:
    """Sentences that a reader has to know."""
    log, settings, quality = fitted.log, fitted.settings, fitted.behavior.quality
    named = ", ".join(settings.columns) or "no column"
    told = [
        f"Propensities are fitted ({settings.model}, by {named}). Every estimate rests on no unmeasured confounding: "
        "given these columns, nothing else moved both what was shown and the reward. The table sensitivity says how "
        "far SNIPS goes where that fails; its bounds hold no sampling error."
    ]
    if floored:
        told.append(
            f"{floored:,} fitted propensities below {fitted.floor:.3g}, one showing in the log, were raised to it."
        )
    if quality.log_loss >= quality.marginal and settings.columns:
        told.append("By held-out log-loss the columns of the model tell no more than how often each action was shown.")
    if quality.unseen > 0.1:
        told.append(
            f"{quality.unseen:.0%} of the rows have a context that occurs in their own fold only, and were given the "
            "frequencies of all rows: name columns with fewer values."
        )
    if quality.judged < 1:
        told.append(f"The calibration is told by {quality.judged:.1%} of the rows.")
    position = log.columns.position
    if position is not None and position not in settings.columns:
        told.append(f"The position, {position}, is not among behavior.columns.")
    return told


def _compared(fitted: Fitted, known: str | None) -> tuple[int, dict[str, float]]:
    """The number of propensities at the floor; and log(fitted / known) of the logged actions, one scan for both."""
    log = fitted.log if known is None else fitted.log.with_context((known,))
    floored, sums = 0, np.zeros(6)
    for rows in log.chunks():
        floored += int(np.count_nonzero(rows.propensity <= fitted.floor))
        if known is not None:
            x, y = np.log(rows.propensity), np.log(rows.context[known].astype(np.float64))
            columns = (np.ones(len(x)), x, y, x * x, y * y, x * y)
            sums += [float(rows.counted(column).sum()) for column in columns]
    if known is None:
        return floored, {}
    x, y, xx, yy, xy = sums[1:] / max(sums[0], 1.0)
    vx, vy, vxy = xx - x * x, yy - y * y, xy - x * y
    correlation = vxy / math.sqrt(vx * vy) if min(vx, vy) > 1e-12 else math.nan
    sd = math.sqrt(max(vx + vy - 2 * vxy, 0.0))
    return floored, {"log_ratio_mean": x - y, "log_ratio_sd": sd, "log_correlation": correlation}
