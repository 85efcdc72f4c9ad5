"""Decision rules: what every agent of a swarm does with what it sees. All agents of a swarm follow the same one.

A rule is a vector xi of R numbers; `Rule.apply` turns it and what N agents see into the distributions of their actions.
The number of agents is no part of a rule. `docs/mean_field.md` has the equations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Num
from pydantic import Field, PositiveInt
from torch import Tensor

from envs.core import EnvSpec, InputError, Observation, Streams
from marl.algorithms.mean_field.actions import ActionParameters, AgentDistribution
from marl.config.schema import Section
from marl.models.distributions import softmax

MOST_POINTS = 1024  # control points beyond which xi is hopelessly long
MANY_AGENTS = 20_000  # beyond which a kernel rule of one observed feature is looked up in a table
FINENESS = tuple(2**k for k in range(11, 16))  # entries of such a table: the fewest that are exact enough
TABLE_ERROR = 3e-6  # of its weights, added up
NARROWEST = 1e-3  # bandwidth in distances of control points, below which 32 bits do not hold the weights' exponents
TABLE_POINTS = 64  # control points up to which a table is worth making


class RuleConfig(Section):
    """Configuration of the family of decision rules to choose from."""

    kind: Literal["kernel", "table", "neural"] = Field(
        "kernel", description="smooth between control points; constant around each; or a small network"
    )
    points: int = Field(7, ge=1, description="control points along each observed feature")
    low: float | tuple[float, ...] = Field(-1.0, description="the first one, for all features or one number for each")
    high: float | tuple[float, ...] = Field(1.0, description="the last one, for all features or one number for each")
    bandwidth: float | tuple[float, ...] | None = Field(
        None, description="deviation of the kernel, in units of the observation; null: half the distance of two points"
    )
    hidden: tuple[PositiveInt, ...] = Field((8,), min_length=1, description="units of the neural rule's hidden layers")


class Rule(ABC):
    """A family of rules. size: R, the length of xi. Subclasses say what xi means."""

    size: int

    def __init__(self, actions: ActionParameters):
        self.actions = actions

    def apply(
        self, xi: Float[Tensor, "B R"], y: Float[Tensor, "B N D"], legal: Bool[Tensor, "B N A"] | None = None
    ) -> AgentDistribution:
        """Distribution of the actions of agents who see y, independent of one another, in swarms whose rules are xi."""
        return self.actions.distribution(self.parameters_at(xi, y), legal)

    def draw(self, xi: Float[Tensor, "B R"], obs: Observation, streams: Streams) -> Num[Tensor, "B N A"]:
        """Actions of the agents, drawn as `apply(xi, obs.agent, obs.legal).sample(streams)` draws them."""
        return self.actions.draw(self.parameters_at(xi, obs.agent), obs.legal, streams)

    @abstractmethod
    def parameters_at(self, xi: Float[Tensor, "B R"], y: Float[Tensor, "B N D"]) -> Float[Tensor, "B N Q"]:
        """The parameters of the actions' distributions, in the actions' units."""

    @abstractmethod
    def lipschitz(self, xi: Float[Tensor, "B R"]) -> Float[Tensor, " B"]:
        """An upper bound of |parameters_at(xi, y) - parameters_at(xi, y')| / |y - y'| over all y, y', for each xi.

        For real actions the parameters are means and deviations, so that this bounds the rule's modulus in the
        2-Wasserstein distance too, and with it in the first. For finite choices it bounds the logits'.
        """

    @abstractmethod
    def start(self, streams: Streams) -> Float[Tensor, "P 1 R"]:
        """The rule that training begins with, for each policy."""


class KernelRule(Rule):
    """Parameters at y are the average of those at M control points, weighted by a Gaussian kernel.

        p(y) = Σ_b w_b(y) p_b(xi),   w_b(y) = κ_b(y) / Σ_c κ_c(y),   κ_b(y) = exp(-|(y - y_b)/s|² / 2)

    Differentiable in y, with Jacobian Cov_w(p_b, y_b/s²). Source: Cui et al., ICLR 2024 (arXiv 2307.06175); the weights
    are those of Nadaraya and Watson. Raises InputError for a bandwidth that is not positive, or nothing beside
    the grid's spacing, and for a grid that does not fit the observation.
    """

    def __init__(self, features: int, actions: ActionParameters, config: RuleConfig, device: torch.device):
        super().__init__(actions)
        low, high = _range(config, features)
        spacing = (high - low) / max(1, config.points - 1)
        width = spacing / 2 if config.bandwidth is None else _each("bandwidth", config.bandwidth, features)
        if not bool((width >= NARROWEST * spacing).all()):
            raise InputError(
                f"policy.rule.bandwidth must be positive, at least {NARROWEST:g} of the distance of two control points "
                f"({', '.join(f'{each:g}' for each in spacing.tolist())}); got {config.bandwidth}. "
                "policy.rule.kind=table is the limit of narrow kernels."
            )
        points = _grid(low, high, config.points)
        self.size = len(points) * actions.size
        # |y|² is the same for all points, so the weights need only products with y; around the middle they are exact.
        self._features, self._far = features, _reach(high - low, width, config.points)
        self._middle = ((low + high) / 2).to(device)
        centered = points - (low + high) / 2
        self._slope = (centered / width.square()).T.to(device)
        self._offset = (centered / width).square().sum(-1).to(device) / 2
        self._spread = float(_diameter(points / width.square()))

    def weights(self, y: Float[Tensor, "B N D"]) -> Float[Tensor, "B N M"]:
        """Weight of each control point; they add up to 1, however far away y is."""
        return softmax((y - self._middle) @ self._slope - self._offset)

    def parameters_at(self, xi: Float[Tensor, "B R"], y: Float[Tensor, "B N D"]) -> Float[Tensor, "B N Q"]:
        """The weighted average of the control points' parameters.

        For more than `MANY_AGENTS` who see one feature it is interpolated linearly, from a table that reaches to where
        the rule is constant; it errs by less than 1e-5 times the control points' largest parameter.
        """
        if self._features == 1 and y.shape[1] > MANY_AGENTS and (weights := self._table) is not None:
            return interpolated(weights.to(y) @ self._at_points(xi), (y[..., 0] - self._middle) / self._far)
        return self.weights(y) @ self._at_points(xi)

    @cached_property
    def _table(self) -> Float[Tensor, "T M"] | None:
        """The weights at evenly spaced y, `_far` on both sides of the middle; None where no table is exact enough."""
        with torch.inference_mode(False):  # it is kept, also for those who want gradients
            for size in FINENESS if self._slope.shape[1] <= TABLE_POINTS else ():
                share = torch.linspace(-1, 1, 2 * size - 1, dtype=torch.float64, device=self._middle.device)
                y = share.view(1, -1, 1) * self._far
                exact = (y @ self._slope.double() - self._offset.double()).softmax(-1)[0]
                between = (exact[:-1:2] + exact[2::2]) / 2
                if float((between - exact[1::2]).abs().sum(-1).max()) < TABLE_ERROR:
                    return exact[::2].to(self._slope.dtype)
        return None

    def lipschitz(self, xi: Float[Tensor, "B R"]) -> Float[Tensor, " B"]:
        """Diam{y_b/s²} Diam{p_b} / 4, since |Cov(a, b)| ≤ range(a) range(b) / 4 along any two directions.

        Exact halfway between two control points.
        """
        return self._spread * _diameter(self._at_points(xi)) / 4

    def start(self, streams: Streams) -> Float[Tensor, "P 1 R"]:
        """The same everywhere."""
        return torch.zeros(len(streams), 1, self.size, device=streams.device)

    def _at_points(self, xi: Float[Tensor, "B R"]) -> Float[Tensor, "B M Q"]:
        return self.actions.of(xi.unflatten(-1, (-1, self.actions.size)))


class TableRule(Rule):
    """Parameters at y are those of the nearest control point, feature by feature: a histogram's rule."""

    def __init__(self, features: int, actions: ActionParameters, config: RuleConfig, device: torch.device):
        super().__init__(actions)
        low, high = _range(config, features)
        self.size = len(_grid(low, high, config.points)) * actions.size
        self.points = config.points
        self._low, self._spacing = low.to(device), ((high - low) / max(1, config.points - 1)).to(device)
        self._stride = config.points ** torch.arange(features - 1, -1, -1, device=device)

    def bins(self, y: Float[Tensor, "B N D"]) -> Int[Tensor, "B N"]:
        """The number of the nearest control point; the last feature counts fastest."""
        # What is no number has no bin; the loss will tell of it, an index out of range would not.
        place = ((y - self._low) / self._spacing).nan_to_num(0.0).round().clamp(0, self.points - 1)
        return (place.long() * self._stride).sum(-1)

    def parameters_at(self, xi: Float[Tensor, "B R"], y: Float[Tensor, "B N D"]) -> Float[Tensor, "B N Q"]:
        """A look into the table."""
        table = self.actions.of(xi.unflatten(-1, (-1, self.actions.size)))
        return table.gather(1, self.bins(y).unsqueeze(-1).expand(-1, -1, self.actions.size))

    def lipschitz(self, xi: Float[Tensor, "B R"]) -> Float[Tensor, " B"]:
        """Infinite: a table jumps, unless it says the same everywhere."""
        table = self.actions.of(xi.unflatten(-1, (-1, self.actions.size)))
        return torch.where((table == table[:, :1]).all(-1).all(-1), 0.0, torch.inf)

    def start(self, streams: Streams) -> Float[Tensor, "P 1 R"]:
        """The same everywhere."""
        return torch.zeros(len(streams), 1, self.size, device=streams.device)


class NeuralRule(Rule):
    """Raw parameters at y are a small tanh network's outputs, and xi all its weights, layer by layer.

    The network sees features in half-ranges around the middle of [low, high].
    """

    def __init__(self, features: int, actions: ActionParameters, config: RuleConfig, device: torch.device):
        super().__init__(actions)
        low, high = _range(config, features)
        self._middle, self._half = ((low + high) / 2).to(device), ((high - low) / 2).to(device)
        self._layers = list(pairwise((features, *config.hidden, actions.size)))
        self._rooms = [room for inputs, outputs in self._layers for room in (inputs * outputs, outputs)]
        self.size = sum(self._rooms)

    def parameters_at(self, xi: Float[Tensor, "B R"], y: Float[Tensor, "B N D"]) -> Float[Tensor, "B N Q"]:
        """A pass through each swarm's network."""
        x = (y - self._middle) / self._half
        *hidden, last = self._weights(xi)
        for weight, bias in hidden:
            x = torch.baddbmm(bias, x, weight).tanh()
        return self.actions.of(torch.baddbmm(last[1], x, last[0]))

    def lipschitz(self, xi: Float[Tensor, "B R"]) -> Float[Tensor, " B"]:
        """The product of the layers' largest singular values and of the steepest slopes before and after.

        No rule is steeper, though most are much less steep than that.
        """
        norms = [torch.linalg.matrix_norm(weight, 2) for weight, _ in self._weights(xi)]
        return torch.stack(norms).prod(0) * (self.actions.slope / float(self._half.min()))

    def start(self, streams: Streams) -> Float[Tensor, "P 1 R"]:
        """Random weights, the last layer's a tenth of the others': from zeros no layer would learn."""
        return torch.stack([self._drawn(generator) for generator in streams.on_host]).to(streams.device)

    def _drawn(self, generator: torch.Generator) -> Float[Tensor, "1 R"]:
        parts = []
        for number, (inputs, outputs) in enumerate(self._layers, 1):
            gain = 0.1 if number == len(self._layers) else 1.0
            parts += [torch.randn(inputs * outputs, generator=generator) * gain / inputs**0.5, torch.zeros(outputs)]
        return torch.cat(parts).unsqueeze(0)

    def _weights(self, xi: Float[Tensor, "B R"]) -> list[tuple[Float[Tensor, "B i o"], Float[Tensor, "B 1 o"]]]:
        parts = xi.split(self._rooms, -1)
        return [
            (weight.unflatten(-1, layer), bias.unsqueeze(1))
            for weight, bias, layer in zip(parts[::2], parts[1::2], self._layers)
        ]


def interpolated(table: Float[Tensor, "B T Q"], share: Float[Tensor, "B N"]) -> Float[Tensor, "B N Q"]:
    """Between the entries of each row's table, which cover [-1, 1] evenly; constant beyond; NaN where share is NaN."""
    rows, size, _ = table.shape
    place = ((share + 1) * ((size - 1) / 2)).clamp(0, size - 1)
    left = place.detach().nan_to_num(0.0).long().clamp_(max=size - 2)
    part = (place - left).flatten()
    first = torch.arange(0, rows * size, size, device=table.device).unsqueeze(-1)
    left = (left + first).flatten() if rows > 1 else left.flatten()
    right = left + 1
    # Column by column, which is many times faster than looking up pairs of numbers.
    columns = [column.flatten() for column in table.unbind(-1)]
    found = [torch.lerp(c.index_select(0, left), c.index_select(0, right), part) for c in columns]
    return torch.stack(found).view(-1, *share.shape).movedim(0, -1)


def build_rule(spec: EnvSpec, config: RuleConfig, initial_std: float, device: torch.device) -> Rule:
    """The family of rules that the config asks for. Raises InputError where it does not fit the world."""
    kinds: dict[str, type[KernelRule | TableRule | NeuralRule]] = {
        "kernel": KernelRule,
        "table": TableRule,
        "neural": NeuralRule,
    }
    actions = ActionParameters(spec, initial_std, device)
    if not spec.observation_size:
        raise InputError("A rule says what to do with what an agent sees; these agents see nothing.")
    return kinds[config.kind](spec.observation_size, actions, config, device)


def _each(name: str, value: float | tuple[float, ...], features: int) -> Float[Tensor, " D"]:
    """One number for each observed feature."""
    values = (value,) * features if isinstance(value, float | int) else value
    if len(values) != features:
        raise InputError(
            f"policy.rule.{name} must be one number, or one for each of the {features} features that an agent sees; "
            f"got {len(values)} of them."
        )
    return torch.tensor(values, dtype=torch.float32)


def _range(config: RuleConfig, features: int) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    low, high = _each("low", config.low, features), _each("high", config.high, features)
    if not bool((low < high).all()):
        raise InputError(f"policy.rule.low must be below policy.rule.high; got {config.low} and {config.high}.")
    return low, high


def _reach(length: Float[Tensor, " D"], width: Float[Tensor, " D"], count: int) -> float:
    """Distance from the middle of one feature's grid at which the nearest point has all the weight, but for 1e-7 of it.

    At a distance d beyond the last point the one before it, Δ away, weighs exp(-(d Δ + Δ²/2) / s²) as much.
    """
    spacing, square = float(length[0]) / max(1, count - 1), float(width[0]) ** 2
    return float(length[0]) / 2 + max(0.0, 16 * square / spacing - spacing / 2)


def _grid(low: Float[Tensor, " D"], high: Float[Tensor, " D"], count: int) -> Float[Tensor, "M D"]:
    """All combinations of `count` evenly spaced numbers along each feature; a single one is in the middle."""
    if count ** len(low) > MOST_POINTS:
        raise InputError(
            f"{count} control points along each of {len(low)} features are {count ** len(low)}, more than "
            f"{MOST_POINTS}. Lower policy.rule.points, or set policy.rule.kind=neural."
        )
    share = torch.linspace(0, 1, count) if count > 1 else torch.tensor([0.5])
    axes = torch.meshgrid(*(share,) * len(low), indexing="ij")
    return low + (high - low) * torch.stack(axes, -1).flatten(0, -2)


def _diameter(points: Float[Tensor, "*B M F"]) -> Float[Tensor, "*B"]:
    """The largest distance of two points."""
    # Not by |a|² + |b|² - 2ab, which loses small distances and would make the bound too small.
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").amax((-2, -1))
