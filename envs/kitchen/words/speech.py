"""What is said about a kitchen, and what is meant by plans in words; see `envs.core.Describes`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from envs.core import Decision, Observation, tree_map
from envs.kitchen.rules.state import State
from envs.kitchen.words.errands import Verb
from envs.kitchen.words.language import Words, closest, plan_lines, scene_of, state_of_scene

if TYPE_CHECKING:
    from envs.kitchen.world import Kitchen

LATEST = 64  # situations, each as one cook knows it


class Speech:
    """Words, plans and their meaning, from observations alone."""

    def __init__(self, kitchen: Kitchen):
        self.kitchen = kitchen
        self.language = Words(kitchen.geometry, kitchen.codes, kitchen.soups)
        self._latest: dict[tuple[int, bytes], tuple[State, dict[str, int]]] = {}

    def words(self, obs: Observation, row: int, agent: int | None) -> str:
        """One row in words, or what one cook sees of it."""
        if agent is None:
            return self.language.describe(scene_of(self._state(obs, row), 0))
        return self.language.describe(self.kitchen.scene(obs, row, agent), agent)

    def plans(self, obs: Observation, row: int) -> list[list[str]]:
        """By cook, steps and errands."""
        return [[*self._steps, *self._open(obs, row, cook)[1]] for cook in range(len(self.kitchen.spec.agents))]

    def parse(self, text: str, obs: Observation, row: int) -> Decision | str:
        """The decision that lines mean, or the reason why they are refused."""
        names = self.kitchen.spec.agents
        lines = plan_lines(text, names)
        if isinstance(lines, str):
            return lines
        choices, errands = [], []
        for cook, name in enumerate(names):
            state, opened = self._open(obs, row, cook)
            plan, known = lines[name], [*self._steps, *opened]
            if plan not in known:
                return f"{name} cannot {plan[:80]!r} now.{closest(plan, known)} It can: {', '.join(known)}."
            errand = opened.get(plan, -1)
            choices.append(self._steps.index(plan) if plan in self._steps else self._first_step(state, cook, errand))
            errands.append(errand)
        return Decision(torch.tensor(choices).view(1, -1, 1), torch.tensor([errands]))

    def _first_step(self, state: State, cook: int, errand: int) -> int:
        """The first step of a cook's errand."""
        every = torch.full_like(state.pose, errand)
        return int(self.kitchen.errands.steer(state, every).choice[0, cook])

    @property
    def _steps(self) -> tuple[str, ...]:
        return self.kitchen.choices

    def _state(self, obs: Observation, row: int) -> State:
        return tree_map(Tensor.cpu, self.kitchen.state_of(obs.state[row : row + 1]))

    def _open(self, obs: Observation, row: int, cook: int) -> tuple[State, dict[str, int]]:
        """The state as a cook knows it, and by plan in words the number of each errand that is open to it.

        What is out of sight is taken for empty, and offers nothing. The latest are remembered: whoever plans asks for
        the plans of a situation, and then what each of them means.
        """
        seen = torch.cat([obs.state[row], obs.agent[row, cook]])
        key = cook, seen.cpu().numpy().tobytes()
        if key not in self._latest:
            if len(self._latest) >= LATEST:
                self._latest.clear()
            self._latest[key] = self._find_open(obs, row, cook)
        return self._latest[key]

    def _find_open(self, obs: Observation, row: int, cook: int) -> tuple[State, dict[str, int]]:
        kitchen, hidden = self.kitchen, set()
        if kitchen.radius is None:
            state = self._state(obs, row)
        else:
            scene = kitchen.scene(obs, row, cook)
            hidden = {slot for slot, code in enumerate(scene.things) if code is None}
            state = state_of_scene(scene, cook)
        plans: dict[str, int] = {}
        for number in kitchen.errands.open(state)[0, cook].nonzero().squeeze(1).tolist():
            errand = kitchen.errands.list[number]
            slot = None if errand.cell is None else kitchen.geometry.slot.get(errand.cell)
            # Whether one more may lie on counters, only who sees them all knows.
            full = errand.verb == Verb.PUT and kitchen.counter_items is not None and bool(hidden)
            if slot not in hidden and not full:
                there = 0 if slot is None else int(state.things[0, slot])
                plans[self.language.plan(errand, int(state.held[0, cook]), there)] = number
        return state, plans
