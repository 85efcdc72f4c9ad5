"""From a log to a policy that raises one response and is shown to hold the others, on users that it has not seen.

`concord run recsys/tscac` does it on a synthetic log whose truth is known; docs/tscac.md has the equations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from envs.core import EnvSpec, InputError, Streams
from marl.learning.batch import Batch
from marl.learning.learner import Learner
from marl.learning.offline_actor_critic import LoggedActorCritic
from marl.learning.offline_batch import chooser_spec
from marl.models.policies import IndependentPolicy, PolicyConfig
from marl.output.report import Metric, Report, Tables
from marl.output.tables import print_columns
from marl.training.run import Run
from recsys import ope
from recsys.build import make_policies, problem_of, with_columns
from recsys.evaluation import Evaluation
from recsys.learn import VIEW, as_batch, columns_of
from recsys.models.reward import fit_reward_model
from recsys.policies.base import Policy
from recsys.policies.from_run import LearnsFromLogs, Origin, Trained, View, as_target
from recsys.recipe import LogRecipe, kept, reported
from recsys.tscac.config import Config
from recsys.tscac.multipliers import Multipliers
from recsys.tscac.projection import Anchor, Product, Projected, Uniform, imitate
from recsys.tscac.stages import Fitted, Goals, equal_shares, fit_stage
from recsys.tscac.task import NAME, Judged, Task, certificate, choice, held_wrongly, parts_of, standings, task_of

__all__ = ["Config", "recipe"]

ANCHOR, MAIN = "anchor", "main"  # stages
CHOSEN = "chosen"  # what a run keeps of the choice among its policies


def learned(task: Task, run: Run) -> Fitted:
    """Both stages: what to stay close to, then a policy for each Λ with multipliers of its own."""
    config, signals = task.config, task.log.signals
    logged = columns_of(task.learning, task.view)
    deviation = logged.reward.std(0)
    unit = np.where(deviation > 0, deviation, 1.0)
    batch = as_batch(logged._replace(reward=logged.reward / unit), None, run.device)
    temperature = torch.tensor(config.temperature, device=run.device)
    tie = Projected(_anchor(task, run, batch), temperature)
    weights = torch.zeros(len(temperature), len(signals))
    weights[:, task.main] = 1.0
    every = max(1, config.train.env_steps // config.stage_two.rows // config.rounds)

    def beside(learner: LoggedActorCritic) -> Mapping[str, Learner]:
        def judge() -> Float[Tensor, "P m"]:
            assert isinstance(learner.policy, IndependentPolicy)
            return torch.from_numpy(task.judged(_members(task, learner.policy)).margin)

        return {"multipliers": Multipliers(learner, task.constraints, judge, every)}

    every_channel = [list(range(len(signals)))] * len(temperature)
    goals = Goals(tie, every_channel, torch.zeros(len(signals)), weights=weights)
    return fit_stage(run, MAIN, batch, task.spec, config.stage_two, goals, beside)


def _anchor(task: Task, run: Run, batch: Batch) -> Anchor:
    """What policies of stage two stay close to."""
    config, actions = task.config, task.log.actions
    if config.anchor == "uniform":
        return Uniform(actions)
    discount = torch.zeros(len(task.log.signals))
    if config.anchor == "logging":
        goals, count = Goals(imitate, [[task.main]], discount), 1
    else:
        count = len(task.constraints)
        tau = torch.full((count,), config.stage_one_temperature, device=run.device)
        owned = [[one.signal] for one in task.constraints]
        signs = torch.tensor([[float(one.sign)] for one in task.constraints])
        goals = Goals(Projected(Uniform(actions), tau), owned, discount, weights=signs)
    first = fit_stage(run, ANCHOR, batch, task.spec, config.stage_one, goals)
    return Product(first.policy, equal_shares(count).to(run.device))


def _members(task: Task, stack: IndependentPolicy) -> list[Policy]:
    """Each policy of a stack as a target of evaluation."""
    state = stack.state_dict()
    return [
        as_target(f"member {place}", one_of(task.config, task.spec, state, place), task.view, task.log.actions)
        for place in range(stack.policies)
    ]


def one_of(config: Config, spec: EnvSpec, state: Mapping[str, Tensor], place: int) -> IndependentPolicy:
    """One policy of a stack's state."""
    network = PolicyConfig(network=config.stage_two.policy)
    policy = IndependentPolicy(spec, network, Streams([0], next(iter(state.values())).device))
    policy.load_state_dict({name: x[place : place + 1] for name, x in state.items()})
    return policy


