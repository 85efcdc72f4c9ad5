"""A finite bandit whose answers are known, and logs made of tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.logs.catalog import Catalog
from recsys.logs.log import Columns, Log

CONTEXTS, ACTIONS, SIGNALS = 3, 4, 2


@dataclass(frozen=True)
class Bandit:
    """Contexts alike, actions by a table, Bernoulli rewards of K signals."""

    logging: np.ndarray  # [X, A]
    target: np.ndarray  # [X, A]
    mean: np.ndarray  # [X, A, K]

    @property
    def truth(self) -> np.ndarray:
        """What the target earns, [K]."""
        return np.einsum("xa,xak->k", self.target, self.mean) / len(self.mean)

    def draw(self, rows: int, seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        x = rng.integers(len(self.mean), size=rows)
        a = (rng.random(rows)[:, None] > self.logging.cumsum(1)[x]).sum(1)
        a = np.minimum(a, self.mean.shape[1] - 1)
        reward = (rng.random((rows, self.mean.shape[2])) < self.mean[x, a]).astype(float)
        return Drawn(x, a, reward, self.logging[x, a], self.target[x, a])


@dataclass(frozen=True)
class Drawn:
    x: np.ndarray
    a: np.ndarray
    reward: np.ndarray
    propensity: np.ndarray
    probability: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        return self.probability / self.propensity


def bandit(seed: int = 4) -> Bandit:
    """In this one every broken assumption leaves a bias of both signals that 200,000 rows show."""
    rng = np.random.default_rng(seed)
    logging, target = (rng.dirichlet(np.full(ACTIONS, 2.0), CONTEXTS) for _ in range(2))
    logging = 0.8 * logging + 0.2 / ACTIONS
    return Bandit(logging, target, rng.uniform(0.1, 0.9, (CONTEXTS, ACTIONS, SIGNALS)))


COLUMNS = Columns("item", ("click", "watch"), "p", "place")


def frame(rows: int = 400, seed: int = 0) -> pl.DataFrame:
    """A log of the small bandit, the context as its position, with users, segments and a score for each action."""
    drawn, rng = bandit().draw(rows, seed), np.random.default_rng(seed + 1)
    columns = {
        "item": drawn.a,
        "place": drawn.x,
        "p": drawn.propensity,
        "click": drawn.reward[:, 0],
        "watch": 3 * drawn.reward[:, 1],
        "user": rng.integers(rows // 4, size=rows),
        "tab": rng.integers(2, size=rows),
    }
    return pl.DataFrame({**columns, **{f"score{a}": rng.normal(size=rows) for a in range(ACTIONS)}})


def log_of(table: pl.DataFrame | pl.LazyFrame, columns: Columns = COLUMNS, **settings: int) -> Log:
    positions = Catalog.numbered(CONTEXTS, what="position")
    return Log(table.lazy(), columns, Catalog.numbered(ACTIONS), positions, **settings)  # type: ignore[arg-type]


def written(table: pl.DataFrame, path: Path) -> Path:
    table.write_parquet(path) if path.suffix == ".parquet" else table.write_csv(path)
    return path


def table_config(path: Path, **columns: Any) -> dict[str, Any]:
    named = {"action": "item", "rewards": ["click", "watch"], "propensity": "p", "position": "place", **columns}
    data = {"format": "table", "path": str(path), "columns": named, "actions": ACTIONS}
    return {"recipe": "recsys.ope", "data": data, "policy": {"target": "uniform"}}
