"""Networks: maps from what each of N agents sees to outputs for each, for Q stacked copies at once.

A copy is one set of parameters. P policies with C copies each (a critic per channel, say) are Q = P·C copies in one
product, so that K critics or five seeds cost about as much as one. Inputs are [Q,R,N,D] with R rows a copy.
A network of your own is a `Network` named by dotted path in `network.kind`; memory is zero at the start of an episode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from envs.core import InputError, Streams, import_dotted
from marl.config import Section

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


class MLP(Network):
    """Layers of units, applied to each agent alone."""

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, *, gain: float, copies: int, streams: Streams):
        super().__init__()
        self.trunk = Trunk(inputs, config, copies=copies, streams=streams)
        self.output = Linear(config.hidden[-1], outputs, gain=gain, copies=copies, streams=streams)

    def forward(
        self, x: Float[Tensor, "Q R N D"], alive: Bool[Tensor, "B N"], memory: None
    ) -> tuple[Float[Tensor, "Q R N out"], None]:
        """Outputs, and no memory."""
        copies, rows, agents, features = x.shape
        y = self.trunk(x.reshape(copies, rows * agents, features))
        return self.output(y).view(copies, rows, agents, -1), None


class GRU(Network):
    """Layers, then a gated recurrent unit, then an output: each agent remembers for itself.

    Memory is [B,C,N,H] with H the last hidden size. Source of the unit: Cho et al., EMNLP 2014 (arXiv 1406.1078).
    """

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, *, gain: float, copies: int, streams: Streams):
        super().__init__()
        self.copies, self.policies, self.size = copies, len(streams), config.hidden[-1]
        self.memory_shape = (copies, self.size)
        self.trunk = Trunk(inputs, config, copies=copies, streams=streams)
        self.from_input = Linear(self.size, 3 * self.size, gain=1.0, copies=copies, streams=streams)
        self.from_memory = Linear(self.size, 3 * self.size, gain=1.0, copies=copies, streams=streams)
        self.output = Linear(self.size, outputs, gain=gain, copies=copies, streams=streams)

    def forward(
        self, x: Float[Tensor, "Q R N D"], alive: Bool[Tensor, "B N"], memory: Float[Tensor, "B C N H"]
    ) -> tuple[Float[Tensor, "Q R N out"], Float[Tensor, "B C N H"]]:
        """Outputs, and what is remembered next."""
        copies, rows, agents, features = x.shape
        y = self.trunk(x.reshape(copies, rows * agents, features))
        # [B,C,N,H] -> [Q, R·N, H]
        old = memory.unflatten(0, (self.policies, -1)).transpose(1, 2).flatten(0, 1).flatten(1, 2)
        reset_in, update_in, new_in = self.from_input(y).chunk(3, -1)
        reset_old, update_old, new_old = self.from_memory(old).chunk(3, -1)
        update = torch.sigmoid(update_in + update_old)
        new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_old) * new_old)
        kept = new + update * (old - new)
        memory = kept.view(self.policies, self.copies, -1, agents, self.size).transpose(1, 2).flatten(0, 1)
        return self.output(kept).view(copies, rows, agents, -1), memory


def attention(
    query: Float[Tensor, "*X N d"],
    key: Float[Tensor, "*X N d"],
    value: Float[Tensor, "*X N d"],
    attend: Bool[Tensor, "*#X 1 N"],
) -> Float[Tensor, "*X N d"]:
    """Scaled dot-product attention to those with attend [*X,1,N]; for few agents several times the library's speed."""
    score = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    score = score.masked_fill(~attend, -1e9)
    weight = (score - score.amax(-1, keepdim=True).detach()).exp()
    return weight @ value / weight.sum(-1, keepdim=True)


