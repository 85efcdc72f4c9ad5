"""Estimators against problems whose answers are known exactly: `recsys.problems.sequential`, `recsys.problems.slate`.

Here is what both share: the config, the reading of a problem, and how far replicated estimates are from the truth.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import Field

from envs.core import InputError
from marl.config.schema import RunConfig, Section
from marl.output.console import console
from marl.output.report import Metric, Report
from marl.output.tables import print_table

PROBLEMS = Path(__file__).resolve().parents[1] / "data" / "oracles"
ROUNDED = 1e-6  # probabilities in a file may be off by this much, and known answers by this share
EXACT = 1e-12  # below this share of the truth, estimates that do not vary count as the truth
# What a file tells by name; everything else is one table.
MAPPINGS = ("value", "expectation", "sd", "fixed_point", "stage_one")


class ProblemConfig(Section):
    """The place of the exact problem."""

    path: str | None = Field(None, description="a problem's JSON file; null is the one that comes with Concord")

    def file(self, shipped: str) -> Path:
        """The problem's file; shipped: the name of the one that comes with Concord."""
        return Path(self.path) if self.path else PROBLEMS / shipped


class OracleConfig(RunConfig):
    """Replications of logs from an exact problem."""

    data: ProblemConfig = ProblemConfig()
    replications: int = Field(400, ge=2, description="logs that are drawn and estimated from, each by itself")
    q_noise: float = Field(0.3, ge=0, description="standard deviation of what is added to the exact q, once for all")


def read_problem(path: Path, needed: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """The tables of a problem as arrays; `known` answers may be left out. Raises InputError where one is not usable."""
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"There is no problem at {path}. data.path names a JSON file as {PROBLEMS} has.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a problem in JSON: {error}. {PROBLEMS} has an example.") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} must hold a mapping with {', '.join(needed)}; got a {type(raw).__name__}.")
    missing = [name for name in needed if name not in raw]
    if missing:
        raise InputError(f"{path} lacks {' and '.join(missing)}; a problem needs {', '.join(needed)}.")
    return {name: _numbers(path, name, raw[name]) for name in (*needed, *known) if name in raw}


def _numbers(path: Path, name: str, value: Any) -> Any:
    if isinstance(value, dict) and name in MAPPINGS:
        told = {key: _numbers(path, f"{name}.{key}", entry) for key, entry in value.items()}
        return {key: entry if entry.ndim else float(entry) for key, entry in told.items()}
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{name} in {path} is no table of numbers: its rows differ in length, or hold something else."
        ) from None
    if not np.isfinite(array).all():
        raise InputError(f"{name} in {path} must hold finite numbers; {np.argwhere(~np.isfinite(array))[0]} is not.")
    return array


def require_shape(name: str, table: Float[np.ndarray, "*shape"], shape: tuple[int, ...], axes: str) -> None:
    """Raises InputError for a table of another shape."""
    if table.shape != shape:
        raise InputError(f"{name} must be {axes} = {list(shape)}; got {list(table.shape)}.")


def distributions(name: str, table: Float[np.ndarray, "*rows choices"]) -> Float[np.ndarray, "*rows choices"]:
    """Rows that sum to 1 exactly. Raises InputError where they are no probabilities."""
    sums = table.sum(-1)
    wrong = (table < 0).any(-1) | (np.abs(sums - 1) > ROUNDED)
    if wrong.any():
        row = np.argwhere(wrong)[0]
        place = f"row {row.tolist()}" if row.size else "its row"
        raise InputError(
            f"Every row of {name} holds probabilities, none negative, that sum to 1; {wrong.sum()} do not, the first "
            f"being {place} with the sum {float(sums[tuple(row)]):.6g} and the least {table[tuple(row)].min():.6g}."
        )
    return table / sums[..., None]


def require_answer(name: str, told: Any, computed: Any) -> None:
    """Raises InputError where the file's answer is not that of its tables."""
    told, computed = np.asarray(told), np.asarray(computed)
    require_shape(name, told, computed.shape, "an answer of shape")
    gap = float(np.abs(told - computed).max())
    if gap > ROUNDED * max(1.0, float(np.abs(computed).max())):
        raise InputError(
            f"The problem says {name}, but its tables give another answer: they differ by up to {gap:.3g}. Mend the "
            f"tables, or leave {name.split('.')[0]} out and let it be computed."
        )


def judge(samples: Float[np.ndarray, " R"], truth: float) -> dict[str, float]:
    """The error of replicated estimates: z of the bias is in units of its own standard error."""
    error = samples - truth
    bias, spread = float(error.mean()), float(error.std(ddof=1))
    if spread <= EXACT * max(1.0, abs(truth)):
        z = 0.0 if abs(bias) <= 1e3 * EXACT * max(1.0, abs(truth)) else math.copysign(math.inf, bias)
    else:
        z = bias / (spread / math.sqrt(len(samples)))
    return {
        "truth": truth,
        "mean": truth + bias,
        "z": z,
        "rmse": float(np.sqrt((error**2).mean())),
        "variance": spread**2,
    }


def judgements(samples: Mapping[str, Sequence[float]], truth: float) -> list[dict[str, Any]]:
    """A row of the table for each estimator."""
    return [{"estimator": name, **judge(np.array(values), truth)} for name, values in samples.items()]


def metrics_of(
    prefix: str, samples: Mapping[str, Sequence[float]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Metric]:
    """`<prefix>/<estimator>/z` and so on; the mean has the interval of the replications."""
    metrics = {}
    for row in rows:
        name = row["estimator"]
        metrics[f"{prefix}/{name}/mean"] = Metric.mean(samples[name])
        metrics |= {f"{prefix}/{name}/{column}": Metric.exact(row[column]) for column in ("z", "rmse", "variance")}
    return metrics


def reported(config: OracleConfig, title: str, rows: list[dict[str, Any]], metrics: dict[str, Metric]) -> Report:
    """The report; its table is printed, with digits enough to tell a mean from the truth."""
    shown = [{key: f"{x:.5g}" if isinstance(x, float) else x for key, x in row.items()} for row in rows]
    print_table(title, shown, console)
    return Report(config.recipe, config.seed, config.model_dump(mode="json"), metrics, {"estimators": rows})
