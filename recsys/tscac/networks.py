"""TSCAC with networks, from sampled transitions of a decision process whose fixed points are known.

`concord run recsys/neural_tscac`; docs/tscac.md has the equations and what was measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from rich.console import Console
from torch import Tensor

from envs.core import EnvSpec
from marl.config.recipe import Recipe
from marl.config.schema import LearningConfig, TrainConfig
from marl.learning.batch import Batch
from marl.learning.offline_batch import chooser_spec, observed, transitions
from marl.models.action_critic import only_choice
from marl.output.report import Metric, Report, Tables
from marl.output.tables import print_table
from marl.training.run import Run
from recsys.problems.base import ProblemConfig
from recsys.problems.constrained import ConstrainedProblem
from recsys.tscac.closed_form import product
from recsys.tscac.projection import Product, Projected, Uniform
from recsys.tscac.stages import Fitted, Goals, StageConfig, equal_shares, fit_stage
from recsys.tscac.tables import fixed_point

__all__ = ["Config", "recipe"]

STAGE_ONE, STAGE_TWO = "auxiliary", "main"


class Config(LearningConfig):
    """A constrained problem that is known, a log of it, and how networks learn from that."""

    data: ProblemConfig = ProblemConfig()
    transitions: int = Field(100_000, ge=1, description="drawn for the log: uniform choices, rewards of 0 or 1")
    stage_one_temperature: PositiveFloat = Field(0.02, description="τ of the soft-optimal policies of the auxiliaries")
    closeness: tuple[PositiveFloat, ...] = Field(
        (10.0, 1.0, 0.3, 0.1, 0.03), min_length=1, description="λ of every auxiliary: a policy for each, in one fit"
    )
    stage_one: StageConfig = StageConfig()
    stage_two: StageConfig = StageConfig()
    train: TrainConfig = Field(TrainConfig(env_steps=4_096_000), description="env_steps: rows drawn for each policy")


class NeuralTscac(Recipe):
    """Both stages as networks; every policy is judged by the process itself, beside the exact fixed point."""

    config = Config

    def run(self, config: Config, run: Run) -> Report:
        """Draw a log, learn the auxiliaries, then the main goal tied to them at every closeness."""
        problem = ConstrainedProblem.read(config.data.file("cmdp.json"))
        log, spec = drawn(problem, config.transitions, run)
        policies = problem.signals - 1
        discount = torch.full((problem.signals,), problem.process.discount)
        free = Projected(Uniform(only_choice(spec.action)), torch.full((policies,), config.stage_one_temperature))
        owned = [[1 + k] for k in range(policies)]
        alone = Goals(free, owned, discount, config.stage_one_temperature)
        first = fit_stage(run, STAGE_ONE, log, spec, config.stage_one, alone)
        anchor = Product(first.policy, equal_shares(policies))
        closeness = torch.tensor(config.closeness)
        tie = Projected(anchor, closeness * policies)
        second = fit_stage(run, STAGE_TWO, log, spec, config.stage_two, Goals(tie, [[0]] * len(closeness), discount))
        rows = judged(problem, config, first, second, tie)
        metrics = {
            f"{row['policy']}/{name}": Metric.exact(x) for row in rows for name, x in row.items() if name != "policy"
        }
        for stage in (STAGE_ONE, STAGE_TWO):
            used = run.used(stage)
            metrics |= {f"{stage}/{name}": Metric.exact(used[name]) for name in ("updates", "cpu_seconds")}
        return Report(config.recipe, config.seed, config.model_dump(mode="json"), metrics, {"policies": rows})

    def show(self, tables: Tables, console: Console) -> None:
        """Returns, and how far they are from those of the exact fixed point."""
        rows = [
            {key: f"{x:.4g}" if isinstance(x, float) else x for key, x in row.items()} for row in tables["policies"]
        ]
        print_table("learned from a log, judged by the process", rows, console)


def drawn(problem: ConstrainedProblem, count: int, run: Run) -> tuple[Batch, EnvSpec]:
    """A log of so many transitions, states seen as one-hots."""
    rows = problem.sample(count, np.random.default_rng(run.stage_seeds("log")[0]))
    states, actions = problem.process.reward.shape[:2]
    seen = torch.eye(states, device=run.device)
    state, action, following = (torch.from_numpy(x).to(run.device) for x in (rows.state, rows.action, rows.following))
    reward = torch.from_numpy(rows.reward).to(run.device, torch.float32)
    never = torch.zeros(count, dtype=torch.bool, device=run.device)
    propensity = torch.full((count,), 1 / actions, device=run.device)
    log = transitions(seen[state], action, propensity, reward, seen[following], never)
    return log, chooser_spec(states, actions, [f"signal {k}" for k in range(problem.signals)], horizon=None)


class InTables(NamedTuple):
    """Policies of stage two as tables, and what each should be by its own critic and anchors."""

    learned: Float[Tensor, "P S A"]
    optimum: Float[Tensor, "P S A"]


@torch.no_grad()
def table_of(second: Fitted, states: int, tie: Projected) -> InTables:
    """π of every state, and π* of the same."""
    policies = second.policy.policies
    seen = torch.eye(states, device=tie.temperature.device).repeat(policies, 1)
    obs = observed(seen)
    distribution, _ = second.policy(obs, None)
    learned = distribution.log_probs().exp()
    optimum = tie.optimum(obs, second.critic(obs).squeeze(-1))
    by_policy = (x.double().cpu().view(policies, states, -1) for x in (learned, optimum))
    return InTables(*by_policy)


def judged(
    problem: ConstrainedProblem, config: Config, first: Fitted, second: Fitted, tie: Projected
) -> list[dict[str, Any]]:
    """A row for each closeness: the true returns, the relative gap to those of the fixed point, and two distances.

    off_own_optimum: the largest total variation in a state from π* of the policy's own critic and anchors;
    off_fixed_point: from the exact fixed point.
    """
    process, closeness = problem.process, torch.tensor(config.closeness, dtype=torch.float64)
    signals = torch.eye(problem.signals, dtype=torch.float64)[1:]
    auxiliaries, _ = process.soft_optimal(signals, config.stage_one_temperature)
    shares = equal_shares(len(signals)).double()
    exact = fixed_point(
        process, product(auxiliaries.log(), shares).expand(len(closeness), -1, -1), closeness * len(signals)
    )
    names = ["main", *(f"auxiliary_{k}" for k in range(1, problem.signals))]
    policies = table_of(second, len(process.start), tie)
    rows = []
    for value, policy, optimum, known in zip(config.closeness, policies.learned, policies.optimum, exact, strict=True):
        returns, wanted = process.returns(policy), process.returns(known)
        row: dict[str, Any] = {"policy": f"λ={value:g}"}
        row |= {name: float(x) for name, x in zip(names, returns, strict=True)}
        row |= {f"gap_{name}": abs(float(x / y) - 1) for name, x, y in zip(names, returns, wanted, strict=True)}
        row["off_own_optimum"], row["off_fixed_point"] = (
            float((policy - other).abs().sum(-1).max()) / 2 for other in (optimum, known)
        )
        rows.append(row)
    return rows


recipe = NeuralTscac()
