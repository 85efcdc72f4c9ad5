"""Python environments in processes of their own, writing into memory that all of them share.

A step costs one message to each worker and one back, whatever the number of environments; observations, rewards and
actions never travel through it. Workers are started as fresh interpreters, so a user's script needs no
`if __name__ == "__main__"`, and they import no torch unless the environment does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np

from envs.rows import (
    Arrays,
    Begin,
    BrokenContractError,
    Codec,
    EnvironmentRaisedError,
    Layout,
    Rows,
    StateSource,
    describe,
    explained,
    make_plays,
    require_alike,
)

Fields = Mapping[str, tuple[tuple[int, ...], Any]]
STEP, BEGIN, CLOSE = b"s", b"b", b"c"
PATIENCE_AT_CLOSE = 5.0


class Workers:
    """The rows of `envs.rows.Rows`, in `count` processes that each hold an equal share of them.

    timeout: seconds that a worker may take for one step before it counts as stuck. A worker that stops, raises or takes
    longer closes all of them and raises EnvironmentRaisedError; workers end with this process, however it ends.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        num_envs: int,
        count: int,
        *,
        channels: int | None = None,
        state: StateSource = "auto",
        timeout: float = 600.0,
    ):
        if os.name != "posix":
            raise BrokenContractError("Workers need Linux or macOS. Use workers=0, which steps in this process.")
        bounds = np.linspace(0, num_envs, count + 1).astype(int).tolist()
        self._spans = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
        self._timeout = timeout
        memory = _anonymous_file()
        try:
            self._start(memory, _pickled(make), channels, state)
        finally:
            os.close(memory)

    def begin(self, episodes: Sequence[Begin]) -> list[int]:
        """Start these episodes; returns the rows whose actions could not be replayed to their end."""
        shares = [[e for e in episodes if span.start <= e.row < span.stop] for span in self._spans]
        for connection, span, share in zip(self._connections, self._spans, shares):
            local = [episode._replace(row=episode.row - span.start) for episode in share]
            self._send(connection, BEGIN + pickle.dumps(local))
        failed = self._answers()
        return [row + span.start for rows, span in zip(failed, self._spans) for row in rows]

    def step(self) -> None:
        """Advance every row by `arrays["action"]`."""
        for connection in self._connections:
            self._send(connection, STEP)
        self._answers()

    def close(self) -> None:
        """End the workers; a second call does nothing."""
        self._end()

    def _start(self, memory: int, make: bytes, channels: int | None, state: StateSource) -> None:
        pairs = [_pipe() for _ in self._spans]
        self._connections = [parent for parent, _ in pairs]
        self._processes = [_launch(child, memory) for _, child in pairs]
        self._end = weakref.finalize(self, _end, self._processes, self._connections)
        for connection, span in zip(self._connections, self._spans):
            self._send(connection, pickle.dumps((make, span.stop - span.start, span.start, channels, state)))
        layouts: list[Layout] = self._answers()
        self.layout = layouts[0]
        for layout in layouts[1:]:
            difference = self.layout.difference(layout)
            if difference:
                self.close()
            require_alike(difference)
        fields = Codec(self.layout).fields(self._spans[-1].stop)
        os.ftruncate(memory, _size(fields))
        self.arrays = _views(memory, fields)
        for connection, span in zip(self._connections, self._spans):
            self._send(connection, pickle.dumps((self.layout, fields, (span.start, span.stop))))
        self._answers()

    def _send(self, connection: Connection, message: bytes) -> None:
        with contextlib.suppress(OSError):  # a worker that has stopped is noticed, and explained, by its missing answer
            connection.send_bytes(message)

    def _answers(self) -> list[Any]:
        if not self._end.alive:
            raise EnvironmentRaisedError("The environments' workers are closed. Make a new environment.")
        values: list[Any] = []
        for number, connection in enumerate(self._connections):
            try:
                if not connection.poll(self._timeout):
                    self._processes[number].kill()
                    self._give_up(number, f"did not answer within {self._timeout:g} s")
                answer = connection.recv_bytes()
            except (EOFError, OSError):
                self._give_up(number, f"stopped ({_exit_of(self._processes[number])})")
            if not answer:
                values.append(None)
                continue
            kind, value = pickle.loads(answer)
            if kind is not None:
                self.close()
                raise kind(f"{value} (worker {number})")
            values.append(value)
        return values

    def _give_up(self, number: int, reason: str) -> None:
        span = self._spans[number]
        self.close()
        raise EnvironmentRaisedError(
            f"Worker {number}, which runs environments {span.start} to {span.stop - 1}, {reason}. Whatever it printed "
            "stands above; workers=0 runs the environments in this process, where a debugger can follow."
        )


def main() -> None:
    """What a worker does: make its environments, then answer until it is told to close or the parent has gone."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    connection, memory = Connection(int(sys.argv[1])), int(sys.argv[2])
    with contextlib.suppress(EOFError, OSError):
        try:
            _serve(connection, memory)
        except (BrokenContractError, EnvironmentRaisedError) as error:
            connection.send_bytes(pickle.dumps((type(error), str(error))))
            connection.recv_bytes()  # returns when the parent has closed


def _serve(connection: Connection, memory: int) -> None:
    make, count, first, channels, state = pickle.loads(connection.recv_bytes())
    with explained(lambda: f"Making environment {first}"):
        function = pickle.loads(make)
    plays = make_plays(function, count, first)
    with explained(lambda: f"Environment {first}"):
        layout = describe(plays[0], channels, state)
    connection.send_bytes(pickle.dumps((None, layout)))
    layout, fields, (start, stop) = pickle.loads(connection.recv_bytes())
    arrays = {name: array[start:stop] for name, array in _views(memory, fields).items()}
    rows = Rows(plays, layout, arrays, first)
    connection.send_bytes(b"")
    try:
        while (message := connection.recv_bytes()) != CLOSE:
            if message == STEP:
                rows.step()
                connection.send_bytes(b"")
            else:
                connection.send_bytes(pickle.dumps((None, rows.begin(pickle.loads(message[len(BEGIN) :])))))
    finally:
        rows.close()


def _die_with_parent() -> None:
    while os.read(0, 1):
        pass
    time.sleep(PATIENCE_AT_CLOSE)  # time to close the environments properly
    os._exit(1)


def _launch(child: Connection, memory: int) -> subprocess.Popen[bytes]:
    """A fresh interpreter with this one's import path and the two file descriptors."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    code = f"import sys; sys.path[:] = {json.dumps(sys.path)}; from envs.workers import main; main()"
    descriptors = (child.fileno(), memory)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, descriptors)],
        stdin=subprocess.PIPE,
        pass_fds=descriptors,
        env=threads | os.environ,
    )
    child.close()
    return process


def _end(processes: Sequence[subprocess.Popen[bytes]], connections: Sequence[Connection]) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.send_bytes(CLOSE)
        connection.close()
    deadline = time.monotonic() + PATIENCE_AT_CLOSE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _pipe() -> tuple[Connection, Connection]:
    import multiprocessing

    return multiprocessing.Pipe()


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


def _views(memory: int, fields: Fields) -> Arrays:
    buffer, arrays, start = mmap.mmap(memory, _size(fields)), {}, 0
    for name, (shape, dtype) in fields.items():
        arrays[name] = np.ndarray(shape, dtype, buffer, start)
        start += _padded(shape, dtype)
    return arrays


def _size(fields: Fields) -> int:
    return sum(_padded(shape, dtype) for shape, dtype in fields.values())


def _padded(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of an array, up to the next cache line: neighbors written by different processes never share one."""
    return -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64
