"""Networks: maps from what each of N agents sees to outputs for each, for Q stacked copies at once.

A copy is one set of parameters. P policies with C copies each (a critic per channel, say) are Q = P·C copies in one
product, so that K critics or five seeds cost about as much as one. Inputs are [Q,R,N,D] with R rows a copy.
A network of your own is a `Network` named by dotted path in `network.kind`; memory is zero at the start of an episode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from envs.core import InputError, Streams, import_dotted
from marl.models.layers import ACTIVATIONS, AttentionOptions, Linear, Network, NetworkConfig, Trunk


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
        old = self._from_memory(memory)
        reset_in, update_in, new_in = self.from_input(y).chunk(3, -1)
        reset_old, update_old, new_old = self.from_memory(old).chunk(3, -1)
        reset = torch.sigmoid(reset_in + reset_old)
        update = torch.sigmoid(update_in + update_old)
        new = torch.tanh(new_in + reset * new_old)
        kept = new + update * (old - new)
        return self.output(kept).view(copies, rows, agents, -1), self._to_memory(kept, agents)

    def _from_memory(self, memory: Float[Tensor, "B C N H"]) -> Float[Tensor, "Q X H"]:
        """A policy's copies one after the other, each with all its rows' agents."""
        by_policy = memory.unflatten(0, (self.policies, -1))
        by_copy = by_policy.transpose(1, 2).flatten(0, 1)
        return by_copy.flatten(1, 2)

    def _to_memory(self, kept: Float[Tensor, "Q X H"], agents: int) -> Float[Tensor, "B C N H"]:
        by_copy = kept.view(self.policies, self.copies, -1, agents, self.size)
        return by_copy.transpose(1, 2).flatten(0, 1)


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

    Options = AttentionOptions
    mixes_agents = True

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, *, gain: float, copies: int, streams: Streams):
        super().__init__()
        heads = AttentionOptions.of(config).heads
        if config.hidden[-1] % heads:
            raise InputError(
                f"network.heads must divide the last hidden size; got {heads} heads for {config.hidden[-1]}."
            )
        self.heads, self.activation = heads, ACTIVATIONS[config.activation]
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
        query, key, value = (self._by_head(part, agents) for part in self.projection(y).chunk(3, -1))
        heard = attention(query, key, value, self._attend(alive, copies, rows))
        # Side by side again: [Q,R,heads,N,H/heads] -> [Q,R·N,H].
        heard = heard.transpose(2, 3).flatten(3)
        y = y + self.activation(self.mixed(heard.flatten(1, 2)))
        return self.output(y).view(copies, rows, agents, -1), None

    def _by_head(self, part: Float[Tensor, "Q X H"], agents: int) -> Float[Tensor, "Q R heads N d"]:
        by_agent = part.unflatten(1, (-1, agents))
        return by_agent.unflatten(-1, (self.heads, -1)).transpose(2, 3)

    def _attend(self, alive: Bool[Tensor, "B N"], copies: int, rows: int) -> Bool[Tensor, "Q R 1 1 N"]:
        """To whom everyone attends: the living; to all where nobody lives. A policy's copies attend alike."""
        attend = alive | ~alive.any(-1, keepdim=True)
        by_policy = attend.view(-1, 1, rows, 1, 1, alive.shape[1])
        return by_policy.expand(-1, copies // len(by_policy), -1, -1, -1, -1).flatten(0, 1)


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


def _message_passing(*args: Any, **settings: Any) -> Network:
    from marl.models.message_passing import MessagePassing

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
            raise InputError(f"network.kind must name a marl.models.layers.Network; {config.kind} is {maker!r}.")
    return maker(inputs, outputs, config, gain=gain, copies=copies, streams=streams)
