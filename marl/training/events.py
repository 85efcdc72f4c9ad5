"""TensorBoard events: scalars and pictures over environment steps."""

from __future__ import annotations

import errno
import io
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from marl.output.files import cannot_write

NOT_DRAWN = ("stage", "seed", "policy", "updates", "env_steps", "total_env_steps")  # TensorBoard has names and an axis
PICTURE_SIZE = 128  # pixels that TensorBoard's pictures are scaled up to, as far as whole factors go


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
        if name not in NOT_DRAWN and value != "" and math.isfinite(float(value))
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
