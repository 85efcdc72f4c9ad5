"""Networks for teams of unlike agents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from envs.core import InputError
from marl.models.layers import Network


class ByKind(Network):
    """A network of its own for each kind of agent."""

    def __init__(self, kind: Sequence[int], build: Callable[[], Network], device: torch.device | str = "cpu"):
        super().__init__()
        kinds = sorted(set(kind))
        groups = [[i for i, k in enumerate(kind) if k == wanted] for wanted in kinds]
        networks = [build() for _ in groups]
        if networks[0].mixes_agents:
            raise InputError(
                f"{type(networks[0]).__name__} lets agents hear one another, so one network must serve all of "
                f"them; these agents would have {len(networks)}. Set share: all (unlike agents are then told apart)."
            )
        self.networks = nn.ModuleList(networks)
        self.memory_shape = networks[0].memory_shape
        order = [i for group in groups for i in group]
        self._groups = [torch.tensor(group, device=device) for group in groups]
        self._inverse = torch.tensor([order.index(i) for i in range(len(kind))], device=device)

    def forward(
        self, x: Float[Tensor, "Q R N D"], alive: Bool[Tensor, "B N"], memory: Any
    ) -> tuple[Float[Tensor, "Q R N out"], Any]:
        """Each kind through its own network, back in slot order."""
        outputs, memories = [], []
        for group, network in zip(self._groups, self.networks):
            y, kept = network(x[:, :, group], alive[:, group], None if memory is None else memory[:, :, group])
            outputs.append(y)
            memories.append(kept)
        inverse = self._inverse
        return torch.cat(outputs, 2)[:, :, inverse], None if memory is None else torch.cat(memories, 2)[:, :, inverse]
