"""The split of a log into rows to learn from and rows held out for the evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from recsys.logs.log import Log

ROW = "number of the row"  # a column that no log has


@dataclass(frozen=True)
class Split:
    """A share `held_out` of the log, by user, where it has none by session, else by row; which is the seed's matter."""

    held_out: float
    seed: int

    def learning(self, log: Log) -> Log:
        """The rows to learn from."""
        return self._part(log, False, "the part to learn from")

    def evaluation(self, log: Log) -> Log:
        """The others."""
        return self._part(log, True, "the part held out")

    def _part(self, log: Log, held_out: bool, what: str) -> Log:
        unit = log.columns.user or log.columns.episode
        frame = log.frame if unit else log.frame.with_row_index(ROW)
        chance = pl.col(unit or ROW).hash(self.seed) % 2**20
        kept = (chance < round(self.held_out * 2**20)) == held_out
        return log.of_rows(frame.filter(kept), f"{log.name}, {what}")
