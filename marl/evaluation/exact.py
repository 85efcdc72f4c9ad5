"""Exact returns of trained agents in worlds small enough for a table: in self-play, and beside scripted partners.

The share of the best response to a partner is what ZSC-Eval (Wang et al., NeurIPS 2024, arXiv 2310.05208) estimates by
training one; here it is computed.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import Discrete, InputError, VectorEnv, tree_map
from envs.tabular import HasProbabilities, HasTable, Table
from envs.team import HasPartners
from envs.world import TensorEnv
from marl.models.distributions import IndependentCategorical
from marl.models.policies import JointActor
from marl.output.console import console
from marl.output.report import Metric

LARGEST = 200_000  # states of a table that a report is made from
CHUNK = 2**15  # states that are decided for at once


def exact_returns(actor: Any, env: VectorEnv) -> dict[str, Metric]:
    """Expected returns of the world's first channel in `env.time_limit` steps from its start, and shares of the most.

    `exact/return`, `exact/most`, `exact/share`: in self-play, and of the best that any team earns. By script X, means
    over the slots that the trained agent may take: `exact/beside_X`, `exact/best_beside_X` (the exact best response to
    X), `exact/share_beside_X`; `exact/share_beside` is the mean of those shares.

    Nothing of other environments: worlds that are no tables, of more than `LARGEST` states, or that end by a horizon;
    and of agents that remember, or do not decide independently.
    """
    world = env.world if isinstance(env, TensorEnv) else None
    if not (isinstance(world, HasTable) and world.spec.horizon is None and env.time_limit and _is_free(actor, env)):
        return {}
    with console.status("exact returns"):
        try:
            table = world.table(most=LARGEST)
        except InputError as error:
            console.print(f"no exact returns: {error}", markup=False)
            return {}
        own = _probabilities(actor, world, table, env.device)
        earned = float(table.within(table.joint(own), env.time_limit)[0])
        most = float(table.most(env.time_limit)[0])
        found = {"return": earned, "most": most, **_share("share", earned, most)}
        scripts = world.partners() if isinstance(world, HasPartners) else {}
        for name, script in scripts.items():
            if isinstance(script, HasProbabilities):
                found |= _beside(name, own, script.probabilities(table.states), table, env.time_limit)
    shares = [value for name, value in found.items() if name.startswith("share_beside_")]
    if shares:
        found["share_beside"] = sum(shares) / len(shares)
    return {f"exact/{name}": Metric.exact(value) for name, value in found.items()}


def _beside(
    name: str, own: Float[Tensor, "S N A"], partner: Float[Tensor, "S N A"], table: Table, steps: int
) -> dict[str, float]:
    """What the agent earns in a slot beside a partner in all others, and the best response does; means over slots."""
    earned, best = 0.0, 0.0
    for slot in range(table.agents):
        mixed = partner.clone()
        mixed[:, slot] = own[:, slot]
        earned += float(table.within(table.joint(mixed), steps)[0]) / table.agents
        best += float(table.best_response(partner, slot, steps)[0][0]) / table.agents
    return {f"beside_{name}": earned, f"best_beside_{name}": best, **_share(f"share_beside_{name}", earned, best)}


def _share(name: str, earned: float, most: float) -> dict[str, float]:
    return {name: earned / most} if most > 0 else {}


def _is_free(actor: Any, env: VectorEnv) -> bool:
    """True for agents that decide independently and remember nothing."""
    space = env.spec.action
    single = isinstance(space, Discrete) and space.size == 1
    return single and isinstance(actor, JointActor) and actor.initial_memory(1) is None


def _probabilities(actor: Any, world: Any, table: Table, device: torch.device) -> Float[Tensor, "S N A"]:
    """Probabilities of every agent's choices in every state."""
    parts = []
    with torch.inference_mode():
        for first in range(0, len(table), CHUNK):
            rows = torch.arange(first, min(first + CHUNK, len(table)))
            obs = world.observe(tree_map(lambda leaf, rows=rows: leaf[rows].to(device), table.states))
            distribution, _ = actor(obs, None)
            assert isinstance(distribution, IndependentCategorical)
            parts.append(distribution.log_probs().exp().double().cpu())
    return torch.cat(parts)
