"""The trained team of a run, and environments to play it in."""

from __future__ import annotations

from typing import Any

from envs.core import Actor, ConcordError, InputError, VectorEnv
from marl.config.load import load_recipe
from marl.evaluation.environments import make_evaluation_env
from marl.output.console import in_words
from marl.training.policy_rows import take_policy
from marl.training.run import Run


class MisfitError(InputError):
    """Error where the learned parameters do not fit the networks that the config asks for."""


def load_policy(recipe: Any, run: Run, num_envs: int) -> tuple[Actor, VectorEnv]:
    """What is executed of a standard recipe's policy as it was saved, of several members the first, and environments.

    recipe: an `OnPolicyRecipe`.
    """
    env = make_evaluation_env(run.config, num_envs, run.device)
    policy = recipe.policy(run.config, env.spec, run.streams("policy", 1))
    saved, members = recipe.saved(run), recipe.members(run.config)
    policy.load_state_dict(take_policy(saved, 0, members) if members > 1 else saved)
    return recipe.executed(policy), env


def load_actor(run: Run, num_envs: int) -> tuple[Any, VectorEnv]:
    """The trained actor of a run and environments for it. Raises InputError where they do not fit together."""
    if type(num_envs) is not int or num_envs < 1:
        raise InputError(f"num_envs is how many environments to play in, a whole number from 1; got {num_envs!r}.")
    try:
        loaded: tuple[Actor, VectorEnv] = load_recipe(run.config.recipe).load(run, num_envs)
    except ConcordError:
        raise
    except Exception as error:
        raise MisfitError(
            f"The trained policy of {run.folder} does not fit this environment, or not these networks: "
            f"{in_words(error)} Leave env and policy as they were trained, or change only what keeps their sizes. A "
            "recipe that trains several members of a seed says how many in its hook `members(config)`."
        ) from error
    return loaded
