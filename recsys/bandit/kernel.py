"""Real actions, such as prices and bids: policies that set a number, and logs of numbers that were drawn.

A row counts as much as a kernel around what the policy would have set says, over the density with which the logged
number was drawn: `estimators.kernel_ips`. All diagnostics look at these weights as at any others.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import polars as pl
from jaxtyping import Float

from envs.core import InputError
from recsys.bandit import estimators
from recsys.bandit.scan import Weighed
from recsys.logs.catalog import Catalog
from recsys.logs.files import Files
from recsys.logs.log import Chunk, Columns, Log, require_rows
from recsys.logs.tables import require_columns, schema_of
from recsys.policies.base import TablePolicy

KERNEL = ("kernel_ips", "sn_kernel_ips")
SET, CERTAIN = "a number was set", "certain"  # columns that make the log one of a single action


class RealPolicy(TablePolicy):
    """Sets the number in a column of the log, in units of the action; the kernel is `bandwidth` wide to either side."""

    def __init__(self, column: str, drawn: Columns, bandwidth: float, name: str | None = None):
        super().__init__(name or column, np.ones((1, 1)))
        self.bandwidth, self._columns = bandwidth, (column, drawn.action, _density(drawn))

    def narrowed(self, share: float) -> RealPolicy:
        """With a share of the bandwidth."""
        other = copy.copy(self)
        other.bandwidth = share * self.bandwidth
        return other

    def weighed(self, rows: Chunk) -> Weighed:
        """Rows by their kernel weights. Raises InputError for numbers that are not finite, or densities ≤ 0."""
        names = self._columns
        chosen, action, density = (_numbers(rows, name) for name in names)
        require_rows(np.isfinite(chosen) & np.isfinite(action), f"{names[0]} or {names[1]} is no number", rows)
        require_rows(np.isfinite(density) & (density > 0), f"{names[2]} is no density > 0", rows)
        weight = estimators.kernel_weight(chosen - action, density, self.bandwidth)
        nothing = np.zeros_like(rows.reward)
        return Weighed(weight, rows.reward, nothing, nothing, weight)


def real_log(frame: pl.LazyFrame, columns: Columns, name: str = "the log", files: Files | None = None) -> Log:
    """Rows whose `columns.action` is a number, drawn with the density in `columns.propensity`.

    It is a log of a catalog of one, whose context holds number and density; what targets would have set is context too
    (`Log.with_context`). Raises InputError for columns that are missing or hold no numbers.
    """
    numbers = (columns.action, _density(columns))
    schema = schema_of(frame, name)
    if files is not None:
        files.require(numbers)
    require_columns(numbers, schema, "columns", f"the columns of {name}")
    for column in numbers:
        if not schema[column].is_numeric():
            raise InputError(f"Column {column!r} of {name} must hold numbers; it holds {schema[column]}.")
    one = frame.with_columns(pl.lit(0).alias(SET), pl.lit(1.0).alias(CERTAIN))
    meant = replace(columns, action=SET, propensity=CERTAIN, position=None, context=(*columns.context, *numbers))
    return Log(one, meant, Catalog.numbered(1), name=name, files=files)


def _density(columns: Columns) -> str:
    if columns.propensity is None:
        raise InputError("A log of real actions needs the density of each, as columns.propensity.")
    return columns.propensity


def _numbers(rows: Chunk, name: str) -> Float[np.ndarray, " n"]:
    if rows.context[name].dtype.kind not in "biuf":
        raise InputError(f"Column {name!r} must hold numbers, what a policy would have set; it holds text.")
    return rows.context[name].astype(np.float64)
