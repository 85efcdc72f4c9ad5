"""TSCAC in tables, with exact values: its fixed point, and dual ascent that holds thresholds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from recsys.problems.decision_process import DecisionProcess
from recsys.tscac.closed_form import tied

ROUNDS = 20_000
STILL = 1e-13  # total variation between two policies in turn
TINY = 1e-12  # span of a signal that no policy moves
DAMPING = 0.5  # share of the old policy in the new one
HOLDS = 1e-7  # of the span: a smaller shortfall is none
RATE, MOST, LEAST = 0.3, 30.0, 1e-4  # first, largest and least step of multipliers, the last of policies too
SHORTER, LONGER = 0.5, 1.1


def fixed_point(
    process: DecisionProcess, base: Float[Tensor, "P S A"], temperature: Float[Tensor, " P"]
) -> Float[Tensor, "P S A"]:
    """P policies, each the `tied` of its own exact advantage of signal 0.

    The advantage is that of the policy without regularization, so this is not the optimum of a regularized return.
    """
    scale = temperature.view(-1, 1, 1)
    policy = base.softmax(-1)
    for _ in range(ROUNDS):
        advantage, _ = process.advantage(policy)
        latest = tied(base, advantage[..., 0], scale).log_probs.exp()
        moved = (latest - policy).abs().sum(-1).max() / 2
        policy = DAMPING * policy + (1 - DAMPING) * latest
        if moved < STILL:
            break
    return policy


class Held(NamedTuple):
    """Policies by dual ascent, their multipliers in units of the main goal for one of the signal, and rounds."""

    policy: Float[Tensor, "P S A"]
    multipliers: Float[Tensor, "P m"]
    rounds: int


def dual_ascent(
    process: DecisionProcess,
    base: Float[Tensor, "P S A"],
    temperature: float,
    thresholds: Float[Tensor, "P m"],
    span: Float[Tensor, " K"],
    tolerance: float = 1e-9,
    rounds: int = ROUNDS,
) -> Held:
    """P policies π ∝ exp(base + (A_0 + Σ_i μ_i A_i)/Λ) whose returns are at least the thresholds.

    μ_i <- [μ_i - η_i (V_i - C_i)]_+ in turn with the policy, until nothing moves by more than the tolerance, or for so
    many rounds. span: the range that returns of a signal can have, the unit of shortfalls. Steps of both grow while
    they go one way and shrink when they turn back, each μ by itself (Riedmiller and Braun, ICNN 1993): near Λ = 0 the
    policy that a multiplier makes jumps, and rounds that do not settle are left with the best of those that held, or
    the nearest to it.
    """
    exchange = span[0] / span[1:].clamp(min=TINY)  # of an auxiliary's span in units of the main goal
    rate, share = torch.full_like(thresholds, RATE), torch.full_like(base[:, :1, :1], DAMPING)
    policy, multipliers = base.softmax(-1), torch.zeros_like(thresholds)
    last_over, last_move = torch.zeros_like(thresholds), torch.zeros_like(base)
    best, done = None, 0
    while done < rounds:
        done += 1
        advantage, returns = process.advantage(policy)
        over = torch.where(span[1:] > TINY, (returns[..., 1:] - thresholds) / span[1:].clamp(min=TINY), 0.0)
        best = _better_of(best, _Iterate(policy, multipliers, returns[..., 0] / span[0].clamp(min=TINY), over))
        rate = adapted(rate, over * last_over, MOST)
        free = (multipliers - rate * exchange * over).clamp(min=0.0)
        worth = torch.cat([torch.ones_like(free[..., :1]), free], -1)
        latest = tied(base, torch.einsum("psak,pk->psa", advantage, worth), temperature).log_probs.exp()
        move = latest - policy
        share = adapted(share, (move * last_move).sum((1, 2), keepdim=True), DAMPING)
        idle = (free == 0) & (multipliers == 0)
        unmet = torch.where(idle, (-over).clamp(min=0.0), over.abs())
        policy, multipliers, last_over, last_move = policy + share * move, free, over, move
        if max(float(move.abs().sum(-1).max()) / 2, float(unmet.max())) < tolerance:
            break
    assert best is not None
    return Held(best.policy, best.multipliers, done)


class _Iterate(NamedTuple):
    policy: Float[Tensor, "P S A"]
    multipliers: Float[Tensor, "P m"]
    main: Float[Tensor, " P"]
    over: Float[Tensor, "P m"]

    @property
    def merit(self) -> Float[Tensor, " P"]:
        """The main return of what holds; below all of these the shortfall of what does not."""
        short = (-self.over).max(-1).values
        return torch.where(short <= HOLDS, self.main, -short / HOLDS)


def _better_of(best: _Iterate | None, latest: _Iterate) -> _Iterate:
    """Policy by policy, the latest unless the other is better by more than rounding."""
    if best is None:
        return latest
    keep = best.merit > latest.merit + HOLDS
    chosen = [torch.where(keep.view(-1, *[1] * (x.dim() - 1)), x, y) for x, y in zip(best, latest, strict=True)]
    return _Iterate(*chosen)


def adapted(step: Tensor, agreement: Tensor, most: float) -> Tensor:
    """Steps a little longer where the last two went one way, half as long where they turned back."""
    return torch.where(agreement < 0, step * SHORTER, step * LONGER).clamp(LEAST, most)
