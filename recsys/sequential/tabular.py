"""Finite states and actions: exact values and visits of a known problem, and what is estimated by counting.

S states, A actions, T steps, K signals. Policies are π(a | s), [S,A]; values are of the target policy, by step. A
horizon makes values depend on the clock, so whoever treats time and state as one uses `clocked`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from envs.core import InputError
from recsys.sequential.estimators import Discount, powers


@dataclass(frozen=True)
class TabularLog:
    """Logged episodes by the numbers of states and actions; checked by `TabularLog.of`.

    state, action [n,T], reward [n,T,K], mask [n,T]: the steps that happened; states, actions: how many there are.
    """

    state: Int[np.ndarray, "n T"]
    action: Int[np.ndarray, "n T"]
    reward: Float[np.ndarray, "n T K"]
    mask: Bool[np.ndarray, "n T"]
    states: int
    actions: int

    @classmethod
    def of(
        cls,
        state: Int[np.ndarray, "*states"],
        action: Int[np.ndarray, "*actions"],
        reward: Float[np.ndarray, "*rewards"],
        mask: Bool[np.ndarray, "*steps"],
        states: int,
        actions: int,
    ) -> TabularLog:
        """Checked, zeros in the padding. Raises InputError for wrong shapes and numbers outside the tables."""
        if not state.shape == action.shape == mask.shape == reward.shape[:2] or state.ndim != 2 or reward.ndim != 3:
            raise InputError(
                "A tabular log needs state, action and mask [n,T] and reward [n,T,K]; got "
                f"{state.shape}, {action.shape}, {mask.shape} and {reward.shape}."
            )
        for name, values, limit in (("state", state, states), ("action", action, actions)):
            outside = mask & ((values < 0) | (values >= limit))
            if outside.any():
                row, step = np.argwhere(outside)[0]
                raise InputError(
                    f"Every {name} is a number from 0 to {limit - 1}; {outside.sum()} are not, the first being "
                    f"{values[row, step]} at step {step} of trajectory {row}."
                )
        reward = np.where(mask[..., None], reward, 0.0)
        return cls(np.where(mask, state, 0), np.where(mask, action, 0), reward, mask, states, actions)

    @property
    def goes_on(self) -> Bool[np.ndarray, "n T"]:
        """True for a step that is followed by another."""
        return np.concatenate([self.mask[:, 1:], np.zeros_like(self.mask[:, :1])], axis=1)

    def pair(self, step: int) -> Int[np.ndarray, " n"]:
        """s·A + a, the number of the state and action at a step."""
        return self.state[:, step] * self.actions + self.action[:, step]


def state_value(q: Float[np.ndarray, "*T S A K"], policy: Float[np.ndarray, "S A"]) -> Float[np.ndarray, "*T S K"]:
    """v(s) = Σ_a π(a | s) q(s, a)."""
    return np.einsum("...sak,sa->...sk", q, policy)


def value_at(
    q: Float[np.ndarray, "T S A K"], policy: Float[np.ndarray, "*rows A"], log: TabularLog, step: int
) -> Float[np.ndarray, "n K"]:
    """v of the logged states of a step; of a policy [n,T,A], which knows more of a step than its state, row by row."""
    state = log.state[:, step]
    if policy.ndim == 2:
        return state_value(q[step], policy)[state]
    return np.einsum("nak,na->nk", q[step][state], policy[:, step])


def looked_up(
    q: Float[np.ndarray, "T S A K"], policy: Float[np.ndarray, "*rows A"], log: TabularLog
) -> tuple[Float[np.ndarray, "n T K"], Float[np.ndarray, "n T K"]]:
    """q of every logged state and action, and v of every logged state, each at its step. policy: [S,A] or [n,T,A]."""
    clock = np.arange(log.state.shape[1])
    value = np.stack([value_at(q, policy, log, t) for t in range(len(clock))], axis=1)
    return q[clock, log.state, log.action], value


def exact_q(
    transition: Float[np.ndarray, "T S A S"],
    reward: Float[np.ndarray, "T S A K"],
    policy: Float[np.ndarray, "S A"],
    discount: Discount,
) -> Float[np.ndarray, "T S A K"]:
    """q_t = r_t + γ P_t v_{t+1} by dynamic programming backward; v_T = 0. A row's missing mass ends the episode."""
    gamma = powers(discount, 2, reward.shape[-1])[1]
    q = np.array(reward, dtype=np.float64)
    for t in range(len(q) - 2, -1, -1):
        q[t] += gamma * (transition[t] @ state_value(q[t + 1], policy))
    return q


