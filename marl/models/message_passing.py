"""Message passing: agents exchange learned messages with those near them, for some rounds (torch-geometric).

Messages run along the complete graph, and those between agents who are not near weigh 0: a list of the near ones alone
would have a length that depends on data, for which the host would have to wait for the device.
"""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor, nn

from envs.core import InputError, Streams
from marl.models.layers import ACTIVATIONS, Linear, Network, NetworkConfig, NetworkOptions, Trunk

with warnings.catch_warnings():  # it rests on parts of torch that torch gives up
    warnings.simplefilter("ignore")
    from torch_geometric.utils import scatter

# On a GPU it recommends a package that cannot be installed without a compiler.
warnings.filterwarnings("ignore", message=".*can be accelerated via the 'torch-scatter' package")


MOST_TALKERS = 512  # agents, N, who pass messages: a row has N (N - 1) of them


class MessagePassingOptions(NetworkOptions):
    """Messages between agents who are near."""

    rounds: int = Field(2, ge=1, description="how often agents tell one another")
    aggregate: Literal["mean", "max"] = Field("mean", description="what is heard of several messages")
    positions: tuple[NonNegativeInt, ...] = Field(
        (), description="the columns of an observation, from 0, that hold an agent's own place"
    )
    radius: float | None = Field(None, gt=0, description="how far agents hear; null: everyone hears everyone")
    period: float | None = Field(None, gt=0, description="side of the torus of positions; null: none")

    @model_validator(mode="after")
    def _distances_need_places(self) -> MessagePassingOptions:
        if len(set(self.positions)) < len(self.positions):
            raise ValueError(f"positions names each column once, such as [2, 3]; got {list(self.positions)}")
        for name in ("radius", "period"):
            if getattr(self, name) is not None and not self.positions:
                raise ValueError(
                    f"{name} needs positions: the columns of an observation that hold an agent's place, such as [2, 3]"
                )
        return self

    def check(self, agents: int, features: int) -> None:
        """Raise InputError for more agents than can pass messages, or `positions` that an observation lacks."""
        if agents > MOST_TALKERS:
            raise InputError(
                f"network.kind: message_passing weighs every pair of agents and serves at most {MOST_TALKERS}; got "
                f"{agents}. Train it with fewer, or choose mlp in a world that tells an agent about those nearby."
            )
        self.check_positions(features)

    def check_positions(self, features: int) -> None:
        """Raise InputError where `positions` are not columns of an observation with so many features."""
        wrong = [column for column in self.positions if column >= features]
        if wrong:
            raise InputError(
                "network.positions names the columns of an observation that hold an agent's place, "
                f"0 to {features - 1} here; got {wrong}."
            )


class Pairs(NamedTuple):
    """The E = N (N - 1) pairs of different agents, by receiver: who, how far apart, and whether they are near."""

    receiver: Int[Tensor, " E"]
    sender: Int[Tensor, " E"]
    offset: Float[Tensor, "Q R E d"]
    near: Bool[Tensor, "Q R E"]


