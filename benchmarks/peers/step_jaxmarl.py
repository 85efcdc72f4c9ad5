"""JaxMARL's simple_spread, compiled, with random actions and automatic resets. XLA may use every core.

usage: step_jaxmarl.py SECONDS ENVIRONMENTS
"""

import sys

import jax
import jaxmarl
from settings import EPISODE, run_for

ROLLOUT = 4 * EPISODE


def main(seconds: float, environments: int) -> None:
    env = jaxmarl.make("MPE_simple_spread_v3")
    choices = {agent: env.action_space(agent).n for agent in env.agents}

    def step(carry, key):
        key_action, key_step = jax.random.split(key)
        keys = jax.random.split(key_action, len(choices))
        action = {a: jax.random.randint(k, (environments,), 0, n) for k, (a, n) in zip(keys, choices.items())}
        keys = jax.random.split(key_step, environments)
        obs, state, reward, _, _ = jax.vmap(env.step)(keys, carry, action)
        # Everything computed must be used, or XLA leaves it out.
        return state, sum(x.sum() for x in jax.tree.leaves((obs, reward)))

    @jax.jit
    def rollout(state, key):
        state, sums = jax.lax.scan(step, state, jax.random.split(key, ROLLOUT))
        return state, sums.sum()

    _, start = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), environments))
    now = {"state": start, "key": jax.random.key(1)}

    def work() -> int:
        now["key"], key = jax.random.split(now["key"])
        now["state"], total = rollout(now["state"], key)
        total.block_until_ready()
        return ROLLOUT * environments

    run_for(seconds, work)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
