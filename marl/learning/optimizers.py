"""Adam with gradients clipped network by network, on parameters that lie side by side."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

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


class ClippedAdam:
    """Adam for stacks of networks, each network's gradient clipped on its own.

    All parameters become views of one tensor, so that a step costs a few operations instead of a few for every layer;
    the numbers are those of `torch.optim.Adam`. They are of one dtype and device. Gradients are views too: add to them,
    never replace them. Source: Kingma and Ba, ICLR 2015 (arXiv 1412.6980), algorithm 1.
    """

    def __init__(self, *stacks: Stacked, learning_rate: float, max_grad_norm: float) -> None:
        grouped = [[p for p in stack.parameters if p.requires_grad] for stack in stacks]
        self.parameters = [p for group in grouped for p in group]
        self.steps, self.learning_rate, self.max_grad_norm = 0, learning_rate, max_grad_norm
        self._rooms = [-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in self.parameters]
        self._value = self.parameters[0].detach().new_zeros(sum(self._rooms))
        self._gradient, self._mean, self._square = (torch.zeros_like(self._value) for _ in range(3))
        for p, value, gradient in zip(self.parameters, self._split(self._value), self._split(self._gradient)):
            p.data, p.grad = value.copy_(p.data), gradient
        # The pieces of the gradient that are clipped, and for each the number of the network that it belongs to.
        self._pieces: list[Tensor] = []
        networks: list[int] = []
        ends = accumulate((len(group) for group in grouped), initial=0)
        for (start, end), (_, copies) in zip(pairwise(ends), stacks):
            first = max(networks, default=-1) + 1
            for gradient in self._gradients(start, end, whole=copies == 1):
                self._pieces += gradient.chunk(copies)
                networks += range(first, first + copies)
        self._networks = torch.tensor(networks, device=self._value.device)
        self._nothing = self._value.new_zeros(max(networks) + 1)

    @torch.no_grad()
    def step(self) -> None:
        """Clip, step, and clear the gradients."""
        self._clip()
        self.steps += 1
        gradient, mean, square = self._gradient, self._mean, self._square
        mean.lerp_(gradient, 1 - DECAY)
        square.mul_(SQUARE_DECAY).addcmul_(gradient, gradient, value=1 - SQUARE_DECAY)
        deviation = square.sqrt().mul_((1 - SQUARE_DECAY**self.steps) ** -0.5).add_(EPSILON)
        self._value.addcdiv_(mean, deviation, value=-self.learning_rate / (1 - DECAY**self.steps))
        gradient.zero_()

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

    def _clip(self) -> None:
        """Scale each network's gradient down to the norm `max_grad_norm` where it is longer."""
        squares = torch.stack(torch._foreach_norm(self._pieces)).square()
        norms = self._nothing.index_add(0, self._networks, squares).sqrt()
        scale = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(self._pieces, list(scale[self._networks].unbind()))

    def _gradients(self, start: int, end: int, *, whole: bool) -> list[Tensor]:
        """Of the parameters numbered from start to end, in one piece where that is enough."""
        if not whole:
            return self._split(self._gradient)[start:end]
        return [self._gradient[sum(self._rooms[:start]) : sum(self._rooms[:end])]]

    def _split(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat tensor's parts, shaped as the parameters."""
        return [part[: p.numel()].view(p.shape) for part, p in zip(flat.split(self._rooms), self.parameters)]
