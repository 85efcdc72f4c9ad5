"""Whose rows belong together: numbers for users, and sums of columns by these numbers."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

SMALL = 2**20  # users below this, and below four times their number, are numbered by a table


class Clusters:
    """Numbers for users, given as they come, so that sums by user are arrays.

    Users that are small whole numbers are looked up in a table, which grows with them; others by bisection. With
    small = 0 all are, which takes the least memory.
    """

    def __init__(self, small: int = SMALL) -> None:
        self._count, self._least = 0, small
        self._table = np.zeros(0, np.int64)  # the number of each user; -1 is nobody yet
        self._keys, self._codes = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._small = True

    def __len__(self) -> int:
        return self._count

    def encode(self, users: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """0, 1, … for the users so far; the same user always has the same number."""
        starts = _starts(users[1:] != users[:-1])
        if 2 * len(starts) < len(users):  # a log that is sorted by users
            return np.repeat(self.encode(users[starts]), np.diff(starts, append=len(users)))
        if self._small and (users.min() < 0 or users.max() >= self._least + 4 * self._count):
            self._small, self._keys = False, np.flatnonzero(self._table >= 0)
            self._codes, self._table = self._table[self._keys], self._table[:0]
        if self._small:
            return self._by_table(users)
        keys, inverse = np.unique(users, return_inverse=True)
        return self._by_bisection(keys)[inverse]

    def _by_table(self, users: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        missing = int(users.max()) + 1 - len(self._table)
        if missing > 0:  # doubled, so that growing costs no more than filling
            self._table = np.pad(self._table, (0, max(missing, len(self._table))), constant_values=-1)
        numbers = self._table[users]
        if numbers.min() < 0:
            new = np.unique(users[numbers < 0])
            self._table[new] = self._new(len(new))
            numbers = self._table[users]
        return numbers

    def _new(self, users: int) -> Int[np.ndarray, " users"]:
        self._count += users
        return np.arange(self._count - users, self._count)

    def _by_bisection(self, keys: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """The numbers of users that are sorted and distinct."""
        place = np.searchsorted(self._keys, keys)
        inside = place < len(self._keys)
        known = np.zeros(len(keys), bool)
        known[inside] = self._keys[place[inside]] == keys[inside]
        codes = np.empty(len(keys), np.int64)
        codes[known] = self._codes[place[known]]
        codes[~known] = self._new(int((~known).sum()))
        self._keys = np.insert(self._keys, place[~known], keys[~known])
        self._codes = np.insert(self._codes, place[~known], codes[~known])
        return codes


def sums_by_cluster(
    cluster: Int[np.ndarray, " n"], columns: list[np.ndarray]
) -> tuple[slice | Int[np.ndarray, " c"], list[np.ndarray]]:
    """Sums of each column by cluster, and the places of these among all clusters."""
    rows, step = len(cluster), np.diff(cluster)
    runs = _starts(step != 0)
    if 2 * len(runs) < rows:  # a log that is sorted by users
        return sums_by_cluster(cluster[runs], [np.add.reduceat(column, runs) for column in columns])
    low, size = int(cluster.min()), int(cluster.max()) - int(cluster.min()) + 1
    climbs = _starts(step != 1)
    if len(climbs) == 1:  # every row its own
        return slice(low, low + size), columns
    if len(climbs) <= rows // 1024 and size <= 2 * rows:  # rows dealt in turn
        ends = [*climbs[1:].tolist(), rows]
        return slice(low, low + size), _climbing_sums(cluster - low, columns, list(zip(climbs.tolist(), ends)), size)
    if size <= 2 * rows:
        return slice(low, low + size), [np.bincount(cluster - low, column, size) for column in columns]
    ids, inverse = np.unique(cluster, return_inverse=True)
    return ids, [np.bincount(inverse, column, len(ids)) for column in columns]


def _starts(changes: Bool[np.ndarray, " rows"]) -> Int[np.ndarray, " starts"]:
    """0, and the rows at which something changes from the one before."""
    return np.concatenate([[0], np.flatnonzero(changes) + 1])


def _climbing_sums(
    cluster: Int[np.ndarray, " n"], columns: list[np.ndarray], climbs: list[tuple[int, int]], size: int
) -> list[np.ndarray]:
    """Sums by cluster where these go up one by one from each start to its end."""
    sums = [np.zeros(size) for _ in columns]
    for start, end in climbs:
        place = slice(int(cluster[start]), int(cluster[end - 1]) + 1)
        for total, column in zip(sums, columns, strict=True):
            total[place] += column[start:end]
    return sums