class Attention(Network):
    """Agents attend to one another: an embedding, one block of multi-head attention over the living, and an output.

    Permutation-equivariant, so it serves any number of agents. As a policy it is communication: every agent sees what
    the others see. Source: Vaswani et al., NeurIPS 2017 (arXiv 1706.03762), without positions.
    """

    mixes_agents = True

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, *, gain: float, copies: int, streams: Streams):
        super().__init__()
        if config.hidden[-1] % config.heads:
            raise InputError(
                f"network.heads must divide the last hidden size; got {config.heads} heads for {config.hidden[-1]}."
            )
        self.heads, self.activation = config.heads, ACTIVATIONS[config.activation]
        self.trunk = Trunk(inputs, config, copies=copies, streams=streams)
        size = config.hidden[-1]
        self.projection = Linear(size, 3 * size, gain=1.0, copies=copies, streams=streams)
        self.mixed = Linear(size, size, gain=1.0, copies=copies, streams=streams)
        self.output = Linear(size, outputs, gain=gain, copies=copies, streams=streams)

    def forward(
        self, x: Float[Tensor, "Q R N D"], alive: Bool[Tensor, "B N"], memory: None
    ) -> tuple[Float[Tensor, "Q R N out"], None]:
        """Outputs, and no memory. Nobody attends to the dead; where nobody lives, everybody attends to all."""
        copies, rows, agents, features = x.shape
        y = self.trunk(x.reshape(copies, rows * agents, features))
        query, key, value = (
            part.unflatten(1, (-1, agents)).unflatten(-1, (self.heads, -1)).transpose(2, 3)
            for part in self.projection(y).chunk(3, -1)
        )  # [Q,R,heads,N,H/heads]
        attend = (alive | ~alive.any(-1, keepdim=True)).view(-1, 1, rows, 1, 1, agents)
        attend = attend.expand(-1, copies // len(attend), -1, -1, -1, -1).flatten(0, 1)
        heard = attention(query, key, value, attend)
        y = y + self.activation(self.mixed(heard.transpose(2, 3).flatten(3).flatten(1, 2)))
        return self.output(y).view(copies, rows, agents, -1), None


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


def check_network(
    network: Network, kind: str, *, policies: int, copies: int, agents: int, inputs: int, outputs: int
) -> None:
    """Play one row of zeros through a network of a user's own. Raises InputError where it is not as `Network` says."""
    copies *= policies
    wrong = [f"{name} {list(p.shape)}" for name, p in network.named_parameters() if len(p) != copies]
    if copies > 1 and wrong:
        raise InputError(
            f"network.kind {kind}: with {copies} copies (policies times reward channels) every parameter has them on "
            f"its first axis, as those of marl.networks.Linear; got {', '.join(wrong[:3])}. Build it from Linear, or "
            "train one seed and one channel."
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


def _message_passing(*args: Any, **settings: Any) -> Network:
    from marl.message_passing import MessagePassing  # torch-geometric takes seconds to import

    return MessagePassing(*args, **settings)


BUILT_IN: dict[str, Callable[..., Network]] = {
    "mlp": MLP,
    "gru": GRU,
    "attention": Attention,
    "message_passing": _message_passing,
}


def build_network(
    config: NetworkConfig, inputs: int, outputs: int, *, gain: float, copies: int = 1, streams: Streams
) -> Network:
    """The network that `config.kind` names. Raises InputError for a name that is neither built in nor a dotted path."""
    maker = BUILT_IN.get(config.kind)
    if maker is None:
        if ":" not in config.kind:
            raise InputError(
                f"network.kind must be one of {', '.join(BUILT_IN)}, or a class by dotted path such as "
                f"'my_package.nets:MyNetwork'; got {config.kind!r}."
            )
        maker = import_dotted(config.kind)
        if not (isinstance(maker, type) and issubclass(maker, Network)):
            raise InputError(f"network.kind must name a marl.networks.Network; {config.kind} is {maker!r}.")
    return maker(inputs, outputs, config, gain=gain, copies=copies, streams=streams)
