"""The evaluation of policies by the sessions of a log; docs/ope_sequential.md has the equations.

Every estimate is the mean of the contributions that `recsys.sequential.estimators` gives, one a session and signal
[n,K], so users (or sessions, where there are none) are the clusters of every interval.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from envs.core import InputError
from recsys.config import EstimatorsConfig, EvaluationSettings, IntervalsConfig, checked, section_of
from recsys.evaluation import Evaluation, LogSummary, PolicyEstimates, Reader, evaluation_of
from recsys.logs.log import Log
from recsys.policies.base import Policy, policies_of
from recsys.sequential.config import SessionEstimatorsConfig
from recsys.sequential.estimators import (
    PLAIN,
    WITH_STATES,
    Discount,
    cwpdis,
    discounted,
    magic,
    ncis,
    pdis,
    prefix_weight,
    seq_dr,
    tis,
    wdr,
    wis,
)
from recsys.sequential.log import Sessions, read_sessions
from recsys.sequential.tabular import TabularLog, fqe, looked_up
from recsys.statistics.diagnostics import (
    Diagnosis,
    diagnose,
    effective_events,
    effective_of_change,
    influence_facts,
    mean_z,
    weight_sums,
)
from recsys.statistics.histograms import histograms
from recsys.statistics.intervals import ClusterSums, Interval, cluster_sums
from recsys.statistics.methods import Intervals
from recsys.statistics.selection import Recommendation, recommend_narrowest, recommend_none
from recsys.statistics.verdict import Level, Verdict, verdict

READ = ("pdis", "cwpdis", "seq_dr", "wdr")  # what may be recommended: consistent, and of little variance
WHOLE = ("tis", "wis")  # what weighs whole sessions; the others weigh each step by the way to it
FOLDS = 5
# Biases that no interval contains, and no weight shows.
BIASED = {
    "ncis": ("states", "It takes states as they were logged and caps the weights of steps; no interval has that bias"),
    "fqe": ("model", "The fitted values alone speak for the policy, and no interval has their error"),
    "magic": ("model", "It believes the fitted values in part, and no interval has their error"),
}
Values = tuple[Float[np.ndarray, "n T K"], Float[np.ndarray, "n T K"]]


@dataclass(frozen=True)
class Contributions:
    """One policy's contributions by estimator, [n,K] each; weight [n,T] that of the way to each step."""

    policy: Policy
    by_estimator: dict[str, Float[np.ndarray, "n K"]]
    weight: Float[np.ndarray, "n T"]

    @property
    def whole(self) -> Float[np.ndarray, " n"]:
        """ρ_{T-1}, the weights of whole sessions."""
        return np.ascontiguousarray(self.weight[:, -1])

    def estimates(self, sessions: Sessions, logged: ClusterSums) -> PolicyEstimates:
        """The policy as evaluations take it; logged: the log's own mean return."""
        sums = {name: cluster_sums(x, None, sessions.cluster) for name, x in self.by_estimator.items()}
        verdicts, weights = judge(self, sums, sessions, logged), weight_sums(self.whole).facts
        drawn = histograms(self.whole, np.ones_like(self.whole))
        return PolicyEstimates(self.policy.name, sums, verdicts, weights, drawn, reader(sums, verdicts))


