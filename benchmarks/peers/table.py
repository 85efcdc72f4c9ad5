"""Concord and its peers side by side, in one run: every round measures each once, then the next round begins.

usage: python benchmarks/peers/table.py VENVS [--seconds 20] [--rounds 3]

VENVS is the folder of the virtual environments that README.md describes; peers without one are left out. Run it with
the Python that has Concord. Writes benchmarks/peers/results.md, newly after each round.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Case:
    """One row. `baseline` is Concord's row that it is compared with; venv None is Concord itself."""

    kind: str
    name: str
    venv: str | None
    command: tuple[str, ...]
    metric: str = ""
    baseline: str = ""
    packages: tuple[str, ...] = field(default=())


TRAIN, STEP = "training", "stepping"
# What JaxMARL compiles is compared with what Concord compiles.
IPPO_COMPILED, STEP_COMPILED = "Concord IPPO x16, compiled", "Concord x16, compiled"
CASES = (
    Case(TRAIN, "Concord MAPPO x16", None, ("train",), "train/steps_per_cpu_second"),
    Case(TRAIN, "Concord MAPPO x16, compiled", None, ("train-compiled",), "train-compiled/steps_per_cpu_second"),
    Case(TRAIN, "Concord IPPO x16", None, ("train-ippo",), "train-ippo/steps_per_cpu_second"),
    Case(TRAIN, IPPO_COMPILED, None, ("train-ippo-compiled",), "train-ippo-compiled/steps_per_cpu_second"),
    Case(
        TRAIN,
        "JaxMARL IPPO x16",
        "jaxmarl",
        ("train_jaxmarl.py",),
        baseline=IPPO_COMPILED,
        packages=("jaxmarl", "jax"),
    ),
    Case(TRAIN, "SB3 PPO + SuperSuit, mpe2 x16", "sb3", ("train_sb3.py",), packages=("stable-baselines3", "supersuit")),
    Case(TRAIN, "BenchMARL MAPPO, PettingZoo x16", "benchmarl", ("train_benchmarl.py", "pettingzoo", "16", "128")),
    Case(TRAIN, "BenchMARL MAPPO, vmas x16", "benchmarl", ("train_benchmarl.py", "vmas", "16", "128")),
    Case(
        TRAIN,
        "BenchMARL MAPPO, vmas x600, 32 steps",
        "benchmarl",
        ("train_benchmarl.py", "vmas", "600", "32"),
        packages=("benchmarl", "torchrl", "vmas"),
    ),
    Case(STEP, "Concord x16", None, ("step",), "step/16/steps_per_cpu_second"),
    Case(STEP, STEP_COMPILED, None, ("step-compiled",), "step-compiled/16/steps_per_cpu_second"),
    Case(STEP, "Concord x4096", None, ("step",), "step/4096/steps_per_cpu_second"),
    Case(STEP, "mpe2, one environment", "sb3", ("step_mpe2.py", "raw", "1"), packages=("mpe2", "pettingzoo")),
    Case(STEP, "SuperSuit, mpe2 x16", "sb3", ("step_mpe2.py", "supersuit", "16")),
    Case(STEP, "vmas x16", "benchmarl", ("step_vmas.py", "16")),
    Case(STEP, "vmas x4096", "benchmarl", ("step_vmas.py", "4096"), baseline="Concord x4096"),
    Case(STEP, "JaxMARL x16", "jaxmarl", ("step_jaxmarl.py", "16"), baseline=STEP_COMPILED),
    Case(STEP, "JaxMARL x4096", "jaxmarl", ("step_jaxmarl.py", "4096"), baseline="Concord x4096"),
)
BASELINES = {TRAIN: "Concord MAPPO x16", STEP: "Concord x16"}
Rows = dict[str, list[dict[str, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("venvs", type=Path, help="the folder of the virtual environments")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each peer in each round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found: Rows = defaultdict(list)
    failed: dict[str, str] = {}
    cases = [case for case in CASES if case.venv is None or python_of(arguments.venvs, case.venv).exists()]
    for number in range(arguments.rounds):
        for case in cases:
            if case.name in failed:
                continue
            print(f"round {number + 1} of {arguments.rounds}: {case.name}", flush=True)
            try:
                measured = measure(case, arguments.venvs, arguments.seconds)
            except subprocess.CalledProcessError as error:
                failed[case.name] = ((error.stderr or "").strip().splitlines() or ["no message"])[-1]
                print(f"  failed: {failed[case.name]}", flush=True)
                continue
            print(f"  {measured['steps_per_cpu_second']:,.0f} steps per CPU-second", flush=True)
            found[case.name].append(measured)
        write_results(found, cases, failed, arguments)


def python_of(venvs: Path, name: str) -> Path:
    return venvs / name / "bin" / "python"


def measure(case: Case, venvs: Path, seconds: float) -> dict[str, float]:
    """One measurement in a process of its own."""
    if case.venv is not None:
        script, *rest = case.command
        command = [str(python_of(venvs, case.venv)), str(HERE / script), str(seconds), *rest]
        # JAX would otherwise look for devices that are not compared here.
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE, env=environment)
        line = next(line for line in answer.stdout.splitlines() if line.startswith('{"steps_per_cpu_second"'))
        return json.loads(line)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "marl", "bench", *case.command, "--out", folder]
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        metrics = json.loads((Path(folder) / "report.json").read_text())["metrics"]
    return {"steps_per_cpu_second": metrics[case.metric]["value"]}


def write_results(found: Rows, cases: list[Case], failed: dict[str, str], arguments: argparse.Namespace) -> None:
    """results.md as it stands."""
    speed = {name: statistics.median(row["steps_per_cpu_second"] for row in rows) for name, rows in found.items()}
    lines = [
        "# Side by side",
        "",
        f"Measured {datetime.date.today().isoformat()} on {platform.machine()} {platform.system()} with "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, by `python benchmarks/peers/table.py`: "
        f"{arguments.rounds} rounds of {arguments.seconds:g} s each, in turns.",
        "Joint environment steps; the median over rounds, and the slowest and the fastest round. simple_spread with",
        "3 agents, 25 steps an episode, the settings of settings.py, one torch thread. A CPU-second is a second of the",
        "whole process's processor time. vmas' simple_spread is another task of the same size. Concord steps are the",
        "full contract (restarts, clocks, true final observations); its peak memory is in `concord bench startup`.",
        "JaxMARL compiles everything and is compared with Concord compiled, the others with Concord that is not.",
        "IPPO's critic sees what one agent sees, in both; MAPPO's sees the whole.",
    ]
    for kind, baseline in BASELINES.items():
        lines += [
            "",
            f"## {kind.capitalize()}",
            "",
            "| what | steps per CPU-second | range | per second | peak MB | Concord is |",
        ]
        lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
        lines += [
            _row(case, found, speed, case.baseline or baseline)
            for case in cases
            if case.kind == kind and case.name in speed
        ]
    versions = [line for case in cases if (line := _versions(case, arguments.venvs))]
    lines += ["", "Versions: " + "; ".join(versions) + "." if versions else ""]
    lines += [f"Failed: {name} ({reason})." for name, reason in failed.items()]
    (HERE / "results.md").write_text("\n".join(lines).rstrip() + "\n")


def _row(case: Case, found: Rows, speed: dict[str, float], baseline: str) -> str:
    rows = found[case.name]
    rates = [row["steps_per_cpu_second"] for row in rows]
    wall = [row["steps_per_second"] for row in rows if "steps_per_second" in row]
    memory = [row["peak_mb"] for row in rows if "peak_mb" in row]
    cells = (
        case.name,
        f"{speed[case.name]:,.0f}",
        f"{min(rates):,.0f} to {max(rates):,.0f}",
        f"{statistics.median(wall):,.0f}" if wall else "",
        f"{max(memory):,.0f}" if memory else "",
        f"{speed[baseline] / speed[case.name]:.3g}x" if case.venv is not None and baseline in speed else "",
    )
    return f"| {' | '.join(cells)} |"


def _versions(case: Case, venvs: Path) -> str:
    if case.venv is None or not case.packages:
        return ""
    program = "import sys, importlib.metadata as m; print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
    command = [str(python_of(venvs, case.venv)), "-c", program, *case.packages]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
