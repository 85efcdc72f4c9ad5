"""A recipe with two members of each seed."""

from __future__ import annotations

from typing import Any

from marl.algorithms.mappo import recipe as mappo
from marl.evaluation.recipe import OnPolicyRecipe


class Pair(OnPolicyRecipe):
    config = mappo.config

    def members(self, config: Any) -> int:
        return 2


recipe = Pair()
