"""vmas' own simple_spread, stepped with random actions. Not the same task as mpe2's, but of the same size.

usage: step_vmas.py SECONDS ENVIRONMENTS
"""

import sys

import torch
import vmas
from settings import AGENTS, EPISODE, run_for


def main(seconds: float, environments: int) -> None:
    torch.set_num_threads(1)
    env = vmas.make_env("simple_spread", num_envs=environments, device="cpu", continuous_actions=False, seed=0)
    actions = torch.randint(5, (EPISODE, AGENTS, environments, 1))

    def episode() -> int:
        with torch.no_grad():
            env.reset()
            for action in actions:
                env.step(list(action))
        return EPISODE * environments

    run_for(seconds, episode)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