def evaluate_sessions(
    log: Log,
    policies: Sequence[Policy] | Mapping[str, Any],
    *,
    discount: float | Sequence[float] = 1.0,
    estimators: SessionEstimatorsConfig | Mapping[str, Any] | None = None,
    intervals: IntervalsConfig | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Evaluation:
    """The evaluation of policies by what they earn in whole episodes, for a log with columns episode and step.

    policies: by name probabilities, a function of a `Chunk`, or a name such as "uniform" (`policies.base.policy_of`);
    each is asked at every step's row. discount: γ in [0, 1], or one for each signal. Where the log has a column state,
    estimators with fitted values are computed too. Raises InputError for a log without episodes or propensities, and
    for steps that are missing or occur twice.
    """
    intervals = section_of(IntervalsConfig, intervals)
    if intervals.bounds is not None:
        raise InputError(
            f"intervals.method={intervals.method} needs bounds of a whole session's return and weight, which a product "
            "of weights does not have: take bootstrap, bca, t or empirical_likelihood."
        )
    settings = section_of(SessionEstimatorsConfig, estimators)
    for name in settings.names:
        if name not in (*PLAIN, *WITH_STATES):
            raise InputError(f"estimators.names: expected {', '.join((*PLAIN, *WITH_STATES))}; got {name!r}.")
    chosen = policies_of(policies, log)
    if log.columns.segments:
        raise InputError(
            f"Segments ({', '.join(log.columns.segments)}) are told of single decisions, by recsys.evaluate; leave "
            "them out of the log, or evaluate the sessions of each apart."
        )
    log = log if log.columns.state is None else log.with_context((log.columns.state,))
    gamma = _gamma(discount, len(log.signals))
    checked(EvaluationSettings, seed=seed)
    evaluation = evaluate_read(read_sessions(log), chosen, gamma, settings, intervals, seed)
    told = {
        "recipe": "recsys.evaluate_sessions",
        "discount": np.asarray(discount).tolist(),
        "estimators": settings.model_dump(mode="json"),
        "intervals": intervals.model_dump(mode="json"),
        "seed": seed,
    }
    return replace(evaluation, settings=told)


def _gamma(discount: float | Sequence[float], signals: int) -> Discount:
    """γ of all signals, or of each. Raises InputError for others than in [0, 1], or another number of them."""
    try:
        gamma = np.array(discount, dtype=np.float64)
    except (TypeError, ValueError):
        gamma = np.array(np.nan)
    if gamma.shape not in ((), (signals,)) or not ((gamma >= 0) & (gamma <= 1)).all():
        raise InputError(f"discount is one number in [0, 1], or one for each of {signals} signals; got {discount!r}.")
    return float(gamma) if gamma.ndim == 0 else gamma


def evaluate_read(
    sessions: Sessions,
    policies: Sequence[Policy],
    discount: Discount,
    estimators: SessionEstimatorsConfig,
    intervals: IntervalsConfig,
    seed: int = 0,
) -> Evaluation:
    """The evaluation by sessions that are in memory; the table steps has the weights of the way to each step."""
    names = estimators.names or (PLAIN if sessions.state is None else (*PLAIN, *WITH_STATES))
    summary = summary_of(sessions, discount)
    estimates, steps = [], []
    for policy in policies:
        contributions = estimate(sessions, policy, names, discount, estimators.cap)
        estimates.append(contributions.estimates(sessions, summary.logged))
        steps += by_step(contributions, sessions)
    evaluation = evaluation_of(summary, estimates, Intervals(intervals, EstimatorsConfig(), seed, workers=1))
    return evaluation.with_more(tables={"steps": steps})


def summary_of(sessions: Sessions, discount: Discount) -> LogSummary:
    """The log by itself: what its sessions earned, Σ_t γ^t r_t."""
    logged = cluster_sums(discounted(sessions.reward, discount), None, sessions.cluster)
    counts = {"sessions": len(sessions.lengths), "steps": sessions.steps, "clusters": logged.clusters}
    user = sessions.log.columns.user
    draw = f"the sessions of one {user} as one draw" if user else "every session as independent of the others"
    independence = f"Intervals take {draw}. Weights are those of whole sessions."
    return LogSummary(sessions.log.signals, counts, logged, independence)


def estimate(sessions: Sessions, policy: Policy, names: Sequence[str], discount: Discount, cap: float) -> Contributions:
    """The contributions of the named estimators; those that use fitted values need states.

    `fqe` is fitted to all sessions; the others take values for each fold of users that were fitted to the rest, so that
    no session's own noise makes its values look right.
    """
    log = sessions.trajectories(policy)
    known: dict[str, Callable[[], Float[np.ndarray, "n K"]]] = {
        "tis": lambda: tis(log, discount),
        "wis": lambda: wis(log, discount),
        "pdis": lambda: pdis(log, discount),
        "cwpdis": lambda: cwpdis(log, discount),
        "ncis": lambda: ncis(log, discount, cap),
    }
    if set(names) & set(WITH_STATES) and sessions.state is not None:
        table, chances = sessions.table(), sessions.distribution(policy)
        values = cross_fitted(table, chances, sessions.cluster, discount)
        known |= {
            "fqe": lambda: looked_up(fqe(table, chances, discount), chances, table)[1][:, 0],
            "seq_dr": lambda: seq_dr(log, *values, discount),
            "wdr": lambda: wdr(log, *values, discount),
            "magic": lambda: magic(log, *values, discount),
        }
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"The estimators of sessions are {', '.join(known)}; got {', '.join(unknown)}. Those with fitted values, "
            f"{', '.join(WITH_STATES)}, need a log with a column state."
        )
    return Contributions(policy, {name: known[name]() for name in names}, prefix_weight(log))


