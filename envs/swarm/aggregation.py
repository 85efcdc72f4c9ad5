"""A swarm in the plane that gathers, anywhere."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

from envs.core import Continuous, Observation
from envs.drawing import blank_axes, pixels
from envs.swarm.features import Features, swarm_features
from envs.swarm.riccati import LinearProblem
from envs.swarm.spec import require_nonnegative, require_positive, swarm_spec
from envs.world import Transition, World

HALF_WIDTH = 2.0
# Up to this many agents all pairs are measured, beyond it each agent is with the next few: memory stays linear in N.
ALL_PAIRS = 512
PARTNERS = 16
SHORTEST = 1e-15  # distance that two agents at one place are given


class Places(NamedTuple):
    """Places of the agents, and those that they believe to be at."""

    position: Float[Tensor, "E N 2"]
    seen: Float[Tensor, "E N 2"]


class Starts(NamedTuple):
    """Uniform numbers in [-1, 1) for the positions, standard normal ones for what is seen of them."""

    uniform: Float[Tensor, "E N 2"]
    normal: Float[Tensor, "E N 2"]


@dataclass(eq=False)
class _Gathering(World[Places]):
    """Agents in the plane with x' = x + v_max u + σ ε that see y = x + σ_y ε'; what they may do and pay is left open.

    They start uniformly in [-2, 2]². `controls` is the range of u.
    """

    shows_clock = False

    controls: ClassVar[Continuous]

    agents: int = 200
    horizon: int = 100
    _: KW_ONLY
    v_max: float = 0.2
    sigma: float = 0.03
    sigma_y: float = 0.1
    features: Features | str

    def __post_init__(self) -> None:
        require_positive(v_max=self.v_max)
        require_nonnegative(sigma=self.sigma, sigma_y=self.sigma_y)
        self.critic_features = swarm_features(self.features, (-HALF_WIDTH,) * 2, (HALF_WIDTH,) * 2)
        self.spec = swarm_spec(self.agents, 2, self.controls, self.critic_features.size, self.horizon)

    @abstractmethod
    def admissible(self, action: Float[Tensor, "E N 2"]) -> Float[Tensor, "E N 2"]:
        """The action that is carried out."""

    @abstractmethod
    def inside(self, position: Float[Tensor, "E N 2"]) -> Float[Tensor, "E N 2"]:
        """Place where a move to `position` ends."""

    @abstractmethod
    def cost(self, position: Float[Tensor, "E N 2"], action: Float[Tensor, "E N 2"]) -> Float[Tensor, " E"]:
        """Cost of a step from `position` to the swarm."""

    def initial_noise(self, num: int, generator: torch.Generator) -> Starts:
        """Starts, and errors of observation."""
        uniform = torch.empty(num, len(self.spec.agents), 2, device=generator.device).uniform_(
            -1, 1, generator=generator
        )
        return Starts(uniform, torch.randn(uniform.shape, generator=generator, device=generator.device))

    def initial(self, noise: Starts) -> Places:
        """Uniform in the box."""
        return self._seen(HALF_WIDTH * noise.uniform, noise.normal)

    def noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N 4"]:
        """Standard normal: ε and ε'."""
        return torch.randn(num, len(self.spec.agents), 4, generator=generator, device=generator.device)

    def transition(self, state: Places, action: Num[Tensor, "E N 2"], noise: Float[Tensor, "E N 4"]) -> Transition:
        """Pay for where the swarm is and what it does, then move. Everybody earns the team's reward."""
        done = self.admissible(action)
        reward = -self.cost(state.position, done)
        moved = self.inside(state.position + self.v_max * done + self.sigma * noise[..., :2])
        return Transition(self._seen(moved, noise[..., 2:]), reward.view(-1, 1, 1).expand(-1, action.shape[1], 1))

    def observe(self, state: Places) -> Observation:
        """Agents see their own y, the critic the features of all x."""
        alive = torch.ones(state.position.shape[:2], dtype=torch.bool, device=state.position.device)
        return Observation(state.seen, self.critic_features(state.position), alive)

    def frame(self, state: Places) -> Any:
        """The agents in the box."""
        side = 1.05 * HALF_WIDTH
        axes = blank_axes((-side, side), (-side, side))
        corner = [-HALF_WIDTH, HALF_WIDTH]
        axes.plot([*corner, *corner[::-1], -HALF_WIDTH], [-HALF_WIDTH, *corner, *corner[::-1]], color="lightgray")
        x, y = state.position[0].cpu().unbind(-1)
        axes.scatter(x.numpy(), y.numpy(), s=8, c="tab:blue", linewidths=0)
        return pixels(axes)

    def _seen(self, position: Float[Tensor, "E N 2"], normal: Float[Tensor, "E N 2"]) -> Places:
        return Places(position, position + self.sigma_y * normal)


