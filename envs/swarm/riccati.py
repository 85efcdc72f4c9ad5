"""Linear-quadratic mean-field control, solved exactly: Riccati recursions and the best linear memoryless rules.

    x' = a x + ā m + b u + σ ε,   y = x + σ_y ε',   cost Σ_t [q Var + q_m (m - g)² + r E u²]

with m and Var the swarm's mean and variance (with 1/N). Deviations from the mean and the mean itself are two problems
that do not meet, and the mean is steered in open loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from envs.core import InputError
from envs.swarm.spec import require_finite, require_nonnegative, require_positive, require_whole


class LinearRule(NamedTuple):
    """A linear memoryless rule for all agents, u_t = offsets[t] - gains[t] · y, with H gains and H offsets."""

    gains: Sequence[float]
    offsets: Sequence[float]


class _Quadratic(NamedTuple):
    """A cost to go, square · z² + 2 · linear · z + constant."""

    square: float
    linear: float
    constant: float

    def at(self, z: float) -> float:
        return self.square * z * z + 2 * self.linear * z + self.constant


@dataclass(frozen=True)
class LinearProblem:
    """The constants of a linear-quadratic swarm, and its exact costs.

    `final` is the share of the state's cost, q Var + q_m (m - g)², that is charged after the last step. `dimensions`
    counts coordinates with these same constants, whose costs add up. Costs are sums over the horizon, undiscounted; a
    world's return is minus the cost. agents=None means the limit of infinitely many. Raises InputError for negative
    costs or noise, r = 0, b = 0, a horizon below 1.
    """

    horizon: int
    a: float = 1.0
    abar: float = 0.0
    b: float = 1.0
    sigma: float = 0.3
    sigma_y: float = 0.0
    q: float = 1.0
    qm: float = 0.0
    r: float = 0.5
    goal: float = 0.0
    initial_mean: float = 0.0
    initial_variance: float = 1.0
    final: float = 1.0
    dimensions: int = 1

    def __post_init__(self) -> None:
        require_whole(horizon=self.horizon)
        require_finite(a=self.a, abar=self.abar, b=self.b, goal=self.goal, initial_mean=self.initial_mean)
        require_positive(r=self.r)
        require_nonnegative(sigma=self.sigma, sigma_y=self.sigma_y, q=self.q, qm=self.qm, final=self.final)
        require_nonnegative(initial_variance=self.initial_variance)
        if self.b == 0:
            raise InputError("b must not be 0: actions would have no effect.")
        if self.horizon < 1:
            raise InputError(f"A horizon is at least 1 step; got horizon={self.horizon}.")

    def optimal_cost(self, agents: int | None = None) -> float:
        """The least cost of any control, decentralized or not, that sees all states x: the Riccati optimum.

        With N agents the deviations cost exactly (N-1)/N of the limit, and the mean, which then moves at random with
        variance σ²/N a step, is fed back.
        """
        deviation, mean, share = self._deviation(), self._mean(), _share(agents)
        spread = deviation[0].square * self.initial_variance
        spread += self.sigma**2 * sum(ahead.square for ahead in deviation[1:])
        wandering = mean[0].square * self.initial_variance + self.sigma**2 * sum(c.square for c in mean[1:])
        return self.dimensions * ((1 - share) * spread + mean[0].at(self.initial_mean) + share * wandering)

    def optimal_rule(self) -> LinearRule:
        """The rule that reaches `optimal_cost()` in the limit if agents see x (σ_y = 0)."""
        return self._around_the_mean([self._gain(ahead.square, 1.0) for ahead in self._deviation()[1:]])

    def best_rule(self) -> LinearRule:
        """The best linear memoryless rule in the limit when agents see y: its gains vary in time.

        Given all other gains the cost is quadratic in gains[t], so each is set to its best in turn, from the last to
        the first, until nothing improves. Linear rules need not be the best of all memoryless ones.
        """
        gains = [self._gain(ahead.square, 1.0) for ahead in self._deviation()[1:]]
        cost = self._spread(gains)
        while True:
            gains = self._improve(gains)
            before, cost = cost, self._spread(gains)
            if before - cost <= 1e-14 * abs(cost):
                return self._around_the_mean(gains)

    def best_constant_rule(self) -> LinearRule:
        """The best linear memoryless rule in the limit whose gain is the same at every step.

        It lies between 0 and a/b: beyond, both the variance and the control cost are larger.
        """
        from scipy.optimize import minimize_scalar

        cells = 1000
        shares = [i / cells for i in range(cells + 1)]
        ratio = self.a / self.b

        def cost(share: float) -> float:
            return self._spread([share * ratio] * self.horizon)

        start = min(shares, key=cost)
        around = max(0.0, start - 1 / cells), min(1.0, start + 1 / cells)
        best = minimize_scalar(cost, bounds=around, method="bounded", options={"xatol": 1e-12})
        return self._around_the_mean([float(best.x) * ratio] * self.horizon)

    def zero_rule(self) -> LinearRule:
        """No control."""
        return LinearRule([0.0] * self.horizon, [0.0] * self.horizon)

    def cost(self, rule: LinearRule, agents: int | None = None) -> float:
        """The exact expected cost of a linear rule that N agents follow, each seeing its own y alone."""
        if {len(rule.gains), len(rule.offsets)} != {self.horizon}:
            raise InputError(
                f"A rule has a gain and an offset for each of {self.horizon} steps; got {len(rule.gains)} gains and "
                f"{len(rule.offsets)} offsets."
            )
        share = _share(agents)
        own, mean = (1 - share) * self.initial_variance, self.initial_mean
        wandering = share * self.initial_variance  # the variance of the swarm's mean
        total = 0.0
        for gain, offset in zip(rule.gains, rule.offsets):
            control = offset - gain * mean
            total += self.q * own + self.qm * (wandering + (mean - self.goal) ** 2)
            total += self.r * (gain**2 * (own + wandering + self.sigma_y**2) + control**2)
            noise = (self.b * gain * self.sigma_y) ** 2 + self.sigma**2
            own = (self.a - self.b * gain) ** 2 * own + (1 - share) * noise
            wandering = (self.a + self.abar - self.b * gain) ** 2 * wandering + share * noise
            mean = (self.a + self.abar) * mean + self.b * control
        end = self.q * own + self.qm * (wandering + (mean - self.goal) ** 2)
        return self.dimensions * (total + self.final * end)

    def returns(self, agents: int) -> dict[str, float]:
        """Minus the costs with N agents: the optimum, and, where y is noisy, the limit's best linear rule."""
        known = {"optimal": -self.optimal_cost(agents)}
        return known if self.sigma_y == 0 else {**known, "linear": -self.cost(self.best_rule(), agents)}

    def _deviation(self) -> list[_Quadratic]:
        return self._riccati(self.a, self.q, 0.0)

    def _mean(self) -> list[_Quadratic]:
        return self._riccati(self.a + self.abar, self.qm, self.goal)

    def _riccati(self, a: float, q: float, goal: float) -> list[_Quadratic]:
        """Costs to go at t = 0 … H of z' = a z + b u with cost q (z - goal)² + r u²."""
        stage = _Quadratic(q, -q * goal, q * goal * goal)
        ahead = _Quadratic(*(self.final * c for c in stage))
        costs = [ahead]
        for _ in range(self.horizon):
            left = self.r / (self.r + self.b**2 * ahead.square)
            ahead = _Quadratic(
                stage.square + a * a * left * ahead.square,
                stage.linear + a * left * ahead.linear,
                stage.constant + ahead.constant - (self.b * ahead.linear) ** 2 * left / self.r,
            )
            costs.append(ahead)
        return costs[::-1]

    def _gain(self, ahead: float, certainty: float) -> float:
        """The best gain, if the variance next costs `ahead`; certainty is Var x / Var y."""
        return certainty * self.a * self.b * ahead / (self.r + self.b**2 * ahead)

    def _variances(self, gains: Sequence[float]) -> list[float]:
        """An agent's variance at t = 0 … H in the limit."""
        variances = [self.initial_variance]
        for gain in gains:
            noise = (self.b * gain * self.sigma_y) ** 2 + self.sigma**2
            variances.append((self.a - self.b * gain) ** 2 * variances[-1] + noise)
        return variances

    def _spread(self, gains: Sequence[float]) -> float:
        """Cost of deviations in the limit, in one dimension."""
        *before, last = self._variances(gains)
        control = sum(gain**2 * (v + self.sigma_y**2) for gain, v in zip(gains, before))
        return self.q * (sum(before) + self.final * last) + self.r * control

    def _improve(self, gains: Sequence[float]) -> list[float]:
        """Each gain its best in turn, from the last to the first."""
        variances, ahead, improved = self._variances(gains), self.final * self.q, []
        for variance in variances[-2::-1]:
            seen = variance + self.sigma_y**2
            gain = self._gain(ahead, variance / seen if seen else 0.0)
            ahead = self.q + self.r * gain**2 + ahead * (self.a - self.b * gain) ** 2
            improved.append(gain)
        return improved[::-1]

    def _around_the_mean(self, gains: Sequence[float]) -> LinearRule:
        """These gains on deviations, with the offsets that steer the mean best."""
        mean, offsets, a = self.initial_mean, [], self.a + self.abar
        for gain, ahead in zip(gains, self._mean()[1:]):
            control = -self.b * (ahead.square * a * mean + ahead.linear) / (self.r + self.b**2 * ahead.square)
            offsets.append(control + gain * mean)
            mean = a * mean + self.b * control
        return LinearRule(list(gains), offsets)


def _share(agents: int | None) -> float:
    """1/N, 0 in the limit."""
    if agents is not None and agents < 1:
        raise InputError(f"A swarm has at least one agent (or None for the limit); got agents={agents}.")
    return 0.0 if agents is None else 1 / agents