class Recommend(LogRecipe, LearnsFromLogs):
    """Learn on some users, hold thresholds on others, and certify by the rest."""

    config = Config
    learns = True

    def run(self, config: Config, run: Run) -> Report:
        """Learn both stages, choose Λ by the validating users, look at the certifying ones once."""
        task = task_of(config, run)
        others = make_policies(config.data, config.against, with_columns(config.against, task.certifying))
        fitted = learned(task, run)
        run.once(VIEW, task.view.to_json)
        members = _members(task, fitted.policy)
        path = run.once("path", lambda: self._path(task, members))
        judged = Judged(*(np.array(path[name]) for name in Judged._fields))
        place = run.once(CHOSEN, lambda: choice(judged, config.temperature))
        policy = as_target(
            NAME, one_of(config, task.spec, fitted.policy.state_dict(), place), task.view, task.log.actions
        )
        seed = run.stage_seeds("bootstrap")[0]
        held_out = with_columns(config.against, task.certifying)

        def evaluated() -> Evaluation:
            rows = certificate(task, policy, seed)
            model = fit_reward_model(held_out, config.reward_model)
            evaluation = ope.judge(config.evaluation_config(), held_out, [policy, *others], model, seed)
            return evaluation.with_more(tables={"certificate": rows, "path": _told(config, path, place)})

        evaluation = kept(run, task.log, evaluated)
        metrics = dict(evaluation.metrics)
        metrics |= standings(evaluation.tables["certificate"])
        if (problem := problem_of(config.data)) is not None:
            metrics |= held_wrongly(task, evaluation, problem)
        metrics |= {name: Metric.exact(value) for name, value in run.used(MAIN).items() if name.endswith("seconds")}
        return reported(config, run, metrics, evaluation.tables)

    def _path(self, task: Task, members: Sequence[Policy]) -> dict[str, Any]:
        return {name: x.tolist() for name, x in task.judged(members)._asdict().items()}

    def show(self, tables: Tables, console: Console) -> None:
        """Print the certificate before all else."""
        print_certificate(tables.get("certificate", []), console)
        super().show(tables, console)

    def load_target(self, run: Run) -> Trained:
        """The chosen policy of a run; the log need not be there. Raises InputError where none was chosen yet."""
        config: Any = run.config
        files = [run.folder / "once" / f"{name}.json" for name in (VIEW, CHOSEN)]
        if not all(path.is_file() for path in files):
            raise InputError(f"{run.folder} has chosen no policy yet; `concord resume {run.folder}` does.")
        view, place = View.from_json(json.loads(files[0].read_text())), json.loads(files[1].read_text())
        spec = chooser_spec(view.size, len(view.labels), ("reward",))
        policy = one_of(config, spec, run.load(MAIN, "policy"), place)
        return Trained(policy, spec, view, Origin(config.data, run.seeds[0], parts_of(config, run).last))


def _told(config: Config, path: Mapping[str, Any], place: int) -> list[dict[str, Any]]:
    """The table of all Λ, as the validating users judge them."""
    rows = []
    for i, (value, main, margin) in enumerate(zip(config.temperature, path["main"], path["margin"], strict=True)):
        row: dict[str, Any] = {"temperature": value, config.main: main}
        row |= {f"{name} lower bound": low for name, low in zip(config.thresholds, margin, strict=True)}
        rows.append({**row, "trusted": path["trusted"][i], "chosen": i == place})
    return rows


def print_certificate(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Each response's standing in the first line, then what it rests on."""
    if not rows:
        return
    console.print("; ".join(f"{row['response']}: {row['standing']}" for row in rows), style="bold", markup=False)
    header = ("response", "must be", "in the log", "would be", "above the threshold by", "events", "needed", "standing")
    cells = []
    for row in rows:
        low, high, needed = (float(row[name]) for name in ("low", "high", "needed"))
        between = f"[{low:+.1%}, {high:+.1%}]"
        numbers = [f"{row['logged']:.4g}", f"{row['learned']:.4g}", between, f"{row['events']:,}", f"{needed:,.0f}"]
        cells.append([row["response"], row["must"], *numbers, row["standing"]])
    print_columns("certificate, by users that nothing was chosen by", header, cells, console)


recipe = Recommend()
