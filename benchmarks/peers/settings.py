"""What every peer is measured with, and how a script says what it measured."""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

# The settings of configs/cooperative/spread.yaml: MAPPO's usual ones.
ENVIRONMENTS = 16
STEPS = 128
EPOCHS = 4
MINIBATCHES = 4
LEARNING_RATE = 1e-3
DISCOUNT = 0.99
TRACE = 0.95
CLIP = 0.2
ENTROPY = 0.01
VALUE_WEIGHT = 0.5
MAX_GRADIENT = 0.5
HIDDEN = (64, 64)
AGENTS = 3
EPISODE = 25


class Meter:
    """Environment steps against processor time and time on the clock, from `start` on."""

    def __init__(self) -> None:
        self.steps = 0
        self.start()

    def start(self) -> None:
        """Begin counting; what came before was warm-up."""
        self.steps, self._cpu, self._wall = 0, time.process_time(), time.monotonic()

    @property
    def wall_seconds(self) -> float:
        """Time on the clock since the start."""
        return time.monotonic() - self._wall

    def report(self) -> None:
        """Print the one line of JSON that table.py reads. Memory is the process's own peak, in MB."""
        spent = time.process_time() - self._cpu
        found = {
            "steps_per_cpu_second": self.steps / spent,
            "steps_per_second": self.steps / self.wall_seconds,
            "peak_mb": peak_memory(),
        }
        print(json.dumps(found), flush=True)


def run_for(seconds: float, work: Callable[[], int]) -> None:
    """Repeat `work`, which returns how many steps it did, and report; the first call is warm-up."""
    work()
    meter = Meter()
    while meter.wall_seconds < seconds:
        meter.steps += work()
    meter.report()


def peak_memory() -> float:
    """The most resident memory that this process had; getrusage alone would also tell of its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) / 1024 for line in status.open() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
