"""Both ways between worlds: any PettingZoo environment as a `VectorEnv`, any `World` as a PettingZoo `ParallelEnv`.

PettingZoo to tensors, from the inside out: `interfaces` plays one environment, parallel or AEC, in one way; `spaces`
turns observations into numbers and numbers into actions; `layout` finds what an environment needs and where it lies
in one piece of memory; `rows` plays several environments into that memory, `workers` does so in other processes;
`episodes` keeps what is needed to resume; `vector` hands the memory out as tensors; and `spec` says what agents see
and do without playing. The way back is `export`.

Workers import only the first five, and no torch, to start quickly; that is why the names below come lazily.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.pettingzoo.export import ParallelWorld, parallel_env
    from envs.pettingzoo.vector import PettingZooEnv

__all__ = ["ParallelWorld", "PettingZooEnv", "parallel_env"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "PettingZooEnv":
        from envs.pettingzoo.vector import PettingZooEnv

        return PettingZooEnv
    from envs.pettingzoo import export

    return getattr(export, name)
