"""What a run writes down while it trains: metrics.csv and TensorBoard events."""

from __future__ import annotations

import csv
import errno
import io
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import InputError
from marl.learning.batch import Batch, Outcome
from marl.output.report import cannot_write, write_atomically

PICTURE_SIZE = 128  # pixels that TensorBoard's pictures are scaled up to, as far as whole factors go


class Tally:
    """Means of what was logged since the last reading, kept on the device."""

    def __init__(self, policies: int):
        self.policies = policies
        self._clear()

    def _clear(self) -> None:
        self._terms: list[dict[str, Tensor]] = []
        self._outcomes: list[Outcome] = []

    def add(self, terms: dict[str, Tensor], batch: Batch) -> None:
        """One update's terms, and how its episodes went."""
        self._terms.append(terms)
        if batch.outcome is not None:
            self._outcomes.append(batch.outcome)

    def state_dict(self) -> dict[str, Any]:
        """What was not read yet, update by update."""
        names = self._terms[0] if self._terms else ()
        fields = ("discounted", "total", "length", "episodes") if self._outcomes else ()
        return {
            "terms": {name: torch.stack([terms[name] for terms in self._terms]) for name in names},
            "outcomes": {name: torch.stack([getattr(o, name) for o in self._outcomes]) for name in fields},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        terms, outcomes = state["terms"], state["outcomes"]
        self._terms = [dict(zip(terms, values)) for values in zip(*terms.values(), strict=True)]
        self._outcomes = [Outcome(**dict(zip(outcomes, values))) for values in zip(*outcomes.values(), strict=True)]

    def read(self) -> tuple[list[dict[str, float]], dict[str, Float[Tensor, "P H W"]]]:
        """A row for each policy, in which returns are missing where no episode ended; and the pictures."""
        columns: dict[str, Tensor] = {}
        if self._outcomes:
            weight, length, total, discounted = (
                torch.stack([getattr(outcome, name) for outcome in self._outcomes])
                for name in ("episodes", "length", "total", "discounted")
            )
            count = weight.sum(0)
            per_agent = total.sum(-1)  # [U,P,N]: a return of many channels is their sum
            for name, x in (
                ("return_per_agent", per_agent.mean(-1)),
                ("return_team", per_agent.sum(-1)),
                ("discounted_return_per_agent", discounted.sum(-1)),
                ("episode_length", length),
            ):
                columns[name] = (x * weight).sum(0) / count
            columns["episodes"] = count
        for name in self._terms[0]:
            columns[name] = torch.stack([terms[name] for terms in self._terms]).mean(0)
        self._clear()
        drawn = {name: columns.pop(name) for name in list(columns) if columns[name].dim() > 1}
        pictures = {name: x.expand(self.policies, -1, -1).cpu() for name, x in drawn.items()}
        table = {name: x.expand(self.policies).tolist() for name, x in columns.items()}
        return [{name: table[name][p] for name in table} for p in range(self.policies)], pictures


class Log:
    """metrics.csv and TensorBoard events; rows after the checkpoint that a run resumes from are dropped."""

    def __init__(self, folder: Path, stage: str, update: int, env_steps: int):
        self.folder, self.stage, self.path = folder, stage, folder / "metrics.csv"
        # Events are drawn over environment steps; a resumed stage drops what came after its checkpoint.
        self._purge = env_steps + 1
        self._rows = _read_rows(self.path, stage, update)
        self._names: list[str] = []
        self._writer: Events | None = None

    def __enter__(self) -> Log:
        if self._rows:
            self._names = list(self._rows[0])
            self._rewrite()
        else:
            self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(
        self,
        used: Sequence[Mapping[str, int | float]],
        seeds: Sequence[int],
        rows: Sequence[dict[str, float]],
        pictures: Mapping[str, Float[Tensor, "P H W"]] = MappingProxyType({}),
    ) -> None:
        """One row for each policy; `used` are the stage's counts and clocks. Pictures are for TensorBoard only."""
        for place, (seed, counts, row) in enumerate(zip(seeds, used, rows, strict=True)):
            full = {"stage": self.stage, "seed": seed, **counts, **row}
            self._append(full)
            own = {name: picture[place] for name, picture in pictures.items()}
            self._draw(full, own, f"seed={seed}/" if len(seeds) > 1 else "")

    def _append(self, row: dict[str, Any]) -> None:
        text = {name: f"{value:.9g}" if isinstance(value, float) else str(value) for name, value in row.items()}
        self._rows.append(text)
        new = [name for name in text if name not in self._names]
        self._names += new
        if new and len(self._rows) > 1:
            self._rewrite()
            return
        try:
            with self.path.open("a", newline="") as file:
                writer = csv.DictWriter(file, self._names, restval="")
                if new:
                    writer.writeheader()
                writer.writerow(text)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._names, restval="")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomically(self.path, text.getvalue())

    def _draw(self, row: dict[str, Any], pictures: Mapping[str, Float[Tensor, "H W"]], prefix: str) -> None:
        if self._writer is None:
            self._writer = events_writer(self.folder, self.stage, self._purge)
        draw_row(self._writer, row, prefix)
        if pictures:
            draw_pictures(self._writer, int(row["env_steps"]), pictures, prefix)


