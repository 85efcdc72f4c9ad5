"""One scan of a log for all estimators, policies and signals: sums by chunk, combined in the order of chunks.

What a chunk adds is computed apart from all others, by as many threads as there are, and added up in order; so the
result has the same bits whatever their number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from recsys.diagnostics import KEPT, WeightSums
from recsys.estimators import Ratio
from recsys.intervals import ClusterSums
from recsys.logged import Chunk, Log
from recsys.policies import Policy, expected_reward
from recsys.reward_models import RewardModel

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Weighed:
    """Rows as estimators see them: `weight`, `reward`, `q_logged` and `value`, and the target's probability."""

    weight: Float[np.ndarray, " n"]
    reward: Float[np.ndarray, "n K"]
    q_logged: Float[np.ndarray, "n K"]
    value: Float[np.ndarray, "n K"]
    target: Float[np.ndarray, " n"]


Estimators = Mapping[str, Callable[[Weighed], Ratio]]


@dataclass(frozen=True)
class Slot:
    """Where an estimator's columns lie among the sums; None for a part that it does not have."""

    plain: slice | None
    numerator: slice | None
    denominator: int | None

    def estimate(self, sums: Float[np.ndarray, "*B F"], rows: Float[np.ndarray, "*B"]) -> Float[np.ndarray, "*B K"]:
        """The estimate that sums over `rows` rows make."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found = 0.0 if self.plain is None else sums[..., self.plain] / rows[..., None]
            if self.numerator is not None:
                found = found + sums[..., self.numerator] / sums[..., self.denominator, None]
        return np.asarray(found)


@dataclass
class Sums:
    """What is kept of a log's rows for one policy: sums by cluster of every estimator's columns, and the weights' own.

    n: rows, by multiplicity where they have one. total [F]: sums over all rows. by_cluster [C, F], rows [C]: the same
    for each cluster. largest: the largest weights, in descending order, and largest_row the number of the row that has
    the very largest. events: rows whose signal is not 0.
    """

    slots: dict[str, Slot] = field(default_factory=dict)
    n: float = 0.0
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    by_cluster: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0))
    weight: float = 0.0
    squared_weight: float = 0.0
    largest: np.ndarray = field(default_factory=lambda: np.zeros(0))
    largest_row: int = 0
    events: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def estimate(self, name: str) -> Float[np.ndarray, " K"]:
        """The estimate by signal."""
        return self.slots[name].estimate(self.total, np.asarray(self.n))

    @property
    def weights(self) -> WeightSums:
        """What diagnostics need to know of the weights."""
        return WeightSums(round(self.n), self.weight, self.squared_weight, self.largest)

    def cluster_sums(self, name: str) -> ClusterSums:
        """An estimate's sums by cluster, as intervals want them."""
        by_cluster, rows = self.clusters
        slot = self.slots[name]
        parts = [] if slot.plain is None else [(by_cluster[:, slot.plain], rows)]
        if slot.numerator is not None:
            parts.append((by_cluster[:, slot.numerator], by_cluster[:, slot.denominator]))
        return ClusterSums(*(np.stack(column, 1) for column in zip(*parts)))

    @property
    def clusters(self) -> tuple[Float[np.ndarray, "C F"], Float[np.ndarray, " C"]]:
        """by_cluster and rows of the clusters that have any."""
        some = self.rows > 0
        return self.by_cluster[some], self.rows[some]

    def add(self, part: Part) -> None:
        """One more chunk."""
        if not self.slots:
            self.slots = part.slots
            self.total = np.zeros_like(part.total)
            self.by_cluster = np.zeros((0, len(part.total)))
            self.events = np.zeros_like(part.events)
        needed = int(part.ids[-1]) + 1
        if needed > len(self.rows):  # doubled, so that growing costs no more than filling
            room = max(needed, 2 * len(self.rows))
            self.by_cluster = np.vstack([self.by_cluster, np.zeros((room - len(self.rows), len(part.total)))])
            self.rows = np.concatenate([self.rows, np.zeros(room - len(self.rows))])
        self.by_cluster[part.ids] += part.by_cluster
        self.rows[part.ids] += part.rows
        self.n += part.n
        self.total = self.total + part.total
        self.weight += part.weight
        self.squared_weight += part.squared_weight
        self.events = self.events + part.events
        if not len(self.largest) or part.largest[0] > self.largest[0]:
            self.largest_row = part.largest_row
        both = np.concatenate([self.largest, part.largest])
        self.largest = np.sort(both)[::-1][:KEPT]


