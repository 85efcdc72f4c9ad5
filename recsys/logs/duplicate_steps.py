"""The search for steps of episodes that were logged twice: exact, in memory that does not grow with the log."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
from jaxtyping import Int

from recsys.logs.labels import ROW
from recsys.logs.tables import TOLD_ROWS, Fault, Problems, collect, schema_of, unreadable

BATCH_ROWS = 2**18
PASS_ROWS = 2**22  # about so many rows are held at a time


def require_distinct_steps(frame: pl.LazyFrame, episode: str, step: str, name: str, fault: Fault) -> None:
    """Raise InputError where an episode or a step is missing, or a step of an episode occurs twice."""
    steps, problems = frame.select(episode, step), Problems(name)
    kinds = schema_of(steps, name)
    try:
        if rise(steps):
            return
        for column in (episode, step):
            value = pl.col(column).fill_nan(None) if kinds[column].is_float() else pl.col(column)
            rows = collect(steps.with_row_index(ROW).filter(value.is_null()).select(ROW), name, fault)[ROW]
            problems.add(f"{column} missing", len(rows), rows.head(TOLD_ROWS).to_numpy())
        problems.tell()
        count, again = repeated_steps(steps, TOLD_ROWS)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(name, error, fault) from error
    problems.add(f"{episode} and {step} as in an earlier row", count, again)
    problems.tell()


def repeated_steps(steps: pl.LazyFrame, told: int) -> tuple[int, Int[np.ndarray, " told"]]:
    """The number of rows of [episode, step] that are as an earlier one, and the first `told` of them, counted from 0.

    One pass suffices where episodes rise, and steps within each. Any other log is read rows / PASS_ROWS times, and each
    time only the rows of which a hash gives the same remainder are held: equal ones always meet.
    """
    if rise(steps):
        return 0, np.zeros(0, np.int64)
    passes = math.ceil(steps.select(pl.len()).collect(engine="streaming").item() / PASS_ROWS)
    passed = [_repeated(steps, passes, remainder) for remainder in range(passes)]
    first = np.sort(np.concatenate([rows[:told] for rows in passed]))[:told]
    return sum(len(rows) for rows in passed), first


def rise(steps: pl.LazyFrame) -> bool:
    """True where each row is beyond the one before; False for missing and incomparable ones."""
    episode, step = (pl.col(name) for name in steps.collect_schema().names())
    same = (episode == episode.shift()) & (step > step.shift())
    beyond = ((episode > episode.shift()) | same).fill_null(False)
    last: list[pl.DataFrame] = []
    for batch in steps.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
        if not len(batch):
            continue
        if not pl.concat([*last, batch]).select(beyond.slice(1).all()).item():
            return False
        last = [batch.tail(1)]
    return True


def _repeated(steps: pl.LazyFrame, passes: int, remainder: int) -> Int[np.ndarray, " rows"]:
    """The rows that are as an earlier one, in order, among those with this remainder."""
    names = steps.collect_schema().names()
    hashed = pl.col(names[0]).hash(0) ^ pl.col(names[1]).hash(1)
    some = steps.with_row_index("row").filter(hashed % passes == remainder).collect(engine="streaming").sort("row")
    again = some.filter(~pl.struct(names).is_first_distinct())["row"]
    return again.to_numpy().astype(np.int64)
