"""One scan of a log for all estimators, policies and signals: sums by chunk, combined in the order of chunks.

What a chunk adds is computed apart from all others, by as many threads as there are, and added up in order; so the
result has the same bits whatever their number.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from envs.core import InputError
from recsys.bandit.estimators import Ratio
from recsys.logs.clusters import Clusters, sums_by_cluster
from recsys.logs.log import Chunk, Log
from recsys.models.reward import RewardModel
from recsys.policies.base import Policy, expected_reward
from recsys.statistics.diagnostics import KEPT, MOST_WEIGHT, WeightSums, largest_of
from recsys.statistics.histograms import Histograms, histograms
from recsys.statistics.intervals import ClusterSums, unit_of

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Weighed:
    """Rows as estimators see them: `weight`, `reward`, `q_logged` and `value`, and the target's probability.

    unsupported: the target's probability of what the logger could not show, where that is known.
    """

    weight: Float[np.ndarray, " n"]
    reward: Float[np.ndarray, "n K"]
    q_logged: Float[np.ndarray, "n K"]
    value: Float[np.ndarray, "n K"]
    target: Float[np.ndarray, " n"]
    unsupported: Float[np.ndarray, " n"] | None = None

    def take(self, rows: np.ndarray) -> Weighed:
        """Some of the rows."""
        return Weighed(
            weight=self.weight[rows],
            reward=self.reward[rows],
            q_logged=self.q_logged[rows],
            value=self.value[rows],
            target=self.target[rows],
            unsupported=None if self.unsupported is None else self.unsupported[rows],
        )


Estimators = Mapping[str, Callable[[Weighed], Ratio]]


class Place(NamedTuple):
    """The key of sums: a policy, the name of the weights, and the whole log or a segment's rows (column, value)."""

    policy: str
    weights: str = ""
    segment: tuple[str, str] | None = None


@dataclass(frozen=True)
class Weigher:
    """One way to weigh rows for a policy, and the estimators that are computed from it.

    used: the weights that these use instead of w. weights: the name of weights that are not the plain ones.
    """

    policy: str
    weigh: Callable[[Chunk], Weighed]
    estimators: Estimators
    used: Mapping[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)
    weights: str = ""

    @property
    def place(self) -> Place:
        """The key of its sums over the whole log."""
        return Place(self.policy, self.weights)


@dataclass(frozen=True)
class Slot:
    """The places of an estimator's columns among the sums; None for a part that it does not have."""

    plain: slice | None
    numerator: slice | None
    denominator: int | None

    def estimate(self, sums: Float[np.ndarray, "*B F"], rows: Float[np.ndarray, "*B"]) -> Float[np.ndarray, "*B K"]:
        """The estimate that sums over `rows` rows make."""
        with np.errstate(invalid="ignore", divide="ignore"):
            estimate = 0.0 if self.plain is None else sums[..., self.plain] / rows[..., None]
            if self.numerator is not None:
                estimate = estimate + sums[..., self.numerator] / sums[..., self.denominator, None]
        return np.asarray(estimate)