class MessagePassing(Network):
    """Network in which agents tell those near them what they see.

    It is one for any number of agents that `MessagePassingOptions.check` admits.
    With h_i the trunk's view of agent i, x_i its position and φ the activation, each round is

        m_ij = φ(W [h_i, h_j, x_j - x_i] + b)        h_i ← h_i + φ(U [h_i, mean_j m_ij] + c)

    over the living j ≠ i within `radius` of a living i, with the shortest of all differences on a torus of side
    `period`, in units of the radius if there is one. The mean (or, by `aggregate`, the greatest component) over nobody
    is 0; U takes in the linear layer with which a message would end. Permutation-equivariant. As a policy it is
    communication. Raises InputError for positions that the input does not have. Source:
    Gilmer et al., ICML 2017 (arXiv 1704.01212).
    """

    Options = MessagePassingOptions
    mixes_agents = True

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, *, gain: float, copies: int, streams: Streams):
        super().__init__()
        options = MessagePassingOptions.of(config)
        options.check_positions(inputs)
        self.radius, self.period = options.radius, options.period
        self._columns = torch.tensor(options.positions, dtype=torch.int64, device=streams.device)
        self.trunk = Trunk(inputs, config, copies=copies, streams=streams)
        self.rounds = nn.ModuleList(
            Round(config, options, copies=copies, streams=streams) for _ in range(options.rounds)
        )
        self.output = Linear(config.hidden[-1], outputs, gain=gain, copies=copies, streams=streams)

    def forward(
        self, x: Float[Tensor, "Q R N D"], alive: Bool[Tensor, "B N"], memory: None
    ) -> tuple[Float[Tensor, "Q R N out"], None]:
        """Outputs, and no memory. The dead neither send nor receive."""
        copies, rows, agents, features = x.shape
        pairs = self._pairs(x.index_select(-1, self._columns), alive)
        h = self.trunk(x.reshape(copies, rows * agents, features)).unflatten(1, (rows, agents))
        for exchange in self.rounds:
            h = exchange(h, pairs)
        return self.output(h.flatten(1, 2)).view(copies, rows, agents, -1), None

    def _pairs(self, place: Float[Tensor, "Q R N d"], alive: Bool[Tensor, "B N"]) -> Pairs:
        copies, rows, agents, _ = place.shape
        receiver, sender = all_pairs(agents, place.device)
        offset = place.index_select(2, sender) - place.index_select(2, receiver)
        if self.period is not None:
            offset = offset - self.period * (offset / self.period).round()
        near = alive.index_select(1, receiver) & alive.index_select(1, sender)
        near = near.unflatten(0, (-1, 1, rows)).expand(-1, copies * rows // len(alive), -1, -1).flatten(0, 1)
        if self.radius is not None:
            offset = offset / self.radius
            near = near & (offset.square().sum(-1) <= 1)
        return Pairs(receiver, sender, offset, near)


class Round(nn.Module):
    """One exchange of messages, h [Q,R,N,H] -> [Q,R,N,H]."""

    def __init__(self, config: NetworkConfig, options: MessagePassingOptions, *, copies: int, streams: Streams):
        super().__init__()
        size, places = config.hidden[-1], len(options.positions)
        self._parts, self._aggregate = (size, size, places), options.aggregate
        self.activation = ACTIVATIONS[config.activation]
        self.message = Linear(2 * size + places, size, gain=2**0.5, copies=copies, streams=streams)
        self.update = Linear(2 * size, size, gain=1.0, copies=copies, streams=streams)

    def forward(self, h: Float[Tensor, "Q R N H"], pairs: Pairs) -> Float[Tensor, "Q R N H"]:
        """Features of each agent after it has heard those near it."""
        heard = aggregate(self.tell(h, pairs), pairs, h.shape[2], self._aggregate)
        return h + self.activation(self.update(torch.cat([h, heard], -1).flatten(1, 2))).view_as(h)

    def tell(self, h: Float[Tensor, "Q R N H"], pairs: Pairs) -> Float[Tensor, "Q R E H"]:
        """φ(W [h_i, h_j, offset] + b); the products with h are taken once an agent instead of once a pair."""
        to_receiver, to_sender, to_offset = self.message.weight.split(self._parts, 1)
        here = torch.baddbmm(self.message.bias, h.flatten(1, 2), to_receiver).view_as(h)
        there = (h.flatten(1, 2) @ to_sender).view_as(h)
        told = here.index_select(2, pairs.receiver) + there.index_select(2, pairs.sender)
        moved = torch.baddbmm(told.flatten(1, 2), pairs.offset.flatten(1, 2), to_offset)
        return self.activation(moved).view_as(told)


def aggregate(told: Float[Tensor, "Q R E H"], pairs: Pairs, agents: int, kind: str) -> Float[Tensor, "Q R N H"]:
    """The mean, or the greatest of each component, of what those near told each agent; 0 where nobody is near."""
    near = pairs.near.unsqueeze(-1)
    count = scatter(near.to(told.dtype), pairs.receiver, dim=2, dim_size=agents)
    if kind == "mean":
        return scatter(told.masked_fill(~near, 0), pairs.receiver, dim=2, dim_size=agents) / count.clamp(min=1)
    told = told.masked_fill(~near, -torch.inf)
    return scatter(told, pairs.receiver, dim=2, dim_size=agents, reduce="max").masked_fill(count == 0, 0)


def all_pairs(agents: int, device: torch.device) -> tuple[Int[Tensor, " E"], Int[Tensor, " E"]]:
    """Receiver and sender of the E = N (N - 1) messages between different agents, by receiver."""
    others = torch.arange(agents * (agents - 1), device=device)
    receiver, place = others // max(1, agents - 1), others % max(1, agents - 1)
    return receiver, place + (place >= receiver)
