"""Scripted cooks for others to meet: they remember nothing, so that each is a table of probabilities.

greedy     does what helps most: serves, plates, cooks, adds, fetches what is missing, and passes on what it cannot use
onions     of these only what concerns ingredients and pots
plates     of these only dishes and soups
blocker    stands where a pot is used, and stays there
random     any choice alike
idle       stays
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from envs.constants import Constants
from envs.core import Decision, InputError, Observation, Streams, Tree
from envs.kitchen.rules.codes import NOTHING
from envs.kitchen.rules.geometry import ACTIONS
from envs.kitchen.rules.layout import DISPENSERS, FLOOR, Cell
from envs.kitchen.rules.menu import Mixture
from envs.kitchen.rules.state import State
from envs.kitchen.words.errands import FAR, STAY, Verb

if TYPE_CHECKING:  # a kitchen comes with its scripted cooks
    from envs.kitchen.world import Kitchen

SCRIPTS = ("greedy", "onions", "plates", "blocker", "random", "idle")
# How often a step at random takes the place of one, and of staying: two in each other's way would be so for ever.
SWERVES, RESTLESS = 0.1, 0.25
# By verb: what matters more comes first, whatever the way; of equals the nearest.
RANKS = [{Verb.SERVE: 6, Verb.PLATE: 5, Verb.START: 4, Verb.ADD: 3, Verb.TAKE: 2, Verb.PUT: 1}.get(v, 0) for v in Verb]


class ScriptTables(NamedTuple):
    """By errand: its verb, its slot, whether that is a counter, one that two rooms share, or a pot, and what its
    dispenser gives. By order and code of a pot: how much of each ingredient it still takes, which foods may be added,
    whether it is to be started, and whether it asks for a dish. uses: things that a cook needs nobody else for."""

    verb: Int[Tensor, " errands"]
    slot: Int[Tensor, " errands"]
    counter: Bool[Tensor, " errands"]
    shared: Bool[Tensor, " errands"]
    pot: Bool[Tensor, " errands"]
    gives: Int[Tensor, " errands"]
    misses: Int[Tensor, "orders codes foods"]
    useful: Bool[Tensor, "orders codes items"]
    finished: Bool[Tensor, "orders codes"]
    asks: Bool[Tensor, "orders codes"]
    uses: Bool[Tensor, "N items"]


class ScriptedCook:
    """An Actor that plays every cook by one of the scripts; in an `envs.team.Team` it is one cook among others.

    Raises InputError for a script that there is none of.
    """

    def __init__(self, kitchen: Kitchen, script: str = "greedy"):
        if script not in SCRIPTS:
            near = difflib.get_close_matches(script, SCRIPTS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"A scripted cook is one of {', '.join(SCRIPTS)}; got {script!r}.{hint}")
        self.kitchen, self.script = kitchen, script
        self._tables = Constants(self._build_tables())

    def initial_memory(self, num_envs: int) -> None:
        """Nothing is remembered."""

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Choices by the script's probabilities."""
        odds = self.probabilities(self.kitchen.state_of(obs.state))
        # The least of exponential clocks of rates p is the choice that has probability p.
        clocks = streams.exponential(odds.shape) / odds
        return Decision(clocks.argmin(-1, keepdim=True)), memory

    def probabilities(self, state: State) -> Float[Tensor, "E N 6"]:
        """The probability of each choice of each cook."""
        if self.script == "random":
            return torch.full((*state.pose.shape, len(ACTIONS)), 1 / len(ACTIONS), device=state.pose.device)
        stays = torch.full_like(state.pose, STAY)
        if self.script == "idle":
            return _one_hot(stays)
        if self.script == "blocker":
            return _one_hot(self.kitchen.errands.approach(state, self._a_pot(state)))
        errand = self._choose(state)
        choice = self.kitchen.errands.steer(state, errand).choice
        waiting = self._wait_at_a_pot(state)
        choice = torch.where((errand == 0) & (waiting > 0), self.kitchen.errands.approach(state, waiting), choice)
        strays = torch.tensor([SWERVES] * 4 + [RESTLESS, 0.0], device=choice.device)[choice].unsqueeze(-1)
        anywhere = torch.arange(len(ACTIONS), device=choice.device) <= STAY
        return (1 - strays) * _one_hot(choice) + strays * anywhere / (STAY + 1)

    def _choose(self, state: State) -> Int[Tensor, "E N"]:
        """The errand that is worth most, of equals the nearest; 0, waiting, where none is worth anything."""
        errands, tables = self.kitchen.errands, self._tables.on(state.pose.device)
        steps = errands.steps(state)
        wanted = self._wanted(state) & errands.open(state)
        rank = torch.tensor(RANKS, device=steps.device)[tables.verb] * FAR - steps.clamp(max=FAR // 2)
        best, errand = torch.where(wanted, rank, 0).max(-1)
        return torch.where(best > 0, errand, 0)

    def _wanted(self, state: State) -> Bool[Tensor, "E N errands"]:
        """Errands that would help: of what is missing no more is fetched than is under way."""
        tables, codes = self._tables.on(state.pose.device), self.kitchen.codes
        pots = len(self.kitchen.geometry.pots)
        order, in_pots = state.order.unsqueeze(-1), state.things[:, :pots]
        missing = tables.misses[order, in_pots].sum(1)
        asked = tables.asks[order, in_pots].sum(1)
        # Of each item, how many are missing: ingredients, then dishes; soups are always wanted.
        needs = torch.full((len(order), codes.items), FAR, device=order.device)
        needs[:, 0], needs[:, 1 : codes.dish], needs[:, codes.dish] = 0, missing, asked
        held = _counts(state.held, codes.items)
        lying = _counts(state.things[:, pots:], codes.items)
        there = state.things[:, tables.slot]
        item = torch.where(tables.counter, there.clamp(max=codes.items - 1), tables.gives)
        short = torch.where(tables.counter, (needs - held).gather(1, item), (needs - held - lying).gather(1, item)) > 0
        usable = tables.uses[:, item].transpose(0, 1) | ~tables.counter
        take = short.unsqueeze(1) & usable & self._concerns(item).unsqueeze(1)
        own = state.held
        uses = tables.uses[torch.arange(own.shape[1], device=own.device), own]
        idle = (needs.gather(1, own) == 0) & uses
        put = (~uses.unsqueeze(-1) & tables.shared) | (idle.unsqueeze(-1) & tables.counter)
        on = there.unsqueeze(1).expand(-1, own.shape[1], -1)
        by_order = order.unsqueeze(-1).expand_as(on)
        add = tables.useful[by_order, on, own.unsqueeze(-1).expand_as(on)]
        start = tables.finished[by_order, on] & self._concerns(torch.ones_like(on))
        verb = tables.verb
        wanted = ((verb == Verb.TAKE) & take) | ((verb == Verb.PUT) & put) | ((verb == Verb.ADD) & add)
        return wanted | ((verb == Verb.START) & start) | (verb == Verb.PLATE) | (verb == Verb.SERVE)

    def _concerns(self, item: Int[Tensor, "*B"]) -> Bool[Tensor, "*B"]:
        """Things that the script deals with."""
        food = item < self.kitchen.codes.dish
        if self.script == "greedy":
            return torch.ones_like(food)
        return food if self.script == "onions" else ~food

    def _wait_at_a_pot(self, state: State) -> Int[Tensor, "E N"]:
        """An errand at the nearest pot that asks for the dish a cook holds; 0 for all others."""
        tables = self._tables.on(state.pose.device)
        asks = tables.asks[state.order.unsqueeze(-1), state.things[:, tables.slot]] & tables.pot
        holds = (state.held == self.kitchen.codes.dish).unsqueeze(-1)
        return self._nearest(state, holds & asks.unsqueeze(1))

    def _a_pot(self, state: State) -> Int[Tensor, "E N"]:
        """Some errand at the nearest pot."""
        pots = self._tables.on(state.pose.device).pot
        return self._nearest(state, pots.expand(*state.pose.shape, -1))

    def _nearest(self, state: State, among: Bool[Tensor, "E N errands"]) -> Int[Tensor, "E N"]:
        steps = torch.where(among, self.kitchen.errands.steps(state), FAR)
        least, errand = steps.min(-1)
        return torch.where(least < FAR, errand, 0)

    def _build_tables(self) -> ScriptTables:
        kitchen, codes, geometry = self.kitchen, self.kitchen.codes, self.kitchen.geometry
        menu, layout = codes.menu, geometry.layout
        aims = [[self._aim(code, values) for code in range(codes.count)] for values in menu.values]
        tiles = [FLOOR if errand.cell is None else layout.tile(errand.cell) for errand in kitchen.errands.list]
        rooms = [[cell for floor in region for cell in layout.around(floor)] for region in layout.regions]
        different = {frozenset(room): room for room in rooms}.values()
        foods = len(menu.ingredients)
        return ScriptTables(
            verb=torch.tensor([int(errand.verb) for errand in kitchen.errands.list]),
            slot=torch.tensor([geometry.slot.get(e.cell, 0) if e.cell else 0 for e in kitchen.errands.list]),
            counter=torch.tensor([tile == "X" for tile in tiles]),
            shared=torch.tensor([sum(e.cell in room for room in different) > 1 for e in kitchen.errands.list])
            & torch.tensor([tile == "X" for tile in tiles]),
            pot=torch.tensor([tile == "P" for tile in tiles]),
            gives=torch.tensor([self._given_at(tile) for tile in tiles]),
            misses=torch.tensor([[list(aim or (0,) * foods) for aim in row] for row in aims]),
            useful=torch.tensor([[self._takes(aim) for aim in row] for row in aims]),
            finished=torch.tensor(
                [[codes.is_cold(code) and not any(aim or ()) for code, aim in enumerate(row)] for row in aims]
            ),
            asks=torch.tensor(
                [[code >= codes.items and not any(aim or ()) for code, aim in enumerate(row)] for row in aims]
            ),
            uses=torch.tensor([[self._can_use(room, item) for item in range(codes.items)] for room in rooms]),
        )

    def _aim(self, code: int, values: tuple[int | float, ...]) -> Mixture | None:
        """Ingredients that a cold pot still takes to be worth the most that it can; None where nothing helps."""
        codes, menu = self.kitchen.codes, self.kitchen.menu
        if code and not codes.is_cold(code):
            return None
        have = codes.mixture_of(code)
        options = [
            (value, -sum(mixture), tuple(want - has for want, has in zip(mixture, have)))
            for mixture, value in zip(menu.mixtures, values)
            if value > 0 and all(has <= want for has, want in zip(have, mixture))
        ]
        return max(options)[2] if options else None

    def _takes(self, aim: Mixture | None) -> list[bool]:
        items = range(self.kitchen.codes.items)
        missing = dict(enumerate(aim or (), start=1))
        return [missing.get(item, 0) > 0 for item in items]

    def _given_at(self, tile: str) -> int:
        if tile in DISPENSERS:
            return self.kitchen.codes.food(self.kitchen.menu.ingredients.index(DISPENSERS[tile]))
        return self.kitchen.codes.dish if tile == "D" else NOTHING

    def _can_use(self, room: list[Cell], item: int) -> bool:
        """A soup goes to a desk, anything else to a pot."""
        tiles = {self.kitchen.layout.tile(cell) for cell in room}
        return ("S" if self.kitchen.codes.soup_of(item) is not None else "P") in tiles


def _one_hot(choice: Int[Tensor, "E N"]) -> Float[Tensor, "E N 6"]:
    return torch.nn.functional.one_hot(choice, len(ACTIONS)).float()


def _counts(codes: Int[Tensor, "E n"], most: int) -> Int[Tensor, "E most"]:
    """Number of each code."""
    return torch.nn.functional.one_hot(codes, most).sum(1)
