"""Layers of Q networks side by side, and what a network is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from envs.core import InputError, Streams
from marl.config.schema import Section

MOST_TALKERS = 512  # agents, N, who pass messages: a row has N (N - 1) of them


class NetworkConfig(Section):
    """The shape of a network."""

    kind: str = Field(
        "mlp",
        description="mlp, gru, attention (over agents), message_passing (between agents who are near), or a class by "
        "dotted path, module:Class",
    )
    hidden: tuple[PositiveInt, ...] = Field((64, 64), description="units of the hidden layers", min_length=1)
    activation: Literal["tanh", "relu", "silu"] = Field("tanh", description="after each hidden layer")
    heads: int = Field(4, ge=1, description="attention heads; must divide the last hidden size")
    rounds: int = Field(2, ge=1, description="message passing: how often agents tell one another")
    aggregate: Literal["mean", "max"] = Field("mean", description="message passing: what is heard of several messages")
    positions: tuple[NonNegativeInt, ...] = Field(
        (), description="message passing: the columns of an observation, from 0, that hold an agent's own place"
    )
    radius: float | None = Field(
        None, gt=0, description="message passing: how far agents hear; null: everyone hears everyone"
    )
    period: float | None = Field(None, gt=0, description="message passing: side of the torus of positions; null: none")

    @model_validator(mode="after")
    def _distances_need_places(self) -> NetworkConfig:
        if len(set(self.positions)) < len(self.positions):
            raise ValueError(f"positions names each column once, such as [2, 3]; got {list(self.positions)}")
        for name in ("radius", "period"):
            if getattr(self, name) is not None and not self.positions:
                raise ValueError(
                    f"{name} needs positions: the columns of an observation that hold an agent's place, such as [2, 3]"
                )
        return self

    def check_agents(self, agents: int) -> None:
        """Raises InputError for more agents than can pass messages."""
        if self.kind == "message_passing" and agents > MOST_TALKERS:
            raise InputError(
                f"network.kind: message_passing weighs every pair of agents and serves at most {MOST_TALKERS}; got "
                f"{agents}. Train it with fewer, or choose mlp in a world that tells an agent about those nearby."
            )

    def check_positions(self, features: int) -> None:
        """Raises InputError where `positions` are not columns of an observation with so many features."""
        wrong = [column for column in self.positions if column >= features]
        if wrong:
            raise InputError(
                "network.positions names the columns of an observation that hold an agent's place, "
                f"0 to {features - 1} here; got {wrong}."
            )


def _slow_library() -> bool:
    """Whether this is an x86 processor on which torch's numerical library (MKL) takes its slow paths."""
    if not torch.backends.mkl.is_available():
        return False
    with contextlib.suppress(OSError):
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    return False


SLOW_LIBRARY = _slow_library()


FEW = 8192  # elements up to which the library's tanh is fast everywhere


class _Tanh(torch.autograd.Function):
    """tanh through the vectorized exponential: twice as fast as a slow library's, absolute error below 2e-7."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = (x + x).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(grad, y)


def tanh(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Hyperbolic tangent."""
    slow = SLOW_LIBRARY or torch.compiler.is_compiling()
    return _Tanh.apply(x) if slow and x.numel() > FEW and x.device.type == "cpu" else x.tanh()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": tanh, "relu": F.relu, "silu": F.silu}


NARROW, MANY = 16, 256  # a slow library computes fewer outputs than this for more rows than that transposed


class Linear(nn.Module):
    """Q affine maps side by side: [Q,R,in] -> [Q,R,out], weights orthogonal with the given gain, biases 0.

    Policy p's copies are drawn from policy p's generator, so that a policy starts the same alone and among others.
    """

    def __init__(self, inputs: int, outputs: int, *, gain: float, copies: int, streams: Streams):
        super().__init__()
        weights = []
        for generator in streams.on_host:
            for _ in range(copies):
                weights.append(nn.init.orthogonal_(torch.empty(inputs, outputs), gain, generator=generator))
        self.weight = nn.Parameter(torch.stack(weights).to(streams.device))
        self.bias = nn.Parameter(torch.zeros(len(weights), 1, outputs, device=streams.device))

    def forward(self, x: Float[Tensor, "Q R in"]) -> Float[Tensor, "Q R out"]:
        """x W + b for each copy."""
        if not SLOW_LIBRARY or self.weight.shape[2] >= NARROW or x.shape[1] < MANY:
            return torch.baddbmm(self.bias, x, self.weight)
        transposed = torch.baddbmm(self.bias.transpose(1, 2), self.weight.transpose(1, 2), x.transpose(1, 2))
        return transposed.transpose(1, 2)


class Network(nn.Module):
    """A map from what each agent sees to outputs for each.

    Made by `(inputs, outputs, config, gain=, copies=, streams=)`. Called with x [Q,R,N,D], alive [B,N] and memory, it
    gives outputs [Q,R,N,out] and memory. memory_shape is (C,H) for one that remembers, [B,C,N,H], else None.
    mixes_agents says that an agent's output depends on the others, so that one network must serve all of them.
    """

    memory_shape: tuple[int, int] | None = None
    mixes_agents: bool = False


class Trunk(nn.Module):
    """The hidden layers, [Q,X,D] -> [Q,X,H]."""

    def __init__(self, inputs: int, config: NetworkConfig, *, copies: int, streams: Streams):
        super().__init__()
        sizes = (inputs, *config.hidden)
        self.layers = nn.ModuleList(
            Linear(i, o, gain=2**0.5, copies=copies, streams=streams) for i, o in pairwise(sizes)
        )
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Float[Tensor, "Q X D"]) -> Float[Tensor, "Q X H"]:
        """Layer, activation, and so on."""
        for layer in self.layers:
            x = self.activation(layer(x))
        return x
