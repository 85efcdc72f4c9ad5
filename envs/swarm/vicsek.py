"""Vicsek's world: agents move at one speed and turn, and align with those nearby, or avoid to."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor

from envs.swarm.heading_world import HeadingState, HeadingWorld, require_small_steps
from envs.swarm.manifolds import Manifold
from envs.swarm.spec import require_finite, require_nonnegative, require_positive
from envs.world import Transition


@dataclass(eq=False)
class Vicsek(HeadingWorld):
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

    manifold: str = "torus"
    _: KW_ONLY
    horizon: int = 100
    radius: float = 0.15
    v0: float = 0.05
    omega0: float = 0.0
    sigma: float = 0.3
    dt: float = 1.0
    size: float = 1.0

    def __post_init__(self) -> None:
        require_nonnegative(v0=self.v0)
        require_finite(omega0=self.omega0)
        require_positive(dt=self.dt, size=self.size)
        require_small_steps(v0=self.v0 * self.dt / self.size, omega0=self.omega0 * self.dt)
        self.surface = Manifold(self.manifold, self.size)
        super().__post_init__()

    @property
    def bound(self) -> float:
        """The most that sqrt(E R²) can be after a step."""
        m_squared = math.exp(-(self.sigma**2) * self.dt)
        return math.sqrt(m_squared + (1 - m_squared) / self.agents)

    def known(self) -> dict[str, float]:
        """Bound on the average return, for swarms that are paid for R."""
        assert self.spec.horizon is not None
        paid_for_r = self.reward == "aligned" and self.surface.orientable
        return {"bound": self.spec.horizon * self.bound} if paid_for_r else {}

    def noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N"]:
        """Standard normal numbers."""
        return torch.randn(num, self.agents, generator=generator, device=generator.device)

    def transition(self, state: HeadingState, action: Num[Tensor, "E N 1"], noise: Float[Tensor, "E N"]) -> Transition:
        """Move on, turn, and be paid for the headings after that."""
        turn = self.control(action)
        position = state.position + self.v0 * self.dt * state.own
        heading = state.angle + (self.omega0 + turn) * self.dt + math.sqrt(self.dt) * self.sigma * noise
        return self.paid(self.at(position, heading), turn)
