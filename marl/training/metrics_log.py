"""Training metrics: metrics.csv and TensorBoard events."""

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
from marl.learning.batch import Outcome
from marl.output.report import cannot_write, write_atomically
from marl.training.population import Population, tag_prefix

PICTURE_SIZE = 128  # pixels that TensorBoard's pictures are scaled up to, as far as whole factors go
NOT_DRAWN = ("stage", "seed", "policy", "updates", "env_steps", "total_env_steps")  # TensorBoard has names and an axis
OUTCOME_FIELDS = ("discounted", "total", "length", "episodes")

Counts = Mapping[str, int | float]


class Tally:
    """Means of what was logged since the last reading, kept on the device."""

    def __init__(self, policies: int):
        self.policies = policies
        self._clear()

    def _clear(self) -> None:
        self._terms: list[dict[str, Tensor]] = []
        self._outcomes: list[Outcome] = []

    def add(self, terms: dict[str, Tensor], outcome: Outcome | None) -> None:
        """One update's terms, and how its episodes went."""
        self._terms.append(terms)
        if outcome is not None:
            self._outcomes.append(outcome)

    def state_dict(self) -> dict[str, Any]:
        """All that was not read yet, update by update."""
        names = self._terms[0] if self._terms else ()
        fields = OUTCOME_FIELDS if self._outcomes else ()
        return {
            "terms": {name: self._stack_terms(name) for name in names},
            "outcomes": {name: self._stack_outcomes(name) for name in fields},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        terms, outcomes = state["terms"], state["outcomes"]
        self._terms = [dict(zip(terms, values)) for values in zip(*terms.values(), strict=True)]
        self._outcomes = [Outcome(**dict(zip(outcomes, values))) for values in zip(*outcomes.values(), strict=True)]

    def read(self) -> tuple[list[dict[str, float]], dict[str, Float[Tensor, "P H W"]]]:
        """A row for each policy, in which returns are missing where no episode ended; and the pictures.

        Raises InputError for a term that has no value for each policy.
        """
        columns = self._mean_outcomes() | self._mean_terms()
        self._clear()
        table: dict[str, list[float]] = {}
        pictures: dict[str, Tensor] = {}
        for name, x in columns.items():
            if x.dim() > 1:
                pictures[name] = x.expand(self.policies, -1, -1).cpu()
            else:
                table[name] = x.expand(self.policies).tolist()
        rows = [{name: values[p] for name, values in table.items()} for p in range(self.policies)]
        return rows, pictures

    def _mean_outcomes(self) -> dict[str, Float[Tensor, " P"]]:
        """Means over all episodes that ended. A return of many channels is their sum, as far as they are known."""
        if not self._outcomes:
            return {}
        weight = self._stack_outcomes("episodes")
        count = weight.sum(0)
        per_agent = _sum_of_known(self._stack_outcomes("total"))  # [U,P,N]
        means = {
            "return_per_agent": per_agent.mean(-1),
            "return_team": per_agent.sum(-1),
            "discounted_return_per_agent": _sum_of_known(self._stack_outcomes("discounted")),
            "episode_length": self._stack_outcomes("length"),
        }
        return {name: (x * weight).sum(0) / count for name, x in means.items()} | {"episodes": count}

    def _mean_terms(self) -> dict[str, Tensor]:
        """Means over the updates: [P], [1] where all policies share it, or a picture [P,H,W]."""
        means = {name: self._stack_terms(name).mean(0) for name in self._terms[0]}
        for name, x in means.items():
            if x.dim() and len(x) not in (1, self.policies):
                raise InputError(
                    f"The learner logs {name} with {len(x)} values, and {self.policies} policies are trained. Give "
                    "one value for each policy, or one that all share."
                )
        return means

    def _stack_terms(self, name: str) -> Tensor:
        return torch.stack([terms[name] for terms in self._terms])

    def _stack_outcomes(self, name: str) -> Tensor:
        return torch.stack([getattr(outcome, name) for outcome in self._outcomes])


def _sum_of_known(returns: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """The sum over the channels that are known; NaN where none is."""
    known = ~returns.isnan()
    total = torch.where(known, returns, 0.0).sum(-1)
    return torch.where(known.any(-1), total, math.nan)


class MetricsLog:
    """metrics.csv and TensorBoard events; rows after the checkpoint that a run resumes from are dropped.

    A row belongs to one policy: the columns `seed`, and `policy`, its number within the seed. In a row that is about
    all policies together, `policy` is empty, and `seed` too where there are several.
    """

    def __init__(self, folder: Path, stage: str, update: int, env_steps: int, population: Population):
        self.folder, self.stage, self.path, self.population = folder, stage, folder / "metrics.csv", population
        # Events are drawn over environment steps; a resumed stage drops what came after its checkpoint.
        self._purge = env_steps + 1
        self._rows = _read_rows(self.path, stage, update)
        self._names: list[str] = []
        self._writer: Events | None = None

    def __enter__(self) -> MetricsLog:
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
        used: Sequence[Counts],
        rows: Sequence[Mapping[str, float]],
        pictures: Mapping[str, Float[Tensor, "P H W"]] = MappingProxyType({}),
    ) -> None:
        """One row for each policy; `used` are the stage's counts and clocks. Pictures are for TensorBoard only."""
        labels = self.population.labels
        for place, ((seed, member), counts, row) in enumerate(zip(labels, used, rows, strict=True)):
            full = {"stage": self.stage, "seed": seed, "policy": member, **counts, **row}
            own = {name: picture[place] for name, picture in pictures.items()}
            self._append(full)
            self._draw(full, own, self._prefix(seed, member))

    def write_findings(self, used: Sequence[Counts], findings: Mapping[str, float | Tensor]) -> None:
        """A probe's findings: numbers in one row about all policies, tensors [P] in a row for each policy.

        Raises InputError for a tensor of another size.
        """
        by_policy = {name: x for name, x in findings.items() if isinstance(x, Tensor) and x.dim() > 0}
        together = {name: float(x) for name, x in findings.items() if name not in by_policy}
        if together:
            self._write_together(used, together)
        if by_policy:
            table = {name: self._by_policy(name, x) for name, x in by_policy.items()}
            rows = [{name: values[p] for name, values in table.items()} for p in range(len(self.population))]
            self.write(used, rows)

    def _write_together(self, used: Sequence[Counts], row: Mapping[str, float]) -> None:
        """One row about all policies, with the counts that they have in common."""
        if len(self.population) == 1:
            self.write(used, [row])
            return
        seeds = self.population.seeds
        shared = {name: value for name, value in used[0].items() if all(each[name] == value for each in used)}
        seed = seeds[0] if len(seeds) == 1 else ""
        full = {"stage": self.stage, "seed": seed, "policy": "", **shared, **row}
        self._append(full)
        self._draw(full, {}, "")

    def _by_policy(self, name: str, x: Float[Tensor, " *P"]) -> list[float]:
        policies = len(self.population)
        if x.shape != (policies,):
            raise InputError(
                f"A probe found {name} of shape {list(x.shape)}, and {policies} policies are trained. Give a number, "
                "or a tensor with one value for each policy."
            )
        return x.tolist()

    def _prefix(self, seed: int, member: int) -> str:
        return tag_prefix(self.population.seeds, range(self.population.members), seed, member)

    def _append(self, row: Mapping[str, Any]) -> None:
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

    def _draw(self, row: Mapping[str, Any], pictures: Mapping[str, Float[Tensor, "H W"]], prefix: str) -> None:
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


def _read_rows(path: Path, stage: str, update: int) -> list[dict[str, str]]:
    """The rows that a resumed stage keeps: those of other stages, and its own up to the checkpoint."""
    rows = read_rows(path) if path.exists() else []
    return [row for row in rows if row["stage"] != stage or int(row["updates"]) <= update]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a metrics.csv: one that a crash cut short is left out. Raises InputError for another file.

    Files written before there were members of a seed have no column `policy`; it is then 0.
    """
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if None not in row and None not in row.values()]
            names = reader.fieldnames
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(_damaged(path, str(error))) from error
    if rows and not {"stage", "seed", "updates", "env_steps"} <= set(names or ()):
        raise InputError(_damaged(path, "its first line does not name the columns"))
    return [_with_policy(row) for row in rows if row["updates"].isdigit()]


def _with_policy(row: dict[str, str]) -> dict[str, str]:
    """The row with the column `policy`, after stage and seed."""
    if "policy" in row:
        return row
    return {"stage": row["stage"], "seed": row["seed"], "policy": "0", **row}


def _damaged(path: Path, how: str) -> str:
    return f"{path} is damaged: {how}. Move it away; training goes on without its rows."
