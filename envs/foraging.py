"""Level-based foraging, in step with the package `lbforaging`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from envs.constants import Constants
from envs.core import Discrete, EnvSpec, InputError, Observation
from envs.drawing import blank_axes, pixels
from envs.world import Transition, World

# What each choice adds to (row, column): wait, north, south, west, east, load.
MOVES = torch.tensor([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1], [0, 0]])
LOAD = 5


class Field(NamedTuple):
    """Places of foods and agents, as (row, column), and their levels.

    Food of level 0 is gone. Foods are in reading order. total: the levels of all food at the start.
    """

    food: Int[Tensor, "E F 2"]
    food_level: Int[Tensor, "E F"]
    place: Int[Tensor, "E N 2"]
    level: Int[Tensor, "E N"]
    total: Int[Tensor, " E"]


class Foraging(World[Field]):
    """N foragers of different levels collect F foods on a size x size grid, together where one is not enough.

    Choices: 0 waits, 1-4 go north, south, west, east, 5 loads. Whoever cannot go there (border, food) or has no food
    next to it waits. Foragers who would enter the same cell all stay; otherwise one may enter a cell that its owner
    leaves, or means to leave. Those who load next to a food of at most their summed level take it: each earns
    level · food / (summed level · all food), so that a whole field is worth 1. Too weak, each pays `penalty`.
    An episode ends when the food is gone, and after `horizon` steps.

    Levels: foragers uniform in 1..`highest_level`; food is the sum of the three lowest foragers' if `cooperative`, else
    uniform up to that sum. Foragers start anywhere, then food away from the border, from foragers and from other food.

    An agent sees (row, column, level) of every food within `sight` rows and columns, in reading order, (-1, -1, 0) for
    those that are gone or far; then its own and the other foragers' likewise, all from the corner of its window (with
    full sight, of the field). It never sees the clock. The critic sees the whole field, the food's total and the clock.
    Foragers are of one kind: each comes first in its own view.

    Foraging() is the task Foraging-8x8-2p-2f-coop-v3, and agrees with lbforaging 2.0.0 in every observation, reward and
    end. That package reports its 50th step as an end of the task, as does our horizon; for a mere limit, which
    truncates, pass horizon=None and a time limit. Two of its rules are kept for the sake of agreement: two foragers can
    come to share a cell (one enters as the other's way out is blocked by a third), and near the upper and left border
    foragers are seen up to 2 · sight cells from it. Departure: where crowded food finds no place, it is left out at
    once instead of after 1,000 attempts.

    Source: Albrecht and Ramamoorthy, AAMAS 2013; Papoudakis et al., NeurIPS 2021. Raises InputError for sizes and
    levels that make no field.
    """

    shows_clock = False

    def __init__(
        self,
        size: int = 8,
        agents: int = 2,
        foods: int = 2,
        cooperative: bool = True,
        sight: int | None = None,
        highest_level: int = 2,
        penalty: float = 0.0,
        horizon: int | None = 50,
    ):
        _require("size", size, 3)
        _require("agents", agents, 1)
        _require("foods", foods, 1)
        _require("sight", size if sight is None else sight, 1)
        _require("highest_level", highest_level, 1)
        _require("horizon", 1 if horizon is None else horizon, 1)
        if agents + foods > size * size:
            raise InputError(f"{agents} foragers and {foods} foods do not fit in {size} x {size} cells; got {size=}.")
        self.size, self.foods, self.cooperative = size, foods, cooperative
        self.sight = size if sight is None else sight
        self.highest_level, self.penalty = highest_level, penalty
        self.spec = EnvSpec(
            agents=tuple(f"agent_{i}" for i in range(agents)),
            kind=(0,) * agents,
            channels=("food",),
            observation_sizes=(3 * (foods + agents),) * agents,
            actions=(Discrete((6,)),) * agents,
            state_size=3 * (foods + agents) + 1,
            horizon=horizon,
        )
        self._constants = Constants(self._lasting())

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E things draws"]:
        """Uniform numbers in [0, 1): for each forager, then each food, one a cell and one for its level."""
        things = len(self.spec.agents) + self.foods
        return torch.rand(num, things, self.size**2 + 1, generator=generator, device=generator.device)

    def initial(self, noise: Float[Tensor, "E things draws"]) -> Field:
        """Foragers and food one after the other, each uniform over the cells that are still open to it."""
        constants = self._constants.on(noise.device)
        agents = len(self.spec.agents)
        luck, fate = noise[..., :-1], noise[..., -1]
        empty = torch.ones_like(luck[:, 0], dtype=torch.bool)
        cells = []
        for agent in range(agents):
            cells.append(_one_of(empty, luck[:, agent]))
            empty = empty.scatter(1, cells[-1].unsqueeze(1), False)
        level = _up_to(fate[:, :agents], torch.full_like(cells[0], self.highest_level).unsqueeze(1))
        strength = level.sort(-1).values[:, :3].sum(-1, keepdim=True)
        levels = strength.expand(-1, self.foods) if self.cooperative else _up_to(fate[:, agents:], strength)
        open_cells = empty & constants.inner
        food_cells, food_levels = [], []
        for food in range(self.foods):
            cell = _one_of(open_cells, luck[:, agents + food])
            # Where no cell is open, the food has level 0 and comes last in reading order.
            exists = open_cells.any(-1)
            food_cells.append(torch.where(exists, cell, self.size**2))
            food_levels.append(levels[:, food] * exists)
            open_cells = open_cells & ~(constants.near[cell] & exists.unsqueeze(-1))
        cell, order = torch.stack(food_cells, -1).sort(-1)
        food_level = torch.stack(food_levels, -1).gather(-1, order)
        return Field(self._place(cell), food_level, self._place(torch.stack(cells, -1)), level, food_level.sum(-1))

    def transition(self, state: Field, action: Num[Tensor, "E N 1"], noise: None) -> Transition:
        """First all who go, then all who load."""
        choice = action.squeeze(-1)
        left, reward = self._load(state, choice == LOAD)
        over = (left == 0).all(-1, keepdim=True).expand_as(choice)
        return Transition(state._replace(food_level=left, place=self._go(state, choice)), reward.unsqueeze(-1), over)

    def observe(self, state: Field) -> Observation:
        """Every agent from its own window; the critic from above."""
        corner = (state.place - self.sight).clamp(min=0).unsqueeze(2)
        near = ((state.food.unsqueeze(1) - state.place.unsqueeze(2)).abs() <= self.sight).all(-1)
        level = state.food_level.unsqueeze(1).expand_as(near)
        foods = _listed(state.food.unsqueeze(1) - corner, level, near & (level > 0))
        own_first = self._constants.on(corner.device).own_first
        place = state.place[:, own_first] - corner
        agents = _listed(place, state.level[:, own_first], ((place >= 0) & (place <= 2 * self.sight)).all(-1))
        everyone = torch.ones_like(state.level, dtype=torch.bool)
        whole = [
            _listed(state.food, state.food_level, state.food_level > 0),
            _listed(state.place, state.level, everyone),
            state.total.unsqueeze(-1),
        ]
        return Observation(torch.cat([foods, agents], -1).float(), torch.cat(whole, -1).float(), everyone)

    def frame(self, state: Field) -> Any:
        """Food as green squares, foragers as blue discs, with their levels."""
        axes = blank_axes((-0.5, self.size - 0.5), (self.size - 0.5, -0.5))
        for line in range(self.size + 1):
            axes.axhline(line - 0.5, color="lightgray", zorder=0)
            axes.axvline(line - 0.5, color="lightgray", zorder=0)
        foragers = (state.place, state.level, "o", "tab:blue")
        for places, levels, marker, color in ((state.food, state.food_level, "s", "tab:green"), foragers):
            for (row, column), level in zip(places[0].tolist(), levels[0].tolist()):
                if level:
                    axes.scatter(column, row, s=(200 / self.size) ** 2, marker=marker, c=color)
                    axes.text(column, row, str(level), ha="center", va="center", color="white")
        return pixels(axes)

    def _go(self, state: Field, choice: Int[Tensor, "E N"]) -> Int[Tensor, "E N 2"]:
        """Places of the agents after moving."""
        goal = state.place + self._constants.on(choice.device).moves[choice]
        on_food = (_distance(goal, state.food) == 0) & (state.food_level > 0).unsqueeze(1)
        valid = ((goal >= 0) & (goal < self.size)).all(-1) & ~on_food.any(-1)
        goal = torch.where(valid.unsqueeze(-1), goal, state.place)
        alone = (_distance(goal, goal) == 0).sum(-1) == 1
        return torch.where(alone.unsqueeze(-1), goal, state.place)

    def _load(self, state: Field, loading: Bool[Tensor, "E N"]) -> tuple[Int[Tensor, "E F"], Float[Tensor, "E N"]]:
        """The food that is left, and what each agent earns. Food lies so far apart that nobody is next to two."""
        beside = (_distance(state.place, state.food) == 1) & (state.food_level > 0).unsqueeze(1)
        loads = beside & loading.unsqueeze(-1)
        level = state.level.unsqueeze(-1)
        strength = (loads * level).sum(1, keepdim=True)
        food = state.food_level.unsqueeze(1)
        taken = (strength >= food) & (strength > 0)
        share = level * food / (strength * state.total.view(-1, 1, 1)).clamp(min=1)
        reward = (loads * torch.where(taken, share, 0.0 - self.penalty)).sum(-1)
        return state.food_level * ~taken.squeeze(1), reward

    def _place(self, cell: Int[Tensor, "*B"]) -> Int[Tensor, "*B 2"]:
        return torch.stack([cell // self.size, cell % self.size], -1)

    def _lasting(self) -> _Constants:
        cells = self._place(torch.arange(self.size**2))
        apart = (cells.unsqueeze(1) - cells).abs()
        agents = range(len(self.spec.agents))
        return _Constants(
            MOVES,
            ((cells > 0) & (cells < self.size - 1)).all(-1),
            (apart.amax(-1) <= 1) | ((apart.amin(-1) == 0) & (apart.amax(-1) <= 2)),
            torch.tensor([[i, *(j for j in agents if j != i)] for i in agents]),
        )


class _Constants(NamedTuple):
    """Tensors that no step changes."""

    moves: Int[Tensor, "6 2"]
    inner: Bool[Tensor, " cells"]  # where food may lie
    near: Bool[Tensor, "cells cells"]  # too near one another for two foods
    own_first: Int[Tensor, "N N"]  # agent i's order of the agents: itself, then the others


def _distance(one: Int[Tensor, "E A 2"], other: Int[Tensor, "E B 2"]) -> Int[Tensor, "E A B"]:
    """Steps from each to each."""
    return (one.unsqueeze(2) - other.unsqueeze(1)).abs().sum(-1)


def _listed(place: Int[Tensor, "*B 2"], level: Int[Tensor, "*B"], seen: Bool[Tensor, "*B"]) -> Int[Tensor, "*C"]:
    """(row, column, level) of those that are seen, in order, side by side; then (-1, -1, 0) for each of the rest."""
    place = torch.where(seen.unsqueeze(-1), place, -1)
    entries = torch.cat([place, (level * seen).unsqueeze(-1)], -1)
    seen_first = (~seen).to(torch.uint8).sort(dim=-1, stable=True).indices
    return entries.gather(-2, seen_first.unsqueeze(-1).expand_as(entries)).flatten(-2)


def _one_of(open_cells: Bool[Tensor, "E cells"], luck: Float[Tensor, "E cells"]) -> Int[Tensor, " E"]:
    """A uniform choice among the open cells."""
    return luck.masked_fill(~open_cells, -1.0).argmax(-1)


def _up_to(fate: Float[Tensor, "E things"], most: Int[Tensor, "E 1"]) -> Int[Tensor, "E things"]:
    """A uniform choice among 1, ..., most."""
    return torch.minimum((fate * most).long() + 1, most)


def _require(name: str, number: int, least: int) -> None:
    if number < least:
        raise InputError(f"{name} is at least {least}; got {name}={number}.")
