"""A network of a user's own is tried once, before it is trained."""

from __future__ import annotations

import torch

from envs.core import InputError
from marl.models.layers import Network


def try_network(
    network: Network, kind: str, *, policies: int, copies: int, agents: int, inputs: int, outputs: int
) -> None:
    """Play one row of zeros through a network of a user's own. Raises InputError where it is not as `Network` says."""
    copies *= policies
    wrong = [f"{name} {list(p.shape)}" for name, p in network.named_parameters() if len(p) != copies]
    if copies > 1 and wrong:
        raise InputError(
            f"network.kind {kind}: with {copies} copies (policies times reward channels) every parameter has them on "
            f"its first axis, as those of marl.models.layers.Linear; got {', '.join(wrong[:3])}. Build it from Linear, "
            "or train one seed and one channel."
        )
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    x = torch.zeros(copies, 1, agents, inputs, device=device)
    alive, memory = torch.ones(policies, agents, dtype=torch.bool, device=device), None
    if network.memory_shape is not None:
        kept, size = network.memory_shape
        memory = x.new_zeros(policies, kept, agents, size)
    wanted = (copies, 1, agents, outputs)
    try:
        with torch.no_grad():
            y, _ = network(x, alive, memory)
        came = f"outputs of shape {list(y.shape)}"
    except Exception as error:
        y, came = None, f"{type(error).__name__}: {error}"
    if y is None or tuple(y.shape) != wanted:
        raise InputError(
            f"network.kind {kind}: called with x of shape {list(x.shape)} [Q,R,N,D], alive and memory, it must give "
            f"outputs of shape {list(wanted)} [Q,R,N,out] and memory (None without any); got {came}."
        )