def occupancy(
    transition: Float[np.ndarray, "S A S"], start: Float[np.ndarray, " S"], policy: Float[np.ndarray, "S A"], steps: int
) -> Float[np.ndarray, "T S"]:
    """d_t(s), the probability of being in s at step t."""
    chain = np.einsum("sa,sat->st", policy, transition)
    visits = [start]
    for _ in range(steps - 1):
        visits.append(visits[-1] @ chain)
    return np.stack(visits)


def discounted_occupancy(
    transition: Float[np.ndarray, "S A S"],
    start: Float[np.ndarray, " S"],
    policy: Float[np.ndarray, "S A"],
    discount: float,
) -> Float[np.ndarray, " S"]:
    """d(s) = (1-γ) Σ_t γ^t P(s_t = s) without a horizon: the solution of d (I - γ P_π) = (1-γ) μ."""
    if not 0 <= discount < 1:
        raise InputError(f"Without a horizon, visits are finite only for a discount in [0, 1); got {discount}.")
    chain = np.einsum("sa,sat->st", policy, transition)
    return (1 - discount) * np.linalg.solve((np.eye(len(start)) - discount * chain).T, start)


def density_ratio(target: Float[np.ndarray, "*T S"], logging: Float[np.ndarray, "*T S"]) -> Float[np.ndarray, "*T S"]:
    """ω = d_e / d_b; 0 where nobody comes. Raises InputError for states that the logging policy never visits."""
    lost = (logging <= 0) & (target > 0)
    if lost.any():
        raise InputError(
            f"The target policy visits what the logging policy never does: {np.argwhere(lost)[0].tolist()} (step and "
            f"state) and {lost.sum() - 1} more. No weight can mend that; log with a policy that goes there."
        )
    return np.divide(target, logging, out=np.zeros_like(target), where=logging > 0)


def fqe(log: TabularLog, policy: Float[np.ndarray, "*rows A"], discount: Discount) -> Float[np.ndarray, "T S A K"]:
    """Fitted Q evaluation in a table: q_t(s, a) is the mean of r_t + γ v_{t+1}(s_{t+1}) over the rows with (s, a).

    One sweep backward is exact. Its estimate is the mean of v_0 at the logged first states (`looked_up`). Needs states
    that tell all that matters, and rows of every pair that the target policy takes: unseen pairs have q = 0. A policy
    is [S,A], or [n,T,A] where it knows more of a step than its state. Le, Voloshin and Yue, "Batch policy learning
    under constraints", ICML 2019.
    """
    steps, signals = log.reward.shape[1:]
    gamma = powers(discount, 2, signals)[1]
    q = np.zeros((steps, log.states, log.actions, signals))
    target = log.reward[:, -1]
    for t in range(steps - 1, -1, -1):
        if t < steps - 1:
            value = value_at(q, policy, log, t + 1)
            target = log.reward[:, t] + gamma * value * log.mask[:, t + 1, None]
        rows = log.mask[:, t]
        q[t] = _pair_means(log.pair(t)[rows], target[rows], log.states * log.actions).reshape(q[t].shape)
    return q


