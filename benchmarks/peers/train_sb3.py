"""Stable-Baselines3's PPO on mpe2's simple_spread through SuperSuit: shared parameters, each agent its own critic.

usage: train_sb3.py SECONDS
"""

import sys

import supersuit
import torch
from mpe2 import simple_spread_v3
from settings import (
    AGENTS,
    CLIP,
    DISCOUNT,
    ENTROPY,
    ENVIRONMENTS,
    EPISODE,
    EPOCHS,
    HIDDEN,
    LEARNING_RATE,
    MAX_GRADIENT,
    MINIBATCHES,
    STEPS,
    TRACE,
    VALUE_WEIGHT,
    Meter,
)
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback


class Measure(BaseCallback):
    """Counts whole iterations (a rollout and its update), the first of which is warm-up."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.meter, self.iterations, self.over = seconds, Meter(), 0, False

    def _on_rollout_start(self) -> None:
        self.iterations += 1
        if self.iterations == 2:
            self.meter.start()
        elif self.iterations > 2:
            self.meter.steps += ENVIRONMENTS * STEPS
            self.over = self.meter.wall_seconds > self.seconds
            if self.over:
                self.meter.report()

    def _on_step(self) -> bool:
        return not self.over


def main(seconds: float) -> None:
    torch.set_num_threads(1)
    env = supersuit.pettingzoo_env_to_vec_env_v1(simple_spread_v3.parallel_env(N=AGENTS, max_cycles=EPISODE))
    env = supersuit.concat_vec_envs_v1(env, ENVIRONMENTS, num_cpus=0, base_class="stable_baselines3")
    learner = PPO(
        "MlpPolicy",
        env,
        n_steps=STEPS,
        batch_size=ENVIRONMENTS * AGENTS * STEPS // MINIBATCHES,
        n_epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        gamma=DISCOUNT,
        gae_lambda=TRACE,
        clip_range=CLIP,
        ent_coef=ENTROPY,
        vf_coef=VALUE_WEIGHT,
        max_grad_norm=MAX_GRADIENT,
        policy_kwargs={"net_arch": list(HIDDEN)},
        device="cpu",
    )
    learner.learn(sys.maxsize, callback=Measure(seconds))


if __name__ == "__main__":
    main(float(sys.argv[1]))
