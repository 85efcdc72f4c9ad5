"""The split of a log into parts that share no user: to learn from, to choose by, to evaluate on."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from recsys.logs.log import Log

ROW = "number of the row"  # a column that no log has
FINENESS = 2**20


@dataclass(frozen=True)
class Split:
    """A share `held_out` of the log, by user, where it has none by session, else by row; which is the seed's matter."""

    held_out: float
    seed: int

    def learning(self, log: Log) -> Log:
        """The rows to learn from."""
        return part_of(log, self.seed, self.held_out, 1.0, "the part to learn from")

    def evaluation(self, log: Log) -> Log:
        """The others."""
        return part_of(log, self.seed, 0.0, self.held_out, "the part held out")


@dataclass(frozen=True)
class Parts:
    """Three parts likewise: certify and validate are shares of the log, and the rest is learned from."""

    validate: float
    certify: float
    seed: int

    def learning(self, log: Log) -> Log:
        """The rows to learn from."""
        return part_of(log, self.seed, self.certify + self.validate, 1.0, "the part to learn from")

    def validation(self, log: Log) -> Log:
        """The rows to choose by."""
        return part_of(log, self.seed, self.certify, self.certify + self.validate, "the part to choose by")

    @property
    def last(self) -> Split:
        """The rows that nothing was chosen by, against all others."""
        return Split(self.certify, self.seed)


def part_of(log: Log, seed: int, low: float, high: float, what: str) -> Log:
    """The users, or else sessions, or else rows, whose number in [0, 1) is in [low, high)."""
    unit = log.columns.user or log.columns.episode
    frame = log.frame if unit else log.frame.with_row_index(ROW)
    number = pl.col(unit or ROW).hash(seed) % FINENESS
    kept = (number >= round(low * FINENESS)) & (number < round(high * FINENESS))
    return log.of_rows(frame.filter(kept), f"{log.name}, {what}")