@dataclass(eq=False)
class Aggregation(_Gathering):
    """N agents in the box [-2, 2]² gather: x' = clip(x + v_max u + σ ε), |u| <= 1, y = x + σ_y ε'.

    A step from x earns -c_d E|x - x'| - c_u E|u|, where x, x' are two different agents (`mean_pair_distance`): the
    expected reward of independent agents is then the limit's, at every N. A longer u is cut to length 1. The published
    constants are unknown; box, speed, σ and horizon are those of a sister task by the same authors, c_d, c_u and σ_y
    are ours. Agents never see the clock; the critic sees it and the swarm's `features` (see `swarm_features`).
    Source: Cui, Hauck, Fabian and Koeppl, ICLR 2024. Raises InputError for fewer than two agents, a horizon below 1,
    a speed that is not above 0, negative noise or costs.
    """

    controls = Continuous((-1.0, -1.0), (1.0, 1.0))

    _: KW_ONLY
    c_d: float = 1.0
    c_u: float = 0.1
    features: Features | str = "kernel"

    def __post_init__(self) -> None:
        require_nonnegative(c_d=self.c_d, c_u=self.c_u)
        super().__post_init__()

    def admissible(self, action: Float[Tensor, "E N 2"]) -> Float[Tensor, "E N 2"]:
        """Cut to length 1."""
        return action / torch.linalg.vector_norm(action, dim=-1, keepdim=True).clamp(min=1)

    def inside(self, position: Float[Tensor, "E N 2"]) -> Float[Tensor, "E N 2"]:
        """Walls stop."""
        return position.clamp(-HALF_WIDTH, HALF_WIDTH)

    def cost(self, position: Float[Tensor, "E N 2"], action: Float[Tensor, "E N 2"]) -> Float[Tensor, " E"]:
        """c_d E|x - x'| + c_u E|u|."""
        return self.c_d * mean_pair_distance(position) + self.c_u * torch.linalg.vector_norm(action, dim=-1).mean(-1)


@dataclass(eq=False)
class QuadraticAggregation(_Gathering):
    """Aggregation with quadratic costs, no walls and any u, so that `problem` (a `LinearProblem`) knows exact costs.

    A step from x earns -q tr Var - r E|u|², with Var the swarm's covariance with 1/N; E|x - x'|² over all pairs, an
    agent with itself included, is 2 tr Var. Otherwise as `Aggregation`; starts have variance 4/3 a dimension. Raises
    InputError as Aggregation, and for r that is not above 0.
    """

    controls = Continuous((-math.inf,) * 2, (math.inf,) * 2)

    _: KW_ONLY
    q: float = 1.0
    r: float = 0.1
    features: Features | str = "moments"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.problem = LinearProblem(
            self.horizon,
            b=self.v_max,
            sigma=self.sigma,
            sigma_y=self.sigma_y,
            q=self.q,
            r=self.r,
            initial_variance=HALF_WIDTH**2 / 3,
            final=0.0,
            dimensions=2,
        )

    def admissible(self, action: Float[Tensor, "E N 2"]) -> Float[Tensor, "E N 2"]:
        """Anything."""
        return action

    def inside(self, position: Float[Tensor, "E N 2"]) -> Float[Tensor, "E N 2"]:
        """Anywhere."""
        return position

    def known(self) -> dict[str, float]:
        """Returns that `problem` knows for as many agents."""
        return self.problem.returns(len(self.spec.agents))

    def cost(self, position: Float[Tensor, "E N 2"], action: Float[Tensor, "E N 2"]) -> Float[Tensor, " E"]:
        """q tr Var + r E|u|²."""
        deviation = position - position.mean(1, keepdim=True)
        variance, effort = (v.square().sum(-1).mean(-1) for v in (deviation, action))
        return self.problem.q * variance + self.problem.r * effort


def mean_pair_distance(points: Float[Tensor, "E N d"]) -> Float[Tensor, " E"]:
    """The mean distance of two different agents: 1/(N(N-1)) Σ_{i≠j} |x_i - x_j|, a U-statistic.

    Exact up to 512 agents. Beyond, the mean over each agent and the 16 that follow it, in memory linear in N: unbiased
    where agents are interchangeable, as in a swarm with one rule. As every agent is in equally many pairs, it differs
    from the exact value by less than a pair's standard deviation over sqrt(16 N) if agents are independent, which is
    less than the exact value itself differs from the limit's.
    """
    if points.shape[1] <= ALL_PAIRS:
        return _mean_of_all_pairs(points)
    following = [torch.linalg.vector_norm(points - points.roll(k, 1), dim=-1).mean(1) for k in range(1, PARTNERS + 1)]
    return torch.stack(following).mean(0)


def _mean_of_all_pairs(points: Float[Tensor, "E N d"]) -> Float[Tensor, " E"]:
    """Agents in a ring, each with the half of the others that follows it: every pair once, as none with itself."""
    n = points.shape[1]
    half = n // 2
    square = points.new_zeros(())
    # By dimension, and without matrix products, which lose the digits of short distances.
    for x in points.unbind(-1):
        ring = torch.cat([x, x[:, :half]], 1)
        following = ring.unfold(1, n, 1)[:, 1:]  # [E,N/2,N]: those one place on, two places on, and so on
        way = following - ring[:, :n].unsqueeze(1)
        square = torch.addcmul(square, way, way)
    # A gradient of 0, not NaN, for two agents at one place.
    distance = square.clamp(min=SHORTEST**2).sqrt().sum(-1)
    total = distance.sum(-1)
    if n % 2 == 0:
        total = total - distance[:, -1] / 2  # those opposite in the ring follow one another
    return total / (n * (n - 1) / 2)
