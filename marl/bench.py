"""Speed on this machine with one torch thread, per CPU-second, beside a calibration loop.

A CPU-second is a second of processor time of this process, so waiting for a core does not count. Shared caches and
changing clock rates still do; therefore the calibration loop takes turns with whatever is measured, and each speed is
also given as it would be on the reference machine: `<name>/calibrated` = speed x REFERENCE_LOOPS / loops.

Values are medians over rounds. Their interval runs from the slowest to the fastest round, which holds the median with
98 % probability for the usual seven rounds.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from envs.core import ConcordError, InputError, Observation, Streams, VectorEnv
from envs.particles import SimpleSpread
from envs.world import TensorEnv
from marl.batch import Batch
from marl.catalog import find_config
from marl.config import load_recipe, read_yaml, resolve
from marl.critics import CriticConfig, build_critic
from marl.display import console
from marl.learners import Learner
from marl.losses import squared_error
from marl.report import Metric, Report
from marl.run import Run, Source
from marl.sources import OnPolicy

# What the calibration loop reaches per CPU-second on the reference machine: recorded once, never adjusted. The bars
# rest on peers' figures from another machine. Where this loop reached 1,145, four peers' trainings reached 0.98 of
# their figures there (SB3 0.86, BenchMARL 0.88 on PettingZoo, 1.04 and 1.16 on vmas) and six steppings 0.77 (mpe2
# 0.89, SuperSuit 0.88, vmas 0.78 and 0.68, JaxMARL 0.68 and 0.72), geometric means; benchmarks/peers/results.md has
# the run. So that no figure is flattered, that machine itself counts as the reference, though it seems the slower
# one.
REFERENCE_LOOPS = 1150.0

SPREAD = "cooperative/spread"
MPE2_SPREAD = "mpe2.simple_spread_v3:parallel_env"
EPISODE = 25  # steps of an episode of simple_spread
WARM_UP = 3  # updates before the clock runs
IDLE_SHARE = 0.95  # of a core that each of two processes must get for the machine to count as idle

Work = Callable[[], int]  # does something, returns how much
L = TypeVar("L", bound=Learner)


@dataclass(frozen=True)
class Effort:
    """How long to measure. seconds: processor time of each case in each round. updates: of training in each round."""

    rounds: int = 7
    seconds: float = 0.4
    updates: int = 8


@dataclass
class Findings:
    """What a benchmark found, and why a metric is missing."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def run_benchmarks(name: str | None, folder: Path, effort: Effort | None = None) -> Report:
    """Run one benchmark, or all quick ones, and save `folder/report.json`. Raises InputError for an unknown name."""
    if name is not None and name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, 1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise InputError(f"There is no benchmark {name!r}. {hint}They are: {', '.join(BENCHMARKS)}.")
    effort = effort or Effort()
    torch.set_num_threads(1)
    found = Findings()
    for chosen in [name] if name is not None else QUICK:
        console.print(f"measuring {chosen}: {(BENCHMARKS[chosen].__doc__ or '').splitlines()[0]}")
        part = BENCHMARKS[chosen](effort)
        found.metrics |= part.metrics
        found.missing |= part.missing
    for metric, reason in found.missing.items():
        console.print(f"{metric} not measured: {reason}", markup=False)
    missing = [{"metric": metric, "reason": reason} for metric, reason in found.missing.items()]
    config = {"benchmark": name or "quick", "reference_loops": REFERENCE_LOOPS, **dataclasses.asdict(effort)}
    report = Report("marl.bench", 0, config, found.metrics, {"not_measured": missing} if missing else {})
    report.save(folder / "report.json")
    return report


class Calibration:
    """The fixed loop: half small operations, whose cost is their dispatch, half products and elementwise work."""

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
            y = ((x @ first).tanh() @ second).tanh() @ third
            (y.exp() + y).sum(-1).log()
        x = self._small
        for _ in range(40):
            x = torch.where(x > 1, x.index_select(0, self._rows), x + 0.1)
            x = torch.cat([x[:8], x[8:]]).clamp(max=2)
        return 1


def speed(work: Work, seconds: float, clock: Callable[[], float] = time.process_time) -> float:
    """How much `work` does per second of `clock`, over at least `seconds`."""
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


