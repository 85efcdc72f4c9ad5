"""The events that Overcooked-AI reports of a step, from which its users count what cooks do."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from envs.kitchen.rules.codes import Ahead, Codes, Entry, Event, every_interaction
from envs.kitchen.rules.menu import FOODS, Mixture
from envs.kitchen.rules.state import State

EVENTS = (
    *("tomato_pickup", "useful_tomato_pickup", "tomato_drop", "useful_tomato_drop", "potting_tomato"),
    *("onion_pickup", "useful_onion_pickup", "onion_drop", "useful_onion_drop", "potting_onion"),
    *("dish_pickup", "useful_dish_pickup", "dish_drop", "useful_dish_drop"),
    *("soup_pickup", "soup_delivery", "soup_drop"),
    *("optimal_onion_potting", "optimal_tomato_potting", "viable_onion_potting", "viable_tomato_potting"),
    *("catastrophic_onion_potting", "catastrophic_tomato_potting"),
    *("useless_onion_potting", "useless_tomato_potting"),
)


def event_table(codes: Codes, *, starts_itself: bool) -> Bool[Tensor, "orders entries 25"]:
    """Events of each interaction, the useful ones among them where they are useful at all (see `are_useful`)."""
    entries = every_interaction(codes, starts_itself)
    rows = []
    for values in codes.menu.values:
        best = {mixture: _best(codes, mixture, values) for mixture in [_nothing(codes), *codes.menu.mixtures]}
        for entry in entries:
            names = set(_names(codes, entry, best)) if entry.outcome.event else set()
            rows.append([event in names for event in EVENTS])
    return torch.tensor(rows).unflatten(0, (len(codes.menu.values), -1))


def are_useful(
    codes: Codes, before: State, now: State, cook: int, pots: int, calls: Int[Tensor, " E"]
) -> Bool[Tensor, "E 25"]:
    """For each event, whether it would be useful, where its name says so; true for the others.

    before: as the step began, which is when pots count; now: as this cook's turn came. calls: pots that call for a
    dish. With other than two cooks nothing is useful, as in Overcooked-AI.
    """
    rows = len(now.pose)
    useful = torch.ones(rows, len(EVENTS), dtype=torch.bool, device=now.pose.device)
    if now.held.shape[1] != 2:
        useful[:, [number for number, name in enumerate(EVENTS) if name.startswith("useful_")]] = False
        return useful
    other = now.held[:, 1 - cook]
    full = torch.tensor([_is_full(codes, code) for code in range(codes.count)], device=other.device)
    filled = full[before.things[:, :pots]]
    lying = (now.things[:, pots:] == codes.dish).any(-1)
    onion = codes.food(codes.menu.ingredients.index("onion")) if "onion" in codes.menu.ingredients else -1
    waits_for_dish = filled.all(-1) & (other != codes.dish)
    for food in FOODS:
        useful[:, EVENTS.index(f"useful_{food}_pickup")] = ~waits_for_dish
        useful[:, EVENTS.index(f"useful_{food}_drop")] = waits_for_dish
    useful[:, EVENTS.index("useful_dish_drop")] = ~filled.any(-1) & (other != onion)
    in_hands = (now.held == codes.dish).sum(-1)
    useful[:, EVENTS.index("useful_dish_pickup")] = ~lying & (in_hands < calls)
    return useful


def _names(codes: Codes, entry: Entry, best: dict[Mixture, int | float]) -> Iterator[str]:
    ahead, held, there, outcome = entry
    event = outcome.event
    if event == Event.SERVED:
        yield "soup_delivery"
    elif event == Event.PLATED:
        yield "soup_pickup"
    elif event == Event.ADDED:
        food = _thing(codes, held)
        yield f"potting_{food}"
        kinds = _potting(best[codes.mixture_of(there)], best[codes.mixture_of(outcome.there)])
        yield from (f"{kind}_{food}_potting" for kind in kinds)
    elif event in (Event.TOOK, Event.PUT):
        thing = _thing(codes, outcome.held if event == Event.TOOK else held)
        if thing == "tomato" and ahead >= Ahead.FOOD:
            return  # Overcooked-AI is silent about tomatoes from a dispenser
        done = "pickup" if event == Event.TOOK else "drop"
        yield f"{thing}_{done}"
        yield f"useful_{thing}_{done}"


def _potting(before: int | float, after: int | float) -> Iterator[str]:
    """Kinds of a potting, from the worth of the best soup that can still be made before and after it."""
    if before == after:
        yield "optimal"
    if after > 0:
        yield "viable"
    if before > 0 and after == 0:
        yield "catastrophic"
    if before == 0:
        yield "useless"


def _best(codes: Codes, mixture: Mixture, values: tuple[int | float, ...]) -> int | float:
    """Worth of the best soup that adding to a mixture can make."""
    within = [all(a <= b for a, b in zip(mixture, other)) for other in codes.menu.mixtures]
    return max((value for value, can in zip(values, within) if can), default=0.0)


def _nothing(codes: Codes) -> Mixture:
    return (0,) * len(codes.menu.ingredients)


def _thing(codes: Codes, code: int) -> str:
    if codes.is_food(code):
        return codes.menu.ingredients[code - codes.food(0)]
    return "dish" if code == codes.dish else "soup"


def _is_full(codes: Codes, code: int) -> bool:
    pot = codes.in_pot(code)
    return pot is not None and (pot[1] is not None or sum(codes.menu.mixtures[pot[0]]) == codes.menu.capacity)