@dataclass
class Sums:
    """Sums over a log's rows for one policy: of every estimator's columns by cluster, and the weights' own.

    n: rows, by multiplicity where they have one. total [F]: sums over all rows. by_cluster [F, C], rows [C]: the same
    for each cluster. largest: the largest weights, in descending order, and largest_row the number of the row that has
    the very largest. events: rows whose signal is not 0; event_weight, event_squares [K]: Σ w and Σ w² of these; all
    squares are in units of `unit`², 1 but for huge weights. least, most [K]: of the rewards. kept: by estimator, the
    sum of the weights that it uses instead of w. unsupported: of the target's probabilities of what the logger could
    not show, NaN where that is not known. histograms: those of a segment stay empty. numbering: of a segment, which
    holds only the clusters that it has; ids [C] are these clusters in the log.
    """

    slots: dict[str, Slot] = field(default_factory=dict)
    n: float = 0.0
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    by_cluster: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0))
    weight: float = 0.0
    squared_weight: float = 0.0
    unit: float = 1.0
    largest: np.ndarray = field(default_factory=lambda: np.zeros(0))
    largest_row: int = 0
    events: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    event_weight: np.ndarray = field(default_factory=lambda: np.zeros(0))
    event_squares: np.ndarray = field(default_factory=lambda: np.zeros(0))
    least: np.ndarray = field(default_factory=lambda: np.zeros(0))
    most: np.ndarray = field(default_factory=lambda: np.zeros(0))
    kept: dict[str, float] = field(default_factory=dict)
    unsupported: float = 0.0
    histograms: Histograms = field(default_factory=Histograms)
    numbering: Clusters | None = None
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def estimate(self, name: str) -> Float[np.ndarray, " K"]:
        """The estimate by signal."""
        return self.slots[name].estimate(self.total, np.asarray(self.n))

    @property
    def weights(self) -> WeightSums:
        """The weights as diagnostics need them."""
        return WeightSums(round(self.n), self.weight, self.squared_weight, self.largest, self.unit)

    def cluster_sums(self, name: str) -> ClusterSums:
        """An estimate's sums by cluster, as intervals want them."""
        by_cluster, rows = self.clusters
        slot = self.slots[name]
        parts = [] if slot.plain is None else [(by_cluster[:, slot.plain], rows)]
        if slot.numerator is not None:
            parts.append((by_cluster[:, slot.numerator], by_cluster[:, slot.denominator]))
        numerators, denominators = zip(*parts, strict=True)
        return ClusterSums(np.stack(numerators, 1), np.stack(denominators, 1))

    @property
    def clusters(self) -> tuple[Float[np.ndarray, "C F"], Float[np.ndarray, " C"]]:
        """Sums and rows of the clusters that have any, in the order of the whole log's."""
        some = np.flatnonzero(self.rows > 0)
        if self.numbering is not None:
            some = some[np.argsort(self.ids[some])]
        return self.by_cluster.T[some], self.rows[some]

    def add(self, part: Part) -> None:
        """Add one more chunk; in the order of chunks the bits never differ."""
        if not self.slots:
            self._begin(part)
        part = part if self.numbering is None else self._renumbered(part, self.numbering)
        self._add_by_cluster(part)
        self._add_totals(part)
        self._add_largest(part)

    def _begin(self, part: Part) -> None:
        """Make room for the columns of the first chunk."""
        self.slots = part.slots
        self.total = np.zeros_like(part.total)
        self.by_cluster = np.zeros((len(part.total), 0))
        self.events = np.zeros_like(part.events)
        self.event_weight = self.event_squares = np.zeros(len(part.events))
        self.least, self.most = part.least, part.most

    def _add_by_cluster(self, part: Part) -> None:
        grown = part.clusters - len(self.rows)
        if grown > 0:  # doubled, so that growing costs no more than filling
            grown = max(grown, len(self.rows))
            self.by_cluster = np.pad(self.by_cluster, ((0, 0), (0, grown)))
            self.rows = np.pad(self.rows, (0, grown))
        if part.ids is not None:
            self.ids = np.pad(self.ids, (0, len(self.rows) - len(self.ids)))
            self.ids[part.place] = part.ids
        for sums, more in zip(self.by_cluster, part.by_cluster, strict=True):
            sums[part.place] += more
        self.rows[part.place] += part.rows

    def _add_totals(self, part: Part) -> None:
        self.n += part.n
        self.total = self.total + part.total
        self.weight += part.weight
        unit = max(self.unit, part.unit)
        mine, more = (self.unit / unit) ** 2, (part.unit / unit) ** 2
        self.unit, self.squared_weight = unit, mine * self.squared_weight + more * part.squared_weight
        self.events = self.events + part.events
        self.event_weight = self.event_weight + part.event_weight
        self.event_squares = mine * self.event_squares + more * part.event_squares
        self.least = np.minimum(self.least, part.least)
        self.most = np.maximum(self.most, part.most)
        self.kept = {name: self.kept.get(name, 0.0) + more for name, more in part.kept.items()}
        self.unsupported += part.unsupported
        self.histograms = self.histograms + part.histograms

    def _add_largest(self, part: Part) -> None:
        if not len(self.largest) or part.largest[0] > self.largest[0]:
            self.largest_row = part.largest_row
        if len(self.largest) < KEPT or part.largest[0] > self.largest[-1]:
            self.largest = np.sort(np.concatenate([self.largest, part.largest]))[::-1][:KEPT]

    @staticmethod
    def _renumbered(part: Part, numbering: Clusters) -> Part:
        """A chunk's sums by the clusters that have rows in it, which get numbers of their own as they come."""
        some = np.flatnonzero(part.rows > 0)
        place = part.place
        ids = (np.arange(place.start, place.stop) if isinstance(place, slice) else place)[some]
        own = numbering.encode(ids)
        return replace(
            part,
            place=own,
            clusters=len(numbering),
            by_cluster=[column[some] for column in part.by_cluster],
            rows=part.rows[some],
            ids=ids,
        )