class Events:
    """A file of TensorBoard events that is appended to at once, without a buffer, a queue or a thread.

    So what was logged survives a kill, and a disk that refuses is told here: TensorBoard's own writer hears of it in a
    thread, whose traceback nobody can keep off the terminal.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def append(self, event: Any) -> None:
        """Write one event. Raises ConcordError where the disk refuses."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        try:
            if self._file.write(record.getvalue()) != len(record.getvalue()):
                raise OSError(errno.ENOSPC, "the disk took only a part")
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def events_writer(folder: Path, stage: str, purge_step: int | None = None) -> Events:
    """A new file of events of one stage; what older files say of steps from `purge_step` on counts no more."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    events = Events(folder / "events" / stage / f"events.out.tfevents.{time.time():.6f}")
    events.append(Event(wall_time=time.time(), file_version="brain.Event:2"))
    if purge_step is not None:
        events.append(Event(wall_time=time.time(), step=purge_step, session_log=SessionLog(status=SessionLog.START)))
    return events


def draw_row(events: Events, row: Mapping[str, Any], prefix: str = "") -> None:
    """A row of metrics.csv as scalars over environment steps."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [
        Summary.Value(tag=f"{prefix}{name}", simple_value=float(value))
        for name, value in row.items()
        if name not in ("stage", "seed", "updates", "env_steps") and value != "" and math.isfinite(float(value))
    ]
    events.append(Event(wall_time=time.time(), step=int(row["env_steps"]), summary=Summary(value=values)))


def draw_pictures(
    events: Events, env_steps: int, pictures: Mapping[str, Float[Tensor, "H W"]], prefix: str = ""
) -> None:
    """Pictures in shades of gray, 0 black and 1 white."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [
        Summary.Value(tag=f"{prefix}{name}", image=Summary.Image(**_png(picture))) for name, picture in pictures.items()
    ]
    events.append(Event(wall_time=time.time(), step=env_steps, summary=Summary(value=values)))


def _png(picture: Float[Tensor, "H W"]) -> dict[str, Any]:
    """The fields of TensorBoard's image, each number a square that is large enough to see."""
    from PIL import Image

    size = max(1, PICTURE_SIZE // max(picture.shape))
    gray = (picture.clamp(0, 1) * 255).round().byte().numpy().repeat(size, 0).repeat(size, 1)
    file = io.BytesIO()
    Image.fromarray(gray).save(file, "png", compress_level=1)
    return {"height": gray.shape[0], "width": gray.shape[1], "colorspace": 1, "encoded_image_string": file.getvalue()}


def _read_rows(path: Path, stage: str, update: int) -> list[dict[str, str]]:
    """The rows that a resumed stage keeps: those of other stages, and its own up to the checkpoint."""
    rows = read_rows(path) if path.exists() else []
    return [row for row in rows if row["stage"] != stage or int(row["updates"]) <= update]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a metrics.csv: one that a crash cut short is left out. Raises InputError for another file."""
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if None not in row and None not in row.values()]
            names = reader.fieldnames
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(_damaged(path, str(error))) from error
    if rows and not {"stage", "seed", "updates", "env_steps"} <= set(names or ()):
        raise InputError(_damaged(path, "its first line does not name the columns"))
    return [row for row in rows if row["updates"].isdigit()]


def _damaged(path: Path, how: str) -> str:
    return f"{path} is damaged: {how}. Move it away; training goes on without its rows."
