"""Kuramoto's oscillators on a random geometric graph: agents who stay where they are agree on a phase, or avoid to."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor

from envs.core import InputError
from envs.swarm.heading_world import HeadingState, HeadingWorld, require_small_steps
from envs.swarm.headings import relative, unit
from envs.swarm.manifolds import Manifold
from envs.swarm.neighbors import Neighbors
from envs.swarm.spec import one_of, require_finite, require_positive, require_whole
from envs.world import Transition


@dataclass(eq=False)
class Kuramoto(HeadingWorld):
    """N oscillators, frozen at random places of the unit torus, shift their phases by a control u, |u| <= u_max.

        dθ_i = (K Im(z_i exp(-i θ_i)) + u_i) dt + sigma dW_i

    z_i is the mean of exp(i θ) over all (coupling="all") or over those within `radius`, itself included
    (coupling="radius"). One decision holds for `hold` Euler steps of dt. An agent sees the mean phase vector of those
    within `radius`, in the frame of its own phase: its magnitude times the cosine and the sine of its relative angle
    a, or with sees="angle" a/π alone, 0 if nobody is near; itself counts if `count_self`. Nobody sees the clock; the
    critic sees `features` of the points (x, y, cos θ, sin θ), the local order, and the clock. An episode has `horizon`
    decisions.

    The team earns R = |mean of exp(iθ)| after the decision (aligned), or -R (misaligned), minus action_cost · mean |u|.

    What is known for coupling="all" and N to infinity, uncontrolled: below K = sigma² the swarm is incoherent, and R is
    about sqrt(π/(4N)); above, R solves R = I1(2KR/sigma²) / I0(2KR/sigma²). Uncoupled, E cos(θ_t - θ_0) is
    exp(-sigma² t/2). Source: Cui et al., ICLR 2024 (arXiv 2307.06175), with constants of our own.
    u_max None leaves the control unconstrained: half a turn a step of physics, π/dt.
    neighbors: how they are found, see `envs.swarm.neighbors`. Raises InputError for bad constants.
    """

    coupling: str = "radius"
    _: KW_ONLY
    horizon: int = 200
    K: float = 0.5
    sigma: float = 1.0
    u_max: float | None = 1.0
    radius: float = 0.25
    dt: float = 0.01
    hold: int = 10

    def __post_init__(self) -> None:
        one_of("coupling", self.coupling, ("all", "radius"))
        require_finite(K=self.K)
        require_positive(dt=self.dt)
        require_small_steps(K=self.K * self.dt)
        require_whole(hold=self.hold)
        if self.hold < 1:
            raise InputError(f"A decision holds for at least 1 step of physics; got hold={self.hold}.")
        self.surface = Manifold("torus")
        super().__post_init__()

    def noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E hold N"]:
        """Standard normal numbers for every step of physics."""
        return torch.randn(num, self.hold, self.agents, generator=generator, device=generator.device)

    def transition(
        self, state: HeadingState, action: Num[Tensor, "E N 1"], noise: Float[Tensor, "E hold N"]
    ) -> Transition:
        """`hold` steps of physics under one control; paid for the phases after them."""
        control = self.control(action)
        neighbors = self.neighborhood.around(state.position)
        phase = state.angle
        for shock in noise.unbind(1):
            drift = self._pull(phase, neighbors) + control
            phase = phase + drift * self.dt + self.sigma * math.sqrt(self.dt) * shock
        return self.paid(self.among(neighbors, state.position, phase), control)

    def _pull(self, phase: Float[Tensor, "E N"], neighbors: Neighbors) -> Float[Tensor, "E N"]:
        """K R sin(ψ - θ) for the mean R exp(iψ) that each oscillator is coupled to."""
        own = unit(phase)
        mean = own.mean(1, keepdim=True).expand_as(own) if self.coupling == "all" else neighbors.sums(own).mean()
        return self.K * relative(mean, own)[..., 1]
