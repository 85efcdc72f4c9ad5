"""Adam with gradients clipped network by network, on parameters that lie side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from envs.core import InputError

DECAY, SQUARE_DECAY, EPSILON = 0.9, 0.999, 1e-5
ALIGNMENT = 16  # numbers: every parameter starts on a cache line


class Stacked(NamedTuple):
    """Parameters of Q networks side by side, one after the other on each parameter's first axis."""

    parameters: Iterable[nn.Parameter]
    copies: int


@runtime_checkable
class StepConfig(Protocol):
    """The settings of gradient steps, as a learner's config has them."""

    @property
    def learning_rate(self) -> float:
        """Of Adam."""

    @property
    def max_grad_norm(self) -> float:
        """The largest gradient norm of each network."""


def build_optimizer(config: StepConfig, *stacks: Stacked, learning_rate: float | None = None) -> ClippedAdam:
    """The optimizer of a learner's networks, with the config's settings, or with a learning rate of its own."""
    rate = config.learning_rate if learning_rate is None else learning_rate
    return ClippedAdam(*stacks, learning_rate=rate, max_grad_norm=config.max_grad_norm)


def gradients(loss: Float[Tensor, ""], *optimizers: ClippedAdam) -> list[Float[Tensor, " F"]]:
    """The gradient of `loss` with respect to each optimizer's parameters; 0 where the loss depends on none of them."""
    parameters = [p for optimizer in optimizers for p in optimizer.parameters]
    parts = iter(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
    return [optimizer.side_by_side([next(parts) for _ in optimizer.parameters]) for optimizer in optimizers]


class ClippedAdam:
    """Adam for stacks of networks, each network's gradient clipped on its own.

    All parameters become views of one tensor, so that a step costs a few operations instead of a few for every layer;
    the numbers are those of `torch.optim.Adam`. They are of one dtype and device. Source: Kingma and Ba, ICLR 2015
    (arXiv 1412.6980), algorithm 1.
    """

    def __init__(self, *stacks: Stacked, learning_rate: float, max_grad_norm: float) -> None:
        grouped = [[p for p in stack.parameters if p.requires_grad] for stack in stacks]
        self.parameters = [p for group in grouped for p in group]
        self.steps, self.learning_rate, self.max_grad_norm = 0, learning_rate, max_grad_norm
        self._rooms = [-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in self.parameters]
        self._value = self.parameters[0].detach().new_zeros(sum(self._rooms))
        self._mean, self._square = torch.zeros_like(self._value), torch.zeros_like(self._value)
        self._gaps = [self._value.new_zeros(room - p.numel()) for room, p in zip(self._rooms, self.parameters)]
        # What depends on the number of steps: tensors, so that a compiled step need not be compiled again.
        self._length, self._unbias = self._value.new_zeros(()), self._value.new_zeros(())
        self._adopt()
        # The pieces of the gradient that are clipped, and for each the number of the network that it belongs to.
        self._pieces: list[int] = []
        networks: list[int] = []
        ends = accumulate((len(group) for group in grouped), initial=0)
        for (start, end), (_, copies) in zip(pairwise(ends), stacks):
            first = max(networks, default=-1) + 1
            for piece, copy in self._parts(start, end, copies):
                self._pieces.append(piece)
                networks.append(first + copy)
        self._networks = torch.tensor(networks, device=self._value.device)
        self._nothing = self._value.new_zeros(max(networks) + 1)

    def descend(self, loss: Float[Tensor, ""]) -> None:
        """One step down the gradient of `loss`, clipped network by network."""
        (gradient,) = gradients(loss, self)
        self.step(gradient)

    def step(self, gradient: Float[Tensor, " F"] | None = None) -> None:
        """One step down a gradient from `gradients`, clipped network by network; overwrites the gradient.

        Raises InputError without one: nothing is collected by `loss.backward()`.
        """
        if gradient is None:
            raise InputError("optimizer.step needs a gradient; `optimizer.descend(loss)` takes one step down a loss.")
        self.begin_step()
        self.move(self.change(gradient))

    def begin_step(self) -> None:
        """Count one more step."""
        own = self._value.untyped_storage()._cdata
        if not all(p.untyped_storage()._cdata == own for p in self.parameters):
            self._adopt()  # another optimizer that has them too took them in between
        self.steps += 1
        self._length.fill_(-self.learning_rate / (1 - DECAY**self.steps))
        self._unbias.fill_((1 - SQUARE_DECAY**self.steps) ** -0.5)

    @torch.no_grad()
    def change(self, gradient: Float[Tensor, " F"]) -> Float[Tensor, " F"]:
        """What a step adds to the parameters, for `move`; takes the moments along and overwrites the gradient.

        No parameter is written, so that this can be compiled together with what gives the gradient.
        """
        mean, square = self._mean, self._square
        self._clip(gradient)
        mean.lerp_(gradient, 1 - DECAY)
        square.mul_(SQUARE_DECAY).addcmul_(gradient, gradient, value=1 - SQUARE_DECAY)
        deviation = (square.sqrt() * self._unbias).add_(EPSILON)
        return (mean * self._length).div_(deviation)

    @torch.no_grad()
    def move(self, change: Float[Tensor, " F"]) -> None:
        """Add to the parameters."""
        self._value.add_(change)

    def standing(self) -> list[Tensor]:
        """What steps read and write, and what never moves in memory."""
        return [*self.parameters, self._mean, self._square, self._length, self._unbias]

    def norms(self, gradient: Float[Tensor, " F"]) -> Float[Tensor, " Q"]:
        """The length of each network's part of a gradient."""
        squares = torch.stack(torch._foreach_norm(list(gradient.split(self._pieces)))).square()
        return self._nothing.index_add(0, self._networks, squares).sqrt()

    def side_by_side(self, parts: Sequence[Tensor]) -> Float[Tensor, " F"]:
        """Tensors shaped as the parameters in one piece, as this optimizer's are."""
        return torch.cat([x for part, gap in zip(parts, self._gaps) for x in (part.flatten(), gap)])

    def state_dict(self) -> dict[str, Tensor]:
        """The number of steps, and the moments by parameter number, shaped as the parameters."""
        moments = {"mean": self._split(self._mean), "square": self._split(self._square)}
        parts = {f"{i}.{name}": part for name, split in moments.items() for i, part in enumerate(split)}
        return {"steps": torch.tensor(self.steps), **parts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse."""
        for name, part in self.state_dict().items():
            part.copy_(state[name])
        self.steps = int(state["steps"])

    def _adopt(self) -> None:
        """Make the parameters views of this optimizer's tensor."""
        for p, value in zip(self.parameters, self._split(self._value)):
            p.data = value.copy_(p.data)

    def _clip(self, gradient: Float[Tensor, " F"]) -> None:
        """Scale each network's gradient down to the norm `max_grad_norm` where it is longer."""
        scale = (self.max_grad_norm / (self.norms(gradient) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(list(gradient.split(self._pieces)), list(scale[self._networks].unbind()))

    def _parts(self, start: int, end: int, copies: int) -> Iterator[tuple[int, int]]:
        """Size and copy of each piece of the parameters numbered from start to end; what fills their rooms is 0."""
        if copies == 1:
            yield sum(self._rooms[start:end]), 0
            return
        for p, room in zip(self.parameters[start:end], self._rooms[start:end]):
            size = p.numel() // copies
            yield from ((size, copy) for copy in range(copies - 1))
            yield size + room - p.numel(), copies - 1

    def _split(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat tensor's parts, shaped as the parameters."""
        return [part[: p.numel()].view(p.shape) for part, p in zip(flat.split(self._rooms), self.parameters)]
