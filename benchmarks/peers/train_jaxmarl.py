"""JaxMARL's own IPPO, baselines/IPPO/ippo_ff_mpe.py of a clone of its repository. XLA may use every core.

usage: JAXMARL=CLONE train_jaxmarl.py SECONDS
Its networks are 2x64; actor and critic each see one agent's observation. Whole trainings of 50 updates are repeated,
the first of which, with the compilation, is warm-up.
"""

import importlib.util
import itertools
import os
import sys
from pathlib import Path
from types import ModuleType

import jax
import wandb
from settings import (
    CLIP,
    DISCOUNT,
    ENTROPY,
    ENVIRONMENTS,
    EPOCHS,
    LEARNING_RATE,
    MAX_GRADIENT,
    MINIBATCHES,
    STEPS,
    TRACE,
    VALUE_WEIGHT,
    run_for,
)

TOTAL = 50 * ENVIRONMENTS * STEPS


def baseline() -> ModuleType:
    """The script as a module."""
    clone = os.environ.get("JAXMARL")
    if clone is None:
        raise SystemExit("Set JAXMARL to a clone of JaxMARL's repository: its training scripts are not in its package.")
    spec = importlib.util.spec_from_file_location("ippo", Path(clone) / "baselines" / "IPPO" / "ippo_ff_mpe.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(seconds: float) -> None:
    wandb.init(mode="disabled")  # the script logs every update
    config = {
        "ENV_NAME": "MPE_simple_spread_v3",
        "ENV_KWARGS": {},
        "NUM_ENVS": ENVIRONMENTS,
        "NUM_STEPS": STEPS,
        "TOTAL_TIMESTEPS": TOTAL,
        "UPDATE_EPOCHS": EPOCHS,
        "NUM_MINIBATCHES": MINIBATCHES,
        "LR": LEARNING_RATE,
        "ANNEAL_LR": False,
        "GAMMA": DISCOUNT,
        "GAE_LAMBDA": TRACE,
        "CLIP_EPS": CLIP,
        "ENT_COEF": ENTROPY,
        "VF_COEF": VALUE_WEIGHT,
        "MAX_GRAD_NORM": MAX_GRADIENT,
        "ACTIVATION": "tanh",
    }
    train = jax.jit(baseline().make_train(config))
    seeds = itertools.count()

    def work() -> int:
        jax.block_until_ready(train(jax.random.PRNGKey(next(seeds))))
        return TOTAL

    run_for(seconds, work)


if __name__ == "__main__":
    main(float(sys.argv[1]))
