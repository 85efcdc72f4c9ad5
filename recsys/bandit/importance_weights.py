"""The ways to weigh a log's rows for a policy, and what is estimated from each.

Plain weights are π_e(a|x) / π_b(a|x). Where more is known, fewer extremes are needed: categories of actions (MIPS), the
propensities of all loggers (balanced), a q that was fitted to make DR's variance small (MRDR).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from envs.core import InputError
from recsys.bandit import estimators
from recsys.bandit.estimators import Ratio
from recsys.bandit.kernel import KERNEL, RealPolicy
from recsys.bandit.scan import Weighed, Weigher, weigh
from recsys.config import EstimatorsConfig
from recsys.logs.log import Chunk, Log, require_rows
from recsys.logs.tables import collect, require_columns
from recsys.models.reward import RewardModel, TableModel, fitted_means
from recsys.policies.base import BLOCK, Policy, expected_reward
from recsys.statistics.methods import LOGGED

WEIGHT = "weight"  # the mean weight by cluster
APART = ("mrdr", "replay", "mips", "sn_mips", "balanced_ips", "sn_balanced_ips")  # what is computed only if named
HALF = "half"  # the kind of weights with half the bandwidth, which kernel estimates are held against


@dataclass(frozen=True)
class LoggerInfo:
    """Knowledge of who logged, beyond the columns of the log.

    logging: the policy that chose, whole. category: of each action in the catalog. loggers: the column of propensities
    that each of several loggers would have given the logged action, and the share of rows that it logged.
    """

    logging: Policy | None = None
    category: Int[np.ndarray, " A"] | None = None
    loggers: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        shares = [] if self.loggers is None else list(self.loggers.values())
        if shares and not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-6):
            raise InputError(f"The loggers' shares of rows are at least 0 and add up to 1; got {self.loggers}.")


def standard(settings: EstimatorsConfig) -> dict[str, Callable[[Weighed], Ratio]]:
    """The estimators that any log with propensities allows, by name."""
    cap, threshold = settings.cap, settings.threshold
    shrinkage, subgaussian = settings.shrinkage, settings.subgaussian

    def model(x: Weighed) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return x.weight, x.reward, x.q_logged, x.value

    return {
        "ips": lambda x: estimators.ips(x.weight, x.reward),
        "snips": lambda x: estimators.snips(x.weight, x.reward),
        "capped_ips": lambda x: estimators.capped_ips(x.weight, x.reward, cap),
        "ncis": lambda x: estimators.ncis(x.weight, x.reward, cap),
        "subgaussian_ips": lambda x: estimators.subgaussian_ips(x.weight, x.reward, subgaussian),
        "dm": lambda x: estimators.dm(x.value),
        "dr": lambda x: estimators.dr(*model(x)),
        "sndr": lambda x: estimators.sndr(*model(x)),
        "capped_dr": lambda x: estimators.capped_dr(*model(x), cap),
        "switch_dr": lambda x: estimators.switch_dr(*model(x), threshold),
        "dros": lambda x: estimators.dros(*model(x), shrinkage),
        "subgaussian_dr": lambda x: estimators.subgaussian_dr(*model(x), subgaussian),
    }


def require_estimators(settings: EstimatorsConfig) -> None:
    """Raise InputError for names of estimators that there are not."""
    known = (*standard(settings), *APART, *KERNEL)
    for name in settings.names:
        if name not in known:
            raise InputError(f"estimators.names: expected {', '.join(known)}; got {name!r}.")


def used_weights(settings: EstimatorsConfig) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """The weights that estimators use which change them, by name."""

    def capped(w: np.ndarray) -> np.ndarray:
        return np.minimum(w, settings.cap)

    def subgaussian(w: np.ndarray) -> np.ndarray:
        return estimators.subgaussian(w, settings.subgaussian)

    return {
        "capped_ips": capped,
        "ncis": capped,
        "subgaussian_ips": subgaussian,
        "capped_dr": capped,
        "switch_dr": lambda w: np.where(w <= settings.threshold, w, 0.0),
        "dros": lambda w: estimators.optimistic(w, settings.shrinkage),
        "subgaussian_dr": subgaussian,
    }


def weighers_of(
    log: Log, policy: Policy, model: RewardModel, settings: EstimatorsConfig, logger: LoggerInfo, prior_rows: float
) -> list[Weigher]:
    """All that the settings ask for of one policy; the plain weights come first."""
    if isinstance(policy, RealPolicy):
        names = settings.names or KERNEL
        chosen = _with_weight(log, _ips_like(names, "kernel_ips"))
        narrow = Weigher(policy.name, policy.narrowed(0.5).weighed, chosen, weights=HALF)
        return [Weigher(policy.name, policy.weighed, chosen), narrow]
    every = standard(settings)
    names = settings.names or tuple(every)
    chosen = _with_weight(log, {LOGGED: _logged, **{name: every[name] for name in names if name in every}})
    if "replay" in names:
        chosen["replay"] = lambda x: _replay(policy.name, x)
    used = {name: how for name, how in used_weights(settings).items() if name in chosen}
    lost = never_shown(log) if logger.logging is None else lost_support(logger.logging)

    def plain(rows: Chunk) -> Weighed:
        if logger.logging is not None:
            _require_logging(logger.logging, rows)
        weighed = weigh(rows, policy, model)
        if lost is None:
            return weighed
        return replace(weighed, unsupported=expected_reward(policy, lost, rows)[:, 0])

    ways = [Weigher(policy.name, plain, chosen, used)]
    if "mrdr" in names:
        fitted = mrdr_model(log, policy, prior_rows)
        more = {LOGGED: _logged, "mrdr": every["dr"]}
        ways.append(Weigher(policy.name, lambda rows: weigh(rows, policy, fitted), more, weights="mrdr"))
    if {"mips", "sn_mips"} & {*names}:
        ways.append(_by_category(policy, logger, names))
    if {"balanced_ips", "sn_balanced_ips"} & {*names}:
        ways.append(_balanced(log, policy, logger, names))
    return ways


def _require_logging(logging: Policy, rows: Chunk) -> None:
    """Raise InputError where the logger that was named would not have chosen as the log says."""
    chance = logging.probability(rows)
    off = np.flatnonzero(np.abs(chance - rows.propensity) > 0.01 * rows.propensity)
    if len(off):
        at = off[0]
        raise InputError(
            f"data.logging gives the action of row {rows.row_numbers[at] + 1:,} a probability of {chance[at]:.6g}, "
            f"the log a propensity of {rows.propensity[at]:.6g} ({len(off):,} such of {len(rows):,} rows). Name the "
            "policy that chose, or leave data.logging out."
        )


def never_shown(log: Log) -> TableModel | None:
    """A model that is 1 for actions of the catalog that no row shows at a position, else 0; None where all are shown.

    What it expects of a policy is the probability of choices of which the log says nothing, known logger or not.
    """
    cells = [log.catalog.index(log.columns.action, log.schema[log.columns.action]).alias("action")]
    if log.columns.position is not None and log.position_catalog is not None:
        kind = log.schema[log.columns.position]
        cells.append(log.position_catalog.index(log.columns.position, kind).alias("position"))
    seen = collect(log.frame.select(cells).unique(), log.name)
    position = seen["position"].to_numpy() if "position" in seen.columns else np.zeros(len(seen), np.int64)
    never = np.ones((log.positions, log.actions, 1))
    never[position, seen["action"].to_numpy()] = 0.0  # bad labels are told while reading
    return TableModel(never) if never.any() else None


def lost_support(logging: Policy, share: float = 0.01) -> RewardModel:
    """A model that is 1 for actions that the logger shows with less than `share` / A, so hardly ever, and 0 otherwise.

    What it expects of a policy is the policy's unsupported probability.
    """
    least = share / logging.actions
    if logging.table is not None:
        return TableModel((logging.table < least)[:, :, None].astype(np.float64))
    return _LostSupport(logging, least)


@dataclass(frozen=True)
class _LostSupport:
    logging: Policy
    least: float
    columns: tuple[str, ...] = ()
    table: None = None

    def predict(self, rows: Chunk) -> Float[np.ndarray, "n A 1"]:
        return (self.logging.distribution(rows) < self.least)[:, :, None].astype(np.float64)

    def predict_logged(self, rows: Chunk) -> Float[np.ndarray, "n 1"]:
        return (self.logging.probability(rows) < self.least)[:, None].astype(np.float64)


def mrdr_model(log: Log, policy: Policy, prior_rows: float) -> TableModel:
    """The smoothed mean of each action and position, rows counted by their share of DR's variance; one scan.

    Source: Farajtabar, Chow and Ghavamzadeh, ICML 2018; the weights are `estimators.mrdr_regression_weight`, scaled to
    a mean of 1, so that `prior_rows` means what it means elsewhere.
    """

    def weight(rows: Chunk) -> np.ndarray:
        return estimators.mrdr_regression_weight(policy.probability(rows), rows.propensity)

    return fitted_means(log, prior_rows, weight)


def _by_category(policy: Policy, logger: LoggerInfo, names: Sequence[str]) -> Weigher:
    """MIPS: weights of categories, π_e(c|x) / π_b(c|x)."""
    category, logging = logger.category, logger.logging
    if category is None or logging is None:
        raise InputError(
            "MIPS weighs categories of actions: it needs data.categories, a category for each action, and "
            "data.logging, the whole policy that chose."
        )
    member = np.eye(int(category.max()) + 1)[category]

    def weighed(rows: Chunk) -> Weighed:
        own = category[rows.action]
        chances = [_grouped(p, rows, member)[np.arange(len(rows)), own] for p in (policy, logging)]
        return _without_model(chances[0] / chances[1], rows, chances[0])

    return Weigher(policy.name, weighed, _ips_like(names, "mips"), weights="mips")


def _grouped(policy: Policy, rows: Chunk, member: Float[np.ndarray, "A G"]) -> Float[np.ndarray, "n G"]:
    """π(category | x); block by block where the policy reads the row."""
    if policy.table is not None:
        grouped: np.ndarray = (policy.table @ member)[rows.position]
        return grouped
    return np.concatenate([policy.distribution(b) @ member for b in rows.blocks(max(1, BLOCK // policy.actions))])


def _balanced(log: Log, policy: Policy, logger: LoggerInfo, names: Sequence[str]) -> Weigher:
    """Weights over the mixture of all loggers: π_e / Σ_l share_l π_l."""
    if logger.loggers is None:
        raise InputError(
            "balanced_ips is for a log of several loggers: it needs data.loggers, the column of each one's "
            "propensities and the share of rows that it logged."
        )
    loggers = logger.loggers
    require_columns(list(loggers), log.context, "columns of data.loggers", "the log's context columns")
    for column in loggers:
        if not log.schema[column].is_numeric():
            raise InputError(
                f"Column {column!r} of data.loggers must hold propensities in (0, 1]; it holds {log.held(column)}."
            )

    def weighed(rows: Chunk) -> Weighed:
        mixture = np.zeros(len(rows))
        for column, share in loggers.items():
            propensity = rows.context[column].astype(np.float64)
            require_rows((propensity > 0) & (propensity <= 1), f"{column}, of data.loggers, not in (0, 1]", rows)
            mixture += share * propensity
        target = policy.probability(rows)
        return _without_model(target / mixture, rows, target)

    return Weigher(policy.name, weighed, _ips_like(names, "balanced_ips"), weights="balanced")


def _ips_like(names: Sequence[str], name: str) -> dict[str, Callable[[Weighed], Ratio]]:
    known: dict[str, Callable[[Weighed], Ratio]] = {
        name: lambda x: estimators.ips(x.weight, x.reward),
        f"sn_{name}": lambda x: estimators.snips(x.weight, x.reward),
    }
    return {LOGGED: _logged, **{name: how for name, how in known.items() if name in names}}


def _with_weight(log: Log, chosen: dict[str, Callable[[Weighed], Ratio]]) -> dict[str, Callable[[Weighed], Ratio]]:
    """With the mean weight by user, where users have several rows."""
    return chosen if log.columns.user is None else {**chosen, WEIGHT: lambda x: Ratio(x.weight[:, None])}


def _without_model(weight: np.ndarray, rows: Chunk, target: np.ndarray) -> Weighed:
    nothing = np.zeros_like(rows.reward)
    return Weighed(weight, rows.reward, nothing, nothing, target)


def _replay(name: str, x: Weighed) -> Ratio:
    """Mean reward where the target's choice was logged.

    Raises InputError for a target that draws, or a logger with preferences.
    """
    if not np.isin(x.target, (0.0, 1.0)).all():
        raise InputError(f"replay is for policies that always choose the same; {name} draws.")
    propensity = 1 / x.weight[x.target == 1]
    if len(propensity) and np.ptp(propensity) > 1e-9:
        raise InputError("replay assumes that every action was logged alike; the propensities of this log differ.")
    return estimators.replay(x.target == 1, x.reward)


def _logged(x: Weighed) -> Ratio:
    """The log's own mean reward."""
    return Ratio(x.reward)