def cross_fitted(
    log: TabularLog, policy: Float[np.ndarray, "n T A"], cluster: np.ndarray, discount: Discount
) -> Values:
    """q of every logged step and v of its state, each by FQE on the users of the other folds."""
    fold = np.unique(cluster, return_inverse=True)[1] % FOLDS
    q_logged, value = np.zeros((2, *log.reward.shape))
    for number in range(FOLDS):
        rows, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        if len(rows) and len(rest):  # of a single user nothing is known from others: q stays 0
            q = fqe(_take(log, rest), policy[rest], discount)
            q_logged[rows], value[rows] = looked_up(q, policy[rows], _take(log, rows))
    return q_logged, value


def _take(log: TabularLog, rows: np.ndarray) -> TabularLog:
    return TabularLog(log.state[rows], log.action[rows], log.reward[rows], log.mask[rows], log.states, log.actions)


def judge(
    contributions: Contributions, sums: Mapping[str, ClusterSums], sessions: Sessions, logged: ClusterSums
) -> dict[str, list[Verdict]]:
    """By estimator and signal: the checks of single decisions, each session being one, and of the estimate's own pulls.

    logged: the log's own mean return, from which estimates are told apart.

    Estimators that weigh whole sessions are judged by ρ_{T-1}, those that weigh each step by the session's mean of ρ_t,
    whose expectation is 1 too. Events are sessions that earned something.
    """
    whole = contributions.whole
    facts = {True: _facts(whole, sessions), False: _facts(contributions.weight.mean(axis=1), sessions)}
    verdicts: dict[str, list[Verdict]] = {}
    for name, of in sums.items():
        pulls, changing = influence_facts(of).by_signal(), effective_of_change(of, logged).tolist()
        told = [
            _of_sessions(verdict(replace(d, **pull, changing=effective)))
            for d, pull, effective in zip(facts[name in WHOLE], pulls, changing, strict=True)
        ]
        verdicts[name] = [_with_bias(name, each) for each in told]
    return verdicts


def _facts(weight: Float[np.ndarray, " n"], sessions: Sessions) -> list[Diagnosis]:
    """Facts of a weight for each session, by signal."""
    sums = cluster_sums(weight[:, None], None, sessions.cluster)
    earned = (sessions.reward != 0).any(1).astype(np.float64)
    effective, events = effective_events(weight, earned), earned.sum(0)
    facts = diagnose(weight_sums(weight), sums.clusters, mean_z=mean_z(sums))
    pairs = zip(events.tolist(), effective.tolist(), strict=True)
    return [replace(facts, events=count, effective_events=weighted) for count, weighted in pairs]


def _with_bias(name: str, told: Verdict) -> Verdict:
    """The verdict on an estimate with a bias that no interval contains: at best CAUTION."""
    if name not in BIASED or told.level > Level.CAUTION:
        return told
    check, reason = BIASED[name]
    return Verdict(Level.CAUTION, check, f"{reason}.")


def _of_sessions(told: Verdict) -> Verdict:
    """The checks speak of rows; here each is a session."""
    return Verdict(told.level, told.check, re.sub(r"\b([Rr])ow(s?)\b", r"session\2", told.reason))


def reader(sums: Mapping[str, ClusterSums], verdicts: Mapping[str, Sequence[Verdict]]) -> Reader:
    """The choice among the consistent estimators that were computed: of the best verdict the narrowest interval."""
    names = [name for name in READ if name in sums]

    def read(k: int, intervals: Mapping[str, Interval]) -> Recommendation:
        if not names:
            return Recommendation(None, f"None of {', '.join(READ)} was computed, so none is recommended.")
        told = {name: verdicts[name][k] for name in names if intervals[name].tells(k)}
        if not told:
            return recommend_none({name: verdicts[name][k] for name in names})
        width = {name: float(intervals[name].high[k] - intervals[name].low[k]) for name in told}
        return recommend_narrowest(told, width)

    return read


def by_step(contributions: Contributions, sessions: Sessions) -> list[dict[str, Any]]:
    """Rows of the table steps: the weights of the way to each step; a session that has ended keeps its own."""
    rows = []
    for step in range(contributions.weight.shape[1]):
        weights = weight_sums(contributions.weight[:, step])
        row = {"policy": contributions.policy.name, "step": step, "sessions": int(sessions.mask[:, step].sum())}
        rows.append({**row, "ess": weights.ess, "max_share": weights.max_share, "mean_weight": weights.mean})
    return rows
