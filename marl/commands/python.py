"""Train and load from Python: what `concord run` and `concord evaluate` do, as two functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from envs.core import Actor, VectorEnv
from marl.commands.run import new_folder, run_training
from marl.config.catalog import find_config
from marl.config.load import read_yaml, resolve
from marl.evaluation.load import load_actor
from marl.output.console import quiet
from marl.output.report import Report
from marl.training.run import Run


class Result(NamedTuple):
    """A finished run: its report, the folder that holds it, and the trained policy."""

    report: Report
    folder: Path
    policy: Any


def train(config: str | Path, *, out: str | Path | None = None, progress: bool = False, **settings: Any) -> Result:
    """Train, evaluate and leave a folder as `concord run` does.

    config: a file, or a name from `concord list`. settings: fields by dotted name, such as seed=1 or
    **{"train.env_steps": 200_000}. out: the folder to make, by default runs/NAME-TIME-PROCESS. progress: print what the
    command prints meanwhile. Raises InputError for what cannot be built.
    """
    path = find_config(str(config))
    folder = new_folder([path.stem]) if out is None else Path(out)
    resolved = resolve(read_yaml(path), settings)
    with quiet(not progress):
        report = run_training(resolved, folder)
        policy, env = load_actor(Run.open(folder), 1)
    env.close()
    return Result(report, folder, policy)


def load(folder: str | Path, *, num_envs: int = 1, **settings: Any) -> tuple[Actor, VectorEnv]:
    """The trained actor of a run, and `num_envs` environments to play it in.

    settings: fields that differ from the run's, such as **{"env.agents": 10}. Raises InputError for a folder that holds
    no trained actor, or where the two do not fit together.
    """
    return load_actor(Run.open(Path(folder), settings), num_envs)
