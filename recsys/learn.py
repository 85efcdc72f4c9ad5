"""From a log to a better policy: learn on some users by gradients of IPS or DR, evaluate on the others.

`concord run ope/learn` does it on a synthetic log whose truth is known; docs/ope_learning.md has the equations.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator

from envs.core import EnvSpec, InputError, Streams
from marl.config.schema import LearningConfig, Section, TrainConfig
from marl.learning.offline_actor_critic import LoggedActorCritic, LoggedLearnerConfig, channel_weights
from marl.learning.offline_batch import Logged, chooser_spec, transitions
from marl.models.action_critic import ActionCritic
from marl.models.layers import NetworkConfig
from marl.models.policies import IndependentPolicy, PolicyConfig
from marl.output.report import Metric, Report
from marl.training.run import Run, env_steps_to_updates
from recsys import ope
from recsys.build import make_policies, problem_of, read_log, with_columns
from recsys.config import TRAINED, EstimatorsConfig, IntervalsConfig, RewardModelConfig, TargetConfig
from recsys.logs.config import DataConfig
from recsys.logs.log import Log
from recsys.logs.splits import Split
from recsys.models.reward import fit_reward_model
from recsys.policies.base import ContextPolicy
from recsys.policies.from_run import LearnsFromLogs, Origin, Trained, View, as_target
from recsys.recipe import LogRecipe, kept, reported

STAGE = "train"  # that fits the policy
NAME = "learned"  # what the policy is called among the metrics
VIEW = "view"  # what a run keeps of how its policy sees a log
SMALL = NetworkConfig(hidden=(32,))


class LearnedConfig(Section):
    """The policy that is learned: independent, categorical over the catalog."""

    observation: tuple[str, ...] = Field(
        (), description="columns that it sees besides the position; empty are all of data.context"
    )
    network: NetworkConfig = SMALL


class Config(LearningConfig):
    """A log, and how to learn from it."""

    data: DataConfig = DataConfig()
    held_out: float = Field(0.5, gt=0, lt=1, description="share of the users, or else rows, kept for the evaluation")
    policy: LearnedConfig = LearnedConfig()
    critic: NetworkConfig = SMALL
    learner: LoggedLearnerConfig = LoggedLearnerConfig()
    train: TrainConfig = TrainConfig(env_steps=1_000_000)
    against: TargetConfig = Field(TargetConfig(target=("uniform",)), description="policies evaluated beside it")
    estimators: EstimatorsConfig = EstimatorsConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    intervals: IntervalsConfig = IntervalsConfig()
    workers: int = Field(2, ge=1, le=256, description="threads that scan the log")

    @model_validator(mode="after")
    def _known(self) -> Config:
        ope.require_known(self.data, self.against, self.estimators, "against")
        if self.data.fitted or self.data.bandwidth is not None:
            raise ValueError("recipe recsys.learn needs a log of choices from a catalog, with their propensities")
        if any(name.startswith(TRAINED) for name in self.against.target):
            raise ValueError(
                "against.target: what other runs have learned is compared by recipe recsys.ope, "
                "policy.target=[run:DIR,run:DIR], which knows the rows that are new to all of them"
            )
        return self

    def evaluation_config(self) -> ope.Config:
        """The part that says how to evaluate."""
        named = ("seed", "data", "estimators", "reward_model", "intervals", "workers")
        return ope.Config(recipe="recsys.ope", policy=self.against, **{name: getattr(self, name) for name in named})


class OfflineLearning(LogRecipe, LearnsFromLogs):
    """Learn on one part of a log, and tell by the other what the policy would earn."""

    config = Config
    learns = True

    def run(self, config: Config, run: Run) -> Report:
        """Learn on one part of the log, tell by the other what the policy would earn."""
        asked = config.evaluation_config()
        log = read_log(config.data, config.seed, config.policy.observation).with_context(config.policy.observation)
        parts = split_of(run)
        learning, held_out = parts.learning(log), with_columns(config.against, parts.evaluation(log))
        view = View.of(learning, config.policy.observation)
        others = make_policies(config.data, config.against, held_out)
        model = fit_reward_model(held_out, config.reward_model)  # reads these rows: bad ones leave no folder behind
        policy = as_target(NAME, fit(config, run, learning, view), view, log.actions)
        seed = run.stage_seeds("bootstrap")[0]
        evaluation = kept(run, log, lambda: ope.judge(asked, held_out, [policy, *others], model, seed))
        metrics, used = dict(evaluation.metrics), run.used(STAGE)
        metrics |= {name: Metric.exact(used[name]) for name in ("updates", "wall_seconds", "cpu_seconds")}
        if (problem := problem_of(config.data)) is not None:
            weights = channel_weights(config.learner.weights, len(log.signals)).tolist()
            ways = (problem.logging, policy, problem.best(weights))
            logged, learned, best = (float(problem.value(each).value @ weights) for each in ways)
            metrics["way_to_best"] = Metric.exact((learned - logged) / (best - logged))
        return reported(config, run, metrics, evaluation.tables)

    def load_target(self, run: Run) -> Trained:
        """The policy of a run as it was last saved; the log need not be there. Raises InputError for none."""
        config: Any = run.config
        path = run.folder / "once" / f"{VIEW}.json"
        if not path.is_file():
            raise InputError(f"{run.folder} has no checkpoint yet; `concord resume {run.folder}` trains it.")
        view = View.from_json(json.loads(path.read_text()))
        policy, spec = build(config, run.streams("policy"), view, len(view.labels), ("reward",))
        policy.load_state_dict(run.load(STAGE, "policy"))
        return Trained(policy, spec, view, Origin(config.data, run.seeds[0], split_of(run)))


def split_of(run: Run) -> Split:
    """The users, or rows, that are learned from, and those that are held out."""
    config: Any = run.config
    return Split(config.held_out, run.stage_seeds("split")[0])


def learn(
    log: Log,
    *,
    observation: Sequence[str] = (),
    rows: int = 1_000_000,
    hidden: Sequence[int] = SMALL.hidden,
    seed: int = 0,
    **settings: Any,
) -> ContextPolicy:
    """A policy learned from all of a log, as a target of evaluation; evaluate it on rows that it has not seen.

    observation: the columns that it sees, all of the log's context where none are named. rows: how many are drawn, with
    replacement. settings: those of `LoggedLearnerConfig`, such as gradient="ips". Raises InputError for a log that
    cannot be read.
    """
    network = NetworkConfig(hidden=tuple(hidden))
    config = Config(
        recipe="recsys.learn",
        seed=seed,
        policy=LearnedConfig(network=network),
        critic=network,
        learner=LoggedLearnerConfig(**settings),
        train=TrainConfig(env_steps=rows),
    )
    log = log.with_context(observation)
    view = View.of(log, observation)
    with tempfile.TemporaryDirectory(prefix="concord-learn-") as folder:
        return as_target(NAME, fit(config, Run(Path(folder), config), log, view), view, log.actions)


def fit(config: Config, run: Run, log: Log, view: View) -> IndependentPolicy:
    """Train on all rows of a log, which are kept on the device.

    Rewards are learned in units of their deviation in the log, and objectives in units of the deviation of Σ_k weight_k
    r_k, so that learning rates, entropy and KL mean the same in every log; what is best is best in both.
    """
    features, action, propensity, reward = columns_of(log, view)
    weights = channel_weights(config.learner.weights, len(log.signals)).numpy()
    unit, total = _deviation(reward), _deviation(reward @ weights)
    policy, spec = build(config, run.streams("policy"), view, log.actions, log.signals)
    learner = LoggedActorCritic(
        policy,
        ActionCritic(spec, config.critic, run.streams("critic")),
        config.learner,
        run.policies,
        weights=torch.as_tensor(weights * unit / total, dtype=torch.float32).expand(run.policies, -1),
    )

    def there(column: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.as_tensor(column, dtype=dtype, device=run.device)

    # Logarithms are taken before precision is lost: a propensity may be smaller than a float can say.
    rows = transitions(there(features), there(action, torch.int64), there(propensity), there(reward / unit))
    source = Logged(rows, rows=config.learner.rows, streams=run.streams("rows"))
    run.once(VIEW, view.to_json)
    updates = env_steps_to_updates(config.train.env_steps, config.learner.rows)
    run.fit(STAGE, learner, source, updates, cpu_seconds=config.train.cpu_seconds)
    return policy


def build(
    config: Any, streams: Streams, view: View, actions: int, signals: Sequence[str]
) -> tuple[IndependentPolicy, EnvSpec]:
    """An untrained policy, and what it sees and does."""
    spec = chooser_spec(view.size, actions, signals)
    if config.policy.network.kind == "gru":
        raise InputError("policy.network.kind: a row of a log stands alone, so a policy cannot remember; choose mlp.")
    return IndependentPolicy(spec, PolicyConfig(network=config.policy.network), streams), spec


def columns_of(log: Log, view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray, Float[np.ndarray, "n K"]]:
    """Features [n,D], actions [n], propensities [n] and rewards [n,K] of all rows."""
    if log.columns.multiplicity is not None:
        raise InputError(
            f"Learning takes every row for one, and those of {log.name} count as {log.columns.multiplicity} says. "
            "Repeat the rows instead, or leave data.columns.multiplicity out."
        )
    parts = [
        (view.features(rows).astype(np.float32), rows.action, rows.propensity, rows.reward) for rows in log.chunks()
    ]
    features, action, propensity, reward = (np.concatenate(column) for column in zip(*parts, strict=True))
    return features, action, propensity, reward


def _deviation(x: np.ndarray) -> np.ndarray:
    """Of each column; 1 where it does not vary."""
    deviation = x.std(0)
    return np.where(deviation > 0, deviation, 1.0)


recipe = OfflineLearning()
