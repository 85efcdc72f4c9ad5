"""Slow copies of networks, for targets that do not run after themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class HasParameters(Protocol):
    """A network, or a protocol of one."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that are fitted."""


@torch.no_grad()
def follow(slow: HasParameters, fast: HasParameters, averaging: float) -> None:
    """Move a network's copy towards it by this share, so that its parameters are a moving average."""
    for mean, latest in zip(slow.parameters(), fast.parameters(), strict=True):
        mean.lerp_(latest, averaging)
