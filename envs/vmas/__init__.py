"""Tasks of VMAS, the vectorized multi-agent simulator, as a `VectorEnv`.

VMAS is licensed under the GPL, version 3. It is an optional extra, `pip install "concord-rl[vmas]"`: nothing of it is
part of Concord, and it is imported only when such an environment is made, by `scenarios.find`.
Source: Bettini et al., "VMAS: A Vectorized Multi-Agent Simulator for Collective Robot Learning", DARS 2022
(arXiv 2207.03530).
"""

from envs.vmas.vector import VmasEnv

__all__ = ["VmasEnv"]
