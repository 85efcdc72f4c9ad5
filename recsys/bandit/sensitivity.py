"""Sensitivity to wrong propensities: bounds of SNIPS under the marginal sensitivity model.

The model lets the true propensity p_i of the shown action have odds within [1/Λ, Λ] times the nominal ones, so
1/p_i lies in [1 + (1/e_i - 1)/Λ, 1 + Λ (1/e_i - 1)]. Σ π_e r / p over Σ π_e / p is largest with the upper end for
rewards above a threshold and the lower end below: all thresholds are tried, after sorting. Sharp for the rows at hand;
knowing in addition that weights average 1 in every context could only narrow it. (Tan, JASA 2006; sorted solution:
Zhao, Small and Bhattacharya, JRSS B 2019; policies: Kallus and Zhou, NeurIPS 2018; sharper: Dorn and Guo, JASA 2023.)

Axes: n rows, K signals, G groups of rows with one reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from envs.core import InputError
from recsys.bandit.scan import in_order
from recsys.logs.log import Chunk, Log
from recsys.policies.base import Policy

KEPT_BITS = 15  # significant binary digits of a reward by which rows are grouped


@dataclass(frozen=True)
class Groups:
    """Rows by their reward: Σ π_e and Σ π_e (1/e - 1) of each group, and both times the reward.

    With these a bound at any Λ takes no further scan. Rewards are grouped by their first `KEPT_BITS` binary digits:
    counts up to 32,768 stay apart and their bounds are exact. Else the one group that the threshold cuts is not cut, so
    a range may be too narrow, by less than 1/16,384 of the threshold times that group's share of the weight.
    """

    key: Int[np.ndarray, " G"]
    sums: Float[np.ndarray, "4 G"]

    @classmethod
    def of(
        cls,
        reward: Float[np.ndarray, " n"],
        target: Float[np.ndarray, " n"],
        propensity: Float[np.ndarray, " n"],
        bits: int = KEPT_BITS,
    ) -> Groups:
        """The groups of some rows; `target` is π_e of the logged action, as often as the row counts."""
        shifted = (reward + 0.0).view(np.int64) >> (53 - bits)  # + 0.0: there is but one zero
        key, group = np.unique(shifted, return_inverse=True)
        rest = target * (1 / propensity - 1)
        columns = (target, rest, target * reward, rest * reward)
        return cls(key, np.stack([np.bincount(group, column, len(key)) for column in columns]))

    def __add__(self, later: Groups) -> Groups:
        """Of two chunks together; added in the order of chunks, the bits never depend on who scanned them."""
        key, group = np.unique(np.concatenate([self.key, later.key]), return_inverse=True)
        both = np.concatenate([self.sums, later.sums], axis=1)
        return Groups(key, np.stack([np.bincount(group, column, len(key)) for column in both]))

    def bounds(self, odds: int | float) -> tuple[float, float]:
        """The least and the largest SNIPS estimate at Λ = `odds`. Raises InputError where nothing has any weight."""
        target, rest, target_worth, rest_worth = self.sums
        ends = [(target + rest * x, target_worth + rest_worth * x) for x in (1 / odds, odds)]
        if ends[1][0].sum() <= 0:
            raise InputError("The target policy chose none of the logged actions: there is no estimate to bound.")
        mean = target_worth / np.where(target > 0, target, 1)
        order = np.argsort(mean, kind="stable")
        (few, few_worth), (many, many_worth) = [(w[order], worth[order]) for w, worth in ends]
        high = _best(few, few_worth, many, many_worth)
        low = -_best(few[::-1], -few_worth[::-1], many[::-1], -many_worth[::-1])
        return low, high

    def breaking_odds(self, threshold: float, most: int | float = 100) -> float:
        """The least `odds` at which the estimate reaches a threshold; inf beyond `most`."""
        from scipy import optimize

        def gap(odds: int | float) -> float:
            low, high = self.bounds(odds)
            return max(low - threshold, threshold - high)

        if gap(1) <= 0:
            return 1.0
        return math.inf if gap(most) > 0 else float(optimize.brentq(gap, 1, most, xtol=1e-9))


def sensitivity_bounds(
    reward: Float[np.ndarray, "n K"],
    target: Float[np.ndarray, " n"],
    propensity: Float[np.ndarray, " n"],
    odds: int | float,
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """The least and the largest SNIPS estimate if propensities are wrong by up to the factor `odds` in their odds.

    Exact. Raises InputError for odds below 1, propensities outside of (0, 1], or a policy that shares no action.
    """
    if odds < 1 or (propensity <= 0).any() or (propensity > 1).any():
        raise InputError(f"The factor on odds is at least 1 and propensities lie in (0, 1]; got a factor of {odds}.")
    ranges = [Groups.of(column, target, propensity, 53).bounds(odds) for column in reward.T]
    return np.array([low for low, _ in ranges]), np.array([high for _, high in ranges])


def breaking_odds(
    reward: Float[np.ndarray, " n"],
    target: Float[np.ndarray, " n"],
    propensity: Float[np.ndarray, " n"],
    threshold: float,
    most: int | float = 100,
) -> float:
    """The least odds at which the bounds of SNIPS reach a threshold; inf beyond `most`."""
    return Groups.of(reward, target, propensity, 53).breaking_odds(threshold, most)


def scanned(log: Log, policies: Sequence[Policy], workers: int = 1) -> dict[tuple[str, str], Groups]:
    """The groups of a whole log by policy and signal, in one scan."""

    def work(rows: Chunk) -> dict[tuple[str, str], Groups]:
        by_name = {}
        for policy in policies:
            target = rows.counted(policy.probability(rows))
            for signal, reward in zip(log.signals, rows.reward.T, strict=True):
                by_name[policy.name, signal] = Groups.of(np.ascontiguousarray(reward), target, rows.propensity)
        return by_name

    total: dict[tuple[str, str], Groups] = {}
    for part in in_order(work, log.chunks(), workers):
        total = {name: total[name] + groups if name in total else groups for name, groups in part.items()}
    return total


def _best(few: np.ndarray, few_worth: np.ndarray, many: np.ndarray, many_worth: np.ndarray) -> float:
    """The largest Σ worth / Σ weight of groups sorted by reward: those below a threshold count `few`, others `many`."""
    below, above = np.append(0, np.cumsum(few)), np.append(np.cumsum(many[::-1])[::-1], 0)
    worth = np.append(0, np.cumsum(few_worth)) + np.append(np.cumsum(many_worth[::-1])[::-1], 0)
    total = below + above
    return float((worth[total > 0] / total[total > 0]).max())
