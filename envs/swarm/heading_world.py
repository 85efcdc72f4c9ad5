"""Common part of worlds of headings: a swarm on a surface that sees and is paid for the directions of its agents."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

from envs.core import Continuous, InputError, Observation
from envs.swarm.features import Features
from envs.swarm.headings import direction, heading_features, local_order, order, relative, unit, wrapped
from envs.swarm.manifolds import Manifold
from envs.swarm.neighbors import Neighborhood, Neighbors
from envs.swarm.picture import draw_swarm
from envs.swarm.spec import one_of, require_nonnegative, require_positive, require_truth, swarm_spec
from envs.swarm.sums import Sums, beside
from envs.world import Transition, World

SIGNS = {"aligned": 1.0, "misaligned": -1.0}
# More than this many radians, or sides of the square, in a step: float32 would not know the direction any more.
LONGEST_STEP = 1e3
# What an agent may see of the mean heading nearby, and how many numbers that is.
SEES = {"vector": 2, "angle": 1}


def require_small_steps(**steps: float) -> None:
    """Raise InputError for what turns or moves an agent by more than `LONGEST_STEP` in one step of physics."""
    for name, step in steps.items():
        if abs(step) > LONGEST_STEP:
            raise InputError(
                f"{name} turns or moves an agent by {abs(step):g} radians or sides of the square in one step, beyond "
                f"what numbers can tell apart; the most is {LONGEST_STEP:g}. Lower {name}, or dt."
            )


class HeadingState(NamedTuple):
    """Places of the agents, headings (or phases) as angles and as unit vectors, and sums over neighborhoods."""

    position: Float[Tensor, "E N 2"]
    angle: Float[Tensor, "E N"]
    own: Float[Tensor, "E N 2"]
    near: Sums


@dataclass(eq=False)
class HeadingWorld(World[HeadingState]):
    """Agents on a manifold with a heading each, who control one number, |u| <= u_max; subclasses add the physics.

    The swarm starts anywhere, heading anywhere. What is seen of it and paid for it, `observe` and `paid`, is the same
    for all. A subclass sets `surface` before it calls `__post_init__` of this class. u_max None leaves u unconstrained:
    half a turn a step of dt, π/dt, reaches every heading, so that more would change nothing; `control_limit` is the
    bound on |u| that holds. Raises InputError for bad constants.
    """

    shows_clock = False

    agents: int = 200
    _: KW_ONLY
    horizon: int
    reward: str = "aligned"
    radius: float
    sigma: float
    u_max: float | None = None
    action_cost: float = 0.0
    dt: float
    count_self: bool = False
    neighbors: str = "auto"
    features: Features | str | None = None
    sees: str = "vector"
    surface: Manifold = field(init=False, repr=False)

    def __post_init__(self) -> None:
        one_of("reward", self.reward, SIGNS)
        one_of("sees", self.sees, SEES)
        require_truth(count_self=self.count_self)
        require_positive(dt=self.dt)
        if self.u_max is not None:
            require_positive(u_max=self.u_max)
        require_nonnegative(sigma=self.sigma, action_cost=self.action_cost)
        require_small_steps(sigma=self.sigma * math.sqrt(self.dt), u_max=(self.u_max or 0.0) * self.dt)
        self.neighborhood = Neighborhood(self.surface, self.radius, self.neighbors)
        self.critic_features = heading_features(self.features, self.surface.orientable)
        self.control_limit = math.pi / self.dt if self.u_max is None else self.u_max
        control = Continuous((-self.control_limit,), (self.control_limit,))
        self.spec = swarm_spec(self.agents, SEES[self.sees], control, self.critic_features.size + 1, self.horizon)

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N 3"]:
        """Uniform numbers in [0, 1): places and headings."""
        return torch.rand(num, self.agents, 3, generator=generator, device=generator.device)

    def initial(self, noise: Float[Tensor, "E N 3"]) -> HeadingState:
        """Anywhere, heading anywhere."""
        x, y, turn = noise.unbind(-1)
        return self.at(beside(x, y) * self.surface.size, (2 * turn - 1) * math.pi)

    def at(self, position: Float[Tensor, "E N 2"], angle: Float[Tensor, "E N"]) -> HeadingState:
        """The state with agents at these places of the plane and with these headings."""
        position, angle = self.surface.wrap(position, angle)
        return self.among(self.neighborhood.around(position), position, angle)

    def among(
        self, neighbors: Neighbors, position: Float[Tensor, "E N 2"], angle: Float[Tensor, "E N"]
    ) -> HeadingState:
        """The state with agents at these places of the square, whose neighbors are known."""
        angle = wrapped(angle)
        own = unit(angle)
        return HeadingState(position, angle, own, neighbors.sums(own))

    def control(self, action: Num[Tensor, "E N 1"]) -> Float[Tensor, "E N"]:
        """u, within its bounds."""
        return action.squeeze(-1).clamp(-self.control_limit, self.control_limit)

    def paid(self, successor: HeadingState, control: Float[Tensor, "E N"]) -> Transition:
        """The step to `successor`: everybody earns plus or minus its order, minus action_cost · mean |u|."""
        reward = SIGNS[self.reward] * self.order(successor) - self.action_cost * control.abs().mean(1)
        return Transition(successor, reward.view(-1, 1, 1).expand(-1, self.agents, 1))

    def order(self, state: HeadingState) -> Float[Tensor, " E"]:
        """R, or the local order where the surface is not orientable."""
        return order(state.own) if self.surface.orientable else local_order(state.near, state.own)

    def observe(self, state: HeadingState) -> Observation:
        """Observation of a swarm's headings: each agent the mean nearby, the critic the whole.

        agent [E,N,D]: the mean heading of the neighborhood relative to one's own, zero where nobody counts;
        sees="vector": |m| (cos a, sin a), D = 2; "angle": a/π in [-1, 1], D = 1. state [E,F+1]: the features of the
        points (x, y, cos φ, sin φ), with places in sides of the square, then the local order.
        """
        position, _, own, near = state
        others = relative(near.without(own).mean(), own)
        points = beside(*(position / self.surface.size).unbind(-1), *own.unbind(-1))
        whole = torch.cat([self.critic_features(points), others[..., :1].mean(1)], -1)
        agent = relative(near.mean(), own) if self.count_self else others
        agent = direction(agent) if self.sees == "angle" else agent
        return Observation(agent, whole, torch.ones_like(near.number, dtype=torch.bool))

    def frame(self, state: HeadingState) -> Any:
        """The swarm, colored by heading, and its order."""
        name = "R" if self.surface.orientable else "local order"
        return draw_swarm(self.surface, state.position[0], state.angle[0], self.order(state)[0].item(), name)
