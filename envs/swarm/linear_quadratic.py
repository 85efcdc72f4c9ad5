"""A swarm on a line that keeps together and steers to a goal: linear physics, quadratic costs, exact optima."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from envs.core import Continuous, Observation
from envs.drawing import blank_axes, pixels
from envs.swarm.features import Features, swarm_features
from envs.swarm.riccati import LinearProblem
from envs.swarm.spec import swarm_spec
from envs.world import Transition, World


class LineState(NamedTuple):
    """Places of the agents, those that they believe to be at, and the steps taken."""

    position: Float[Tensor, "E N"]
    seen: Float[Tensor, "E N"]
    step: Int[Tensor, " E"]


@dataclass(eq=False)
class LinearQuadratic(World[LineState]):
    """N agents on a line, x' = a x + ā m + b u + σ ε, that each see y = x + σ_y ε' (σ_y = 0: x itself).

    m and Var are the swarm's mean and variance (with 1/N). A step from x earns -[q Var + q_m (m - g)² + r E u²], the
    last one also -[q Var + q_m (m - g)²] of where it leads, so that the return is minus the cost over t = 0 … H. Starts
    are normal with the given mean and variance; ε, ε' are standard normal; u is any real number. Agents never see the
    clock; the critic sees it and the swarm's `features` (moments, or see `swarm_features`).

    `problem` (a `LinearProblem`) knows exact costs, of the optimum and of linear rules, at every N. With the defaults
    no control costs 39.90, the best constant gain (0.5173) 5.0208, the best gains 4.9379; nothing in the limit, were
    all states seen, costs less than 3.7888.
    Raises InputError for fewer than two agents and for constants that LinearProblem refuses.
    """

    shows_clock = False

    agents: int = 200
    horizon: int = 20
    _: KW_ONLY
    a: float = 1.0
    abar: float = 0.0
    b: float = 1.0
    sigma: float = 0.3
    sigma_y: float = 0.3
    q: float = 1.0
    qm: float = 0.0
    r: float = 0.5
    goal: float = 0.0
    initial_mean: float = 0.0
    initial_variance: float = 1.0
    features: Features | str = "moments"

    def __post_init__(self) -> None:
        # The problem's constants have the same names here.
        own = {constant.name for constant in fields(self)}
        shared = [constant.name for constant in fields(LinearProblem) if constant.name in own]
        self.problem = LinearProblem(**{name: getattr(self, name) for name in shared})
        reach = 3 * math.sqrt(max(self.initial_variance, self.sigma**2)) or 1.0
        left, right = sorted((self.initial_mean, self.goal))
        self.low, self.high = left - reach, right + reach
        self.critic_features = swarm_features(self.features, (self.low,), (self.high,))
        anywhere = Continuous((-math.inf,), (math.inf,))
        self.spec = swarm_spec(self.agents, 1, anywhere, self.critic_features.size, self.horizon)

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N 2"]:
        """Standard normal: starts, and errors of observation."""
        return torch.randn(num, len(self.spec.agents), 2, generator=generator, device=generator.device)

    def initial(self, noise: Float[Tensor, "E N 2"]) -> LineState:
        """Normal starts."""
        start = self.problem.initial_mean + math.sqrt(self.problem.initial_variance) * noise[..., 0]
        return self._seen(start, noise, torch.zeros(len(noise), dtype=torch.int64, device=noise.device))

    def noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N 2"]:
        """Standard normal: ε and ε'."""
        return self.initial_noise(num, generator)

    def transition(self, state: LineState, action: Num[Tensor, "E N 1"], noise: Float[Tensor, "E N 2"]) -> Transition:
        """One step of the line; everybody earns the team's reward."""
        p, x, u = self.problem, state.position, action.squeeze(-1)
        moved = p.a * x + p.abar * x.mean(-1, keepdim=True) + p.b * u + p.sigma * noise[..., 0]
        after = self._seen(moved, noise, state.step + 1)
        cost = self._state_cost(x) + p.r * u.square().mean(-1)
        last = p.final * self._state_cost(moved)
        cost = cost + torch.where(after.step >= p.horizon, last, 0.0)
        return Transition(after, -cost.view(-1, 1, 1).expand(*u.shape, 1))

    def observe(self, state: LineState) -> Observation:
        """Agents see their own y, the critic the features of all x."""
        alive = torch.ones_like(state.position, dtype=torch.bool)
        return Observation(state.seen.unsqueeze(-1), self.critic_features(state.position.unsqueeze(-1)), alive)

    def known(self) -> dict[str, float]:
        """Returns that `problem` knows for as many agents."""
        return self.problem.returns(len(self.spec.agents))

    def frame(self, state: LineState) -> Any:
        """The agents on the line, one below the other, and the goal."""
        axes = blank_axes((self.low, self.high), (0.0, 1.0))
        axes.set_aspect("auto")
        position = state.position[0].cpu().numpy()
        axes.axvline(self.problem.goal, color="gray", linewidth=1)
        heights = [(i + 0.5) / len(position) for i in range(len(position))]
        axes.scatter(position, heights, s=6, c="tab:blue")
        return pixels(axes)

    def _seen(
        self, position: Float[Tensor, "E N"], noise: Float[Tensor, "E N 2"], step: Int[Tensor, " E"]
    ) -> LineState:
        return LineState(position, position + self.problem.sigma_y * noise[..., 1], step)

    def _state_cost(self, position: Float[Tensor, "E N"]) -> Float[Tensor, " E"]:
        p, mean = self.problem, position.mean(-1, keepdim=True)
        variance = (position - mean).square().mean(-1)
        return p.q * variance + p.qm * (mean.squeeze(-1) - p.goal).square()