def physics(effort: Effort) -> Findings:
    """SimpleSpread's transition and observation at 16, 256 and 4096 environments."""
    return _by_size("physics", effort, (16, 256, 4096), lambda size: play_physics(size, SimpleSpread().transition))


def physics_compiled(effort: Effort) -> Findings:
    """The same physics through torch.compile, after its compilation."""
    compiled = torch.compile(SimpleSpread().transition, dynamic=False)
    return _by_size("physics-compiled", effort, (16, 256, 4096), lambda size: play_physics(size, compiled))


def step(effort: Effort) -> Findings:
    """TensorEnv.step with its whole contract, episodes staggered, at 16 and 4096 environments."""
    return _by_size("step", effort, (16, 4096), lambda size: play_steps(staggered_env(size)))


def _by_size(name: str, effort: Effort, sizes: Sequence[int], make: Callable[[int], Work]) -> Findings:
    rates = take_turns({f"{name}/{size}": make(size) for size in sizes}, effort)
    loops = rates.pop("calibrate")
    found: dict[str, Metric] = {}
    for case, steps in rates.items():
        found |= speeds(case, steps, loops)
    return Findings(found)


def play_physics(size: int, transition: Callable[..., Any], device: str = "cpu") -> Work:
    """One episode of `size` environments at a time, always from the same start so that agents stay in the square."""
    world, generator = SimpleSpread(), torch.Generator(device).manual_seed(0)
    start = world.initial(world.initial_noise(size, generator))
    actions = random_actions(size, device)

    def work() -> int:
        state = start
        with torch.inference_mode():
            for action in actions:
                state = transition(state, action, None).state
                world.observe(state)
        return EPISODE * size

    return work


def staggered_env(size: int, device: str = "cpu") -> TensorEnv:
    """Rows whose clocks are spread evenly over an episode, so that 1 in 25 restarts at each step."""
    env = TensorEnv(SimpleSpread(), size, time_limit=EPISODE, device=device)
    env.reset(0)
    state = env.state_dict()
    env.load_state_dict({**state, "clock": torch.arange(size, device=device) % EPISODE})
    return env


def play_steps(env: VectorEnv) -> Work:
    """25 random steps at a time."""
    actions = random_actions(env.num_envs, str(env.device))

    def work() -> int:
        with torch.inference_mode():
            for action in actions:
                env.step(action)
        return EPISODE * env.num_envs

    return work


def random_actions(size: int, device: str = "cpu") -> list[Tensor]:
    """An episode of uniformly random joint actions of three agents, each [E,3,1]."""
    generator = torch.Generator(device).manual_seed(1)
    return list(torch.randint(5, (EPISODE, size, 3, 1), generator=generator, device=device))


@dataclass
class Round:
    """Some updates: seconds by both clocks, processor time by part, and the calibration loop's speed right after."""

    cpu_seconds: float
    wall_seconds: float
    parts: dict[str, float]
    loops: float


class Watch:
    """Where a training run's time goes, without a change to what is run."""

    def __init__(self, effort: Effort | None):
        self.effort = effort
        self.begun = time.monotonic()
        self.ends: list[tuple[float, float]] = []  # (monotonic time, processor time) after each update
        self.rounds: list[Round] = []
        self._parts: defaultdict[str, float] = defaultdict(float)
        self._calibration = Calibration()
        self._start = (0.0, 0.0)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its processor time added to `part`."""

        def call(*args: Any) -> Any:
            start = time.process_time()
            result = function(*args)
            self._parts[part] += time.process_time() - start
            return result

        return call

    def updating(self, update: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
        """A learner's update, timed and marked."""
        timed = self.timed("updating", update)

        def call(batch: Batch) -> Any:
            result = timed(batch)
            self.ends.append((time.monotonic(), time.process_time()))
            return result

        return call

    def before_batch(self, number: int) -> None:
        """Close a round and open the next, where it is time; the calibration in between belongs to neither."""
        if self.effort is None or number < WARM_UP or (number - WARM_UP) % self.effort.updates:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number > WARM_UP:
            cpu, wall = time.process_time() - self._start[0], time.monotonic() - self._start[1]
            loops = speed(self._calibration, self.effort.seconds / 2)
            self.rounds.append(Round(cpu, wall, dict(self._parts), loops))
        self._parts.clear()
        self._start = (time.process_time(), time.monotonic())


