"""Measurement of speed: on this machine with one torch thread, per CPU-second, beside a calibration loop.

A CPU-second is a second of processor time of this process, so waiting for a core does not count. Shared caches and
changing clock rates still do; therefore the calibration loop takes turns with whatever is measured, and each speed is
also given as it would be on the reference machine: `<name>/calibrated` = speed x REFERENCE_LOOPS / loops.

Values are medians over rounds. Their interval runs from the slowest to the fastest round, which holds the median with
98 % probability for the usual seven rounds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from marl.models.layers import MANY, SLOW_LIBRARY, tanh
from marl.output.report import Metric

# What the calibration loop reaches per CPU-second on the reference machine. The bars rest on peers' figures from
# another machine, so this was recorded beside the peers. Where the loop reached 1,145, four peers' trainings reached
# 0.98 of their figures there (SB3 0.86, BenchMARL 0.88 on PettingZoo, 1.04 and 1.16 on vmas) and six steppings 0.77
# (mpe2 0.89, SuperSuit 0.88, vmas 0.78 and 0.68, JaxMARL 0.68 and 0.72), geometric means; benchmarks/peers/results.md
# has the run. So that no figure is flattered, that machine itself counts as the reference, though it seems the slower
# one. It is the second record: the first, 590, came from a processor that slows this loop down more than training.
REFERENCE_LOOPS = 1150.0
IDLE_SHARE = 0.95  # of a core that each of two processes must get for the machine to count as idle

Work = Callable[[], int]  # does something, returns how much


@dataclass(frozen=True)
class Effort:
    """Effort of measuring. seconds: processor time of each case in each round. updates: of training in each round."""

    rounds: int = 7
    seconds: float = 0.4
    updates: int = 8


@dataclass
class Findings:
    """Findings of a benchmark: its metrics, and the reason where one is missing."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class Calibration:
    """The fixed loop: half small operations, whose cost is their dispatch, half products and elementwise work.

    On processors where torch's numerical library takes slow paths it goes around them as the networks do, or whatever
    is measured would count as that much faster. On others, as on the reference machine, nothing differs.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self._inputs = [normal(48, 18), normal(1536, 18), normal(512, 54)]
        self._networks = [[normal(x.shape[1], 64) / 8, normal(64, 64) / 8, normal(64, 5) / 8] for x in self._inputs]
        self._small = normal(16, 3, 18)
        self._rows = torch.randint(16, (16,), generator=generator)

    @torch.inference_mode()
    def __call__(self) -> int:
        """One loop."""
        for x, (first, second, third) in zip(self._inputs, self._networks):
            hidden = tanh(tanh(x @ first) @ second)
            y = (third.T @ hidden.T).T if SLOW_LIBRARY and len(x) >= MANY else hidden @ third
            (y.exp() + y).sum(-1).log()
        x = self._small
        for _ in range(40):
            x = torch.where(x > 1, x.index_select(0, self._rows), x + 0.1)
            x = torch.cat([x[:8], x[8:]]).clamp(max=2)
        return 1


def speed(work: Work, seconds: float, clock: Callable[[], float] = time.process_time) -> float:
    """Work done per second of `clock`, over at least `seconds`."""
    start, done = clock(), 0
    while True:
        done += work()
        spent = clock() - start
        if spent >= seconds:
            return done / spent


def take_turns(
    cases: Mapping[str, Work], effort: Effort, clock: Callable[[], float] = time.process_time
) -> dict[str, np.ndarray]:
    """Speeds [rounds] of each case and of `calibrate`. All run once in each round, to meet the same load."""
    works: dict[str, Work] = {"calibrate": Calibration(), **cases}
    for work in works.values():
        work()
    rounds = [{name: speed(work, effort.seconds, clock) for name, work in works.items()} for _ in range(effort.rounds)]
    return {name: np.array([found[name] for found in rounds]) for name in works}


def over_rounds(values: np.ndarray) -> Metric:
    """Median, slowest and fastest round."""
    return Metric(float(np.median(values)), float(values.min()), float(values.max()), len(values))


def speeds(name: str, steps: np.ndarray, loops: np.ndarray) -> dict[str, Metric]:
    """A speed as measured, and as it would be on the reference machine; both [rounds]."""
    return {
        f"{name}/steps_per_cpu_second": over_rounds(steps),
        f"{name}/calibrated": over_rounds(calibrated(steps, loops)),
    }


def calibrated(steps: np.ndarray, loops: np.ndarray) -> np.ndarray:
    """Speeds as they would be on the reference machine."""
    return steps * REFERENCE_LOOPS / loops


def calibrate(effort: Effort) -> Findings:
    """The fixed loop by itself; its speed on the reference machine is REFERENCE_LOOPS."""
    return Findings({"calibrate/loops_per_cpu_second": over_rounds(take_turns({}, effort)["calibrate"])})


def by_size(name: str, effort: Effort, sizes: Sequence[int], make: Callable[[int], Work]) -> Findings:
    """Steps per CPU-second at each of these sizes."""
    rates = take_turns({f"{name}/{size}": make(size) for size in sizes}, effort)
    loops = rates.pop("calibrate")
    found: dict[str, Metric] = {}
    for case, steps in rates.items():
        found |= speeds(case, steps, loops)
    return Findings(found)


def machine_is_idle() -> bool:
    """True where two processes, spinning for half a second, each get a whole core."""
    if (os.cpu_count() or 1) < 2:
        return False
    spin = (
        "import time\nwall, cpu = time.monotonic(), time.process_time()\n"
        "while time.monotonic() - wall < 0.5: pass\n"
        "print((time.process_time() - cpu) / (time.monotonic() - wall))"
    )
    both = [subprocess.Popen([sys.executable, "-I", "-S", "-c", spin], stdout=subprocess.PIPE) for _ in range(2)]
    return all(float(process.communicate()[0] or 0) > IDLE_SHARE for process in both)
