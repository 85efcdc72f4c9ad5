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
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np

from envs.pettingzoo.interfaces import BrokenContractError, EnvironmentRaisedError, explained
from envs.pettingzoo.layout import Codec, Layout, StateSource, prepare
from envs.pettingzoo.rows import Begin, Rows

STEP, CLOSE = b"s", b"c"  # every other message is pickled
PATIENCE = 600.0  # seconds that a worker may take for one step before it counts as stuck
PATIENCE_AT_CLOSE = 5.0


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
        self._connections = [mine for mine, _ in pipes]
        self._processes = [_launch(theirs, file) for _, theirs in pipes]
        self._end = weakref.finalize(self, _end, self._processes, self._connections)
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
        for connection in self._connections:
            _send(connection, STEP)
        self._answers()

    def picture(self) -> Any:
        """Nothing: environments draw in the process that looks at them."""
        raise BrokenContractError("Pictures need an environment in this process: use workers=0.")

    def close(self) -> None:
        """End the workers; a second call does nothing."""
        self._end()

    def _ask(self, messages: Sequence[Any]) -> list[Any]:
        for connection, message in zip(self._connections, messages):
            _send(connection, pickle.dumps(message))
        return self._answers()

    def _answers(self) -> list[Any]:
        if not self._end.alive:
            raise EnvironmentRaisedError("The environments' workers are closed. Make a new environment.")
        values: list[Any] = []
        for number, connection in enumerate(self._connections):
            try:
                if not connection.poll(PATIENCE):
                    self._processes[number].kill()
                    self._give_up(number, f"did not answer within {PATIENCE:g} s")
                answer = connection.recv_bytes()
            except (EOFError, OSError):
                self._give_up(number, f"stopped ({_exit_of(self._processes[number])})")
            kind, value = pickle.loads(answer) if answer else (None, None)
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
    connection, file = Connection(int(sys.argv[1])), int(sys.argv[2])
    with contextlib.suppress(EOFError, OSError):
        try:
            _serve(connection, file)
        except (BrokenContractError, EnvironmentRaisedError) as error:
            connection.send_bytes(pickle.dumps((type(error), str(error))))
            connection.recv_bytes()  # returns when the parent has closed


def _serve(connection: Connection, file: int) -> None:
    function, span, num_envs, channels, state = connection.recv()
    with explained(lambda: f"Making environment {span.start}"):
        make = pickle.loads(function)
    plays, layout = prepare(make, len(span), span.start, channels, state)
    connection.send((None, layout))
    layout = connection.recv()  # that of the first worker
    with contextlib.closing(Rows(plays, layout, mmap.mmap(file, 0), num_envs, span.start)) as rows:
        connection.send_bytes(b"")
        while (message := connection.recv_bytes()) != CLOSE:
            if message == STEP:
                rows.step()
                connection.send_bytes(b"")
            else:
                connection.send((None, rows.begin(pickle.loads(message))))


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


def _end(processes: Sequence[subprocess.Popen[bytes]], connections: Sequence[Connection]) -> None:
    for connection in connections:
        _send(connection, CLOSE)
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


def _send(connection: Connection, message: bytes) -> None:
    with contextlib.suppress(OSError):  # a worker that has stopped is noticed, and explained, by its missing answer
        connection.send_bytes(message)


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
