"""Python environments in processes of their own, writing into memory that all of them share.

A step costs one byte to each worker and one back, whatever the number of environments; observations, rewards and
actions never travel through it. Workers are started as fresh interpreters, so a user's script needs no
`if __name__ == "__main__"`, and they import no torch unless the environment does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import math
import mmap
import multiprocessing
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]
import numpy as np

from envs.pettingzoo.interfaces import BrokenContractError, EnvironmentRaisedError, explained
from envs.pettingzoo.layout import Codec, Layout, StateSource, prepare
from envs.pettingzoo.rows import Begin, Rows

STEP, DONE, CLOSE, VALUE = b"s", b"d", b"c", b"v"  # a pickled value follows the last
PATIENCE = 600.0  # seconds that a worker may take for one step before it counts as stuck
PATIENCE_AT_CLOSE = 5.0
LOOKOUT = 3e-4  # seconds to stay awake for what comes soon, where waiting was that short before


class Fault(NamedTuple):
    """Failure of a worker, as the error that the parent raises."""

    kind: type[Exception]
    message: str


class Line:
    """One end of what joins parent and worker: single bytes, and a pickled value behind the byte VALUE."""

    def __init__(self, connection: Connection):
        self._connection, self._poll = connection, select.poll()
        self._poll.register(connection, select.POLLIN)

    def signal(self, byte: bytes) -> None:
        """Send one byte."""
        os.write(self._connection.fileno(), byte)

    def send(self, value: Any) -> None:
        """Send a value."""
        self.signal(VALUE)
        self._connection.send(value)

    def receive(self) -> tuple[bytes, Any]:
        """The next byte, and the value if one follows. Raises EOFError where the other end has gone."""
        byte = os.read(self._connection.fileno(), 1)
        if not byte:
            raise EOFError
        return byte, self._connection.recv() if byte == VALUE else None

    def wait(self, patience: float | None, lookout: float) -> bool:
        """True if something comes within `patience` seconds, or ever if that is None.

        For the first `lookout` seconds the process stays awake, because waking one often takes longer than what is left
        to wait; between two looks it leaves its core to whoever wants it.
        """
        until = time.perf_counter() + lookout
        while time.perf_counter() < until:
            if self._poll.poll(0):
                return True
            os.sched_yield()
        return bool(self._poll.poll(None if patience is None else 1000 * patience))

    def close(self) -> None:
        """Close this end."""
        self._connection.close()


class Workers:
    """As `envs.pettingzoo.rows.Rows`, in `count` processes that each hold an equal share of the rows.

    A worker that stops, raises or takes longer than PATIENCE closes all of them and raises EnvironmentRaisedError;
    workers end with this process, however it ends.
    """

    def __init__(self, make: Callable[[], Any], num_envs: int, count: int, channels: int | None, state: StateSource):
        if os.name != "posix":
            raise BrokenContractError("Workers need Linux or macOS. Use workers=0, which steps in this process.")
        bounds = np.linspace(0, num_envs, count + 1).astype(int).tolist()
        self._spans = [range(start, stop) for start, stop in itertools.pairwise(bounds)]
        function, file = _pickled(make), _anonymous_file()
        pipes = [multiprocessing.Pipe() for _ in self._spans]
        self._lines = [Line(mine) for mine, _ in pipes]
        self._processes = [_launch(theirs, file) for _, theirs in pipes]
        self._end = weakref.finalize(self, _end, self._processes, self._lines)
        try:
            layouts: list[Layout] = self._ask([(function, span, num_envs, channels, state) for span in self._spans])
            self.layout = layouts[0]
            for layout in layouts:
                self.layout.require_like(layout)
            os.ftruncate(file, Codec(self.layout).record(num_envs).itemsize)
            self.memory = mmap.mmap(file, 0)
            self._ask([self.layout] * count)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(file)

    def begin(self, episodes: Sequence[Begin]) -> list[int]:
        """Start these episodes; returns the rows whose actions could not be replayed to their end."""
        shares = [[episode for episode in episodes if episode.row in span] for span in self._spans]
        return list(itertools.chain.from_iterable(self._ask(shares)))

    def step(self) -> None:
        """Advance every row by the actions in the memory."""
        # Answers are awaited from the first worker on. Told last, it is mostly done last: this process, which needs a
        # worker's core to look at an answer, is then waked only once.
        for line in reversed(self._lines):
            with contextlib.suppress(OSError):
                line.signal(STEP)
        self._answers()

    def picture(self) -> Any:
        """Nothing: environments draw in the process that looks at them."""
        raise BrokenContractError("Pictures need an environment in this process: use workers=0.")

    def close(self) -> None:
        """End the workers; a second call does nothing."""
        self._end()

    def _ask(self, messages: Sequence[Any]) -> list[Any]:
        for line, message in zip(self._lines, messages):
            with contextlib.suppress(OSError):  # a worker that has stopped is noticed, and explained, by its silence
                line.send(message)
        return self._answers()

    def _answers(self) -> list[Any]:
        if not self._end.alive:
            raise EnvironmentRaisedError("The environments' workers are closed. Make a new environment.")
        try:
            return [self._answer(number) for number in range(len(self._lines))]
        except BaseException:  # an answer that was not awaited would be taken for the next one
            self.close()
            raise

    def _answer(self, number: int) -> Any:
        line, process = self._lines[number], self._processes[number]
        try:
            if not line.wait(PATIENCE, LOOKOUT if number else 0.0):
                process.kill()
                raise self._lost(number, f"did not answer within {PATIENCE:g} s")
            _, value = line.receive()
        except (EOFError, OSError):
            raise self._lost(number, f"stopped ({_exit_of(process)})") from None
        if isinstance(value, Fault):
            raise value.kind(f"{value.message} (worker {number})")
        return value

    def _lost(self, number: int, reason: str) -> EnvironmentRaisedError:
        span = self._spans[number]
        return EnvironmentRaisedError(
            f"Worker {number}, which runs environments {span.start} to {span.stop - 1}, {reason}. Whatever it printed "
            "stands above; workers=0 runs the environments in this process, where a debugger can follow."
        )


def main() -> None:
    """Run a worker: make its environments, then answer until it is told to close or the parent has gone."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _let_the_parent_finish()
    line, file = Line(Connection(int(sys.argv[1]))), int(sys.argv[2])
    with contextlib.suppress(EOFError, OSError):
        try:
            _serve(line, file)
        except (BrokenContractError, EnvironmentRaisedError) as error:
            line.send(Fault(type(error), str(error)))
            line.receive()  # returns when the parent has closed