class WatchedRun(Run):
    """A run whose stages are watched: the recipe that is measured is the one that users run."""

    def __init__(self, folder: Path, config: Any, seeds: Sequence[int] | None = None, effort: Effort | None = None):
        super().__init__(folder, config, seeds)
        self.watch = Watch(effort)

    def fit(self, name: str, learner: L, source: Source, *arguments: Any, **options: Any) -> L:
        """`Run.fit` with a stopwatch around stepping, acting, gathering and updating."""
        assert isinstance(source, OnPolicy)
        _replace(source.env, "step", self.watch.timed("stepping", source.env.step))
        _replace(source.actor, "act", self.watch.timed("acting", source.actor.act))
        _replace(learner, "update", self.watch.updating(learner.update))
        self.watch.begun = time.monotonic()
        return super().fit(name, learner, _WatchedSource(source, self.watch), *arguments, **options)


class _WatchedSource:
    """A source that lets the watch measure between batches."""

    def __init__(self, source: Source, watch: Watch):
        self.source, self.watch = source, watch
        self.state_dict, self.load_state_dict = source.state_dict, source.load_state_dict

    def __iter__(self) -> Iterator[Batch]:
        gather = self.watch.timed("gathering", iter(self.source).__next__)
        for number in itertools.count():
            self.watch.before_batch(number)
            yield gather()


def _replace(owner: Any, method: str, function: Callable[..., Any]) -> None:
    setattr(owner, method, function)


def watch_training(
    effort: Effort | None, updates: int, seeds: Sequence[int] = (0,), **overrides: Any
) -> tuple[Watch, int]:
    """Train as `cooperative/spread` does, in a folder that is thrown away; the watch, and env-steps of an update."""
    with tempfile.TemporaryDirectory(prefix="concord-bench-") as folder:
        raw = read_yaml(find_config(SPREAD))
        config: Any = resolve(raw, {"device": "cpu", **{k.replace("__", "."): v for k, v in overrides.items()}})
        steps = config.learner.steps * config.env.num_envs
        config = config.model_copy(update={"train": config.train.model_copy(update={"env_steps": updates * steps})})
        run = WatchedRun(Path(folder), config, list(seeds), effort)
        load_recipe(config.recipe).train(config, run)
    return run.watch, steps * len(seeds)


def watch_rounds(effort: Effort, seeds: Sequence[int] = (0,), **overrides: Any) -> tuple[Watch, int]:
    """Training with `effort.rounds` measured rounds after the warm-up."""
    # The last round is closed at the beginning of one more update.
    return watch_training(effort, WARM_UP + effort.rounds * effort.updates + 1, seeds, **overrides)


