"""Kuramoto's oscillators on a random geometric graph: agents who stay where they are agree on a phase, or avoid to."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Num
from torch import Tensor

from envs.core import InputError
from envs.swarm.features import Features
from envs.swarm.heading_world import HeadingState, HeadingWorld, require_small_steps
from envs.swarm.headings import relative, unit
from envs.swarm.manifolds import Manifold
from envs.swarm.neighbors import Neighbors
from envs.swarm.spec import one_of, require_finite, require_positive, require_whole
from envs.world import Transition


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

    def __init__(
        self,
        agents: int = 200,
        coupling: str = "radius",
        reward: str = "aligned",
        K: float = 0.5,
        sigma: float = 1.0,
        u_max: float | None = 1.0,
        radius: float = 0.25,
        action_cost: float = 0.0,
        dt: float = 0.01,
        hold: int = 10,
        horizon: int = 200,
        count_self: bool = False,
        neighbors: str = "auto",
        features: Features | str | None = None,
        sees: str = "vector",
    ):
        one_of("coupling", coupling, ("all", "radius"))
        require_finite(K=K)
        require_positive(dt=dt)
        require_small_steps(K=K * dt)
        require_whole(hold=hold)
        if hold < 1:
            raise InputError(f"A decision holds for at least 1 step of physics; got hold={hold}.")
        self.coupling, self.K, self.hold = coupling, K, hold
        super().__init__(
            agents,
            horizon,
            Manifold("torus"),
            reward=reward,
            radius=radius,
            sigma=sigma,
            u_max=u_max,
            action_cost=action_cost,
            dt=dt,
            count_self=count_self,
            neighbors=neighbors,
            features=features,
            sees=sees,
        )

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
