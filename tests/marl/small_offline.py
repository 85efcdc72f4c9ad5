"""Policies and critics in tables, for learning from logs of states that are seen as one-hots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from envs.core import Decision, Discrete, Observation, Streams
from marl.models.action_critic import ActionValues
from marl.models.distributions import IndependentCategorical


class TablePolicy(nn.Module):
    """A logit for each state and action."""

    members = None

    def __init__(self, logits: Sequence[Sequence[float]] | np.ndarray):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(np.asarray(logits), dtype=torch.float64))
        self.space = Discrete((self.logits.shape[1],))

    def initial_memory(self, num_envs: int) -> None:
        return None

    def forward(self, obs: Observation, memory: None) -> tuple[IndependentCategorical, None]:
        return IndependentCategorical(obs.agent.double() @ self.logits, self.space.choices, obs.legal), None

    def act(self, obs: Observation, memory: None, streams: Streams) -> tuple[Decision, None]:
        return self(obs, memory)[0].sample(streams), None


class TableCritic(ActionValues):
    """A value for each state, action and channel, [S,A,K]."""

    def __init__(self, values: np.ndarray):
        super().__init__()
        self.actions, self.channels = values.shape[1:]
        self.values = nn.Parameter(torch.tensor(np.moveaxis(values, -1, 0)))

    def forward(self, obs: Observation) -> Tensor:
        return torch.einsum("bns,ksa->bnak", obs.agent.double(), self.values)
