"""Console output of a run while it goes on."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

console = Console(highlight=False, soft_wrap=True)


@contextmanager
def quiet(wanted: bool = True) -> Iterator[None]:
    """Within, nothing is printed and no progress is shown, where that is wanted."""
    before = console.quiet
    console.quiet = before or wanted
    try:
        yield
    finally:
        console.quiet = before


def in_words(error: Exception) -> str:
    """Message of an unexpected error in one line, with its place: the innermost that is no library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno}, in {own[-1].name})" if own else ""
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(lines) if len(lines) < 4 else f"{lines[0]} … {lines[-1]}"
    return f"{type(error).__name__}: {text}{place}."


class TrainingDisplay:
    """A live bar on a terminal; elsewhere, a line every few seconds."""

    def __init__(self, name: str, total: int, start: int = 0, every_seconds: float = 10.0):
        self.name, self.total, self.every = name, total, every_seconds
        self._last = time.monotonic()
        self._text = ""
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            disable=console.quiet or not (console.is_terminal and sys.stdout.isatty()),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(name, total=total, completed=start, text="")

    def __enter__(self) -> TrainingDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._bar.disable and self._text:
            console.print(f"{self.name}: {self._text}")

    def advance(self, done: int, text: str | None = None) -> None:
        """`done` of `total` is done; `text` says how it goes."""
        if text is not None:
            self._text = text
        self._bar.update(self._task, completed=done, text=self._text)
        if self._bar.disable and time.monotonic() - self._last > self.every:
            self._last = time.monotonic()
            console.print(f"{self.name}: {100 * done / self.total:3.0f} %  {self._text}")