def _pair_means(
    pair: Int[np.ndarray, " m"], values: Float[np.ndarray, "m K"], pairs: int
) -> Float[np.ndarray, "pairs K"]:
    """The mean of the values of each pair; 0 for pairs without any."""
    count = np.bincount(pair, minlength=pairs)
    sums = np.stack([np.bincount(pair, column, minlength=pairs) for column in values.T], axis=-1)
    return sums / np.maximum(count, 1)[:, None]


def empirical_model(log: TabularLog) -> tuple[Float[np.ndarray, "T S A S"], Float[np.ndarray, "T S A K"]]:
    """Shares of where each pair led, step by step, and its mean reward; both 0 where it was never seen.

    What is missing to 1 in a row of transitions is the share of episodes that ended there.
    """
    steps, signals = log.reward.shape[1:]
    shape = (steps, log.states, log.actions)
    count = np.zeros(shape)
    moves = np.zeros((*shape, log.states))
    sums = np.zeros((*shape, signals))
    clock = np.broadcast_to(np.arange(steps), log.state.shape)
    rows, on = log.mask, log.goes_on
    place = (clock[rows], log.state[rows], log.action[rows])
    np.add.at(count, place, 1.0)
    np.add.at(sums, place, log.reward[rows])
    following = np.roll(log.state, -1, axis=1)[on]
    np.add.at(moves, (clock[on], log.state[on], log.action[on], following), 1.0)
    seen = np.maximum(count, 1.0)[..., None]
    return moves / seen, sums / seen


def clocked(log: TabularLog) -> TabularLog:
    """The same log with states t·S + s, which know the clock."""
    clock = np.arange(log.state.shape[1]) * log.states
    states = log.states * log.state.shape[1]
    return TabularLog(log.state + clock, log.action, log.reward, log.mask, states, log.actions)


def mwl_ratio(log: TabularLog, policy: Float[np.ndarray, "S A"], discount: Discount) -> Float[np.ndarray, "S A K"]:
    """Minimax weight learning in a table: how often the target policy takes a pair, by how often it was logged.

    The ζ(s, a) for which, with any f, Σ ζ (f(s, a) - γ f(s', π)) over the logged steps equals Σ f(s_0, π) over the
    first states: with a table for f the adversary is beaten exactly, by one linear solve in the states (of `clocked`
    logs where there is a horizon; a step that ends its episode has no s'). Visits are summed with γ^t, not averaged.
    Needs states that tell all that matters; of pairs never seen nothing is known and ζ is 0. Uehara, Huang and Jiang,
    "Minimax weight and Q-function learning for off-policy evaluation", ICML 2020.
    """
    if policy.shape != (log.states, log.actions):
        raise InputError(f"The policy must be [S,A] = {(log.states, log.actions)}, as the log; got {policy.shape}.")
    gamma = powers(discount, 2, log.reward.shape[-1])[1]
    count = np.zeros((log.states, log.actions))
    moves = np.zeros((log.states, log.actions, log.states))
    on = log.goes_on
    np.add.at(count, (log.state[log.mask], log.action[log.mask]), 1.0)
    np.add.at(moves, (log.state[on], log.action[on], np.roll(log.state, -1, axis=1)[on]), 1.0)
    start = np.bincount(log.state[:, 0], minlength=log.states)
    per_row = np.divide(policy, count, out=np.zeros_like(policy), where=count > 0)
    chain = np.einsum("sa,sat->st", per_row, moves)
    visits = np.stack([np.linalg.solve((np.eye(log.states) - g * chain).T, start) for g in gamma], axis=-1)
    return per_row[..., None] * visits[:, None]


def mwl(log: TabularLog, policy: Float[np.ndarray, "S A"], discount: Discount) -> Float[np.ndarray, "n K"]:
    """Σ_t ζ(s_t, a_t) r_t with the learned ratio; the discount is inside ζ. No propensities are needed."""
    ratio = mwl_ratio(log, policy, discount)
    return np.einsum("ntk,ntk->nk", ratio[log.state, log.action], log.reward)
