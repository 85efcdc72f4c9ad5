"""A decision process with thresholds: the best policy that holds them, by a linear program, and logs of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from envs.core import InputError
from recsys.problems.base import distributions, read_problem, require_answer, require_shape
from recsys.problems.counts import Counts
from recsys.problems.decision_process import DecisionProcess

NEEDED = ("transition", "reward", "start", "discount", "thresholds")
KNOWN = ("lp_optimum", "unconstrained_optimum", "uniform", "stage_one", "fixed_point")


class Optimum(NamedTuple):
    """A policy that none beats of those that hold the thresholds; duals: what a unit less of each would bring."""

    policy: Float[Tensor, "S A"]
    returns: Float[Tensor, " K"]
    duals: Float[Tensor, " m"]


class Sampled(NamedTuple):
    """Transitions one by one: what was seen, done, earned of each signal, and what followed."""

    state: Int[np.ndarray, " n"]
    action: Int[np.ndarray, " n"]
    reward: Float[np.ndarray, "n K"]
    following: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class ConstrainedProblem:
    """Maximize the return of signal 0 such that those of the m others are at least their thresholds.

    fixed_points: by λ, the returns of TSCAC's fixed point that a file tells, with stage one at its temperature.
    """

    process: DecisionProcess
    thresholds: Float[Tensor, " m"]
    fixed_points: dict[str, Float[Tensor, " K"]] = field(default_factory=dict)
    fixed_point_temperature: float | None = None

    @classmethod
    def read(cls, path: Path) -> ConstrainedProblem:
        """From a file as recsys/data/oracles/cmdp.json is: transition [S][A][S], reward [K][S][A], main goal first.

        Raises InputError for whatever is no such problem, or whose own answers are not those of its tables.
        """
        tables = read_problem(path, NEEDED, KNOWN)
        reward = tables["reward"]
        if reward.ndim != 3 or reward.shape[0] < 2 or 0 in reward.shape:
            raise InputError(
                f"reward must be [K,S,A]: a main goal and at least one more signal; got shape {list(reward.shape)}."
            )
        signals, states, actions = reward.shape
        require_shape("transition", tables["transition"], (states, actions, states), "[S,A,S]")
        require_shape("start", tables["start"], (states,), "[S]")
        require_shape("thresholds", tables["thresholds"], (signals - 1,), "[K-1], one for each signal but the first")
        process = DecisionProcess(
            transition=torch.from_numpy(distributions("transition", tables["transition"])),
            reward=torch.from_numpy(np.moveaxis(reward, 0, -1).copy()),
            start=torch.from_numpy(distributions("start", tables["start"])),
            discount=_discount(tables["discount"]),
        )
        points = {key: torch.from_numpy(values) for key, values in tables.get("fixed_point", {}).items()}
        temperature = tables.get("stage_one", {}).get("tau")
        problem = cls(process, torch.from_numpy(tables["thresholds"]), points, temperature)
        problem._require_answers(tables)
        return problem

    @property
    def signals(self) -> int:
        """K."""
        return self.process.reward.shape[-1]

    def uniform(self) -> Float[Tensor, "S A"]:
        """The policy that chooses everywhere among all actions alike."""
        return torch.full(self.process.reward.shape[:2], 1 / self.process.reward.shape[1], dtype=torch.float64)

    def largest(self) -> Float[Tensor, " K"]:
        """The most that any policy earns of each signal, without a thought of the others."""
        return self.process.soft_optimal(torch.eye(self.signals, dtype=torch.float64), 0.0)[1]

    def least(self) -> Float[Tensor, " K"]:
        """The least that any policy earns of each signal."""
        return -self.process.soft_optimal(-torch.eye(self.signals, dtype=torch.float64), 0.0)[1]

    def missed(self, returns: Float[Tensor, "*P K"]) -> Float[Tensor, "*P"]:
        """The largest shortfall of a threshold, as a share of it, or of the range where it is 0; ≤ 0 for none."""
        span = (self.largest() - self.least())[1:].clamp(min=1e-12)
        unit = torch.where(self.thresholds == 0, span, self.thresholds.abs())
        return ((self.thresholds - returns[..., 1:]) / unit).max(-1).values

    def best(self) -> Optimum:
        """The best policy that holds the thresholds. Raises InputError where none does, and says how much is feasible.

        The linear program over discounted visits x(s,a) ≥ 0: max Σ x r_0 such that Σ x r_i ≥ C_i, and
        Σ_a x(s,a) = start(s) + γ Σ x(s',a') P(s|s',a'). (Altman, Constrained Markov Decision Processes, 1999.)
        """
        found = self._program(self.process.reward[..., 0].flatten(), torch.zeros(0, dtype=torch.float64))
        if found is None:
            raise InputError(self._infeasible())
        visits = torch.from_numpy(found.x).view(self.process.reward.shape[:2]).clamp(min=0.0)
        total = visits.sum(-1, keepdim=True)
        policy = torch.where(total > 0, visits / total.clamp(min=1e-300), self.uniform())
        duals = torch.from_numpy(-np.asarray(found.ineqlin.marginals))
        return Optimum(policy, self.process.returns(policy), duals)

    def most_feasible(self) -> Float[Tensor, " m"]:
        """Returns of the policy whose largest shortfall is least, each in units of the signal's range."""
        span = (self.largest() - self.least())[1:].clamp(min=1e-12)
        found = self._program(torch.zeros(self.process.reward[..., 0].numel(), dtype=torch.float64), span)
        assert found is not None
        visits = torch.from_numpy(found.x[:-1])
        return visits @ self.process.reward[..., 1:].flatten(0, 1)

    def sample(self, transitions: int, rng: np.random.Generator) -> Sampled:
        """A log of n transitions one by one, as `draw` counts them."""
        self._require_chances()
        states, actions = self.process.reward.shape[:2]
        pair = rng.choice(states * actions, size=transitions, p=self._visited())
        state, action = np.divmod(pair, actions)
        reach = self.process.transition.flatten(0, 1).cumsum(-1).numpy()[pair]
        following = (rng.random(transitions)[:, None] * reach[:, -1:] > reach).sum(1)
        reward = rng.random((transitions, self.signals)) < self.process.reward.flatten(0, 1).numpy()[pair]
        return Sampled(state, action, reward.astype(np.float64), following)

    def draw(self, transitions: int, logs: int, rng: np.random.Generator) -> Counts:
        """So many logs of n transitions: uniform choices in the states that they visit, rewards of 0 or 1.

        Raises InputError for rewards that are no chances.
        """
        self._require_chances()
        reward = self.process.reward
        tried = rng.multinomial(transitions, self._visited(), size=logs).reshape(logs, *reward.shape[:2])
        following = rng.multinomial(tried, self.process.transition.numpy())
        earned = rng.binomial(tried[..., None], reward.numpy())
        return Counts(torch.from_numpy(following).double(), torch.from_numpy(earned).double(), self.process)

    def _require_chances(self) -> None:
        reward = self.process.reward
        if bool(((reward < 0) | (reward > 1)).any()):
            raise InputError(
                "Logs are drawn with rewards of 0 or 1, so reward must hold chances in [0, 1]; it goes from "
                f"{float(reward.min()):.6g} to {float(reward.max()):.6g}. Set samples.logs=0 for exact answers alone."
            )

    def _visited(self) -> Float[np.ndarray, " SA"]:
        """The share of each state and action in what uniform choices visit."""
        visits = self.process.visits(self.uniform()).unsqueeze(-1) * self.uniform()
        share: np.ndarray = (visits / visits.sum()).flatten().numpy()
        return share

    def _program(self, gain: Float[Tensor, " SA"], slack: Float[Tensor, " m"]) -> Any:
        """HiGHS' answer, or None for an infeasible one; with slack, a last variable by which thresholds are lowered."""
        from scipy import optimize

        process = self.process
        states, actions = process.reward.shape[:2]
        arrives = process.transition.flatten(0, 1).T
        flow = torch.eye(states, dtype=torch.float64).repeat_interleave(actions, 1) - process.discount * arrives
        held = -process.reward[..., 1:].flatten(0, 1).T
        if len(slack):
            flow = torch.cat([flow, torch.zeros(states, 1, dtype=torch.float64)], 1)
            held = torch.cat([held, -slack.unsqueeze(1)], 1)
            gain = torch.cat([gain, -torch.ones(1, dtype=torch.float64)])
        found = optimize.linprog(
            -gain.numpy(),
            A_ub=held.numpy(),
            b_ub=-self.thresholds.numpy(),
            A_eq=flow.numpy(),
            b_eq=process.start.numpy(),
            method="highs",
        )
        return found if found.status == 0 else None

    def _infeasible(self) -> str:
        told = [f"{value:.6g}" for value in self.thresholds.tolist()]
        alone = [f"{value:.6g}" for value in self.largest()[1:].tolist()]
        at_once = [f"{value:.6g}" for value in self.most_feasible().tolist()]
        return (
            f"No policy holds the thresholds {', '.join(told)}: the most that is feasible of each alone is "
            f"{', '.join(alone)}, and of all at once {', '.join(at_once)}. Lower the thresholds."
        )

    def _require_answers(self, tables: dict[str, Any]) -> None:
        if "uniform" in tables:
            require_answer("uniform", tables["uniform"], self.process.returns(self.uniform()))
        if "unconstrained_optimum" in tables:
            best, _ = self.process.soft_optimal(torch.eye(self.signals, dtype=torch.float64)[:1], 0.0)
            require_answer("unconstrained_optimum", tables["unconstrained_optimum"], self.process.returns(best[0]))
        if "stage_one" in tables:
            told, signals = tables["stage_one"], torch.eye(self.signals, dtype=torch.float64)[1:]
            require_answer("stage_one.policies", told["policies"], self.process.soft_optimal(signals, told["tau"])[0])
        if "lp_optimum" in tables:
            require_answer("lp_optimum", tables["lp_optimum"], self.best().returns[0])


def _discount(value: Any) -> float:
    if np.shape(value) != () or not 0 <= value < 1:
        raise InputError(f"discount is one number in [0, 1), since there is no horizon; got {value}.")
    return float(value)
