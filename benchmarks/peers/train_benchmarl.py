"""BenchMARL's MAPPO on vmas' or PettingZoo's simple_spread.

usage: train_benchmarl.py SECONDS vmas|pettingzoo ENVIRONMENTS STEPS
It says "Experiment failed and is closing gracefully" when its time is over.
"""

import contextlib
import sys
import tempfile

import torch
from benchmarl.algorithms import MappoConfig
from benchmarl.environments import PettingZooTask, VmasTask
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig
from settings import (
    CLIP,
    DISCOUNT,
    ENTROPY,
    EPISODE,
    EPOCHS,
    HIDDEN,
    LEARNING_RATE,
    MAX_GRADIENT,
    MINIBATCHES,
    TRACE,
    VALUE_WEIGHT,
    Meter,
)


class TimeIsOverError(Exception):
    """The only way to end an experiment early."""


class Measure(Callback):
    """Counts whole iterations (a rollout and its update), the first of which is warm-up."""

    def __init__(self, seconds: float, steps: int) -> None:
        super().__init__()
        self.seconds, self.steps, self.meter, self.updates = seconds, steps, Meter(), 0

    def on_train_end(self, training_td, group) -> None:
        self.updates += 1
        if self.updates == 1:
            self.meter.start()
            return
        self.meter.steps += self.steps
        if self.meter.wall_seconds > self.seconds:
            self.meter.report()
            raise TimeIsOverError


def experiment_config(environments: int, steps: int) -> ExperimentConfig:
    config = ExperimentConfig.get_from_yaml()
    config.on_policy_collected_frames_per_batch = environments * steps
    config.on_policy_n_envs_per_worker = environments
    config.on_policy_minibatch_size = environments * steps // MINIBATCHES
    config.on_policy_n_minibatch_iters = EPOCHS
    config.lr, config.gamma, config.clip_grad_val = LEARNING_RATE, DISCOUNT, MAX_GRADIENT
    config.prefer_continuous_actions = False
    config.max_n_frames, config.max_n_iters = None, sys.maxsize
    config.evaluation = config.render = config.create_json = False
    config.loggers = []
    config.save_folder = tempfile.mkdtemp()
    return config


def main(seconds: float, kind: str, environments: int, steps: int) -> None:
    torch.set_num_threads(1)
    if kind == "vmas":
        task = VmasTask.SIMPLE_SPREAD.get_from_yaml()
        task.config["max_steps"] = EPISODE
    else:
        task = PettingZooTask.SIMPLE_SPREAD.get_from_yaml()
        task.config["max_cycles"] = EPISODE
    algorithm = MappoConfig.get_from_yaml()
    algorithm.lmbda, algorithm.clip_epsilon = TRACE, CLIP
    algorithm.entropy_coef, algorithm.critic_coef = ENTROPY, VALUE_WEIGHT
    network = MlpConfig(num_cells=list(HIDDEN), activation_class=torch.nn.Tanh, layer_class=torch.nn.Linear)
    experiment = Experiment(
        task=task,
        algorithm_config=algorithm,
        model_config=network,
        critic_model_config=network,
        seed=0,
        config=experiment_config(environments, steps),
        callbacks=[Measure(seconds, environments * steps)],
    )
    with contextlib.suppress(TimeIsOverError):
        experiment.run()


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
