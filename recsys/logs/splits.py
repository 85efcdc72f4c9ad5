"""The split of a log into rows to learn from and rows held out for the evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from recsys.logs.log import Log

ROW = "number of the row"  # a column that no log has


@dataclass(frozen=True)
class Split:
    """By user where the log has users, else by row: a share `held_out` of them, which ones is a matter of the seed."""

    held_out: float
    seed: int

    def learning(self, log: Log) -> Log:
        """The rows to learn from."""
        return self._part(log, False, "the part to learn from")

    def evaluation(self, log: Log) -> Log:
        """The others."""
        return self._part(log, True, "the part held out")

    def _part(self, log: Log, held_out: bool, what: str) -> Log:
        frame = log.frame if log.columns.user else log.frame.with_row_index(ROW)
        chance = pl.col(log.columns.user or ROW).hash(self.seed) % 2**20
        kept = (chance < round(self.held_out * 2**20)) == held_out
        return log.of_rows(frame.filter(kept), f"{log.name}, {what}")
