"""Small games whose best values are known exactly: what a learner of joint decisions must reach, and cannot exceed.

Every game answers `optimal_value(graph)`: the best expected team return of a joint policy that factorizes along a
directed acyclic graph over the agents, π(a | o) = Π_i π_i(a_i | o_i, a_parents(i)). An edge (i, j) says that agent j
sees the action that agent i has sampled before j acts. Agents share no other randomness. `entropic_value(game, graph,
temperature)` is the best of reward and entropy together, in games with a table of payoffs.
"""

from envs.games.budget import BudgetGame
from envs.games.dec_tiger import DecTiger
from envs.games.diagnostics import Constant, Identity
from envs.games.entropic import chain, disagreement, entropic_value, frustrated_triangle
from envs.games.one_shot import CopyGame, MatrixGame, OneShot, WhoIsInformed, climbing, coordination, penalty
from envs.games.permutation import PermutationGame, xor
from envs.games.repeated import CoordinationGame

__all__ = [
    "BudgetGame",
    "Constant",
    "CoordinationGame",
    "CopyGame",
    "DecTiger",
    "Identity",
    "MatrixGame",
    "OneShot",
    "PermutationGame",
    "WhoIsInformed",
    "chain",
    "climbing",
    "coordination",
    "disagreement",
    "entropic_value",
    "frustrated_triangle",
    "penalty",
    "xor",
]
