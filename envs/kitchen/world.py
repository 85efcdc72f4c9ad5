"""The kitchen of Overcooked-AI as one batched world."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num, UInt8
from torch import Tensor

from envs.arguments import require_arguments
from envs.constants import Constants
from envs.core import Actor, Decision, Discrete, EnvSpec, InputError, Observation
from envs.kitchen.bound import MOST, LeastSteps
from envs.kitchen.rules.codes import NOTHING, Ahead, Codes
from envs.kitchen.rules.events import are_useful, event_table
from envs.kitchen.rules.geometry import ACTIONS, Geometry
from envs.kitchen.rules.layout import DISPENSERS, Layout, cut_off, read_layout
from envs.kitchen.rules.menu import Menu, build_menu
from envs.kitchen.rules.starts import Starts
from envs.kitchen.rules.state import State
from envs.kitchen.rules.state_code import StateCode
from envs.kitchen.rules.tables import build_tables, entries_of
from envs.kitchen.views.features import Features
from envs.kitchen.views.overcooked import OvercookedFeatures, Planes
from envs.kitchen.words.errands import INTERACT, STAY, Errands
from envs.kitchen.words.language import Scene
from envs.kitchen.words.speech import Speech
from envs.tabular import Digits, Table, fewest_steps, tabulate
from envs.world import Transition, World

VIEWS = ("features", "overcooked", "planes")
STARTS = ("layout", "random")
SHAPING = {"potting": 3.0, "dish": 3.0, "plating": 5.0}


class Hands(NamedTuple):
    """State of hands and things after the cooks' hands acted, before the pots are heated.

    entry: each cook's place in the tables of rules. worth: of what each served; shaping: what else each earned.
    """

    held: Int[Tensor, "E N"]
    things: Int[Tensor, "E slots"]
    entry: Int[Tensor, "E N"]
    worth: Float[Tensor, "E N"]
    shaping: Float[Tensor, "E N"]


class Kitchen(World[State]):
    """Two to four cooks make soup together: put ingredients into a pot, start it, plate the soup when it is ready, and
    serve it.

    Choices: 0-3 go north, south, east, west, 4 stays, 5 interacts with the cell ahead. A step is resolved as in
    Overcooked-AI: first the hands, one cook after the other, each with what the one before has left; then all turn to
    where they want to go, and go, unless two would meet in a cell or swap cells: then nobody moves; then what cooks
    does so for one step more.

    Channels: `soup`, the worth of the ordered soups served, earned by all; `shaping`, earned by whoever adds to a pot
    (3), takes a dish that a pot calls for (3, with two cooks) or plates a soup (5).

    layout: a name (`layout_names()`), or text of one line a row. recipe: {orders, bonus, capacity, value, cook_time,
    one_an_episode} as `build_menu` has them, beyond those of the layout; with one_an_episode, each episode wants one of
    the orders, which whoever sees a recipe board (tile R) knows. old_dynamics: a full pot starts by itself.
    horizon: steps of an episode, or None. soups: the episode also ends when so many ordered soups were served.
    counter_items: at most so many things lie on counters at once, and one more stays in hand (None: Overcooked's rule).

    view: what agents see: features (see `Features`), overcooked (its 96 numbers) or planes (its 26 planes, flat).
    radius: they see so many rows and columns far (features only). starts: layout, or random: any legal state.
    The critic sees a code of the whole state that loses nothing; `state_of` is its inverse.

    In words: `words`, `plans` and `parse` (see `envs.core.Describes`); `errands` are numbered plans of several steps.

    Source: Carroll et al., NeurIPS 2019 (arXiv 1910.05789), and the package overcooked 0.2.1, with which it agrees in
    every state, reward and event. Raises InputError for a layout or options that make no kitchen.
    """

    choices = ACTIONS

    def __init__(
        self,
        layout: str = "cramped_room",
        *,
        recipe: Mapping[str, Any] | None = None,
        old_dynamics: bool = False,
        shaping: Mapping[str, int | float] | None = None,
        horizon: int | None = 400,
        soups: int | None = None,
        counter_items: int | None = None,
        view: str = "features",
        radius: int | None = None,
        starts: str = "layout",
    ):
        self.layout = read_layout(layout)
        _require_mapping(recipe=recipe, shaping=shaping)
        _require_truth(old_dynamics=old_dynamics)
        known = {key: value for key, value in {**self.layout.recipe, **(recipe or {})}.items() if key != "layout"}
        require_arguments(build_menu, {"layout": self.layout, **known}, "env.args.recipe")
        self.menu = build_menu(self.layout, **known)
        _require_least(1, horizon=horizon, soups=soups, radius=radius)
        _require_least(0, counter_items=counter_items)
        _require_servable(self.layout, self.menu, old_dynamics, counter_items)
        _require_one_of("view", view, VIEWS)
        _require_one_of("starts", starts, STARTS)
        self.codes, self.geometry = Codes(self.menu), Geometry(self.layout)
        self.soups, self.counter_items, self.radius = soups, counter_items, radius
        self._as_it_comes = not recipe and not old_dynamics and soups is None and starts == "layout"
        self._two, self._starts_itself = len(self.layout.starts) == 2, old_dynamics
        rewards = _shaping(shaping or {})
        self._tables = Constants(build_tables(self.geometry, self.codes, rewards, starts_itself=old_dynamics))
        self._dish_reward, self._kinds = rewards["dish"], entries_of(self.codes)
        self._starts = Starts(
            self.geometry,
            self.codes,
            anywhere=starts == "random",
            counter_items=counter_items,
            starts_itself=old_dynamics,
        )
        if starts == "layout" and horizon is not None:
            self._warn_of_a_short(horizon)
        self._code = StateCode(self.geometry, self.codes, soups)
        self._see, size = self._build_view(view)
        cooks = len(self.layout.starts)
        self.spec = EnvSpec(
            agents=tuple(f"cook_{i}" for i in range(cooks)),
            kind=(0,) * cooks,
            channels=("soup", "shaping"),
            observation_sizes=(size,) * cooks,
            actions=(Discrete((len(ACTIONS),)),) * cooks,
            state_size=self._code.size,
            horizon=horizon,
        )

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E draws"]:
        """Uniform numbers in [0, 1), none where every episode starts alike."""
        return torch.rand(num, self._starts.draws, generator=generator, device=generator.device)

    def initial(self, noise: Float[Tensor, "E draws"]) -> State:
        """First states."""
        return self._starts.first(noise)

    def transition(self, state: State, action: Num[Tensor, "E N 1"], noise: None) -> Transition:
        """First the hands, cook after cook, then all feet at once, then the pots."""
        choice = action.squeeze(-1)
        hands = self.hands(state, choice)
        things = self._tables.on(choice.device).rules.heat[hands.things]
        pose = self._walk(state.pose, choice)
        worth = hands.worth.sum(-1, keepdim=True).expand_as(hands.worth)
        reward = torch.stack([worth, hands.shaping], -1)
        if self.soups is None:
            return Transition(State(pose, hands.held, things, state.order, state.served), reward)
        served = (state.served + (hands.worth > 0).sum(-1)).clamp(max=self.soups)
        over = (served >= self.soups).unsqueeze(-1).expand_as(pose)
        return Transition(State(pose, hands.held, things, state.order, served), reward, over)

    def observe(self, state: State) -> Observation:
        """The cooks' views, and a code of the state for the critic."""
        alive = torch.ones_like(state.pose, dtype=torch.bool)
        return Observation(self._see(state), self._code.encode(state), alive)

    def state_of(self, code: Float[Tensor, "E S"]) -> State:
        """The states whose `obs.state` is given, with or without the clock in front.

        Raises InputError for what is no state of this kitchen.
        """
        clock = self.spec.horizon is not None and code.shape[-1] == self._code.size + 1
        return self._code.decode(code[:, 1:] if clock else code)

    def planes(self, state: State, steps_left: Int[Tensor, " E"] | None = None) -> UInt8[Tensor, "E N 26 H W"]:
        """The 26 planes of Overcooked-AI, in bytes. steps_left: until the horizon; None leaves the last plane 0."""
        return Planes(self.geometry, self.codes)(state, steps_left)

    def digits(self, state: State) -> Digits:
        """Numbers that tell the states of this kitchen apart, for `tabulate`."""
        cooks, pots, counters = len(self.layout.starts), len(self.geometry.pots), len(self.geometry.counters)
        columns = [state.pose, state.held, state.things, state.order.unsqueeze(-1), state.served.unsqueeze(-1)]
        sizes = (len(self.geometry.poses),) * cooks + (self.codes.items,) * cooks + (self.codes.count,) * pots
        sizes += (self.codes.items,) * counters + (len(self.menu.values), 1 + (self.soups or 0))
        return Digits(torch.cat(columns, -1), sizes)

    def table(self, **options: Any) -> Table:
        """Every state that can be reached from the layout's start, for exact values; see `envs.tabular.tabulate`.

        Worth is of the channel `soup`. Raises InputError where there are too many, or an order is drawn an episode.
        """
        return tabulate(self, self.first(), self.digits, **options)

    def fewest_steps(self, limit: int, **options: Any) -> list[tuple[int, ...]]:
        """The shortest play from the layout's start until an ordered soup is served; see `envs.tabular.fewest_steps`.

        Raises InputError where `limit` steps are too few, or an order is drawn an episode.
        """
        bound = LeastSteps(self.geometry, self.codes)
        return fewest_steps(self, self.first(), self.digits, limit=limit, bound=bound, **options)

    def first(self) -> State:
        """The layout's start, as one row. Raises InputError where an order is drawn an episode."""
        if len(self.menu.values) > 1:
            raise InputError("A kitchen whose order is drawn has no one start; make a kitchen of each order.")
        starts = Starts(self.geometry, self.codes, anywhere=False, counter_items=None, starts_itself=False)
        return starts.first(torch.zeros(1, 0))

    def words(self, obs: Observation, row: int, agent: int | None = None) -> str:
        """The kitchen as a map that `read_map` reads back, and in sentences; with an agent given, only what it sees.

        Raises InputError where agents' views are not those of view=features.
        """
        return self._speech.words(obs, row, agent)

    def plans(self, obs: Observation, row: int) -> list[list[str]]:
        """By cook, its six steps and the errands that are open to it, as far as it sees."""
        return self._speech.plans(obs, row)

    def parse(self, text: str, obs: Observation, row: int) -> Decision | str:
        """The decision of lines "cook_0: plan", or the reason why they are refused.

        latent: the number of each cook's errand in `errands.list`, -1 for a single step; action: the step, of an errand
        the first one.
        """
        return self._speech.parse(text, obs, row)

    def read_map(self, text: str) -> State:
        """The state, [1, ...], of a map in words. Raises InputError for what is no map of this kitchen."""
        return self._speech.language.read_map(text)

    @cached_property
    def errands(self) -> Errands:
        """Errands of this kitchen, numbered."""
        return Errands(self.geometry, self.codes, self._tables, self.counter_items)

    @cached_property
    def _speech(self) -> Speech:
        return Speech(self)

    def scene(self, obs: Observation, row: int, agent: int) -> Scene:
        """Scene that one cook sees. Raises InputError where views are not those of view=features."""
        if not isinstance(self._see, Features):
            raise InputError("What one cook sees is told in words with view=features; this kitchen has another view.")
        view = obs.agent[row, agent]
        return self._see.scene(view[view.shape[0] - self._see.size :], agent)

    def partners(self) -> dict[str, Actor]:
        """Scripted cooks by the name of their script; see `envs.kitchen.partners`."""
        from envs.kitchen.partners import SCRIPTS, ScriptedCook  # which is made of a kitchen

        return {script: ScriptedCook(self, script) for script in SCRIPTS}

    def known(self) -> dict[str, float]:
        """`soup/without_counters`: the most that can be earned by soups without counters, where search has found it."""
        most = MOST.get((self.layout.name, self.spec.horizon)) if self._as_it_comes else None
        return {} if most is None else {"soup/without_counters": most}

    def frame(self, state: State) -> Any:
        """A picture of the first row, [400,400,3] uint8."""
        from envs.kitchen.views.picture import draw  # few look

        return draw(self.geometry, self.codes, state)

    def hands(self, state: State, choice: Int[Tensor, "E N"]) -> Hands:
        """Let the cooks' hands act, one cook after the other."""
        tables, pots = self._tables.on(choice.device), len(self.geometry.pots)
        rules = tables.rules
        slot = tables.slot[state.pose]
        ahead = torch.where(choice == INTERACT, tables.ahead[state.pose], 0)
        calls = tables.calls[state.things[:, :pots]].sum(-1)
        held, things = list(state.held.unbind(-1)), state.things
        entries, shaping = [], []
        for cook, place in enumerate(slot.split(1, -1)):
            there = things.gather(1, place)
            kind = self._within_room(ahead[:, cook], there.squeeze(1), things)
            entry = kind + held[cook] * self.codes.count + there.squeeze(1)
            earned = tables.earned[entry]
            if self._two:
                takes = (kind == Ahead.DISHES * self._kinds) & (held[cook] == NOTHING)
                earned = earned + self._dish_reward * (takes & self._dish_is_called_for(held, things, calls))
            entries.append(entry)
            shaping.append(earned)
            held[cook] = rules.held[entry]
            things = things.scatter(1, place, rules.there[entry].unsqueeze(1))
        entry = torch.stack(entries, -1)
        worth = tables.worth[state.order.unsqueeze(-1), rules.served[entry]]
        return Hands(torch.stack(held, -1), things, entry, worth, torch.stack(shaping, -1))

    def events(self, state: State, action: Num[Tensor, "E N 1"]) -> Bool[Tensor, "E N 25"]:
        """The events of a step, in the order of `EVENTS`, by cook; what each did with what the one before left."""
        choice, pots = action.squeeze(-1), len(self.geometry.pots)
        table = self._event_table.on(choice.device)
        calls = self._tables.on(choice.device).calls[state.things[:, :pots]].sum(-1)
        now, found = state, []
        for cook in range(choice.shape[1]):
            alone = torch.full_like(choice, STAY)
            alone[:, cook] = choice[:, cook]
            hands = self.hands(now, alone)
            useful = are_useful(self.codes, state, now, cook, pots, calls)
            found.append(table[state.order, hands.entry[:, cook]] & useful)
            now = now._replace(held=hands.held, things=hands.things)
        return torch.stack(found, 1)

    @cached_property
    def _event_table(self) -> Constants[Tensor]:
        return Constants(event_table(self.codes, starts_itself=self._starts_itself))

    def _within_room(
        self, ahead: Int[Tensor, " E"], there: Int[Tensor, " E"], things: Int[Tensor, "E slots"]
    ) -> Int[Tensor, " E"]:
        """Kind of thing ahead, or nothing where it is an empty counter and no more may lie on counters."""
        if self.counter_items is None:
            return ahead
        lying = (things[:, len(self.geometry.pots) :] != NOTHING).sum(-1)
        no_room = (ahead == Ahead.COUNTER * self._kinds) & (there == NOTHING) & (lying >= self.counter_items)
        return torch.where(no_room, 0, ahead)

    def _dish_is_called_for(
        self, held: list[Int[Tensor, " E"]], things: Int[Tensor, "E slots"], calls: Int[Tensor, " E"]
    ) -> Bool[Tensor, " E"]:
        """More pots called for a dish as the step began than hands hold one, and none lies on a counter."""
        in_hands = sum((hand == self.codes.dish).long() for hand in held)
        lying = (things[:, len(self.geometry.pots) :] == self.codes.dish).any(-1)
        return ~lying & (in_hands < calls)

    def _walk(self, pose: Int[Tensor, "E N"], choice: Int[Tensor, "E N"]) -> Int[Tensor, "E N"]:
        """Everybody turns; where two would meet or swap places, nobody moves."""
        goal = self._tables.on(pose.device).step[pose * len(ACTIONS) + choice]
        cell, before = (goal >> 2).unbind(-1), (pose >> 2).unbind(-1)
        clash = torch.zeros_like(cell[0], dtype=torch.bool)
        for i in range(len(cell)):
            for j in range(i):
                clash = clash | (cell[i] == cell[j]) | ((cell[i] == before[j]) & (cell[j] == before[i]))
        turned = (pose & ~3) | (goal & 3)
        return torch.where(clash.unsqueeze(-1), turned, goal)

    def _warn_of_a_short(self, horizon: int) -> None:
        steps = LeastSteps(self.geometry, self.codes).from_start()
        if steps > horizon:
            warnings.warn(
                f"No soup can be served in {self.layout.name} from the layout's start: it takes at least {steps} "
                f"steps, more than the horizon of {horizon}. Raise the horizon, or lower cook_time.",
                stacklevel=3,
            )

    def _build_view(self, view: str) -> tuple[Callable[[State], Float[Tensor, "E N D"]], int]:
        """View of a state, and its number of features D."""
        if self.radius is not None and view != "features":
            raise InputError(f"radius narrows the view 'features'; with view={view!r} leave it out.")
        if view == "planes":
            planes = Planes(self.geometry, self.codes)
            return (lambda state: planes(state).flatten(2).float()), planes.size
        if view == "overcooked":
            numbers = OvercookedFeatures(self.geometry, self.codes)
            return numbers, numbers.size
        features = Features(self.geometry, self.codes, self.radius)
        return features, features.size


def _shaping(given: Mapping[str, int | float]) -> dict[str, int | float]:
    for key, number in given.items():
        _require_one_of("a key of shaping", key, tuple(SHAPING))
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise InputError(f"shaping.{key} is a finite number; got {number!r}.")
    return {**SHAPING, **given}


def _require_servable(layout: Layout, menu: Menu, old_dynamics: bool, counter_items: int | None) -> None:
    """Raise InputError where the options leave no way to serve what is ordered."""
    small = [menu.name(order) for order in menu.orders if sum(order) < menu.capacity]
    if old_dynamics and small:
        raise InputError(
            f"With old_dynamics a pot starts only when it is full, so that nobody can cook {small[0]} in pots of "
            f"capacity {menu.capacity}. Order full pots, or lower capacity."
        )
    if counter_items == 0 and not any(layout.can_cook(food, over="P") for food in DISPENSERS):
        raise InputError(f"With counter_items=0 nobody can cook and serve in {layout.name}: {cut_off(layout)}")


def _require_mapping(**given: Any) -> None:
    for name, value in given.items():
        if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
            raise InputError(f"{name} is a section of keys and values; got {value!r}.")


def _require_truth(**given: Any) -> None:
    for name, value in given.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} is true or false; got {value!r}.")


def _require_one_of(name: str, given: str, options: tuple[str, ...]) -> None:
    if given in options:
        return
    near = difflib.get_close_matches(str(given), options, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{name} is one of {', '.join(options)}; got {given!r}.{hint}")


def _require_least(least: int, **numbers: Any) -> None:
    for name, number in numbers.items():
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise InputError(f"{name} is a whole number of at least {least}, or null for none; got {name}={number!r}.")
