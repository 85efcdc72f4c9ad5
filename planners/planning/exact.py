"""The truth about planners in a world whose states can be listed, without drawing an episode.

Nothing here is used before a critic is learned: it judges what was learned, and teaches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from envs.core import InputError, Observation, tree_map
from envs.tabular import Table
from planners.planning.config import MethodConfig
from planners.read.advantages import filtered, prefix_value, reweighed
from planners.read.critics import PlanCritic

ROWS = 100_000  # prefixes that a critic judges at once
MATTERS = 0.01  # of the goal: advantages below it have no sign worth telling


@dataclass(frozen=True)
class Listed:
    """A world's table, and a model's joint policy in it, [S,A,…,A]. goal: what an episode earns that succeeds.

    at_once: the model decides for a plan with one token. Where it writes several, which plans were sent back changes
    the probabilities of those left: a constraint takes token by token, and who begins with a plan that was sent back
    goes on with another that begins so.
    """

    world: Any
    table: Table
    policy: Float[Tensor, "*joint"]
    goal: float
    discount: float
    at_once: bool = True

    @property
    def agents(self) -> int:
        """N."""
        return self.table.agents

    def conditionals(self) -> list[Float[Tensor, "S ..."]]:
        """Probabilities of each agent's choices after those before it, [S,A], [S,A,A], …; any where nothing leads."""
        found = []
        for agent in range(self.agents):
            later = tuple(range(agent + 2, self.agents + 1))
            mass = self.policy.sum(later) if later else self.policy
            total = mass.sum(-1, keepdim=True)
            found.append(torch.where(total > 0, mass / total.clamp(min=1e-300), 1 / mass.shape[-1]))
        return found

    def true_advantages(self) -> list[Float[Tensor, "S ..."]]:
        """Advantage of each agent's choice after those before it, of the model's own play, in units of the goal."""
        known = [self._prefix(range(count)) for count in range(self.agents + 1)]
        return [after - before.unsqueeze(-1) for before, after in pairwise(known)]

    def advantage_of(self, agent: int) -> Float[Tensor, "S A"]:
        """Advantage of an agent's choice where nobody else's is known, of the model's own play, in the same units."""
        return self._prefix([agent]) - self._prefix([]).unsqueeze(-1)

    @cached_property
    def _q(self) -> Float[Tensor, "*joint"]:
        """Values of joint choices, of the model's own play, in units of the goal."""
        value = self.table.evaluate(self.policy.flatten(1), self.discount)
        following = torch.cat([value, value.new_zeros(1)])[self.table.successor]
        return (self.table.reward + self.discount * following).view(self.policy.shape) / self.goal

    def learned_advantages(self, critic: PlanCritic) -> list[Float[Tensor, "S ..."]]:
        """The same as a critic has them, in units of its scale."""
        known = [self._judged(critic, count) for count in range(self.agents + 1)]
        return [(after - before.unsqueeze(-1)) / critic.scale for before, after in pairwise(known)]

    def success(self, policy: Float[Tensor, "*joint"], steps: int) -> float:
        """Share of episodes of at most so many steps that reach the goal, where one that does is over."""
        return float(self.table.within(policy.flatten(1), steps)[0]) / self.goal

    def steps(self, policy: Float[Tensor, "*joint"], steps: int) -> float:
        """Expected steps of episodes that reach the goal within so many, to nine digits; nan where none does."""
        reached = self.table.by_steps(policy.flatten(1), steps)
        share = reached.diff() / reached[-1]
        return round(float((share * torch.arange(1, steps + 1)).sum()), 9)

    def visits(self, steps: int) -> Float[Tensor, " S"]:
        """Share of an episode's steps, of at most so many, that the model alone spends in each state."""
        states = len(self.table)
        at = torch.zeros(states + 1, dtype=torch.float64)
        at[0] = 1
        total = torch.zeros(states, dtype=torch.float64)
        policy, reached = self.policy.flatten(1), self.table.successor.flatten()
        for _ in range(steps):
            total += at[:states]
            flow = (at[:states].unsqueeze(1) * policy).flatten()
            at = torch.zeros_like(at).index_add(0, reached, flow)
            at[states] = 0
        return total / total.sum()

    def _prefix(self, given: Sequence[int]) -> Float[Tensor, "S ..."]:
        """Values of the choices of these agents, without the axes of the others."""
        value = prefix_value(self._q, self.policy, self.agents, given)
        return value.view(len(value), *(self.table.choices,) * len(given))

    def _judged(self, critic: PlanCritic, count: int) -> Float[Tensor, "S ..."]:
        """A critic's values of every prefix of so many choices, [S,A,…]."""
        choices, agents = self.table.choices, self.agents
        rows = len(self.table) * choices**count
        shares = self.conditionals() if critic.needs_behavior else None
        given = torch.arange(agents) < count
        found = []
        for numbers in torch.arange(rows).split(ROWS):
            place, action = self._of_prefix(numbers, count)
            obs: Observation = self.world.observe(tree_map(lambda leaf, at=place: leaf[at], self.table.states))
            behavior = None if shares is None else self._behavior(shares, place, action, count)
            given_rows = given.expand(len(numbers), agents)
            found.append(critic.values(obs, action.unsqueeze(-1), given_rows, behavior).double())
        return torch.cat(found).view(len(self.table), *(choices,) * count)

    def _of_prefix(self, numbers: Int[Tensor, " B"], count: int) -> tuple[Int[Tensor, " B"], Int[Tensor, "B N"]]:
        """State and choices of prefixes, numbered with the last choice varying fastest; 0 of those not chosen yet."""
        action = torch.zeros(len(numbers), self.agents, dtype=torch.int64)
        for agent in reversed(range(count)):
            action[:, agent] = numbers % self.table.choices
            numbers = numbers // self.table.choices
        return numbers, action

    def _behavior(
        self, shares: Sequence[Tensor], place: Int[Tensor, " B"], action: Int[Tensor, "B N"], count: int
    ) -> Float[Tensor, "B N A"]:
        behavior = torch.zeros(len(place), self.agents, self.table.choices, dtype=torch.float64)
        for agent in range(count):
            behavior[:, agent] = shares[agent][(place, *action[:, :agent].unbind(1))]
        return behavior.float()