@dataclass(frozen=True, slots=True)
class Part:
    """The sums of one chunk: `by_cluster` (F columns) and `rows` belong at `place` of all clusters' `Sums`."""

    slots: dict[str, Slot]
    n: float
    total: Float[np.ndarray, " F"]
    place: slice | Int[np.ndarray, " c"]
    clusters: int
    by_cluster: list[np.ndarray]
    rows: Float[np.ndarray, " c"]
    weight: float
    squared_weight: float
    unit: float
    largest: Float[np.ndarray, " m"]
    largest_row: int
    events: Int[np.ndarray, " K"]
    event_weight: Float[np.ndarray, " K"]
    event_squares: Float[np.ndarray, " K"]
    least: Float[np.ndarray, " K"]
    most: Float[np.ndarray, " K"]
    kept: dict[str, float]
    unsupported: float
    histograms: Histograms = field(default_factory=Histograms)
    ids: Int[np.ndarray, " c"] | None = None


def weigh(rows: Chunk, policy: Policy, model: RewardModel) -> Weighed:
    """The columns that estimators need."""
    target = policy.probability(rows)
    value = expected_reward(policy, model, rows)
    return Weighed(
        weight=target / rows.propensity,
        reward=rows.reward,
        q_logged=model.predict_logged(rows),
        value=value,
        target=target,
    )


def part_of(rows: Chunk, weighed: Weighed, weigher: Weigher) -> Part:
    """The sums of some rows."""
    # Every estimator's columns, each row as often as it counts, summed by cluster.
    slots, columns = _columns(weighed, weigher.estimators)
    columns = [rows.counted(column) for column in columns]
    count = np.ones(len(rows)) if rows.multiplicity is None else rows.multiplicity
    place, (count_by_cluster, *by_cluster) = sums_by_cluster(rows.cluster, [count, *columns])
    # The weights: Σ w, Σ w², and the same over the rows whose signal is not 0; einsum, for @ may change the bits.
    weight = weighed.weight
    counted_weight = rows.counted(weight)
    unit = float(unit_of(weight.max()))
    share, counted_share = (weight, counted_weight) if unit == 1 else (weight / unit, counted_weight / unit)
    happened = (weighed.reward != 0).astype(np.float64)
    kept = {name: float(rows.counted(used(weight)).sum()) for name, used in weigher.used.items()}
    unsupported = math.nan
    if weighed.unsupported is not None:
        unsupported = float(rows.counted(weighed.unsupported).sum())
    return Part(
        slots=slots,
        n=float(count.sum()),
        total=np.array([column.sum() for column in by_cluster]),
        place=place,
        clusters=int(rows.cluster.max()) + 1,
        by_cluster=by_cluster,
        rows=count_by_cluster,
        weight=float(counted_weight.sum()),
        squared_weight=float(np.einsum("n,n->", counted_share, share)),
        unit=unit,
        largest=largest_of(weight),
        largest_row=int(rows.row_numbers[np.argmax(weight)]) + 1,
        events=np.count_nonzero(weighed.reward, axis=0),
        event_weight=np.einsum("n,nk->k", counted_weight, happened),
        event_squares=np.einsum("n,n,nk->k", counted_share, share, happened),
        least=weighed.reward.min(0),
        most=weighed.reward.max(0),
        kept=kept,
        unsupported=unsupported,
    )


