"""mpe2's simple_spread, stepped with random actions: one raw environment, or SuperSuit's vector of them.

usage: step_mpe2.py SECONDS raw|supersuit ENVIRONMENTS
"""

import sys

import numpy as np
from mpe2 import simple_spread_v3
from settings import AGENTS, EPISODE, run_for


def main(seconds: float, kind: str, environments: int) -> None:
    actions = np.random.default_rng(0).integers(0, 5, (EPISODE, environments * AGENTS))
    env = simple_spread_v3.parallel_env(N=AGENTS, max_cycles=EPISODE)
    if kind == "raw":
        joint = [dict(zip(env.possible_agents, map(int, action))) for action in actions]

        def episode() -> int:
            env.reset()
            for action in joint:
                env.step(action)
            return EPISODE

        run_for(seconds, episode)
        return
    import supersuit

    rows = supersuit.concat_vec_envs_v1(
        supersuit.pettingzoo_env_to_vec_env_v1(env), environments, num_cpus=0, base_class="gymnasium"
    )
    rows.reset(seed=0)

    def steps() -> int:
        for action in actions:
            rows.step(action)
        return EPISODE * environments

    run_for(seconds, steps)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
