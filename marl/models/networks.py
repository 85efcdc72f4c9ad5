"""Networks: maps from what each of N agents sees to outputs for each, for Q stacked copies at once.

A copy is one set of parameters. P policies with C copies each (a critic per channel, say) are Q = P·C copies in one
product, so that K critics or five seeds cost about as much as one. Inputs are [Q,R,N,D] with R rows a copy.
A network of your own is a `Network` named by dotted path in `network.kind`; memory is zero at the start of an episode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs.core import InputError, Streams, import_dotted
from marl.models.layers import BUILT_IN, Linear, Network, NetworkConfig, Trunk


class MLP(Network):
    """Layers of units, applied to each agent alone."""

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, *, gain: float, copies: int, streams: Streams):
        super().__init__()
        self.trunk = Trunk(inputs, config, copies=copies, streams=streams)
        self.output = Linear(config.hidden[-1], outputs, gain=gain, copies=copies, streams=streams)
        self._in_turn = self.trunk, self.output

    def forward(
        self, x: Float[Tensor, "Q R N D"], alive: Bool[Tensor, "B N"], memory: None
    ) -> tuple[Float[Tensor, "Q R N out"], None]:
        """Outputs, and no memory."""
        copies, rows, agents, features = x.shape
        trunk, output = self._in_turn
        y = trunk.forward(x.reshape(copies, rows * agents, features))
        return output.forward(y).view(copies, rows, agents, -1), None

    def halves(self, x: Float[Tensor, "Q R N D"]) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of the trunk, and the output layer."""
        return self.trunk(x.flatten(1, 2)), self.output.weight, self.output.bias


def build_network(
    config: NetworkConfig, inputs: int, outputs: int, *, gain: float, copies: int = 1, streams: Streams
) -> Network:
    """The network that `config.kind` names. Raises InputError for a name that is neither built in nor a dotted path."""
    path = BUILT_IN.get(config.kind, config.kind)
    if ":" not in path:
        raise InputError(
            f"network.kind must be one of {', '.join(BUILT_IN)}, or a class by dotted path such as "
            f"'my_package.nets:MyNetwork'; got {config.kind!r}."
        )
    maker = import_dotted(path)
    if not (isinstance(maker, type) and issubclass(maker, Network)):
        raise InputError(f"network.kind must name a marl.models.layers.Network; {config.kind} is {maker!r}.")
    return maker(inputs, outputs, config, gain=gain, copies=copies, streams=streams)


def build_for_kinds(kind: Sequence[int], build: Callable[[], Network], device: torch.device) -> Network:
    """One network, or one for each kind of agent where there are several; `build` makes one."""
    if len(set(kind)) == 1:
        return build()
    from marl.models.by_kind import ByKind

    return ByKind(kind, build, device)


def check_network(network: Network, kind: str, **sizes: int) -> None:
    """Raise InputError for a network of a user's own that is not as `Network` says; see `try_network` for the sizes."""
    if kind in BUILT_IN:
        return
    from marl.models.own_network import try_network

    try_network(network, kind, **sizes)