def executed(
    listed: Listed, advantages: Sequence[Float[Tensor, "S ..."]], config: MethodConfig
) -> Float[Tensor, "S ..."]:
    """Joint policy that a planner executes where its model is not swayed by what it is told of plans sent back.

    Raises ValueError where it is not known in closed form (`is_closed`).
    """
    if not is_closed(config, listed):
        raise ValueError("no closed form")
    if config.mode == "joint":
        total: Any = 0
        for agent, advantage in enumerate(advantages):
            total = total + advantage.view(*advantage.shape, *(1,) * (listed.agents - 1 - agent))
        return _changed(listed.policy.flatten(1), total.flatten(1), config).view(listed.policy.shape)
    joint: Tensor = torch.ones(len(listed.table), dtype=torch.float64)
    for share, advantage in zip(listed.conditionals(), advantages, strict=True):
        joint = joint.unsqueeze(-1) * _changed(share, advantage, config)
    return joint


def is_closed(config: MethodConfig, listed: Listed) -> bool:
    """True where the policy that a planner executes is known: it may ask until nothing is left, at one threshold.

    At temperature 0 a model proposes the next plan after the one that it is sure of, of which its policy says nothing.
    """
    if config.plans != "steps":
        return False
    if config.kind == "reweigh":
        return config.probabilities == "constrained"
    if config.temperature == 0 or not (listed.at_once or config.propose == "scored"):
        return False
    plans = listed.table.choices ** (listed.agents if config.mode == "joint" else 1)
    return config.relax == 0 and not config.repeats and config.rounds >= plans


def _changed(
    policy: Float[Tensor, "*S A"], advantage: Float[Tensor, "*S A"], config: MethodConfig
) -> Float[Tensor, "*S A"]:
    if config.kind == "reweigh":
        return reweighed(policy, advantage, config.beta)
    return filtered(policy, advantage, config.threshold)


@dataclass(frozen=True)
class Agreement:
    """A critic beside the truth, weighted by visits. signs: share that is right where the advantage matters."""

    correlation: float
    signs: float


def agreement(
    true: Float[Tensor, "*prefix"], learned: Float[Tensor, "*prefix"], weight: Float[Tensor, "*prefix"]
) -> Agreement:
    """Correlation and signs over states and choices. true: in units of the goal."""
    weight = weight / weight.sum()
    centered = [x - (weight * x).sum() for x in (true, learned)]
    product, *squares = ((weight * x * y).sum() for x, y in ((centered[0], centered[1]), *zip(centered, centered)))
    matters = true.abs() > MATTERS
    right = (true.sign() == learned.sign()) & matters
    total = float((weight * matters).sum())
    spread = math.sqrt(float(squares[0] * squares[1]))
    return Agreement(
        float(product) / spread if spread else math.nan, float((weight * right).sum()) / total if total else math.nan
    )


