"""Sessions of a log: whole episodes in arrays, and how likely a policy is to do what was done in each step.

n sessions of at most T steps, K signals, A actions. Unlike the scan of single decisions this holds the log: memory is
O(n T K) numbers, and O(n T A) more for a policy that reads the row where values are fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int, Shaped

from envs.core import InputError
from recsys.logs.log import CHUNK_ROWS, ROW_CLUSTERS, Log
from recsys.logs.tables import TOLD_ROWS, Problems, exact_batches
from recsys.policies.base import Policy
from recsys.sequential.estimators import Trajectories, pad
from recsys.sequential.tabular import TabularLog
from recsys.statistics.diagnostics import MOST_WEIGHT

MOST = 2**28  # numbers in an array, 2 GiB


@dataclass(frozen=True)
class Sessions:
    """A log's sessions, in the order of their names.

    order [steps]: the log's rows, session by session and step by step. lengths [n]. cluster [n]: a number for each
    user; without users sessions are dealt into `ROW_CLUSTERS` clusters in turn. state [n,T]: places in labels; None
    where the log has no such column.
    """

    log: Log
    order: Int[np.ndarray, " steps"]
    lengths: Int[np.ndarray, " n"]
    cluster: Int[np.ndarray, " n"]
    action: Int[np.ndarray, "n T"]
    reward: Float[np.ndarray, "n T K"]
    mask: Bool[np.ndarray, "n T"]
    state: Int[np.ndarray, "n T"] | None = None
    labels: pl.Series | None = None

    @property
    def steps(self) -> int:
        """The number of the log's rows."""
        return len(self.order)

    def trajectories(self, policy: Policy) -> Trajectories:
        """With the weight π_e / π_b of every step; one scan."""
        with np.errstate(over="ignore"):
            parts = [policy.probability(rows) / rows.propensity for rows in self.log.chunks()]
        weight = np.minimum(np.concatenate(parts), MOST_WEIGHT)
        return Trajectories.of(self._padded(weight), self.reward, self.mask)

    def distribution(self, policy: Policy) -> Float[np.ndarray, "n T A"]:
        """π_e(· | x) of every step; one scan, or none where the policy is the same everywhere."""
        if policy.table is not None and len(policy.table) == 1:
            return np.broadcast_to(policy.table[0], (*self.mask.shape, policy.actions))
        require_room(self.mask.size * policy.actions, "a probability for each step and action")
        return self._padded(np.concatenate([policy.distribution(rows) for rows in self.log.chunks()]))

    def table(self) -> TabularLog:
        """By the numbers of states and actions, for a log that has states."""
        assert self.state is not None
        assert self.labels is not None
        states, actions = len(self.labels), self.log.actions
        require_room(self.mask.shape[1] * states * actions * self.reward.shape[2], "a value for each state and action")
        return TabularLog.of(self.state, self.action, self.reward, self.mask, states, actions)

    def _padded(self, column: Shaped[np.ndarray, "steps ..."]) -> Shaped[np.ndarray, "n T ..."]:
        return pad(column[self.order], self.lengths)[0]


def require_room(numbers: int, what: str) -> None:
    """Raise InputError for an array that would not fit."""
    if numbers > MOST:
        raise InputError(
            f"Sessions are held in memory, all as long as the longest, and {what} would be {numbers:,} numbers; there "
            f"is room for {MOST:,}. Cut the longest sessions, take fewer of them, or leave columns.state out."
        )


def read_sessions(log: Log) -> Sessions:
    """All sessions of a log with episodes and steps; the rows may come in any order.

    Raises InputError for a log without episodes, steps and propensities, where a step is missing or occurs twice, where
    users change within a session, and for whatever `Log.chunks` refuses.
    """
    require_session_columns(log)
    state = log.columns.state
    chunks = list(log.chunks())
    action, cluster = (np.concatenate([getattr(c, name) for c in chunks]) for name in ("action", "cluster"))
    reward = np.concatenate([c.reward for c in chunks])
    place, order, begins, lengths = in_order(log, cluster)
    # As for rows of a log without users: sums of independent sessions are independent, and so many clusters suffice.
    own = np.arange(len(lengths)) % ROW_CLUSTERS if log.columns.user is None else cluster[order][begins]
    require_room(len(lengths) * int(lengths.max()) * reward.shape[1], "a reward for each step and signal")
    rewards, mask = pad(reward[order], lengths)
    numbers = labels = None
    if state is not None:
        labels = place["state"].unique().sort()
        code = place["state"].rank("dense").to_numpy().astype(np.int64) - 1
        numbers = pad(code[order], lengths)[0]
    return Sessions(log, order, lengths, own, pad(action[order], lengths)[0], rewards, mask, numbers, labels)


class InOrder(NamedTuple):
    """Sessions as a log has them: their columns, and the log's rows session by session and step by step.

    begins [n]: where each session begins among these; lengths [n].
    """

    place: pl.DataFrame
    order: Int[np.ndarray, " steps"]
    begins: Int[np.ndarray, " n"]
    lengths: Int[np.ndarray, " n"]


