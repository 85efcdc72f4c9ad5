"""Vicsek's world: agents move at one speed and turn, and align with those nearby, or avoid to."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

from envs.core import Continuous, Observation
from envs.swarm.features import Features, swarm_features
from envs.swarm.headings import POINTS, SEES, HeadingMoments, local_order, observed, order, unit, wrapped
from envs.swarm.manifolds import Manifold
from envs.swarm.neighbors import Neighborhood
from envs.swarm.picture import draw_swarm
from envs.swarm.spec import one_of, require_finite, require_nonnegative, require_positive, swarm_spec
from envs.swarm.sums import Sums
from envs.world import Transition, World

SIGNS = {"aligned": 1.0, "misaligned": -1.0}


class VicsekState(NamedTuple):
    """Where the agents are, their headings as angles and as unit vectors, and what their neighborhoods add up to."""

    position: Float[Tensor, "E N 2"]
    heading: Float[Tensor, "E N"]
    own: Float[Tensor, "E N 2"]
    near: Sums


class Vicsek(World[VicsekState]):
    """N agents on a square surface move on at speed v0 and choose how fast to turn, u.

        p' = p + v0 (cos φ, sin φ) dt,    φ' = φ + (omega0 + u) dt + sqrt(dt) sigma ε,    |u| <= u_max

    A point that crosses an edge of the square takes its heading with it as `manifold` says. The swarm starts anywhere,
    heading anywhere. An agent sees the mean heading vector of those within `radius`, in the frame of its own heading:
    its magnitude times the cosine and the sine of its relative angle a, or with sees="angle" a/π alone, 0 if nobody is
    near; itself counts if `count_self`. Nobody sees the clock or a place; the critic sees `features` of the points
    (x, y, cos φ, sin φ), the local order, and the clock.

    The team earns its order after the step (aligned), or minus that (misaligned), minus action_cost · mean |u|. The
    order is R = |mean of e^{iφ}| on the box and the torus; on surfaces that are not orientable a heading means nothing
    without its place, and the order is the mean cosine of the angle between an agent and the others within its radius.
    Time and length are in units of dt and size; angles in radians. u_max None leaves the turn unconstrained, which is
    half a turn a step, π/dt.

    However it is controlled, E R² <= m² + (1 - m²) / N with m = exp(-sigma² dt / 2), which is reached if all head for
    one direction before the noise. Source: Cui et al., ICLR 2024 (arXiv 2307.06175), with constants of our own.
    neighbors: how they are found, see `envs.swarm.neighbors`. Raises InputError for bad constants.
    """

    shows_clock = False

    def __init__(
        self,
        agents: int = 200,
        manifold: str = "torus",
        reward: str = "aligned",
        radius: float = 0.15,
        v0: float = 0.05,
        omega0: float = 0.0,
        sigma: float = 0.3,
        u_max: float | None = None,
        action_cost: float = 0.0,
        dt: float = 1.0,
        size: float = 1.0,
        horizon: int = 100,
        count_self: bool = False,
        neighbors: str = "auto",
        features: Features | str | None = None,
        sees: str = "vector",
    ):
        one_of("sees", sees, SEES)
        one_of("reward", reward, SIGNS)
        require_positive(dt=dt, **({} if u_max is None else {"u_max": u_max}))
        require_nonnegative(v0=v0, sigma=sigma, action_cost=action_cost)
        require_finite(omega0=omega0)
        self.manifold = Manifold(manifold, size)
        self.neighborhood = Neighborhood(self.manifold, radius, neighbors)
        self.agents, self.reward, self.count_self, self.sees = agents, reward, count_self, sees
        self.v0, self.omega0, self.sigma, self.dt, self.action_cost = v0, omega0, sigma, dt, action_cost
        self.features = HeadingMoments() if features is None else swarm_features(features, *POINTS)
        # Half a turn in a step reaches every heading, so that more would change nothing.
        self.u_max = math.pi / dt if u_max is None else u_max
        turn = Continuous((-self.u_max,), (self.u_max,))
        self.spec = swarm_spec(agents, SEES[sees], turn, self.features.size + 1, horizon)

    @property
    def bound(self) -> float:
        """The most that sqrt(E R²) can be after a step."""
        m_squared = math.exp(-(self.sigma**2) * self.dt)
        return math.sqrt(m_squared + (1 - m_squared) / self.agents)

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N 3"]:
        """Uniform numbers in [0, 1): places and headings."""
        return torch.rand(num, self.agents, 3, generator=generator, device=generator.device)

    def initial(self, noise: Float[Tensor, "E N 3"]) -> VicsekState:
        """Anywhere, heading anywhere."""
        return self.at(noise[..., :2] * self.manifold.size, (2 * noise[..., 2] - 1) * math.pi)

    def at(self, position: Float[Tensor, "E N 2"], heading: Float[Tensor, "E N"]) -> VicsekState:
        """The state with agents at these places of the plane and with these headings."""
        position, heading = self.manifold.wrap(position, heading)
        heading = wrapped(heading)
        own = unit(heading)
        return VicsekState(position, heading, own, self.neighborhood.around(position).sums(own))

    def noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N"]:
        """Standard normal numbers."""
        return torch.randn(num, self.agents, generator=generator, device=generator.device)

    def transition(self, state: VicsekState, action: Num[Tensor, "E N 1"], noise: Float[Tensor, "E N"]) -> Transition:
        """Move on, turn, and be paid for the headings after that."""
        turn = action.squeeze(-1).clamp(-self.u_max, self.u_max)
        position = state.position + self.v0 * self.dt * state.own
        heading = state.heading + (self.omega0 + turn) * self.dt + math.sqrt(self.dt) * self.sigma * noise
        successor = self.at(position, heading)
        reward = SIGNS[self.reward] * self.order(successor) - self.action_cost * turn.abs().mean(1)
        return Transition(successor, reward.view(-1, 1, 1).expand(-1, self.agents, 1))

    def order(self, state: VicsekState) -> Float[Tensor, " E"]:
        """R, or the local order where the surface is not orientable."""
        return order(state.own) if self.manifold.orientable else local_order(state.near, state.own)

    def observe(self, state: VicsekState) -> Observation:
        """The mean heading nearby, relative to one's own."""
        position = state.position / self.manifold.size
        return observed(self.features, position, state.own, state.near, self.count_self, self.sees)

    def frame(self, state: VicsekState) -> Any:
        """The swarm, colored by heading, and its order."""
        name = "R" if self.manifold.orientable else "local order"
        return draw_swarm(self.manifold, state.position[0], state.heading[0], self.order(state)[0].item(), name)
