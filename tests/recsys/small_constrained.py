"""Constrained decision processes at random, of every size of threshold."""

from __future__ import annotations

import numpy as np
import torch

from recsys.problems.constrained import ConstrainedProblem
from recsys.problems.decision_process import DecisionProcess


def random_problem(seed: int, share: float = 0.7) -> ConstrainedProblem:
    """Five states, four actions, three signals; thresholds at a share of the way from the least to the largest."""
    rng = np.random.default_rng(seed)
    process = DecisionProcess(
        transition=torch.from_numpy(rng.dirichlet(np.ones(5), size=(5, 4))),
        reward=torch.from_numpy(rng.random((5, 4, 3)) ** 2),
        start=torch.from_numpy(rng.dirichlet(np.ones(5))),
        discount=0.9,
    )
    problem = ConstrainedProblem(process, torch.zeros(2, dtype=torch.float64))
    low, high = problem.least()[1:], problem.largest()[1:]
    return ConstrainedProblem(process, low + share * (high - low))
