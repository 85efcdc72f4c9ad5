"""The plans of a world in words, and the actions that they mean, remembered by what is observed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from envs.core import Decision, Describes, InputError, Observation
from marl.models.action_critic import only_choice
from planners.read.answers import plain
from planners.read.prompts import joint_plan

KEPT = 20_000  # situations that are remembered
MOST_TOGETHER = 4096  # combinations of plans that are weighed at once


@runtime_checkable
class NamesChoices(Protocol):
    """A world whose choices have names, in their order, which are plans of a single step."""

    choices: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Phrases:
    """One situation in words. plans: of each agent, none of one who is gone. actions: what each plan makes it do."""

    words: str
    plans: tuple[tuple[str, ...], ...]
    actions: tuple[Int[Tensor, " _"], ...]

    @cached_property
    def combinations(self) -> Int[Tensor, "joint N 1"]:
        """Actions of every combination of plans; 0 of those who are gone. Raises InputError for too many."""
        count = math.prod(max(1, len(own)) for own in self.plans)
        if count > MOST_TOGETHER:
            raise InputError(
                f"Planning jointly weighs every combination of plans, and here are {count:,}, more than "
                f"{MOST_TOGETHER:,}. Set mode=sequential, or plans=steps."
            )
        own = [actions if len(actions) else torch.zeros(1, dtype=torch.int64) for actions in self.actions]
        return torch.cartesian_prod(*own).view(count, -1, 1)


def require_words(world: Any) -> None:
    """Raise InputError for a world that does not describe itself."""
    if not isinstance(world, Describes):
        raise InputError(
            "Planning in words needs a world with the methods words, plans and parse (envs.core.Describes); "
            f"{type(world).__name__} has not all of them."
        )


class Phrasebook:
    """Phrases of a world that describes itself. which: all its plans, or only single steps, as the world names them.

    What a plan means must not depend on the others' plans. Raises InputError for a world without words, whose agents
    make more than one choice, or without names of steps where only these are asked for.
    """

    def __init__(self, world: Any, which: Literal["all", "steps"] = "all"):
        require_words(world)
        if which == "steps" and not isinstance(world, NamesChoices):
            raise InputError(
                f"plans=steps needs a world that names its single steps, as Kitchen.choices does; "
                f"{type(world).__name__} names none. Set plans=all."
            )
        if which == "steps" and len(world.choices) != only_choice(world.spec.action):
            raise InputError(
                f"plans=steps needs a name for each choice of an agent; {type(world).__name__} names "
                f"{len(world.choices)} of {only_choice(world.spec.action)}."
            )
        if which == "steps" and (fault := _fault(world.choices)):
            raise InputError(f"{type(world).__name__}.choices, names of single steps, gives {fault}.")
        self.which = which
        only_choice(world.spec.action)
        self.world, self.name = world, type(world).__name__
        self.agents: tuple[str, ...] = world.spec.agents
        self._known: dict[bytes, Phrases] = {}

    def of(self, obs: Observation) -> list[Phrases]:
        """Phrases of each row."""
        columns = [obs.state, obs.agent.flatten(1), obs.alive.to(obs.state)]
        if obs.legal is not None:
            columns.append(obs.legal.flatten(1).to(obs.state))
        seen = torch.cat(columns, 1).cpu().numpy()
        return [self._row(obs, row, key.tobytes()) for row, key in enumerate(seen)]

    def _row(self, obs: Observation, row: int, key: bytes) -> Phrases:
        if key not in self._known:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[key] = self._make(obs, row)
        return self._known[key]

    def _make(self, obs: Observation, row: int) -> Phrases:
        words = self.world.words(obs, row)
        if not isinstance(words, str):
            raise InputError(f"{self.name}.words must give a text; it gave {type(words).__name__}.")
        present = obs.alive[row].tolist()
        if self.which == "steps":
            steps = [self._steps(obs, row, agent) if here else [] for agent, here in enumerate(present)]
            plans = tuple(tuple(self.world.choices[step] for step in own) for own in steps)
            return Phrases(words, plans, tuple(torch.tensor(own, dtype=torch.int64) for own in steps))
        offered = self._offered(obs, row, present)
        actions = [self._actions(obs, row, offered, agent) for agent in range(len(offered))]
        return Phrases(words, offered, tuple(actions))

    def _steps(self, obs: Observation, row: int, agent: int) -> list[int]:
        """Numbers of the choices that an agent has."""
        count = len(self.world.choices)
        if obs.legal is None:
            return list(range(count))
        return obs.legal[row, agent, :count].nonzero().squeeze(1).tolist()

    def _offered(self, obs: Observation, row: int, present: list[bool]) -> tuple[tuple[str, ...], ...]:
        """The world's plans of each agent who is there. Raises InputError for plans that nobody could name."""
        given = self.world.plans(obs, row)
        if not isinstance(given, list | tuple) or len(given) != len(self.agents):
            raise InputError(f"{self.name}.plans must give a list of plans for each of {', '.join(self.agents)}.")
        offered = []
        for name, own, here in zip(self.agents, given, present, strict=True):
            fault = _fault(own) if here else None
            if fault:
                raise InputError(f"In row {row}, {self.name}.plans gives {name} {fault}.")
            offered.append(tuple(own) if here else ())
        return tuple(offered)

    def _actions(
        self, obs: Observation, row: int, plans: tuple[tuple[str, ...], ...], agent: int
    ) -> Int[Tensor, " plans"]:
        """What each plan of an agent makes it do, beside the first plans of the others."""
        found = []
        present = [other for other, own in enumerate(plans) if own]
        names = [self.agents[other] for other in present]
        for plan in plans[agent]:
            said = [plan if other == agent else plans[other][0] for other in present]
            decision = self.world.parse(joint_plan(names, said), obs, row)
            if not isinstance(decision, Decision):
                reason = f"it says {decision!r}" if isinstance(decision, str) else f"it gives {decision!r}"
                raise InputError(
                    f"{self.name}.plans offers {self.agents[agent]} the plan {plan!r}, which its own parse refuses; "
                    f"{reason}. Expected plans that parse reads as a Decision, whatever the others' are."
                )
            found.append(self._choice(decision.action, agent, plan))
        return torch.tensor(found, dtype=torch.int64)

    def _choice(self, action: Any, agent: int, plan: str) -> int:
        """The number of the choice that a plan means."""
        shape = (1, len(self.agents), 1)
        if not isinstance(action, Tensor) or tuple(action.shape) != shape or action.is_floating_point():
            raise InputError(
                f"{self.name}.parse must give a Decision with whole numbers {list(shape)}; for the plan {plan!r} it "
                f"gave {list(action.shape) if isinstance(action, Tensor) else type(action).__name__}."
            )
        return int(action[0, agent, 0])


def _fault(plans: Any) -> str | None:
    """A fault of an agent's plans, as the rest of a sentence; None for plans that will do."""
    if not isinstance(plans, list | tuple) or not all(isinstance(plan, str) for plan in plans):
        return "something else than a list of texts"
    if not plans:
        return "no plan; an agent always needs one, if only to wait"
    for plan in plans:
        if plain(plan) != plan.lower() or not plan:
            return f"the plan {plan!r}; a plan is one line, without spaces or marks around it"
    twice = [plan for plan, count in Counter(plan.lower() for plan in plans).items() if count > 1]
    return f"the plan {twice[0]!r} twice" if twice else None
