"""Training metrics: metrics.csv and TensorBoard events."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from envs.core import InputError
from marl.output.files import cannot_write, write_atomically
from marl.training.population import Population, tag_prefix

if TYPE_CHECKING:
    from marl.training.events import Events

Counts = Mapping[str, int | float]


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
        # Imported by the first row, so that a run begins to learn sooner.
        from marl.training.events import draw_pictures, draw_row, events_writer

        if self._writer is None:
            self._writer = events_writer(self.folder, self.stage, self._purge)
        draw_row(self._writer, row, prefix)
        if pictures:
            draw_pictures(self._writer, int(row["env_steps"]), pictures, prefix)


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