def _columns(weighed: Weighed, estimators: Estimators) -> tuple[dict[str, Slot], list[np.ndarray]]:
    """Every estimator's columns side by side, and where each one's lie; an array that several have, such as w, once."""
    slots: dict[str, Slot] = {}
    columns: list[np.ndarray] = []
    placed: list[tuple[np.ndarray, slice]] = []

    def place(x: np.ndarray) -> slice:
        for known, where in placed:
            if known is x:
                return where
        more = [np.ascontiguousarray(column) for column in x.reshape(len(x), -1).T]
        where = slice(len(columns), len(columns) + len(more))
        columns.extend(more)
        placed.append((x, where))
        return where

    for name, estimator in estimators.items():
        ratio = estimator(weighed)
        plain = None if ratio.plain is None else place(ratio.plain)
        numerator = None if ratio.numerator is None else place(ratio.numerator)
        denominator = None if ratio.denominator is None else place(ratio.denominator).start
        slots[name] = Slot(plain, numerator, denominator)
    return slots, columns


def sum_up(
    log: Log, policies: Sequence[Policy], model: RewardModel, estimators: Estimators, workers: int = 1
) -> dict[str, Sums]:
    """Sums of the whole log by policy."""
    log = log.with_columns(replace(log.columns, segments=())) if log.columns.segments else log
    ways = [Weigher(p.name, partial(weigh, policy=p, model=model), estimators) for p in policies]
    return {place.policy: sums for place, sums in scan(log, ways, workers).items()}


def scan(log: Log, weighers: Sequence[Weigher], workers: int = 1) -> dict[Place, Sums]:
    """Sums of the whole log by weigher, and of each value of each segment column.

    Raises InputError for a log without propensities, and for policies of one name.
    """
    sums: dict[Place, Sums] = {weigher.place: Sums() for weigher in weighers}
    if len(sums) < len(weighers):
        raise InputError(f"Policies are told by their names; got {', '.join(weigher.policy for weigher in weighers)}.")

    def work(chunk: Chunk) -> dict[Place, Part]:
        parts: dict[Place, Part] = {}
        segments = [(name, value, at) for name, values in chunk.segments.items() for value, at in _by_value(values)]
        for weigher in weighers:
            with np.errstate(over="ignore"):
                weighed = weigher.weigh(chunk)
            largest = weighed.weight.max()
            if np.isnan(largest):
                raise InputError(
                    f"{log.name} has no propensities; recsys.bandit.fitted_propensities.fit gives it fitted ones."
                )
            if largest > MOST_WEIGHT:
                weighed = replace(weighed, weight=np.minimum(weighed.weight, MOST_WEIGHT))
            drawn = histograms(weighed.weight, chunk.propensity, chunk.multiplicity)
            parts[weigher.place] = replace(part_of(chunk, weighed, weigher), histograms=drawn)
            for segment, value, at in segments:
                place = weigher.place._replace(segment=(segment, value))
                parts[place] = part_of(chunk.take(at), weighed.take(at), weigher)
        return parts

    for parts in in_order(work, log.chunks(), workers):
        for place, part in parts.items():
            if place not in sums:
                sums[place] = Sums(numbering=Clusters(small=0))
            sums[place].add(part)
    return sums


def _by_value(values: np.ndarray) -> Iterator[tuple[str, Int[np.ndarray, " m"]]]:
    """Each text among some, and the rows that have it."""
    frame = pl.DataFrame({"value": pl.Series(values, dtype=pl.String)}).with_row_index("row")
    for (value,), rows in frame.sort("value", maintain_order=True).group_by("value", maintain_order=True):
        yield str(value), rows["row"].to_numpy().astype(np.int64)


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