@dataclass(frozen=True, slots=True)
class Part:
    """What one chunk adds to `Sums`; `ids` are its clusters, ascending."""

    slots: dict[str, Slot]
    n: float
    total: Float[np.ndarray, " F"]
    ids: Int[np.ndarray, " c"]
    by_cluster: Float[np.ndarray, "c F"]
    rows: Float[np.ndarray, " c"]
    weight: float
    squared_weight: float
    largest: Float[np.ndarray, " m"]
    largest_row: int
    events: Int[np.ndarray, " K"]


def weigh(rows: Chunk, policy: Policy, model: RewardModel) -> Weighed:
    """The columns that estimators need."""
    target = policy.probability(rows)
    value = expected_reward(policy, model, rows)
    return Weighed(target / rows.propensity, rows.reward, model.predict_logged(rows), value, target)


def part_of(rows: Chunk, weighed: Weighed, estimators: Estimators, numbers: Int[np.ndarray, " n"]) -> Part:
    """The sums of some rows, which have these numbers in the log."""
    slots, columns = _columns(weighed, estimators)
    columns = [rows.counted(column) for column in columns]
    ids, inverse = np.unique(rows.cluster, return_inverse=True)
    if len(ids) == len(rows):  # every row its own cluster: sorting them does it
        order = np.argsort(rows.cluster, kind="stable")
        by_cluster = np.stack([column[order] for column in columns], 1)
    else:
        by_cluster = np.stack([np.bincount(inverse, column, len(ids)) for column in columns], 1)
    weight = weighed.weight
    kept = min(KEPT, len(weight))
    return Part(
        slots,
        float(len(rows) if rows.multiplicity is None else rows.multiplicity.sum()),
        np.array([column.sum() for column in columns]),
        ids,
        by_cluster,
        np.bincount(inverse, rows.multiplicity, len(ids)).astype(np.float64),
        float(rows.counted(weight).sum()),
        float(rows.counted(weight) @ weight),
        np.sort(np.partition(weight, len(weight) - kept)[len(weight) - kept :])[::-1],
        int(numbers[np.argmax(weight)]),
        np.count_nonzero(weighed.reward, axis=0),
    )


def _columns(weighed: Weighed, estimators: Estimators) -> tuple[dict[str, Slot], list[np.ndarray]]:
    """Every estimator's columns side by side, and where each one's lie."""
    slots: dict[str, Slot] = {}
    columns: list[np.ndarray] = []
    signals = weighed.reward.shape[1]

    def place(x: np.ndarray) -> slice:
        columns.extend(np.ascontiguousarray(signal) for signal in x.T)
        return slice(len(columns) - signals, len(columns))

    for name, estimator in estimators.items():
        found = estimator(weighed)
        plain = None if found.plain is None else place(found.plain)
        numerator = None if found.numerator is None else place(found.numerator)
        if found.denominator is not None:
            columns.append(found.denominator)
        slots[name] = Slot(plain, numerator, None if found.denominator is None else len(columns) - 1)
    return slots, columns


def sum_up(
    log: Log, policies: Sequence[Policy], model: RewardModel, estimators: Estimators, workers: int = 1
) -> dict[str, Sums]:
    """Sums of the whole log by policy, and by `policy|segment=value` for each value of a segment column."""
    sums: dict[str, Sums] = {policy.name: Sums() for policy in policies}

    def work(chunk: Chunk) -> dict[str, Part]:
        found = {}
        numbers = np.arange(chunk.first + 1, chunk.first + 1 + len(chunk))
        for policy in policies:
            weighed = weigh(chunk, policy, model)
            found[policy.name] = part_of(chunk, weighed, estimators, numbers)
            for segment, values in chunk.segments.items():
                for value in np.unique(values):
                    at = np.flatnonzero(values == value)
                    part = part_of(chunk.take(at), _take(weighed, at), estimators, numbers[at])
                    found[f"{policy.name}|{segment}={value}"] = part
        return found

    for parts in in_order(work, log.chunks(), workers):
        for name, part in parts.items():
            sums.setdefault(name, Sums()).add(part)
    return sums


def _take(weighed: Weighed, rows: np.ndarray) -> Weighed:
    return Weighed(
        *(x[rows] for x in (weighed.weight, weighed.reward, weighed.q_logged, weighed.value, weighed.target))
    )


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`function` of every item, in order, by several threads; few items wait at a time."""
    if workers == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
