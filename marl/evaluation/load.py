"""The trained team of a run, and environments to play it in."""

from __future__ import annotations

from typing import Any

from envs.core import Actor, ConcordError, InputError, VectorEnv
from marl.config.load import load_recipe
from marl.output.console import in_words
from marl.training.run import Run


class MisfitError(InputError):
    """Error where the learned parameters do not fit the networks that the config asks for."""


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
