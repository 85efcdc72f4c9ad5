"""The kitchen of Overcooked-AI: a batched world, its exact oracles, and cooks."""

from envs.kitchen.rules.events import EVENTS
from envs.kitchen.rules.geometry import ACTIONS
from envs.kitchen.rules.layout import layout_names
from envs.kitchen.rules.state import State
from envs.kitchen.world import Kitchen

__all__ = ["ACTIONS", "EVENTS", "Kitchen", "State", "layout_names"]
