"""What a policy would have earned in the sessions of a log: estimates, verdicts, and what to read.

Every estimate is the mean of the contributions that `recsys.sequential` gives, one a session and signal [n,K], so users
(or sessions, where there are none) are the clusters of every interval.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from recsys.bandit.verdict_facts import mean_z
from recsys.policies.base import Policy
from recsys.sequential.estimators import (
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
from recsys.sequential.log import Sessions
from recsys.sequential.tabular import TabularLog, fqe, looked_up
from recsys.statistics.diagnostics import diagnose, effective_events, weight_sums
from recsys.statistics.histograms import Histograms, histograms
from recsys.statistics.intervals import ClusterSums, Interval, cluster_sums
from recsys.statistics.verdict import Level, Verdict, verdict

PLAIN = ("tis", "wis", "pdis", "cwpdis", "ncis")
WITH_STATES = ("fqe", "seq_dr", "wdr", "magic")
READ = ("pdis", "cwpdis", "seq_dr", "wdr")  # what may be recommended: consistent, and of little variance
FOLDS = 5
# What no interval contains, and no weight shows.
BIASED = {
    "ncis": ("states", "It takes states as they were logged and caps the weights of steps; no interval has that bias"),
    "fqe": ("model", "The fitted values alone speak for the policy, and no interval has their error"),
    "magic": ("model", "It believes the fitted values in part, and no interval has their error"),
}
Values = tuple[Float[np.ndarray, "n T K"], Float[np.ndarray, "n T K"]]


@dataclass(frozen=True)
class Found:
    """One policy's contributions by estimator, [n,K] each; weight [n,T] that of the way to each step."""

    policy: Policy
    contributions: dict[str, Float[np.ndarray, "n K"]]
    weight: Float[np.ndarray, "n T"]

    def sums(self, sessions: Sessions) -> dict[str, ClusterSums]:
        """Of every estimate, by cluster."""
        return {name: cluster_sums(x, None, sessions.cluster) for name, x in self.contributions.items()}


def estimate(sessions: Sessions, policy: Policy, names: Sequence[str], discount: Discount, cap: float) -> Found:
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
    if set(names) & set(WITH_STATES):
        table, chances = sessions.table(), sessions.distribution(policy)
        values = cross_fitted(table, chances, sessions.cluster, discount)
        known |= {
            "fqe": lambda: looked_up(fqe(table, chances, discount), chances, table)[1][:, 0],
            "seq_dr": lambda: seq_dr(log, *values, discount),
            "wdr": lambda: wdr(log, *values, discount),
            "magic": lambda: magic(log, *values, discount),
        }
    return Found(policy, {name: known[name]() for name in names}, prefix_weight(log))


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


def logged_return(sessions: Sessions, discount: Discount) -> Float[np.ndarray, "n K"]:
    """What each session earned, Σ_t γ^t r_t."""
    return discounted(sessions.reward, discount)


def judge(found: Found, sessions: Sessions) -> dict[str, list[Verdict]]:
    """By estimator and signal: the checks of single decisions on the weights of whole sessions, ρ_{T-1}.

    Events are sessions that earned something.
    """
    whole = found.weight[:, -1]
    sums = cluster_sums(whole[:, None], None, sessions.cluster)
    earned = (sessions.reward != 0).any(1).astype(np.float64)
    effective, events = effective_events(whole, earned), earned.sum(0)
    judged: dict[str, list[Verdict]] = {name: [] for name in found.contributions}
    for count, weighted in zip(events.tolist(), effective.tolist(), strict=True):
        facts = diagnose(
            weight_sums(whole), sums.clusters, mean_z=mean_z(sums), events=count, effective_events=weighted
        )
        told = _of_sessions(verdict(facts))
        for name, by_signal in judged.items():
            biased = name in BIASED and told.level <= Level.CAUTION
            by_signal.append(Verdict(Level.CAUTION, BIASED[name][0], f"{BIASED[name][1]}.") if biased else told)
    return judged


def _of_sessions(told: Verdict) -> Verdict:
    """The checks speak of rows; here each is a session."""
    return Verdict(told.level, told.check, re.sub(r"\b([Rr])ow(s?)\b", r"session\2", told.reason))


def to_read(
    policy: str,
    signals: Sequence[str],
    verdicts: Mapping[str, Sequence[Verdict]],
    intervals: Mapping[str, Interval],
) -> list[dict[str, Any]]:
    """Of the consistent estimators with the best verdict the one with the narrowest interval, for each signal."""
    rows = []
    for k, signal in enumerate(signals):
        row: dict[str, Any] = {"signal": signal, "policy": policy, "estimator": None}
        names = [name for name in READ if name in intervals]
        if not names:
            rows.append({**row, "sentence": f"None of {', '.join(READ)} was computed, so none is recommended."})
            continue
        best = min(verdicts[name][k].level for name in names)
        names = [name for name in names if verdicts[name][k].level == best]
        told = verdicts[names[0]][k]
        if best is Level.UNRELIABLE:
            rows.append({**row, "sentence": f"Read none of these estimates. {told.reason}"})
            continue
        width = {name: float(intervals[name].high[k] - intervals[name].low[k]) for name in names}
        chosen = min(names, key=lambda name: width[name])
        sentence = f"Read {chosen}: its interval is the narrowest of {', '.join(names)}"
        if best is Level.CAUTION:
            sentence += f"; but with caution: {told.reason[0].lower()}{told.reason[1:].removesuffix('.')}"
        rows.append({**row, "estimator": chosen, "sentence": f"{sentence}."})
    return rows


def by_step(found: Found, sessions: Sessions) -> list[dict[str, Any]]:
    """What the weights of the way to each step are like; a session that has ended keeps its own."""
    rows = []
    for step in range(found.weight.shape[1]):
        of = weight_sums(found.weight[:, step])
        row = {"policy": found.policy.name, "step": step, "sessions": int(sessions.mask[:, step].sum())}
        rows.append({**row, "ess": of.ess, "max_share": of.max_share, "mean_weight": of.mean})
    return rows


def horizon_histograms(found: Found) -> Histograms:
    """Of the weights of whole sessions."""
    whole = np.ascontiguousarray(found.weight[:, -1])
    return histograms(whole, np.ones_like(whole))
