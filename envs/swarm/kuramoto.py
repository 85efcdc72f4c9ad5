"""Kuramoto's oscillators on a random geometric graph: agents who stay where they are agree on a phase, or avoid to."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

from envs.core import Continuous, InputError, Observation
from envs.swarm.features import Features, swarm_features
from envs.swarm.headings import POINTS, SEES, HeadingMoments, observed, order, relative, unit, wrapped
from envs.swarm.manifolds import Manifold
from envs.swarm.neighbors import Neighborhood, Neighbors
from envs.swarm.picture import draw_swarm
from envs.swarm.spec import one_of, require_finite, require_nonnegative, require_positive, swarm_spec
from envs.swarm.sums import Sums
from envs.world import Transition, World

SIGNS = {"aligned": 1.0, "misaligned": -1.0}


class KuramotoState(NamedTuple):
    """Where the agents are for good, their phases as angles and as unit vectors, and their neighborhoods' sums."""

    position: Float[Tensor, "E N 2"]
    phase: Float[Tensor, "E N"]
    own: Float[Tensor, "E N 2"]
    near: Sums


class Kuramoto(World[KuramotoState]):
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

    shows_clock = False

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
        one_of("sees", sees, SEES)
        one_of("coupling", coupling, ("all", "radius"))
        one_of("reward", reward, SIGNS)
        require_positive(dt=dt, **({} if u_max is None else {"u_max": u_max}))
        require_nonnegative(sigma=sigma, action_cost=action_cost)
        require_finite(K=K)
        if hold < 1:
            raise InputError(f"A decision holds for at least 1 step of physics; got hold={hold}.")
        self.manifold = Manifold("torus")
        self.neighborhood = Neighborhood(self.manifold, radius, neighbors)
        self.agents, self.coupling, self.reward = agents, coupling, reward
        self.count_self, self.sees = count_self, sees
        self.K, self.sigma, self.dt, self.hold, self.action_cost = K, sigma, dt, hold, action_cost
        self.features = HeadingMoments() if features is None else swarm_features(features, *POINTS)
        # Half a turn in a step reaches every phase, so that more would change nothing.
        self.u_max = math.pi / dt if u_max is None else u_max
        turn = Continuous((-self.u_max,), (self.u_max,))
        self.spec = swarm_spec(agents, SEES[sees], turn, self.features.size + 1, horizon)

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N 3"]:
        """Uniform numbers in [0, 1): places and phases."""
        return torch.rand(num, self.agents, 3, generator=generator, device=generator.device)

    def initial(self, noise: Float[Tensor, "E N 3"]) -> KuramotoState:
        """Anywhere, in any phase."""
        return self.at(noise[..., :2], (2 * noise[..., 2] - 1) * math.pi)

    def at(self, position: Float[Tensor, "E N 2"], phase: Float[Tensor, "E N"]) -> KuramotoState:
        """The state with oscillators at these places of the unit square and in these phases."""
        own = unit(phase)
        return KuramotoState(position, phase, own, self.neighborhood.around(position).sums(own))

    def noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E hold N"]:
        """Standard normal numbers for every step of physics."""
        return torch.randn(num, self.hold, self.agents, generator=generator, device=generator.device)

    def transition(
        self, state: KuramotoState, action: Num[Tensor, "E N 1"], noise: Float[Tensor, "E hold N"]
    ) -> Transition:
        """`hold` steps of physics under one control; paid for the phases after them."""
        control = action.squeeze(-1).clamp(-self.u_max, self.u_max)
        neighbors = self.neighborhood.around(state.position)
        phase = state.phase
        for shock in noise.unbind(1):
            drift = self._pull(phase, neighbors) + control
            phase = phase + drift * self.dt + self.sigma * math.sqrt(self.dt) * shock
        phase = wrapped(phase)
        own = unit(phase)
        reward = SIGNS[self.reward] * order(own) - self.action_cost * control.abs().mean(1)
        successor = KuramotoState(state.position, phase, own, neighbors.sums(own))
        return Transition(successor, reward.view(-1, 1, 1).expand(-1, self.agents, 1))

    def order(self, state: KuramotoState) -> Float[Tensor, " E"]:
        """R."""
        return order(state.own)

    def observe(self, state: KuramotoState) -> Observation:
        """The mean phase vector nearby, relative to one's own phase."""
        return observed(self.features, state.position, state.own, state.near, self.count_self, self.sees)

    def frame(self, state: KuramotoState) -> Any:
        """The oscillators, colored by phase, and R."""
        return draw_swarm(self.manifold, state.position[0], state.phase[0], self.order(state)[0].item())

    def _pull(self, phase: Float[Tensor, "E N"], neighbors: Neighbors) -> Float[Tensor, "E N"]:
        """K R sin(ψ - θ) for the mean R exp(iψ) that each oscillator is coupled to."""
        own = unit(phase)
        mean = own.mean(1, keepdim=True).expand_as(own) if self.coupling == "all" else neighbors.sums(own).mean()
        return self.K * relative(mean, own)[..., 1]
