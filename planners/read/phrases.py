"""The plans of a world in words, and the actions that they mean, remembered by what is observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from envs.core import Decision, Describes, InputError, Observation
from marl.models.action_critic import only_choice
from planners.read.prompts import joint_plan

KEPT = 100_000  # situations that are remembered


@runtime_checkable
class NamesChoices(Protocol):
    """A world whose choices have names, in their order, which are plans of a single step."""

    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Phrases:
    """One situation in words. plans: of each agent. actions: by agent, what each of its plans makes it do."""

    words: str
    plans: tuple[tuple[str, ...], ...]
    actions: tuple[Int[Tensor, " plans"], ...]


def require_words(world: Any) -> None:
    """Raise InputError for a world that does not describe itself."""
    if not isinstance(world, Describes):
        raise InputError(
            "Planning in words needs a world with the methods words, plans and parse (envs.core.Describes); "
            f"{type(world).__name__} has not all of them."
        )


class Phrasebook:
    """Phrases of a world that describes itself. which: all its plans, or only single steps, as the world names them.

    Raises InputError for a world without words, or one without names of steps where only these are asked for.
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
        self.which = which
        self.world = world
        self.agents: tuple[str, ...] = world.spec.agents
        self._known: dict[bytes, Phrases] = {}

    def of(self, obs: Observation) -> list[Phrases]:
        """Phrases of each row."""
        seen = torch.cat([obs.state, obs.agent.flatten(1)], 1).cpu().numpy()
        return [self._row(obs, row, key.tobytes()) for row, key in enumerate(seen)]

    def _row(self, obs: Observation, row: int, key: bytes) -> Phrases:
        if key not in self._known:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[key] = self._make(obs, row)
        return self._known[key]

    def _make(self, obs: Observation, row: int) -> Phrases:
        words = self.world.words(obs, row)
        if self.which == "steps":
            allowed = [self._steps(obs, row, agent) for agent in range(len(self.agents))]
            plans = tuple(tuple(self.world.choices[step] for step in steps) for steps in allowed)
            return Phrases(words, plans, tuple(torch.tensor(steps) for steps in allowed))
        plans = tuple(tuple(own) for own in self.world.plans(obs, row))
        for name, own in zip(self.agents, plans, strict=True):
            if not own:
                raise InputError(
                    f"{type(self.world).__name__}.plans gives {name} no plan in row {row}; an agent always needs one, "
                    "if only to wait."
                )
        return Phrases(words, plans, tuple(self._actions(obs, row, plans, agent) for agent in range(len(plans))))

    def _steps(self, obs: Observation, row: int, agent: int) -> list[int]:
        """Numbers of the choices that an agent has; where none is legal, since it is not alive, the first."""
        count = len(self.world.choices)
        legal = range(count) if obs.legal is None else obs.legal[row, agent, :count].nonzero().squeeze(1).tolist()
        return list(legal) or [0]

    def _actions(
        self, obs: Observation, row: int, plans: tuple[tuple[str, ...], ...], agent: int
    ) -> Int[Tensor, " plans"]:
        """What each plan of an agent makes it do; the others' plans are the first of each."""
        found = []
        for plan in plans[agent]:
            said = [plan if other == agent else own[0] for other, own in enumerate(plans)]
            decision = self.world.parse(joint_plan(self.agents, said), obs, row)
            if not isinstance(decision, Decision):
                raise InputError(
                    f"{type(self.world).__name__}.plans offers {self.agents[agent]} the plan {plan!r}, which its own "
                    f"parse refuses: {decision} Expected plans that parse reads."
                )
            found.append(int(decision.action[0, agent, 0]))
        return torch.tensor(found)
