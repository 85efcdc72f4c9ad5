"""MAPPO and IPPO: independent agents with a central critic (`critic.sees: state`) or one each (`critic.sees: agent`).

Source: Yu et al., "The Surprising Effectiveness of PPO in Cooperative Multi-Agent Games", NeurIPS 2022 (arXiv
2103.01955); de Witt et al., 2020 (arXiv 2011.09533) for IPPO. Where we depart: all agents' values come from one pass of
the critic, and advantages are normalized over the whole batch.
"""

from __future__ import annotations

from marl.evaluation.recipe import OnPolicyRecipe
from marl.training.on_policy import ActorCriticConfig


class Config(ActorCriticConfig):
    """MAPPO."""


class MAPPO(OnPolicyRecipe):
    """Independent agents, PPO, and the critic that the config asks for: the standard recipe as it is."""

    config = Config


recipe = MAPPO()