def training_speed(watch: Watch, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Env-steps and calibration loops per CPU-second, both [rounds]."""
    assert watch.effort is not None
    done = watch.effort.updates * steps
    rates = np.array([done / found.cpu_seconds for found in watch.rounds])
    return rates, np.array([found.loops for found in watch.rounds])


def shares(watch: Watch) -> dict[str, np.ndarray]:
    """Parts of the processor time, [rounds]; they add up to 1.

    copying: joining steps into a batch and following episodes. logging: everything else, such as events and display.
    """
    columns: dict[str, list[float]] = {name: [] for name in ("stepping", "acting", "copying", "updating", "logging")}
    for found in watch.rounds:
        parts = found.parts
        seconds = {
            "stepping": parts["stepping"],
            "acting": parts["acting"],
            "copying": parts["gathering"] - parts["stepping"] - parts["acting"],
            "updating": parts["updating"],
            "logging": found.cpu_seconds - parts["gathering"] - parts["updating"],
        }
        for name, value in seconds.items():
            columns[name].append(value / found.cpu_seconds)
    return {name: np.array(values) for name, values in columns.items()}


def _training_findings(name: str, watch: Watch, steps: int) -> Findings:
    found = speeds(name, *training_speed(watch, steps))
    found |= {f"{name}/share/{part}": over_rounds(values) for part, values in shares(watch).items()}
    return Findings(found)


def train(effort: Effort) -> Findings:
    """MAPPO: 16 environments x 128 steps, 4 epochs x 4 minibatches, 2x64 networks; and where the time goes."""
    return _training_findings("train", *watch_rounds(effort))


def train_compiled(effort: Effort) -> Findings:
    """The same training with compile=true; the first update's compilation is told apart."""
    watch, steps = watch_rounds(effort, compile=True)
    found = _training_findings("train-compiled", watch, steps)
    found.metrics["train-compiled/first_update_seconds"] = Metric.exact(watch.ends[0][0] - watch.begun)
    return found


def stack(effort: Effort) -> Findings:
    """Training five policies stacked against one: env-steps of all policies together."""
    alone, stacked = (calibrated(*training_speed(*watch_rounds(effort, seeds=range(policies)))) for policies in (1, 5))
    return Findings({"stack/ratio_5_to_1": over_rounds(stacked / np.median(alone))})


def channels(effort: Effort) -> Findings:
    """A central critic's gradient step on 512 states: the cost of four reward channels in units of one."""
    cases = {
        "one": critic_step(1, share_trunk=False),
        "separate": critic_step(4, share_trunk=False),
        "shared_trunk": critic_step(4, share_trunk=True),
    }
    rates = take_turns(cases, effort)
    return Findings(
        {f"channels/cost_of_4/{name}": over_rounds(rates["one"] / rates[name]) for name in ("separate", "shared_trunk")}
    )


def critic_step(count: int, *, share_trunk: bool) -> Work:
    """One gradient step of a critic of `count` reward channels."""
    spec = dataclasses.replace(SimpleSpread().spec, channels=tuple(f"channel_{k}" for k in range(count)))
    critic = build_critic(spec, CriticConfig.model_validate({"share_trunk": share_trunk}), Streams([0]))
    optimizer = torch.optim.Adam(critic.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    state, target = torch.randn(512, 54, generator=generator), torch.randn(512, 3, count, generator=generator)
    obs = Observation(state.unflatten(1, (3, 18)), state, torch.ones(512, 3, dtype=torch.bool))

    def work() -> int:
        squared_error(critic(obs, None)[0], target).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return 1

    return work


def adapter(effort: Effort) -> Findings:
    """The list adapter on mpe2's simple_spread, 16 environments, beside one raw environment and SuperSuit."""
    env = mpe2_env(16, workers=0)
    cases = {"adapter/list": play_steps(env), "adapter/raw": play_raw()}
    peer = "adapter/supersuit"
    if importlib.util.find_spec("supersuit"):
        cases[peer] = play_supersuit(16)
    rates = take_turns(cases, effort)
    env.close()
    loops, missing = rates.pop("calibrate"), {}
    found: dict[str, Metric] = {}
    for case, steps in rates.items():
        found |= speeds(case, steps, loops)
    found["adapter/ratio_to_raw"] = over_rounds(rates["adapter/list"] / rates["adapter/raw"])
    if peer in rates:
        found["adapter/ratio_to_supersuit"] = over_rounds(rates["adapter/list"] / rates[peer])
    else:
        missing["adapter/ratio_to_supersuit"] = 'SuperSuit is not installed; `pip install "concord-rl[bench]"` adds it.'
    return Findings(found, missing)


def workers(effort: Effort) -> Findings:
    """The process adapter with two workers against the list adapter, on the clock; only on an idle machine."""
    name = "workers/ratio_to_list"
    here, apart = mpe2_env(16, workers=0), mpe2_env(16, workers=2)
    cases = {"list": play_steps(here), "workers": play_steps(apart)}
    one_round = dataclasses.replace(effort, rounds=1)
    ratios = []
    try:
        for _ in range(effort.rounds):
            rates = take_turns(cases, one_round, time.monotonic)
            ratios.append(rates["workers"] / rates["list"])
            if not machine_is_idle():
                return Findings({}, {name: _BUSY})
    finally:
        here.close()
        apart.close()
    return Findings({name: over_rounds(np.concatenate(ratios))})


_BUSY = "two processes did not get two whole cores, so wall-clock times say nothing; try again when nothing else runs."


def mpe2_env(size: int, *, workers: int) -> VectorEnv:
    """mpe2's own simple_spread behind the adapter, mid-episode."""
    from envs.pettingzoo import PettingZooEnv  # imports gymnasium, which takes a while

    env = PettingZooEnv(MPE2_SPREAD, size, workers=workers, options={"N": 3, "max_cycles": EPISODE})
    env.reset(0)
    return env


def play_raw() -> Work:
    """One whole episode of one environment of mpe2 at a time."""
    from mpe2 import simple_spread_v3

    env = simple_spread_v3.parallel_env(N=3, max_cycles=EPISODE)
    env.reset(seed=0)
    actions = [dict(zip(env.possible_agents, action.flatten().tolist())) for action in random_actions(1)]

    def work() -> int:
        env.reset()
        for action in actions:
            env.step(action)
        return EPISODE

    return work


def play_supersuit(size: int) -> Work:
    """25 random steps at a time through SuperSuit's vector of `size` environments, in this process."""
    import supersuit
    from mpe2 import simple_spread_v3

    one = supersuit.pettingzoo_env_to_vec_env_v1(simple_spread_v3.parallel_env(N=3, max_cycles=EPISODE))
    env = supersuit.concat_vec_envs_v1(one, size, num_cpus=0, base_class="gymnasium")
    env.reset(seed=0)
    actions = [action.flatten().numpy() for action in random_actions(size)]

    def work() -> int:
        for action in actions:
            env.step(action)
        return EPISODE * size

    return work


def machine_is_idle() -> bool:
    """Whether two processes, spinning for half a second, each get a whole core."""
    if (os.cpu_count() or 1) < 2:
        return False
    spin = (
        "import time\nwall, cpu = time.monotonic(), time.process_time()\n"
        "while time.monotonic() - wall < 0.5: pass\n"
        "print((time.process_time() - cpu) / (time.monotonic() - wall))"
    )
    both = [subprocess.Popen([sys.executable, "-I", "-S", "-c", spin], stdout=subprocess.PIPE) for _ in range(2)]
    return all(float(process.communicate()[0] or 0) > IDLE_SHARE for process in both)


def startup(effort: Effort) -> Findings:
    """A fresh process from import to the end of its first update, and its peak memory after 20 updates."""
    found = [_fresh_process() for _ in range(3)]
    columns = {name: np.array([entry[name] for entry in found]) for name in found[0]}
    return Findings(
        {
            "startup/seconds": over_rounds(columns["wall_seconds"]),
            "startup/cpu_seconds": over_rounds(columns["cpu_seconds"]),
            "memory/peak_mb": over_rounds(columns["peak_mb"]),
        }
    )


def _fresh_process() -> dict[str, float]:
    command = [sys.executable, "-c", "from marl.bench import first_updates; first_updates(20)"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ConcordError(f"A fresh process could not train: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return {**answer, "wall_seconds": answer.pop("finished") - started}


def first_updates(updates: int) -> None:
    """What the fresh process does: train, then print one line of JSON."""
    watch, _ = watch_training(None, updates)
    finished, cpu_seconds = watch.ends[0]
    # The monotonic clock is one for the whole machine, so the parent can subtract its own reading.
    print(json.dumps({"finished": finished, "cpu_seconds": cpu_seconds, "peak_mb": peak_memory()}))


def peak_memory() -> float:
    """The most resident memory that this process ever had, in MB (2^20 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux a process that was just started inherits there what its parent had.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def cuda(effort: Effort) -> Findings:
    """On a GPU, by the clock: the full step at 65,536 environments, and training with 4,096 environments x 32 steps."""
    names = ("cuda/step/65536/steps_per_second", "cuda/train/4096/steps_per_second")
    if not torch.cuda.is_available():
        return Findings({}, dict.fromkeys(names, "this machine has no CUDA device."))
    play = play_steps(staggered_env(65536, "cuda"))

    def work() -> int:
        done = play()
        torch.cuda.synchronize()
        return done

    work()
    stepping = np.array([speed(work, effort.seconds, time.monotonic) for _ in range(effort.rounds)])
    watch, steps = watch_rounds(effort, device="cuda", env__num_envs=4096, learner__steps=32)
    training = np.array([effort.updates * steps / found.wall_seconds for found in watch.rounds])
    return Findings(dict(zip(names, (over_rounds(stepping), over_rounds(training)))))


BENCHMARKS: dict[str, Callable[[Effort], Findings]] = {
    "calibrate": calibrate,
    "physics": physics,
    "step": step,
    "train": train,
    "channels": channels,
    "stack": stack,
    "adapter": adapter,
    "workers": workers,
    "startup": startup,
    "cuda": cuda,
    "physics-compiled": physics_compiled,
    "train-compiled": train_compiled,
}
SLOW = ("physics-compiled", "train-compiled")
QUICK = [name for name in BENCHMARKS if name not in SLOW]
