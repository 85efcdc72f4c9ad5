"""Evaluation while a policy trains: what it earns every n updates, and the best policy so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs.core import Actor, InputError, Tree, tree_map
from marl.evaluation.environments import evaluation_rows, make_evaluation_env
from marl.evaluation.episodes import Episodes, play_policies
from marl.models.policies import JointPolicy
from marl.training.checkpoints import checkpoints, load_newest
from marl.training.on_policy import STAGE
from marl.training.run import Run

PURPOSE = "evaluation during training"
RETURN = "evaluation/return_per_agent"


class EvaluationProbe:
    """A Probe: every `evaluation.every` updates, what P policies earn, each with its best parameters so far.

    Every evaluation plays `evaluation.during_episodes` episodes from one seed of its own, so that training draws the
    same with it and without. policy: all that one stage trains, as many members of each of the run's seeds. actor: what
    is executed of it. `best` is the policy's state, each of P policies as it was when it earned most; None before the
    first evaluation. Most is by the sum of channels with the weights of `advantage`, those at the end of training; each
    counts 1 where there are none.

    Raises InputError for policies that the seeds cannot share.
    """

    def __init__(self, run: Run, policy: JointPolicy, actor: Actor):
        section = run.config.evaluation
        self.run, self.policy, self.actor = run, policy, actor
        self.every: int = section.every
        shorter = section.model_copy(update={"episodes": section.during_episodes})
        self.rows = evaluation_rows(run.config.model_copy(update={"evaluation": shorter}))
        # A policy of one's own that does not say how many it is, is as many as the run says.
        self.policies: int = getattr(policy, "policies", run.policies)
        if self.policies % len(run.seeds):
            raise InputError(
                f"An EvaluationProbe needs as many policies of each seed; got P={self.policies} for "
                f"{len(run.seeds)} seeds. Build the policy from run.streams(…, members=M)."
            )
        self.value = torch.full((self.policies,), -math.inf, dtype=torch.float64)
        self.best: dict[str, Any] | None = None

    def __call__(self, update: int, learner: Any) -> dict[str, Any]:
        """Play; gives `evaluation/…`: a number for a run of one policy, else [P]."""
        played, channels = self._play()
        found = {RETURN: _means([episodes.per_agent.mean() for episodes in played])}
        if len(channels) > 1:
            for k, channel in enumerate(channels):
                found[f"{RETURN}/{channel}"] = _means([episodes.returns[:, k].mean() for episodes in played])
        self._keep_best(_means([weighted_returns(self.run.config, episodes.returns).mean() for episodes in played]))
        return found if len(played) > 1 else {name: float(values) for name, values in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """The best policy, and what it earned by the weights of channels."""
        return {"value": self.value, "best_policy": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        self.value, self.best = state["value"].cpu(), state["best_policy"]

    def _play(self) -> tuple[list[Episodes], Sequence[str]]:
        config = self.run.config
        rows = self.policies * self.rows
        with closing(make_evaluation_env(config, rows, self.run.device)) as env:
            played = play_policies(
                env,
                self.actor,
                config.evaluation.during_episodes,
                self.run.stage_seeds(PURPOSE, self.policies // len(self.run.seeds)),
                config.evaluation.patience,
            )
            return played, env.spec.channels

    def _keep_best(self, value: Float[Tensor, " P"]) -> None:
        """Take the policies that earn more than ever before."""
        better = value > self.value
        now = tree_map(lambda x: x.detach().clone(), dict(self.policy.state_dict()))
        self.best = now if self.best is None else rows_where(better, now, self.best)
        self.value = torch.where(better, value, self.value)


def weighted_returns(config: Any, returns: np.ndarray) -> np.ndarray:
    """Returns [n,K] as one number each, [n]: channels by the weights of `advantage` at the end of training."""
    advantage = getattr(config, "advantage", None)  # which a learner of another kind may lack
    weights = () if advantage is None else advantage.weights_end or advantage.weights
    return returns @ np.array(weights) if weights else returns.sum(-1)


def _means(values: Sequence[float]) -> Float[Tensor, " P"]:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def rows_where(chosen: Bool[Tensor, " P"], new: Tree, old: Tree) -> Tree:
    """Of trees whose tensors are policy-major: the chosen policies' part of `new`, the others' of `old`.

    A tensor without axes belongs to all policies: it is that of `new` where any is chosen.
    """

    def mix(a: Tensor, b: Tensor) -> Tensor:
        if a.dim() == 0:
            return a if bool(chosen.any()) else b
        picked = chosen.to(a.device).repeat_interleave(len(a) // len(chosen))
        return torch.where(picked.view(-1, *[1] * (a.dim() - 1)), a, b)

    return tree_map(mix, new, old)


def best_policy(run: Run) -> dict[str, Any]:
    """The state of the policy that earned most while it trained, as it was last saved.

    Raises InputError for a run that has not been evaluated yet.
    """
    folder = run.folder / "checkpoints" / STAGE
    probes = load_newest(folder, run.device)["probes"] if checkpoints(folder) else []
    for state in probes:
        if state.get("best_policy") is not None:
            best: dict[str, Any] = state["best_policy"]
            return best
    raise InputError(
        f"evaluation.load=best plays the policy that earned most while it trained, and {run.folder} has not been "
        "evaluated in its training yet. Train with evaluation.every set to fewer updates than the training has, or set "
        "evaluation.load=last."
    )