def exact_metrics(
    listed: Listed,
    critic: PlanCritic | None,
    config: MethodConfig,
    steps: int,
    others: Mapping[str, PlanCritic | None],
) -> dict[str, float]:
    """Success of a planner, of the model alone, and of planners whose model knows nothing; and how right the critic is.

    others: by name, the critics of these planners. `truth/` is the planner with the exact critic of the model's play.
    """
    found = {"alone/exact/success": listed.success(listed.policy, steps)}
    found["alone/exact/discounted"] = float(listed.table.evaluate(listed.policy.flatten(1), listed.discount)[0])
    found["alone/exact/most_probable/success"] = listed.success(most_probable(listed), steps)
    if critic is None:
        return found
    learned = listed.learned_advantages(critic)
    if is_closed(config, listed):
        found |= successes(listed, executed(listed, learned, config), steps)
        true = in_scale(listed, listed.true_advantages(), critic.needs_behavior)
        best = successes(listed, executed(listed, true, config), steps)
        found |= {f"truth/{name}": value for name, value in best.items()}
    nobody = replace(listed, policy=torch.full_like(listed.policy, 1 / listed.policy[0].numel()), at_once=True)
    for name, judge in others.items():
        assert judge is not None
        if is_closed(config, nobody):
            judged = nobody.learned_advantages(judge)
            found[f"{name}/exact/success"] = nobody.success(executed(nobody, judged, config), steps)
    return found | agreements(listed, learned, steps)


def successes(listed: Listed, policy: Float[Tensor, "S ..."], steps: int) -> dict[str, float]:
    """Success of a policy, and how many steps its successes take beyond the fewest there are."""
    found = {"exact/success": listed.success(policy, steps)}
    if found["exact/success"] > 0:
        fewest = listed.table.steps_to(listed.goal)
        found["exact/steps_above_fewest"] = listed.steps(policy, steps) - fewest
    return found


def in_scale(
    listed: Listed, advantages: Sequence[Float[Tensor, "S ..."]], in_order: bool
) -> list[Float[Tensor, "S ..."]]:
    """True advantages in units of the root mean square of agents' own, over all states and the model's choices.

    in_order: of agents' choices after those before them, as critics that need behavior have it, or by themselves.
    """
    squares = []
    for agent, advantage in enumerate(advantages):
        own = [*range(agent + 1)] if in_order else [agent]
        others = tuple(other + 1 for other in range(listed.agents) if other not in own)
        mass = listed.policy.sum(others) if others else listed.policy
        if not in_order:
            advantage = listed.advantage_of(agent)
        squares.append((mass * advantage.square()).sum() / len(listed.table))
    unit = torch.stack(squares).mean().sqrt()
    return [advantage / unit for advantage in advantages]


def agreements(listed: Listed, learned: Sequence[Float[Tensor, "S ..."]], steps: int) -> dict[str, float]:
    """Correlation and signs of a critic's advantages, of each agent's choice and of joint ones."""
    visits, true = listed.visits(steps), listed.true_advantages()
    found: dict[str, float] = {}
    total: list[Any] = [0, 0]
    for agent, parts in enumerate(zip(true, learned, strict=True)):
        right, said = parts
        later = tuple(range(agent + 2, listed.agents + 1))
        mass = listed.policy.sum(later) if later else listed.policy
        weight = visits.view(-1, *(1,) * (mass.dim() - 1)) * mass
        agrees = agreement(right, said, weight)
        found |= {f"exact/correlation/{agent}": agrees.correlation, f"exact/signs/{agent}": agrees.signs}
        total = [sums + part.view(*part.shape, *(1,) * len(later)) for sums, part in zip(total, parts)]
    joint = agreement(total[0], total[1], visits.view(-1, *(1,) * listed.agents) * listed.policy)
    return found | {"exact/correlation": joint.correlation, "exact/signs": joint.signs}


def most_probable(listed: Listed) -> Float[Tensor, "S ..."]:
    """The joint policy of agents who take the most probable choice, one after the other: temperature 0."""
    joint: Tensor = torch.ones(len(listed.table), dtype=torch.float64)
    for share in listed.conditionals():
        likeliest = nn.functional.one_hot(share.argmax(-1), share.shape[-1]).double()
        joint = joint.unsqueeze(-1) * likeliest
    return joint


def require_success(table: Table, goal: float, steps: int) -> None:
    """Raise InputError where an episode's return does not say whether it succeeded."""
    if not earned_once(table, goal, steps):
        raise InputError(
            f"evaluation.exact needs a task in which evaluation.goal={goal:g} is earned at once and but once, so that "
            "the expected return is the share of successes; here it is not. In the kitchen, set env.args.soups=1 and "
            "the goal to what the soup earns."
        )


def earned_once(table: Table, goal: float, steps: int) -> bool:
    """True where an episode of so many steps earns the goal at once or nothing, so that E[return] = P(success) goal."""
    close = 1e-6 * max(1.0, abs(goal))
    all_or_nothing = ((table.reward - goal).abs() <= close) | (table.reward == 0)
    return goal > 0 and bool(all_or_nothing.all()) and float(table.most(steps)[0]) <= goal + close
