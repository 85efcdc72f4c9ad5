"""Exact returns of trained agents in worlds small enough for a table: in self-play, and beside scripted partners.

The share of the best response to a partner is what ZSC-Eval (Wang et al., NeurIPS 2024, arXiv 2310.05208) estimates by
training one; here it is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from envs.arguments import require_arguments
from envs.core import Discrete, InputError, VectorEnv, tree_map
from envs.tabular import HasProbabilities, HasTable, Table
from envs.team import HasPartners
from envs.world import TensorEnv
from marl.models.distributions import IndependentCategorical
from marl.models.policies import JointActor
from marl.output.console import console
from marl.output.report import Metric

LARGEST = 2**23  # transitions of a table that a report is made from
SELF = ""  # who plays beside the agent in self-play
CHUNK = 2**15  # states that are decided for at once


def exact_returns(actor: Any, env: VectorEnv, sampled: Mapping[str, np.ndarray]) -> dict[str, Metric]:
    """What can be earned of the world's first channel in `env.time_limit` steps from its start, and the shares earned.

    `exact/most`, `exact/best_beside_X`: the best that any team earns, and the exact best response to the script X, the
    mean over the slots that the trained agent may take. `exact/share`, `exact/share_beside_X`: of these, what the agent
    earns in self-play and beside X; `exact/share_beside`: the mean over scripts. Where agents remember nothing and
    decide independently, what they earn is exact too: `exact/return`, `exact/beside_X`. Of others it is `sampled`:
    returns [n] of that channel by script, of self-play under `SELF`; empty where there are none. Scripts beside whom
    nothing can be earned have no share, and count in no mean.

    Nothing of other environments: worlds that are no tables, of more than `LARGEST` transitions, or that end by a
    horizon.
    """
    world = env.world if isinstance(env, TensorEnv) else None
    if not (isinstance(world, HasTable) and callable(world.table) and world.spec.horizon is None and env.time_limit):
        return {}
    with console.status("exact returns"):
        try:
            joint = math.prod(sum(space.choices) for space in world.spec.actions if isinstance(space, Discrete))
            require_arguments(world.table, {"most": LARGEST // joint}, "table")
            table = world.table(most=LARGEST // joint)
        except InputError as error:
            console.print(f"no exact returns: {error}", markup=False)
            return {}
        steps, scripts = env.time_limit, _scripts(world, table)
        found = {"most": Metric.exact(float(table.most(steps)[0]))}
        found |= {f"best_beside_{name}": Metric.exact(_best(odds, table, steps)) for name, odds in scripts.items()}
        own = _probabilities(actor, world, table, env.device)
        if own is not None:
            earned = {SELF: _earned(own, own, table, steps)}
            earned |= {name: _earned(own, odds, table, steps) for name, odds in scripts.items()}
            found["return"] = Metric.exact(earned[SELF])
            found |= {f"beside_{name}": Metric.exact(earned[name]) for name in scripts}
            found |= _shares(found, {name: np.array([value]) for name, value in earned.items()})
        else:
            found |= _shares(found, sampled) if sampled else {}
    return {f"exact/{name}": metric for name, metric in found.items()}


def _shares(best: Mapping[str, Metric], earned: Mapping[str, np.ndarray]) -> dict[str, Metric]:
    """Shares of the best where there is anything to earn; earned: [n] of the same episodes each, or one exact value."""
    found = {}
    if best["most"].value > 0:
        found["share"] = _metric(earned[SELF] / best["most"].value)
    scripts = [name for name in earned if name != SELF and best[f"best_beside_{name}"].value > 0]
    shares = {name: earned[name] / best[f"best_beside_{name}"].value for name in scripts}
    found |= {f"share_beside_{name}": _metric(share) for name, share in shares.items()}
    if shares:
        found["share_beside"] = _metric(np.mean(list(shares.values()), axis=0))
    return found


def _metric(samples: np.ndarray) -> Metric:
    return Metric.exact(float(samples[0])) if len(samples) == 1 else Metric.mean(samples)


def _scripts(world: Any, table: Table) -> dict[str, Float[Tensor, "S N A"]]:
    """Probabilities of the choices of each scripted partner that remembers nothing, by name."""
    partners = world.partners() if isinstance(world, HasPartners) else {}
    return {
        name: actor.probabilities(table.states).double()
        for name, actor in partners.items()
        if isinstance(actor, HasProbabilities)
    }


def _earned(own: Float[Tensor, "S N A"], partner: Float[Tensor, "S N A"], table: Table, steps: int) -> float:
    """Return of an agent in one slot beside a partner in all others, the mean over slots."""
    total = 0.0
    for slot in range(table.agents):
        mixed = partner.clone()
        mixed[:, slot] = own[:, slot]
        total += float(table.within(table.joint(mixed), steps)[0])
    return total / table.agents


def _best(partner: Float[Tensor, "S N A"], table: Table, steps: int) -> float:
    """Return of the best response in one slot to a partner in all others, the mean over slots."""
    each = [float(table.best_response(partner, slot, steps)[0][0]) for slot in range(table.agents)]
    return sum(each) / len(each)


def _probabilities(actor: Any, world: Any, table: Table, device: torch.device) -> Float[Tensor, "S N A"] | None:
    """Probabilities of every agent's choices in every state; None where agents remember, or do not decide alone."""
    if not isinstance(actor, JointActor) or actor.initial_memory(1) is not None:
        return None
    parts = []
    with torch.inference_mode():
        for first in range(0, len(table), CHUNK):
            rows = torch.arange(first, min(first + CHUNK, len(table)))
            obs = world.observe(tree_map(lambda leaf, rows=rows: leaf[rows].to(device), table.states))
            distribution, _ = actor(obs, None)
            if not isinstance(distribution, IndependentCategorical):
                return None
            parts.append(distribution.log_probs().exp().double().cpu())
    return torch.cat(parts)
