"""Estimators for sequences beside scope-rl's, on the same trajectories in one run: values must agree, times are told.

usage: python benchmarks/peers/ope_scope_rl.py VENVS [--rounds 7]

Run it with the Python that has Concord; VENVS/scope is the environment that README.md describes. Every round measures
each estimator of both once, in turns. Both get the same arrays: actions, rewards, probabilities of the logging policy,
distributions of the target, and predictions for all actions. Weights, expectations and the checks of the input are part
of the time. Writes benchmarks/peers/ope_results.md; ends with 1 where a value differs by more than 1e-8 relative
(scope-rl adds 1e-10 to each denominator of its self-normalized estimators).
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
TRAJECTORIES, STEPS, ACTIONS, DISCOUNT = 20_000, 20, 10, 0.95
SAME = 1e-8
# Concord's name, scope-rl's, and scope-rl's class: the same estimand and the same formula.
PAIRS = (
    ("tis", "TIS", "TrajectoryWiseImportanceSampling"),
    ("wis", "SNTIS", "SelfNormalizedTIS"),
    ("pdis", "PDIS", "PerDecisionImportanceSampling"),
    ("cwpdis", "SNPDIS", "SelfNormalizedPDIS"),
    ("seq_dr", "DR", "DoublyRobust"),
    ("wdr", "SNDR", "SelfNormalizedDR"),
)


def trajectories() -> dict[str, np.ndarray]:
    """One row a step, trajectory by trajectory."""
    rng, rows = np.random.default_rng(0), TRAJECTORIES * STEPS
    logging = rng.dirichlet(np.full(ACTIONS, 5.0), rows)
    target = 0.8 * logging + 0.2 * rng.dirichlet(np.full(ACTIONS, 5.0), rows)
    action = np.minimum((rng.random((rows, 1)) > logging.cumsum(1)).sum(1), ACTIONS - 1)
    return {
        "action": action,
        "reward": (rng.random(rows) < 0.05 * (1 + action)).astype(np.float64),
        "pscore": logging[np.arange(rows), action],
        "target": target / target.sum(1, keepdims=True),
        "q": np.tile(0.5 * (1 + np.arange(ACTIONS)), (rows, 1)) + rng.normal(size=(rows, ACTIONS)),
    }


def by_concord(x: dict[str, np.ndarray], name: str) -> float:
    from recsys.sequential import estimators

    shape, rows = (TRAJECTORIES, STEPS), np.arange(TRAJECTORIES * STEPS)
    weight = (x["target"][rows, x["action"]] / x["pscore"]).reshape(shape)
    log = estimators.Trajectories.of(weight, x["reward"].reshape(*shape, 1))
    if name not in ("seq_dr", "wdr"):
        return float(getattr(estimators, name)(log, DISCOUNT).mean())
    q_logged = x["q"][rows, x["action"]].reshape(*shape, 1)
    value = np.einsum("na,na->n", x["target"], x["q"]).reshape(*shape, 1)
    return float(getattr(estimators, name)(log, q_logged, value, DISCOUNT).mean())


def by_scope_rl(x: dict[str, np.ndarray], name: str) -> float:
    from scope_rl.ope import discrete

    estimator = getattr(discrete, name)()
    return float(
        estimator.estimate_policy_value(
            step_per_trajectory=STEPS,
            action=x["action"],
            reward=x["reward"],
            pscore=x["pscore"],
            evaluation_policy_action_dist=x["target"],
            state_action_value_prediction=x["q"],
            gamma=DISCOUNT,
        )
    )


def answer(who: str) -> None:
    """Be measured: for each name on the standard input, one line with the value and the processor's time."""
    work = {"concord": by_concord, "scope": by_scope_rl}[who]
    x = trajectories()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line in sys.stdin:
            work(x, line.strip())  # warm
            cpu, clock = time.process_time(), time.perf_counter()
            value = work(x, line.strip())
            spent = {"value": value, "cpu": time.process_time() - cpu, "clock": time.perf_counter() - clock}
            print(json.dumps(spent), flush=True)


class Other:
    """A process that answers."""

    def __init__(self, python: str, who: str):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
        command = [python, str(HERE / "ope_scope_rl.py"), "--answer", who]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def ask(self, name: str) -> dict[str, float]:
        assert self.process.stdin
        assert self.process.stdout
        print(name, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith('{"value"'):
                return json.loads(line)
        raise SystemExit(f"The process that measures {name} ended early.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("venvs", nargs="?", type=Path, help="the folder of the virtual environments")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        answer(arguments.answer)
        return
    if arguments.venvs is None:
        parser.error("VENVS is missing: the folder of the virtual environments, see README.md")
    python = arguments.venvs / "scope" / "bin" / "python"
    concord, scope = Other(sys.executable, "concord"), Other(str(python), "scope")
    found: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {pair[0]: [] for pair in PAIRS}
    for _ in range(arguments.rounds):
        for name, _short, peer in PAIRS:
            found[name].append((concord.ask(name), scope.ask(peer)))
    lines = ["| Concord | scope-rl | value | relative difference | Concord, M steps/s | scope-rl | times |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    worst = 0.0
    for name, short, _ in PAIRS:
        ours, theirs = (rows[0]["value"] for rows in zip(*found[name]))
        gap = abs(ours / theirs - 1)
        worst = max(worst, gap)
        speeds = [TRAJECTORIES * STEPS / statistics.median(row["cpu"] for row in rows) for rows in zip(*found[name])]
        cells = (f"{ours:.9f}", f"{gap:.1e}", *(f"{s / 1e6:.1f}" for s in speeds), f"{speeds[0] / speeds[1]:.1f}x")
        lines.append(f"| `{name}` | {short} | " + " | ".join(cells) + " |")
    program = "import importlib.metadata as m; print(m.version('scope-rl'), m.version('numpy'), sep=', numpy ')"
    version = subprocess.run([str(python), "-c", program], capture_output=True, text=True).stdout.strip()
    head = (
        "# Estimators for sequences, side by side\n\n"
        f"Measured {datetime.date.today().isoformat()} on {platform.machine()} {platform.system()} with "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, by `python benchmarks/peers/ope_scope_rl.py`:\n"
        f"{TRAJECTORIES:,} trajectories of {STEPS} steps, {ACTIONS} actions, discount {DISCOUNT}; the median of "
        f"{arguments.rounds} rounds, per CPU-second of one thread.\nBoth compute weights, expectations and checks from "
        f"the same arrays. scope-rl {version}.\n\n"
    )
    (HERE / "ope_results.md").write_text(head + "\n".join(lines) + "\n")
    print("\n".join(lines))
    if worst > SAME:
        raise SystemExit(f"The values differ by {worst:.1e}, more than {SAME:.0e}.")


if __name__ == "__main__":
    main()
