"""Swarms: worlds of many like agents who are paid as one, from ten to a million, and their mean-field limits."""

from __future__ import annotations

from envs.swarm.aggregation import Aggregation, QuadraticAggregation
from envs.swarm.epidemic import SIS
from envs.swarm.finite import FiniteSwarm
from envs.swarm.finite_limit import FiniteLimit
from envs.swarm.kuramoto import Kuramoto
from envs.swarm.linear_quadratic import LinearQuadratic
from envs.swarm.memory import WithMemory
from envs.swarm.vicsek import Vicsek

__all__ = [
    "SIS",
    "Aggregation",
    "FiniteLimit",
    "FiniteSwarm",
    "Kuramoto",
    "LinearQuadratic",
    "QuadraticAggregation",
    "Vicsek",
    "WithMemory",
]
