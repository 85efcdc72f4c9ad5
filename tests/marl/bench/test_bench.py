"""Benchmarks: what they measure is what they say, and every one gives a report. Durations are tiny here."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.core import InputError
from envs.world import Rows
from marl import bench
from marl.bench import BENCHMARKS, QUICK, SLOW, networks, playing, stepping, swarm, timing, training
from marl.bench.timing import Effort
from marl.bench.training import Watch
from marl.output.report import Report

TINY = Effort(rounds=2, seconds=0.005, updates=1)


def test_an_unknown_benchmark_is_an_error_that_names_the_nearest(tmp_path: Path):
    with pytest.raises(InputError, match=r"no benchmark 'phisics'\. Did you mean physics"):
        bench.run_benchmarks("phisics", tmp_path)
    assert set(QUICK) | set(SLOW) == set(BENCHMARKS)
    assert all(function.__doc__ for function in BENCHMARKS.values())


def test_a_benchmark_gives_speeds_raw_and_calibrated(tmp_path: Path):
    report = bench.run_benchmarks("step", tmp_path, TINY)
    assert set(report.metrics) == {
        f"step/{size}/{kind}" for size in (16, 4096) for kind in ("steps_per_cpu_second", "calibrated")
    }
    assert all(metric.n == 2 and 0 < metric.low <= metric.value <= metric.high for metric in report.metrics.values())
    assert Report.load(tmp_path / "report.json").metrics == report.metrics


def test_speeds_are_calibrated_by_the_loop_that_ran_beside_them():
    steps, loops = np.array([100.0, 50.0]), np.array([2.0, 1.0]) * timing.REFERENCE_LOOPS
    found = timing.speeds("x", steps, loops)
    assert found["x/steps_per_cpu_second"].value == 75
    assert found["x/calibrated"].low == found["x/calibrated"].high == 50


def test_a_speed_is_work_per_second_of_the_clock():
    now = iter([10.0, 10.5, 11.0, 12.0])
    assert timing.speed(lambda: 3, 1.5, lambda: next(now)) == 3 * 3 / 2.0


def test_staggered_episodes_end_one_row_in_25_at_each_step():
    env = stepping.staggered_env(100)
    action = torch.zeros(100, 3, 1, dtype=torch.int64)
    assert [int(env.step(action).ended.sum()) for _ in range(50)] == [4] * 50


def test_physics_plays_whole_episodes():
    calls = []
    world = stepping.SimpleSpread()

    def transition(*args: object) -> object:
        calls.append(1)
        return world.transition(*args)  # type: ignore[arg-type]

    assert stepping.play_physics(16, transition)() == 25 * 16
    assert len(calls) == 25


def test_training_is_split_into_shares_that_add_up_to_one(tmp_path: Path):
    watch, steps = training.watch_rounds(TINY, env__num_envs=4, learner__steps=8)
    assert steps == 32
    assert len(watch.rounds) == TINY.rounds
    assert len(watch.ends) == training.WARM_UP + TINY.rounds * TINY.updates + 1
    shares = training.shares(watch)
    assert set(shares) == {"stepping", "acting", "copying", "updating", "logging"}
    assert sum(shares.values()) == pytest.approx([1.0, 1.0])
    assert all((share > 0).all() for share in shares.values())
    rates, loops = training.training_speed(watch, steps)
    assert rates.shape == loops.shape == (2,)


def test_training_several_seeds_counts_the_steps_of_all():
    watch, steps = training.watch_rounds(TINY, seeds=range(3), env__num_envs=4, learner__steps=8)
    assert steps == 3 * 32
    assert len(watch.rounds) == TINY.rounds


def test_a_watch_counts_only_what_it_is_given():
    watch = Watch(None)
    double = watch.timed("part", lambda x: 2 * x)
    assert double(4) == 8
    watch.before_batch(100)
    assert watch.rounds == []


def test_a_critic_step_changes_the_critic():
    assert networks.critic_step(4, share_trunk=True)() == 1
    assert networks.critic_step(4, share_trunk=False)() == 1


def test_draws_of_joint_policies_are_measured_beside_an_independent_policy():
    found = networks.sampling(dataclasses.replace(TINY, seconds=0.001))
    assert {f"sampling/{at}/{kind}" for at in ("aloha-10", "spread-64") for kind in ("learned", "line")} <= set(
        found.metrics
    )
    assert all(metric.value > 0 for metric in found.metrics.values())


def test_the_adapter_is_measured_and_supersuit_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = stepping.adapter(TINY)
    assert {"adapter/list/calibrated", "adapter/raw/calibrated", "adapter/ratio_to_raw"} <= set(found.metrics)
    assert "pip install" in found.missing["adapter/ratio_to_supersuit"]


def test_workers_are_not_measured_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stepping, "machine_is_idle", lambda: False)
    found = stepping.workers(TINY)
    assert not found.metrics
    assert "try again" in found.missing["workers/ratio_to_list"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without a CUDA device")
def test_without_a_cuda_device_nothing_is_measured_there(tmp_path: Path):
    report = bench.run_benchmarks("cuda", tmp_path, TINY)
    assert not report.metrics
    assert [row["metric"] for row in report.tables["not_measured"]] == [
        "cuda/step/65536/steps_per_second",
        "cuda/train/4096/steps_per_second",
    ]


def test_peak_memory_is_a_processes_own():
    program = "import torch, marl.bench.training as b; x = torch.ones(2**26); print(b.peak_memory())"
    ballast = torch.ones(2**27)  # 512 MB here must not show there
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 256 < float(done.stdout) < 700
    assert training.peak_memory() > 512
    del ballast


def test_swarms_are_measured_and_the_clock_only_on_an_idle_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(swarm, "MILLION", 6000)
    monkeypatch.setattr(swarm, "machine_is_idle", lambda: False)
    monkeypatch.setattr(swarm, "memory", dict)
    found = swarm.swarm(dataclasses.replace(TINY, seconds=0.001))
    assert torch.get_num_threads() == 1
    assert {"swarm/steps_16x200/calibrated", "swarm/physics_16x200/calibrated"} <= set(found.metrics)
    assert all(metric.value > 0 for metric in found.metrics.values())
    assert set(found.missing) == {"swarm/grid_6000/milliseconds", "swarm/step_6000/milliseconds"}
    monkeypatch.setattr(swarm, "machine_is_idle", lambda: True)
    assert set(found.missing) < set(swarm.swarm(dataclasses.replace(TINY, seconds=0.001)).metrics)


def test_a_benchmark_s_swarm_follows_its_rule_and_moves_on():
    play = swarm.Play(2, 30)
    before = play.obs
    assert play.steps() == 2 * swarm.STEPS
    assert play.obs.agent.shape == (2, 30, 1)
    assert not torch.equal(before.agent, play.obs.agent)
    assert play.physics() == 2 * swarm.STEPS


def test_a_swarm_s_compiled_steps_are_measured_beside_eager_ones(monkeypatch: pytest.MonkeyPatch):
    whole = []

    def compiled(advance: Callable[..., Any], *, fullgraph: bool, dynamic: bool) -> Callable[..., Any]:
        whole.append((fullgraph, dynamic))
        return advance

    monkeypatch.setattr(torch, "compile", compiled)
    found = swarm.swarm_compiled(dataclasses.replace(TINY, seconds=0.001))
    assert whole == [(True, False)] * 2
    assert set(found.metrics) == {"swarm-compiled/ratio_to_eager"} | {
        f"swarm-compiled/{case}_16x200/{kind}"
        for case in ("steps", "compiled", "eager")
        for kind in ("steps_per_cpu_second", "calibrated")
    }
    assert all(metric.value > 0 for metric in found.metrics.values())


def test_compiled_steps_play_the_staggered_episodes_on(monkeypatch: pytest.MonkeyPatch):
    at_once, env = [], stepping.staggered_env(5)

    def compiled(steps: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            at_once.append(len(given[-1].world.start))
            return steps(*given)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(stepping, "staggered_env", lambda size: env)
    before = env.rows
    assert stepping.play_compiled(5)() == 4 * stepping.EPISODE * 5
    assert at_once == [4] * stepping.EPISODE
    assert torch.equal(env.rows.clock, before.clock)  # four whole episodes later
    assert not torch.isclose(env.rows.state.body, before.state.body)[:, -3:].any()  # other landmarks


def test_a_swarm_s_unrolled_steps_are_counted_as_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda steps, **options: steps)
    play = swarm.Play(2, 30)
    before = int(play.env.rows.clock[0])
    assert play.unrolled()() == 2 * swarm.AT_ONCE * 2
    assert int(play.env.rows.clock[0]) - before == 2 * swarm.AT_ONCE


def test_a_cold_start_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked = []

    def run(command: list[str], env: dict[str, str], **options: Any) -> Any:
        asked.append((command[-1], env.get(training.CACHE)))
        return subprocess.CompletedProcess(command, 0, '{"finished": 1.0, "first_update": 2.0}', "")

    monkeypatch.delenv(training.CACHE, raising=False)
    monkeypatch.setattr(subprocess, "run", run)
    assert training._fresh_process(1, compiled_in=str(tmp_path))["first_update"] == 2
    training._fresh_process(3)
    assert "compiled=True" in asked[0][0]
    assert asked[0][1] == str(tmp_path)
    assert "compiled=False" in asked[1][0]
    assert asked[1][1] is None


def test_a_benchmark_s_advances_are_its_environment_s_and_leave_it_where_it_was():
    play, seen = swarm.Play(2, 30), []
    start = play.env.rows

    def advance(rows: Rows, *given: Any) -> tuple[Any, ...]:
        seen.append(rows)
        return play.env.advance(rows, *given)

    work = play.advances(advance)
    assert work() == work() == 2 * swarm.STEPS
    assert seen[0] is seen[swarm.STEPS] is start
    assert [int(rows.clock[0]) for rows in seen[: swarm.STEPS]] == list(range(swarm.STEPS))
    assert play.env.rows is start


def test_memory_is_that_of_each_agent_beyond_a_small_swarm_s(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(swarm, "_peak_of", lambda agents: 300 + agents * 400 / 2**20)
    found = swarm.memory()
    assert found["swarm/bytes_per_agent_1000000"].value == pytest.approx(400)
    assert found["swarm/memory_ratio"].value == pytest.approx(1)


def test_an_evaluation_asks_for_useful_decisions_only():
    metrics = playing.playing(TINY).metrics
    assert metrics["playing/decisions_per_useful"].value <= 1.05
    assert 0.4 < metrics["playing/useful_share"].value < 0.6
    assert 0 < metrics["playing/acting_share"].value < 1
    assert set(metrics) >= {"playing/acting_above_useful_share", "playing/cost_share"}
