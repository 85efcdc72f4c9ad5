"""Layers of Q networks side by side, and what a network is."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn

from envs.core import Streams, import_dotted
from marl.config.schema import Section

Options = TypeVar("Options", bound="NetworkOptions")


class NetworkOptions(Section):
    """The options that one kind of network has besides those of all: none here. A kind with options derives from it."""

    @classmethod
    def of(cls: type[Options], config: NetworkConfig) -> Options:
        """Those of a network's config."""
        return cls.model_validate(config.model_extra or {})

    def check(self, agents: int, features: int) -> None:
        """Raise InputError where the kind does not fit so many agents, each of which sees so many features."""


# Kinds by their short names. Each is a file that is read only where it is used.
BUILT_IN = {
    "mlp": "marl.models.networks:MLP",
    "gru": "marl.models.gru:GRU",
    "attention": "marl.models.attention:Attention",
    "message_passing": "marl.models.message_passing:MessagePassing",
}
# The options of some kinds that every network's config once had.
EARLIER_OPTIONS = ("heads", "rounds", "aggregate", "positions", "radius", "period")


class NetworkConfig(Section):
    """The shape of a network. Beside what all have, a kind has options of its own, written among these keys."""

    model_config = ConfigDict(extra="allow")

    kind: str = Field(
        "mlp",
        description="mlp, gru, attention (over agents), message_passing (between agents who are near), or a class by "
        "dotted path, module:Class",
    )
    hidden: tuple[PositiveInt, ...] = Field((64, 64), description="units of the hidden layers", min_length=1)
    activation: Literal["tanh", "relu", "silu"] = Field("tanh", description="after each hidden layer")

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_kind(cls, raw: Any) -> Any:
        """Check the options by their kind, and fill in those that were left out."""
        if not isinstance(raw, dict):
            return raw
        kind = raw.get("kind", cls.model_fields["kind"].default)
        given = {name: value for name, value in raw.items() if name not in cls.model_fields}
        if not isinstance(kind, str) or (":" in kind and not given):
            return raw  # a class of one's own is imported when it is built
        options = options_of(kind)
        _refuse_unknown(kind, given, options)
        return {**raw, **options.model_validate(given).model_dump(mode="json")}

    @property
    def options(self) -> NetworkOptions:
        """Those of its kind."""
        return options_of(self.kind).of(self)

    @classmethod
    def of_earlier(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Without the options of other kinds, which every network's config once had."""
        kind = raw.get("kind")
        unread = set(EARLIER_OPTIONS) - set(options_of(kind).model_fields) if kind in BUILT_IN else set()
        return {name: value for name, value in raw.items() if name not in unread}


def options_of(kind: str) -> type[NetworkOptions]:
    """Options of a kind of network; none where the kind is unknown, which is told when it is built."""
    path = BUILT_IN.get(kind, kind)
    return getattr(import_dotted(path), "Options", NetworkOptions) if ":" in path else NetworkOptions


def _refuse_unknown(kind: str, given: dict[str, Any], options: type[NetworkOptions]) -> None:
    """Raise ValueError for an option that is almost one of this kind, or one of another kind."""
    for name in (name for name in given if name not in options.model_fields):
        owners = [other for other in BUILT_IN if name in options_of(other).model_fields]
        if owners:
            raise ValueError(f"{name} is an option of kind: {owners[0]}, and the kind here is {kind}; leave {name} out")
        near = difflib.get_close_matches(name, options.model_fields, 1, 0.6)
        if near:
            raise ValueError(f"kind: {kind} has no option {name}; did you mean {near[0]}")


def _slow_library() -> bool:
    """True on x86 processors where torch's numerical library (MKL) takes its slow paths."""
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


class _Narrow(torch.autograd.Function):
    """x W + b for few outputs, [Q,R,in] -> [Q,R,out], computed as (Wᵀ xᵀ + bᵀ)ᵀ, several times faster."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        transposed = torch.baddbmm(bias.transpose(1, 2), weight.transpose(1, 2), x.transpose(1, 2))
        return transposed.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        # Autograd itself would give the gradient of x transposed in memory, which slows down all layers before.
        of_x = torch.bmm(grad, weight.transpose(1, 2))
        of_weight = torch.bmm(grad.transpose(1, 2), x).transpose(1, 2)
        return of_x, of_weight, grad.sum(1, keepdim=True)


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
        self._narrow = SLOW_LIBRARY and 1 < outputs < NARROW  # a single output is fast in every library

    def forward(self, x: Float[Tensor, "Q R in"]) -> Float[Tensor, "Q R out"]:
        """x W + b for each copy."""
        # To find them as attributes takes half as long as a small product does.
        own: dict[str, Any] = self._parameters
        weight, bias = own.get("weight"), own.get("bias")
        if weight is None or bias is None:  # they are made of others, as by torch.nn.utils.parametrizations
            weight, bias = self.weight, self.bias
        if self._narrow and x.shape[1] >= MANY:
            return _Narrow.apply(x, weight, bias)
        return torch.baddbmm(bias, x, weight)


class Network(nn.Module):
    """A map from what each agent sees to outputs for each.

    Made by `(inputs, outputs, config, gain=, copies=, streams=)`. Called with x [Q,R,N,D], alive [B,N] and memory, it
    gives outputs [Q,R,N,out] and memory. memory_shape is (C,H) for one that remembers, [B,C,N,H], else None.
    mixes_agents says that an agent's output depends on the others, so that one network must serve all of them.
    Options: the class of what its config has besides `kind`, `hidden` and `activation`; `Options.of(config)` reads it.
    """

    Options: ClassVar[type[NetworkOptions]] = NetworkOptions
    memory_shape: tuple[int, int] | None = None
    mixes_agents: bool = False

    def halves(self, x: Float[Tensor, "Q R N D"]) -> tuple[Tensor, Tensor, Tensor] | None:
        """Hidden units [Q,R·N,H], weights [Q,H,out] and biases [Q,1,out] of an affine last layer; None without one."""
        return None


class Trunk(nn.Module):
    """The hidden layers, [Q,X,D] -> [Q,X,H]. They are called past their hooks; the trunk's own hooks are heard."""

    def __init__(self, inputs: int, config: NetworkConfig, *, copies: int, streams: Streams):
        super().__init__()
        sizes = (inputs, *config.hidden)
        self.layers = nn.ModuleList(
            Linear(i, o, gain=2**0.5, copies=copies, streams=streams) for i, o in pairwise(sizes)
        )
        self.activation = ACTIVATIONS[config.activation]
        # For an actor's few rows it takes as long to find and call modules as to compute: a tuple is no module.
        self._in_turn = tuple(self.layers)

    def forward(self, x: Float[Tensor, "Q X D"]) -> Float[Tensor, "Q X H"]:
        """Layer, activation, and so on."""
        for layer in self._in_turn:
            x = self.activation(layer.forward(x))
        return x
