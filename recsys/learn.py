"""From a log to a better policy: learn on some users by gradients of IPS or DR, evaluate on the others.

`concord run ope/learn` does it on a synthetic log whose truth is known; docs/ope_learning.md has the equations.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator

from envs.core import EnvSpec, InputError, Streams
from marl.config.schema import LearningConfig, Section, TrainConfig
from marl.learning.batch import Batch
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
from recsys.evaluation import Evaluation
from recsys.logs.config import DataConfig
from recsys.logs.log import Log
from recsys.logs.splits import Split
from recsys.models.reward import fit_reward_model
from recsys.policies.base import ContextPolicy
from recsys.policies.from_run import LearnsFromLogs, Origin, Trained, View, as_target
from recsys.recipe import LogRecipe, kept, reported
from recsys.sequential.config import SessionEstimatorsConfig
from recsys.sequential.evaluate import evaluate_read
from recsys.sequential.log import Successors, read_sessions, successors

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


class FitConfig(LearningConfig):
    """A policy, and how to learn it from any log."""

    policy: LearnedConfig = LearnedConfig()
    critic: NetworkConfig = SMALL
    learner: LoggedLearnerConfig = LoggedLearnerConfig()
    train: TrainConfig = TrainConfig(env_steps=1_000_000)


class Config(FitConfig):
    """A log, and how to learn from it."""

    data: DataConfig = DataConfig()
    held_out: float = Field(
        0.5, gt=0, lt=1, description="share of the users, or else sessions, or else rows, kept for the evaluation"
    )
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
        if self.of_sessions:
            self._require_sessions()
        if any(name.startswith(TRAINED) for name in self.against.target):
            raise ValueError(
                "against.target: what other runs have learned is compared by recipe recsys.ope, "
                "policy.target=[run:DIR,run:DIR], which knows the rows that are new to all of them"
            )
        return self

    @property
    def of_sessions(self) -> bool:
        """True where what follows a step counts."""
        return discounted(self.learner)

    def _require_sessions(self) -> None:
        """Raise ValueError where there are none, or where settings are of single decisions."""
        if self.data.columns is None or self.data.columns.episode is None:
            raise ValueError("learner.discount above 0 is of sessions, so it needs data.columns.{episode,step}")
        for name in ("estimators", "reward_model"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of single decisions; sessions (learner.discount above 0) have their own")
        if self.intervals.bounds is not None or self.data.segments:
            raise ValueError("intervals.bounds and data.segments are of single decisions; leave them out for sessions")

    def evaluation_config(self) -> ope.Config:
        """The part that says how to evaluate."""
        named = ("seed", "data", "estimators", "reward_model", "intervals", "workers")
        return ope.Config(recipe="recsys.ope", policy=self.against, **{name: getattr(self, name) for name in named})


class LoggedRows(NamedTuple):
    """What is learned from: features, actions, propensities, rewards and the numbers of users, of all rows."""

    features: Float[np.ndarray, "n D"]
    action: Int[np.ndarray, " n"]
    propensity: Float[np.ndarray, " n"]
    reward: Float[np.ndarray, "n K"]
    cluster: Int[np.ndarray, " n"]


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
        # Both read these rows, so that bad ones leave no folder behind.
        sessions = read_sessions(held_out) if config.of_sessions else None
        model = fit_reward_model(held_out, config.reward_model)
        policy = as_target(NAME, fit(config, run, learning, view), view, log.actions)
        seed = run.stage_seeds("bootstrap")[0]

        def evaluated() -> Evaluation:
            if sessions is None:
                return ope.judge(asked, held_out, [policy, *others], model, seed)
            gamma = np.full(len(log.signals), config.learner.discount)
            told = f"Returns of sessions are discounted by {', '.join(map(str, gamma.tolist()))}, as what was learned."
            judged = evaluate_read(
                sessions, [policy, *others], gamma, SessionEstimatorsConfig(), config.intervals, seed
            )
            return judged.with_more(notes=[told])

        evaluation = kept(run, log, evaluated)
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
    config = FitConfig(
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


def fit(config: FitConfig, run: Run, log: Log, view: View) -> IndependentPolicy:
    """Train on all rows of a log, which are kept on the device.

    Rewards are learned in units of their deviation in the log, and objectives in units of the deviation of Σ_k weight_k
    r_k, so that learning rates, entropy and KL mean the same in every log; what is best is best in both.
    """
    logged = columns_of(log, view)
    reward = logged.reward
    follows = successors(log, logged.cluster) if discounted(config.learner) else None
    weights = channel_weights(config.learner.weights, len(log.signals)).numpy()
    unit, total = _deviation(reward), _deviation(reward @ weights)
    policy, spec = build(config, run.streams("policy"), view, log.actions, log.signals)
    updates = env_steps_to_updates(config.train.env_steps, config.learner.rows)
    learner = LoggedActorCritic(
        policy,
        ActionCritic(spec, config.critic, run.streams("critic")),
        config.learner,
        run.policies,
        weights=torch.as_tensor(weights * unit / total, dtype=torch.float32).expand(run.policies, -1),
        updates=updates,
    )

    rows = as_batch(logged._replace(reward=reward / unit), follows, run.device)
    source = Logged(rows, rows=config.learner.rows, streams=run.streams("rows"))
    run.once(VIEW, view.to_json)
    run.fit(STAGE, learner, source, updates, cpu_seconds=config.train.cpu_seconds)
    return policy


def as_batch(logged: LoggedRows, follows: Successors | None, device: torch.device) -> Batch:
    """Rows as transitions: single decisions, or steps of sessions where it is known what followed.

    A step after which the log was cut off has no target, since nobody knows what followed: it is left out.
    """

    def there(column: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.as_tensor(column, dtype=dtype, device=device)

    known = slice(None) if follows is None else np.flatnonzero(~follows.cut)
    features = there(logged.features)
    action, propensity, reward = (column[known] for column in (logged.action, logged.propensity, logged.reward))
    more = () if follows is None else (features[follows.following[known]], there(follows.ended[known], torch.bool))
    return transitions(features[known], there(action, torch.int64), there(propensity), there(reward), *more)


def discounted(learner: LoggedLearnerConfig) -> bool:
    """True where some channel's γ is above 0, so that what follows counts."""
    return bool(np.max(learner.discount) > 0)


def build(
    config: Any, streams: Streams, view: View, actions: int, signals: Sequence[str]
) -> tuple[IndependentPolicy, EnvSpec]:
    """An untrained policy, and what it sees and does."""
    spec = chooser_spec(view.size, actions, signals)
    if config.policy.network.kind == "gru":
        raise InputError("policy.network.kind: a row of a log stands alone, so a policy cannot remember; choose mlp.")
    return IndependentPolicy(spec, PolicyConfig(network=config.policy.network), streams), spec


def columns_of(log: Log, view: View) -> LoggedRows:
    """All rows in memory. Raises InputError for a log whose rows count several times."""
    if log.columns.multiplicity is not None:
        raise InputError(
            f"Learning takes every row for one, and those of {log.name} count as {log.columns.multiplicity} says. "
            "Repeat the rows instead, or leave data.columns.multiplicity out."
        )
    parts = [
        (view.features(rows).astype(np.float32), rows.action, rows.propensity, rows.reward, rows.cluster)
        for rows in log.chunks()
    ]
    return LoggedRows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _deviation(x: np.ndarray) -> np.ndarray:
    """Of each column; 1 where it does not vary."""
    deviation = x.std(0)
    return np.where(deviation > 0, deviation, 1.0)


recipe = OfflineLearning()