def in_order(log: Log, cluster: Int[np.ndarray, " steps"]) -> InOrder:
    """The rows of each session in turn; cluster: a number for the user of each row.

    Raises InputError where a step is missing or occurs twice, and where users change within a session.
    """
    place = _places(log)
    episode, step = place["episode"].to_numpy(), place["step"].to_numpy()
    order = np.lexsort((step, episode))
    begins = np.flatnonzero(np.diff(episode[order], prepend=-1))
    lengths = np.diff(begins, append=len(order))
    _require_whole(log, step[order], begins, order)
    if log.columns.user is not None:
        strayed = cluster[order] != np.repeat(cluster[order][begins], lengths)
        _refuse(log, f"{log.columns.user} other than in the first step of the session", order[strayed])
    return InOrder(place, order, begins, lengths)


class Successors(NamedTuple):
    """For each row of a log the row that follows in its session.

    following [n]: itself where none does. ended [n]: the session ended there. cut [n]: the log did, so that nobody
    knows what followed.
    """

    following: Int[np.ndarray, " n"]
    ended: Bool[np.ndarray, " n"]
    cut: Bool[np.ndarray, " n"]


def successors(log: Log, cluster: Int[np.ndarray, " n"]) -> Successors:
    """What follows what; sessions end with their last row, unless `columns.terminated` says that these were cut off.

    Raises InputError as `in_order` does, for a log without sessions, and for steps after which the user is said to
    have left although the session goes on.
    """
    require_session_columns(log)
    _, order, begins, lengths = in_order(log, cluster)
    following = np.arange(len(order))
    last = np.zeros(len(order), dtype=bool)
    last[order[begins + lengths - 1]] = True
    following[order[:-1]] = np.where(last[order[:-1]], order[:-1], order[1:])
    ended = last if log.columns.terminated is None else _terminated(log)
    _refuse(log, f"{log.columns.terminated} before the last step of the session", np.flatnonzero(ended & ~last))
    return Successors(following, ended, last & ~ended)


def _terminated(log: Log) -> Bool[np.ndarray, " n"]:
    """The column that says where users left."""
    column, kind = str(log.columns.terminated), log.schema[str(log.columns.terminated)]
    wanted = log.frame.select(pl.col(column).cast(pl.Int64, strict=False).alias("ended"))
    ended = pl.concat(exact_batches(wanted, CHUNK_ROWS, log.name, log.files.fault))["ended"].fill_null(-1).to_numpy()
    if not (kind == pl.Boolean or kind.is_integer()) or not np.isin(ended, (0, 1)).all():
        raise InputError(
            f"Column {column!r} of {log.name} must hold true and false, or 1 and 0, for each step: whether the user "
            f"left after it. It holds {log.held(column, pl.Int64)}, or is missing in places."
        )
    return ended == 1


def require_session_columns(log: Log) -> None:
    """Raise InputError for a log that does not say which rows are a session, or how likely its actions were."""
    columns = log.columns
    lacking = [name for name in ("episode", "step", "propensity") if getattr(columns, name) is None]
    if lacking:
        raise InputError(
            f"Sessions are judged by episode, step and propensity; {log.name} names no {' and no '.join(lacking)}. "
            'Name them where the log is made, such as recsys.dataframe(…, episode="visit", step="n", propensity="p").'
        )
    if columns.multiplicity is not None:
        raise InputError(
            f"Sessions count once each, and the rows of {log.name} count as {columns.multiplicity} says: repeat the "
            "sessions instead, or leave multiplicity out."
        )


def _places(log: Log) -> pl.DataFrame:
    """Each row's episode, numbered in the order of names, its step, and its state."""
    episode, step, state = log.columns.episode, log.columns.step, log.columns.state
    assert episode is not None
    assert step is not None
    if not log.schema[step].is_integer():
        raise InputError(
            f"Column {step!r} of {log.name} must hold the number of the step in its session, such as 0, 1, 2; it holds "
            f"{log.schema[step]}. Of times, take their rank within the session."
        )
    named = {"episode": episode, "step": step} | ({} if state is None else {"state": state})
    wanted = log.frame.select(pl.col(name).alias(what) for what, name in named.items())
    places = pl.concat(exact_batches(wanted, CHUNK_ROWS, log.name, log.files.fault))
    problems = Problems(log.name)
    for what, name in named.items():
        missing = places[what].is_null().to_numpy()
        if places[what].dtype.is_float():
            missing |= ~places[what].is_finite().fill_null(False).to_numpy()
        problems.look(f"{name} missing", missing, 0)
    problems.tell()
    return places.with_columns(pl.col("episode").rank("dense").cast(pl.Int64), pl.col("step").cast(pl.Int64))


def _require_whole(
    log: Log, step: Int[np.ndarray, " steps"], begins: Int[np.ndarray, " n"], order: Int[np.ndarray, " steps"]
) -> None:
    """Raise InputError unless all sessions begin with the same step, which most do, and go on one by one."""
    values, counts = np.unique(step[begins], return_counts=True)
    first = values[np.argmax(counts)]
    before = np.empty_like(step)
    before[1:] = step[:-1]
    before[begins] = first - 1
    told = (
        f"{log.columns.step} not one more than in the step before, or not {first} in the first of a session, as in most"
    )
    _refuse(log, told, order[step != before + 1])


def _refuse(log: Log, what: str, rows: Int[np.ndarray, " rows"]) -> None:
    """Raise InputError if there are such rows of the log."""
    problems = Problems(log.name)
    problems.add(what, len(rows), np.sort(rows)[:TOLD_ROWS])
    problems.tell()