def _serve(line: Line, file: int) -> None:
    _, (function, span, num_envs, channels, state) = line.receive()
    with explained(lambda: f"Making environment {span.start}"):
        make = pickle.loads(function)
    plays, layout = prepare(make, len(span), span.start, channels, state)
    line.send(layout)
    _, layout = line.receive()  # that of the first worker
    with contextlib.closing(Rows(plays, layout, mmap.mmap(file, 0), num_envs, span.start)) as rows:
        line.signal(DONE)
        for byte, episodes in _requests(line):
            if byte == STEP:
                rows.step()
                line.signal(DONE)
            else:
                line.send(rows.begin(episodes))


def _requests(line: Line) -> Iterator[tuple[bytes, Any]]:
    """Requests of the parent, until it says CLOSE. After a short wait, the next one is expected to be short too."""
    waited = math.inf
    while True:
        begun = time.perf_counter()
        line.wait(None, LOOKOUT if waited < LOOKOUT else 0.0)
        waited = time.perf_counter() - begun
        byte, value = line.receive()
        if byte == CLOSE:
            return
        yield byte, value


def _let_the_parent_finish() -> None:
    """Have the kernel not interrupt the parent as it wakes this process: it has others to wake, which would wait."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # some sandboxes forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _die_with_parent() -> None:
    while os.read(0, 1):
        pass
    time.sleep(PATIENCE_AT_CLOSE)  # time to close the environments properly
    os._exit(1)


def _launch(connection: Connection, file: int) -> subprocess.Popen[bytes]:
    """A fresh interpreter with this one's import path and the two file descriptors."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    code = f"import sys; sys.path[:] = {json.dumps(sys.path)}; from {__name__} import main; main()"
    descriptors = (connection.fileno(), file)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, descriptors)],
        stdin=subprocess.PIPE,
        pass_fds=descriptors,
        env=threads | os.environ,
    )
    connection.close()
    return process


def _end(processes: Sequence[subprocess.Popen[bytes]], lines: Sequence[Line]) -> None:
    for line in lines:
        with contextlib.suppress(OSError):  # it may have stopped
            line.signal(CLOSE)
        line.close()
    deadline = time.monotonic() + PATIENCE_AT_CLOSE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _pickled(make: Callable[[], Any]) -> bytes:
    try:
        return cloudpickle.dumps(make)
    except Exception as error:
        raise BrokenContractError(
            f"The function that makes environments cannot be sent to a worker: {error}. Give a dotted path such as "
            "'mpe2.simple_spread_v3:parallel_env', or make everything it uses inside it."
        ) from error


def _exit_of(process: subprocess.Popen[bytes]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = process.wait(PATIENCE_AT_CLOSE)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return "still running, but not answering"


def _anonymous_file() -> int:
    """A file without a name: its memory is free as soon as the last process has gone, however it went."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("concord")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
