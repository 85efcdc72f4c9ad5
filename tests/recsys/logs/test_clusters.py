"""Users are numbered once, and sums by them are the same whatever the order of rows."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.logs.clusters import SMALL, Clusters, sums_by_cluster

ROWS = 4096


def orders() -> dict[str, np.ndarray]:
    rng, rows = np.random.default_rng(0), np.arange(ROWS)
    return {
        "each its own": rows + 7,
        "dealt in turn": (rows + 100) & 1023,
        "sorted": np.sort(rng.integers(50, size=ROWS)) + 10**6,
        "sorted twice": np.concatenate([np.repeat(np.arange(32), 64), np.repeat(np.arange(32), 64) + 10**7]),
        "two far climbs": np.concatenate([rows[:2048], rows[:2048] + 10**9]),
        "mixed": rng.integers(300, size=ROWS),
        "mixed, many": rng.integers(10**9, size=ROWS),
        "one": np.zeros(ROWS, np.int64),
        "falling": rows[::-1].copy(),
    }


@pytest.mark.parametrize("order", orders())
@pytest.mark.parametrize("rows", [1, 37, ROWS])
def test_sums_by_cluster_are_those_of_each_clusters_rows(order: str, rows: int) -> None:
    cluster = orders()[order][:rows]
    columns = [np.random.default_rng(k).random(rows) for k in range(3)]
    place, sums = sums_by_cluster(cluster, columns)
    found = np.arange(place.start, place.stop) if isinstance(place, slice) else place
    assert len(found) == len(np.unique(found)) <= 2 * rows
    ids, inverse = np.unique(cluster, return_inverse=True)
    for column, total in zip(columns, sums, strict=True):
        np.testing.assert_allclose(total[np.isin(found, ids)], np.bincount(inverse, column), rtol=1e-12)
        np.testing.assert_array_equal(total[~np.isin(found, ids)], 0)


def test_users_keep_their_numbers_when_larger_ones_come() -> None:
    rng, users = np.random.default_rng(1), Clusters()
    number: dict[int, int] = {}
    for most in (50, 5000, SMALL - 1, 2**40, 2**62):
        for low in (0, -most if most > SMALL else 0):
            drawn = np.concatenate([rng.integers(low, most, size=500), list(number)[:50]]).astype(np.int64)
            drawn = np.sort(drawn) if most == 2**40 else np.repeat(drawn, 3)
            for user, found in zip(drawn.tolist(), users.encode(drawn).tolist(), strict=True):
                assert number.setdefault(user, found) == found
    assert sorted(number.values()) == list(range(len(number)))
